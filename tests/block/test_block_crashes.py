"""A process killed while it writes or repairs blocks: what is recorded is whole, and the rest can be done again."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.block.small_volume import BLOCK_BYTES, SmallVolume
from tieredfs.host import crash
from tieredfs.testing.chunk_suite import pattern

CHILD = """
import pickle, sys
from pathlib import Path
sys.path[:0] = {path!r}
from tests.block.small_volume import BLOCK_BYTES, SmallVolume
from tieredfs.testing.chunk_suite import pattern
root = Path({root!r})
volume = SmallVolume(root)
{action}
"""
WRITE = "volume.store(pattern(BLOCK_BYTES))"
REPAIR = """
block = pickle.loads((root / "block").read_bytes())
volume.metadata.blocks_by_id[block.block] = block
volume.blocks.repair(block)
"""


def killed_at(point: str, root: Path, action: str) -> None:
    source = CHILD.format(path=sys.path, root=str(root), action=action)
    environment = {**os.environ, crash.ENVIRONMENT: point}
    child = subprocess.run([sys.executable, "-c", source], env=environment, timeout=60, check=False)
    assert child.returncode == -9, "the crash happened"


def test_chunks_of_a_block_that_was_never_committed_are_whole_and_nameless(tmp_path: Path) -> None:
    killed_at("block.chunks-written", tmp_path, WRITE)
    volume = SmallVolume(tmp_path)
    names = volume.all_chunk_names()
    assert len(names) == 6, "for garbage collection to find"
    for disk, name in names:
        info = volume.stores[disk].inner.info(name)
        volume.stores[disk].inner.read_into(name, 0, memoryview(bytearray(info.payload_bytes)))
    volume.close()


@pytest.mark.parametrize("point", ["chunk.written", "rebuild.chunk-written", "rebuild.committed"])
def test_a_repair_that_was_killed_can_be_repeated(tmp_path: Path, point: str) -> None:
    volume = SmallVolume(tmp_path)
    block = volume.store(pattern(BLOCK_BYTES))
    before = volume.chunk_files(block)
    (tmp_path / "block").write_bytes(pickle.dumps(block))
    volume.lose(block, 1, 4)
    volume.close()
    killed_at(point, tmp_path, REPAIR)
    again = SmallVolume(tmp_path)
    again.metadata.blocks_by_id[block.block] = block
    assert again.read(block) == pattern(BLOCK_BYTES)
    assert again.blocks.check(block) == ([1, 4] if point == "chunk.written" else [4])
    again.blocks.repair(block)
    assert again.chunk_files(block) == before
    again.close()
