"""Processes of one machine that want the same content: fetched once, read where it is, whoever dies or evicts."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tieredfs.block.store import BlockStore
from tieredfs.cache.borrow import fill_turn
from tieredfs.config import parse_code
from tieredfs.host import crash
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
SIZE = 24 << 20
READER = """
import sys
from tieredfs.volume import FileSystem
with FileSystem.at(sys.argv[1], purpose="reader") as volume, volume.open(b"big") as reading:
    print(reading.read_into(0, memoryview(bytearray(1 << 25))))
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A volume with one stored file that is on no SSD."""
    url = f"sqlite://{tmp_path}/volume.db"
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 << 20)
    with FileSystem.at(url, purpose="test") as volume:
        with volume.create() as writing:
            os.pwrite(writing.descriptor, content(), 0)
            inode = writing.commit(b"big", durability=Durability.STORE).inode
        volume.flush(60)
        assert volume._tier.evict(inode)
    return url


def content() -> bytes:
    return b"".join(number.to_bytes(4, "big") * 1024 for number in range(SIZE // 4096))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What blocks were asked for, by this process, in bytes."""
    found: list[int] = []
    reading = BlockStore.reading

    def counting(
        self: BlockStore, block: Any, offset: int, length: int, loans: Any, timeout_s: float
    ) -> AbstractContextManager[memoryview]:
        found.append(length)
        return reading(self, block, offset, length, loans, timeout_s)

    monkeypatch.setattr(BlockStore, "reading", counting)
    return found


def read(volume: FileSystem) -> bytes:
    data = bytearray(SIZE)
    with volume.open(b"big") as reading:
        assert reading.read_into(0, memoryview(data)) == SIZE
    return bytes(data)


def test_each_byte_is_fetched_once_for_all(url: str, fetched: list[int]) -> None:
    volumes = [FileSystem.at(url, purpose=f"reader {number}") for number in range(6)]
    wrong: list[int] = []

    def check(volume: FileSystem) -> None:
        if read(volume) != content():
            wrong.append(1)

    try:
        threads = [threading.Thread(target=check, args=(volume,)) for volume in volumes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert sum(fetched) == SIZE
    finally:
        for volume in volumes:
            volume.close()


def test_a_copy_outlives_its_eviction_for_who_has_it_open(url: str, fetched: list[int]) -> None:
    with FileSystem.at(url, purpose="owner") as owner, FileSystem.at(url, purpose="reader") as reader:
        inode = owner.stat(b"big").inode
        assert read(owner) == content()
        data = bytearray(SIZE)
        with reader.open(b"big") as reading:
            assert reading.descriptor is not None, "at once, without a fill"
            assert owner._tier.evict(inode)
            assert reading.read_into(0, memoryview(data)) == SIZE
        assert bytes(data) == content()
        assert sum(fetched) == SIZE
        assert read(reader) == content()
        assert sum(fetched) == 2 * SIZE, "the next one fetches it"


def test_a_copy_of_a_process_that_is_gone_is_read(url: str, fetched: list[int]) -> None:
    with FileSystem.at(url, purpose="reader"):  # keeps the first slot, so that the copy is in the second
        process = subprocess.run(
            [sys.executable, "-c", READER, url], cwd=ROOT, capture_output=True, timeout=60, check=False
        )
        assert process.stdout.strip() == b"%d" % SIZE, process.stderr
        with FileSystem.at(url, purpose="owner", cache_dir=f"{Path(url[9:]).parent}/own") as volume:
            assert read(volume) == content()
    assert sum(fetched) == 0


def test_a_process_that_dies_while_it_fetches_is_replaced(url: str, fetched: list[int]) -> None:
    environment = dict(os.environ) | {crash.ENVIRONMENT: "fill.part-written"}
    process = subprocess.run([sys.executable, "-c", READER, url], cwd=ROOT, env=environment, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    with FileSystem.at(url, purpose="reader", cache_dir=f"{Path(url[9:]).parent}/own") as volume:
        assert read(volume) == content()
    assert sum(fetched) == SIZE


def test_who_warms_has_a_copy_of_its_own(url: str, fetched: list[int]) -> None:
    with FileSystem.at(url, purpose="one") as one, FileSystem.at(url, purpose="two") as two:
        inode = one.stat(b"big").inode
        assert read(one) == content()
        two._tier.warm(inode, pin=True)
        assert sum(fetched) == 2 * SIZE
        assert two._tier.resident_bytes() >= SIZE


def test_a_turn_is_one_processes_at_a_time() -> None:
    first = fill_turn("a-volume", 7, 1)  # type: ignore[arg-type]
    assert first is not None
    assert fill_turn("a-volume", 7, 1) is None  # type: ignore[arg-type]
    other = fill_turn("a-volume", 7, 2)  # type: ignore[arg-type]
    assert other is not None
    first.close()
    again = fill_turn("a-volume", 7, 1)  # type: ignore[arg-type]
    assert again is not None
    again.close()
    other.close()
