"""Dumps in a directory: the shipped conformance suite, and what only a directory can do."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tieredfs.chunk.directory import DiskIdentity, format_disk, give_to_volume
from tieredfs.chunk.disk import open_directory
from tieredfs.chunk.disk_dumps import DiskDumps
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.errors import CorruptError, NoSpaceError, NotFoundError, UnavailableError
from tieredfs.host import local_host
from tieredfs.testing.chunk_faults import FaultyFiles
from tieredfs.testing.dump_suite import TAKEN_NS, DumpShelfSuite, content, put, read

IDENTITY = DiskIdentity("volume-1", "disk-1")


class TestDiskDumpsConform(DumpShelfSuite):
    def new_shelf(self, folder: Path) -> DumpShelf:
        self.root = folder / "d"
        format_disk(local_host(), str(self.root), IDENTITY)
        return open_directory(str(self.root), IDENTITY, local_host()).dumps

    def raw(self, shelf: DumpShelf, name: str) -> bytes | None:
        path = self.root / "metadata" / name
        return path.read_bytes() if path.exists() else None

    def set_raw(self, shelf: DumpShelf, name: str, raw: bytes | None) -> None:
        path = self.root / "metadata" / name
        path.unlink(missing_ok=True)
        if raw is not None:
            path.write_bytes(raw)

    def give_away(self, shelf: DumpShelf) -> None:
        give_to_volume(local_host().files, str(self.root), DiskIdentity("volume-2", "disk-1"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    format_disk(local_host(), str(tmp_path / "d"), IDENTITY)
    return tmp_path / "d"


def test_pieces_that_come_one_by_one(root: Path) -> None:
    shelf = DiskDumps(str(root), local_host(), IDENTITY)
    with pytest.raises(NotFoundError):
        shelf.write(TAKEN_NS, "ab", 3, b"def")
    for offset, piece in ((0, b"abc"), (3, b"def"), (0, b"abc"), (6, b"g")):
        shelf.write(TAKEN_NS, "ab", offset, piece)
    with pytest.raises(CorruptError, match="7 bytes of 8"):
        shelf.publish(TAKEN_NS, "ab", 8)
    assert shelf.taken() == []
    for _ in range(2):  # the answer of the first time may have been lost
        shelf.publish(TAKEN_NS, "ab", 7)
        assert read(shelf, TAKEN_NS) == b"abcdefg"
    for token, size in (("ab", 6), ("cd", 6)):
        with pytest.raises((NotFoundError, CorruptError)):
            shelf.publish(TAKEN_NS, token, size)
    shelf.write(TAKEN_NS + 1, "ef", 0, b"x")
    shelf.discard(TAKEN_NS + 1, "ef")
    assert os.listdir(root / "metadata") == [f"{TAKEN_NS:016x}.dump"]


def test_what_a_dead_process_left_goes_with_the_next_dump(root: Path) -> None:
    shelf = DiskDumps(str(root), local_host(), IDENTITY)
    put(shelf, TAKEN_NS, b"x")
    left = root / "metadata" / f"{TAKEN_NS + 1:016x}.dump.{2**22 + 1}-ab"
    left.write_bytes(b"half")
    put(shelf, TAKEN_NS + 2, b"y")
    assert not left.exists()


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("open_write", errno.EROFS, UnavailableError),
        ("write", errno.ENOSPC, NoSpaceError),
        ("sync", errno.EIO, UnavailableError),
        ("rename", errno.EIO, UnavailableError),
    ],
)
def test_a_disk_that_fails_says_so_and_has_no_dump(root: Path, call: str, number: int, kind: type[Exception]) -> None:
    files = FaultyFiles()
    shelf = DiskDumps(str(root), replace(local_host(), files=files), IDENTITY)
    put(shelf, TAKEN_NS, b"before")
    files.fail(call, number)
    with pytest.raises(kind):
        put(shelf, TAKEN_NS + 1, content(100))
    assert files.happened[call] > 0
    files.heal()
    assert shelf.taken() == [TAKEN_NS]
    assert os.listdir(root / "metadata") == [f"{TAKEN_NS:016x}.dump"]
