"""Whole programs over a volume mounted by the kernel driver; and what they made, once it comes back from the store."""

import importlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mount import volumes
from tieredfs.testing import program_suite
from tieredfs.testing.features import children, finish
from tieredfs.testing.program_suite import SOURCES, describe, make_tree, needs_library, needs_program, run


class TestTools(program_suite.ToolSuite):
    pass


class TestTensors(program_suite.TensorSuite):
    pass


def empty_the_ssd(lab: volumes.Lab) -> None:
    """Everything is stored, and nothing of it is on the SSD any more (so neither in the page cache of its files)."""

    def all_is_stored() -> bool:
        lab.ask("drain")  # which a file that is still open does not hold up
        return bool(lab.ask("info", path="")["staged_files"] == 0)

    volumes.wait_until(all_is_stored, "the kernel has released what programs closed")
    done = lab.json("evict", str(lab.mnt))
    assert done["kept"] == 0
    assert done["evicted"] > 0
    sums = lab.ask("info", path="")
    assert (sums["staged_files"], sums["resident_files"]) == (0, 0)


def git(*arguments: str | Path, cwd: Path) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    return run("git", *identity, "-c", "safe.directory=*", *arguments, cwd=cwd)


def test_trees_and_repositories_come_back_from_the_store(lab: volumes.Lab, tmp_path: Path) -> None:
    needs_program("cp", "tar", "git", "diff")
    lab.format()
    lab.mount()
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    (tmp_path / "tree/fifo").unlink()  # diff would wait for it
    run("cp", "-a", tmp_path / "tree", lab.mnt / "tree", cwd=tmp_path)
    run("tar", "-cf", lab.mnt / "archive.tar", "-C", tmp_path / "tree", ".", cwd=tmp_path)
    (tmp_path / "origin").mkdir()
    git("init", cwd=tmp_path / "origin")
    for name, text in SOURCES.items():
        (tmp_path / "origin" / name).write_text(text)
    git("add", ".", cwd=tmp_path / "origin")
    git("commit", "-m", "first", cwd=tmp_path / "origin")
    git("clone", tmp_path / "origin", lab.mnt / "clone", cwd=tmp_path)
    empty_the_ssd(lab)
    assert describe(lab.mnt / "tree") == describe(tmp_path / "tree")
    run("diff", "-r", "--no-dereference", lab.mnt / "tree", tmp_path / "tree", cwd=tmp_path)
    run("tar", "-df", lab.mnt / "archive.tar", "-C", lab.mnt / "tree", cwd=tmp_path)
    git("fsck", "--full", "--strict", cwd=lab.mnt / "clone")
    assert git("status", "--porcelain", cwd=lab.mnt / "clone") == ""
    git("pull", cwd=lab.mnt / "clone")


def test_rsync_copies_nothing_after_the_way_through_the_store(lab: volumes.Lab, tmp_path: Path) -> None:
    needs_program("rsync")
    lab.format()
    lab.mount()
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    command = ("rsync", "-aHS", "--itemize-changes", f"{tmp_path}/tree/", f"{lab.mnt}/copy/")
    run(*command, cwd=tmp_path)
    empty_the_ssd(lab)
    assert run(*command, cwd=tmp_path) == ""
    assert lab.ask("info", path="copy")["resident_files"] == 0, "it did not even read them"
    assert run(*command[:2], "--checksum", *command[2:], cwd=tmp_path) == ""


def test_a_database_goes_on_after_the_way_through_the_store(lab: volumes.Lab) -> None:
    lab.format()
    lab.mount()
    rows = 0
    for _ in range(2):
        database = sqlite3.connect(lab.mnt / "db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE IF NOT EXISTS rows (writer TEXT, number INTEGER, payload BLOB)")
        database.execute("CREATE TABLE IF NOT EXISTS total (count INTEGER)")
        if rows == 0:
            database.execute("INSERT INTO total VALUES (0)")
        database.close()
        commands = [[sys.executable, "-c", program_suite.SQLITE_WRITER, name] for name in "abcd"]
        with children(commands, lab.mnt) as running:
            lab.ask("drain")  # while they write
            finish(running)
        rows += 160
        empty_the_ssd(lab)
        database = sqlite3.connect(lab.mnt / "db", isolation_level=None)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT (SELECT count FROM total), (SELECT count(*) FROM rows)").fetchone() == (
            rows,
            rows,
        )
        database.close()


MAPPED_LOADER = """
import hashlib, sys, torch
found = torch.load(sys.argv[1], mmap=True, weights_only=True)
digest = hashlib.sha256()
for name in sorted(found):
    digest.update(found[name].numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_of_every_kind_come_back_from_the_store(lab: volumes.Lab) -> None:
    needs_library("torch", "numpy", "safetensors")
    torch: Any = importlib.import_module("torch")
    library = importlib.import_module("safetensors.torch")
    checkpoint = importlib.import_module("torch.distributed.checkpoint")
    lab.format()
    lab.mount()
    torch.manual_seed(3)
    tensors = {f"layer{number}": torch.randn(512, 700) for number in range(8)}
    torch.save(tensors, lab.mnt / "model.pt")
    library.save_file(tensors, lab.mnt / "model.safetensors")
    checkpoint.save(tensors, storage_writer=checkpoint.FileSystemWriter(lab.mnt / "step", thread_count=2))
    empty_the_ssd(lab)
    command = [sys.executable, "-c", MAPPED_LOADER, str(lab.mnt / "model.pt")]
    with children([command] * 2, lab.mnt) as running:
        digests = set(finish(running))
    (lab.root / "plain.pt").write_bytes((lab.mnt / "model.pt").read_bytes())
    plain = subprocess.run(
        [*command[:3], str(lab.root / "plain.pt")], capture_output=True, text=True, check=True, timeout=60
    )
    assert digests == {plain.stdout}
    assert program_suite._same(torch.load(lab.mnt / "model.pt"), tensors)
    assert program_suite._same(library.load_file(lab.mnt / "model.safetensors"), tensors)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.load(loaded, storage_reader=checkpoint.FileSystemReader(lab.mnt / "step"))
    assert program_suite._same(loaded, tensors)


def test_shared_memory_of_torch_outlives_its_descriptor(lab: volumes.Lab) -> None:
    """`from_file(shared=True)` maps, closes, and writes through the mapping for as long as the tensor lives."""
    needs_library("torch")
    torch: Any = importlib.import_module("torch")
    lab.format()
    lab.mount()
    path = lab.mnt / "shared"
    path.write_bytes(bytes(4 * 100_000))
    tensor = torch.from_file(str(path), shared=True, size=100_000, dtype=torch.int32)
    tensor[:50_000] = 7
    lab.ask("drain")
    tensor[50_000:] = 9
    assert lab.ask("evict", paths=["shared"])["kept"] == 1, "it can still be written to"
    assert lab.ask("info", path="shared")["state"] == "staged"
    del tensor
    empty_the_ssd(lab)
    again = torch.from_file(str(path), shared=False, size=100_000, dtype=torch.int32)
    assert int(again.sum()) == 50_000 * 16
    assert os.path.getsize(path) == 400_000
