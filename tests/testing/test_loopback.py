"""The loopback double keeps the contract of `Operations` where drivers lean on it most."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs import errors
from tieredfs.fuse.operations import Caller, Operations
from tieredfs.model import ROOT, AttributeChange, FileKind, InodeId
from tieredfs.testing import loopback
from tieredfs.testing.loopback import LoopbackOperations

CALLER = Caller(uid=os.getuid(), gid=os.getgid(), process=1)


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[LoopbackOperations]:
    double = LoopbackOperations(str(tmp_path))
    yield double
    double.close()


def read(operations: Operations, handle: int) -> bytes:
    span = operations.read(handle, 0, 1 << 20)
    return os.pread(span.descriptor, span.length, span.offset)


def test_the_root_is_inode_1_and_its_own_parent(operations: LoopbackOperations) -> None:
    root = operations.attributes(ROOT)
    assert (root.inode, root.parent, root.kind) == (ROOT, ROOT, FileKind.DIRECTORY)
    child = operations.make_directory(ROOT, b"d", 0o2750, CALLER)
    assert (child.parent, child.mode) == (ROOT, 0o2750)
    assert operations.lookup(child.inode, b"..").inode == ROOT


def test_a_removed_file_lives_until_its_release(operations: LoopbackOperations) -> None:
    created, opened = operations.create(ROOT, b"f", 0o644, os.O_RDWR, CALLER)
    operations.write(opened.handle, 0, [memoryview(b"still "), memoryview(b"here")])
    operations.unlink(ROOT, b"f", CALLER)
    # Others come and go, more of them than removed inodes are remembered.
    for _ in range(loopback.REMOVED_PINS_MAX + 10):
        operations.make_directory(ROOT, b"d", 0o755, CALLER)
        operations.remove_directory(ROOT, b"d", CALLER)
    assert read(operations, opened.handle) == b"still here"
    assert operations.attributes(created.inode).link_count == 0
    operations.release(opened.handle)
    assert operations.open_handles() == (0, 0)


def test_a_second_process_finds_the_same_inodes(operations: LoopbackOperations, tmp_path: Path) -> None:
    deep = operations.make_directory(ROOT, b"deep", 0o755, CALLER)
    created, opened = operations.create(deep.inode, b"f", 0o644, os.O_RDWR, CALLER)
    operations.write(opened.handle, 0, [memoryview(b"content")])
    successor = LoopbackOperations(str(tmp_path))
    try:
        again = successor.reopen(opened.handle, created.inode, os.O_RDWR)
        assert (again.handle, again.backing) == (opened.handle, opened.backing)
        assert read(successor, again.handle) == b"content"
        _, fresh = successor.create(ROOT, b"g", 0o644, os.O_RDWR, CALLER)
        assert fresh.handle != again.handle
    finally:
        successor.close()


def test_pins_are_bounded_and_found_again(operations: LoopbackOperations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "RETIRED_MAX", 0)
    monkeypatch.setattr(operations, "_pins_max", 10)
    made = [operations.make_directory(ROOT, b"d%d" % number, 0o755, CALLER) for number in range(50)]
    for number, directory in enumerate(made):
        assert operations.lookup(ROOT, b"d%d" % number).inode == directory.inode
    assert len(operations._pins) <= 11
    operations.rename(ROOT, b"d0", made[1].inode, b"moved", 0, CALLER)
    assert [operations.attributes(directory.inode).inode for directory in made] == [d.inode for d in made]
    assert operations.attributes(made[0].inode).parent == made[1].inode


def test_a_listing_continues_after_its_cookies(
    operations: LoopbackOperations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "LISTING_RUN", 7)
    names = {b"f%d" % number for number in range(30)}
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    handle = operations.open_directory(ROOT)
    seen, cookie = [], 0
    while items := operations.read_directory(handle, cookie, True):
        seen += [item.entry.name for item in items]
        assert all(item.attributes is not None for item in items)
        cookie = items[-1].cookie
        (tmp_path / "f3").unlink(missing_ok=True)
    assert seen[:2] == [b".", b".."]
    assert len(seen) == len(set(seen))
    assert names - {b"f3"} <= set(seen)
    operations.release_directory(handle)


def test_errors_are_the_domains(operations: LoopbackOperations) -> None:
    operations.make_directory(ROOT, b"d", 0o755, CALLER)
    _, opened = operations.create(ROOT, b"f", 0o644, os.O_RDWR, CALLER)
    with pytest.raises(errors.NotFoundError):
        operations.lookup(ROOT, b"absent")
    with pytest.raises(errors.AlreadyExistsError):
        operations.create(ROOT, b"f", 0o644, os.O_RDWR, CALLER)
    with pytest.raises(errors.IsDirectoryError):
        operations.unlink(ROOT, b"d", CALLER)
    with pytest.raises(errors.NotDirectoryError):
        operations.open_directory(operations.lookup(ROOT, b"f").inode)
    with pytest.raises(errors.NotFoundError):
        operations.seek(opened.handle, 10, os.SEEK_DATA)
    with pytest.raises(errors.NotFoundError):
        operations.attributes(InodeId(1 << 60))
    with pytest.raises(errors.NameTooLongError):
        operations.symlink(ROOT, b"n" * 256, b"target", CALLER)


def test_attributes_of_a_symlink_are_its_own(operations: LoopbackOperations) -> None:
    made = operations.symlink(ROOT, b"link", b"\xff nowhere", CALLER)
    changed = operations.set_attributes(made.inode, AttributeChange(mtime_ns=5_000_000_007), None, None)
    assert (changed.mtime_ns, changed.atime_ns) == (5_000_000_007, made.atime_ns)
    assert operations.read_link(made.inode) == b"\xff nowhere"
