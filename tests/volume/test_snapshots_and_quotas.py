"""Snapshots count in no quota, and going back keeps the quotas of what is gone back to, with exact counts."""

import pytest

from tests.volume.planted import assert_clean, overwrite, put, quiet
from tests.whole_files import get
from tieredfs.errors import QuotaExceededError, ReadOnlyError
from tieredfs.limits import MIB, QUOTA_MOVED_MAX
from tieredfs.model import Quota
from tieredfs.testing.metadata_check import broken_invariants
from tieredfs.volume import FileSystem, snapshots

FLUSH_S = 30.0
PAGE = 4096


def limited(volume: FileSystem, path: bytes, limit_bytes: int = 0, limit_inodes: int = 0) -> None:
    volume.volume.metadata.set_quota(path, limit_bytes, limit_inodes)


def used(volume: FileSystem, path: bytes) -> tuple[int, int]:
    quota = volume.volume.metadata.quota(path)
    check = volume.volume.metadata.check_quota(path, repair=False)
    assert check.right, check
    return quota.used_bytes, quota.used_inodes


def quotas_of(volume: FileSystem) -> list[tuple[bytes, int, int]]:
    return [(quota.path, quota.limit_bytes, quota.limit_inodes) for quota in volume.volume.metadata.quotas()]


def restore(volume: FileSystem, path: bytes, name: bytes, target: bytes, *, force: bool = False) -> None:
    snapshots.restore(volume, path, name, target, force=force, progress=quiet)


def assert_right(volume: FileSystem, url: str) -> None:
    assert broken_invariants(volume.volume.metadata._engine) == []
    assert_clean(url)


def test_a_snapshot_counts_nowhere_and_cannot_have_a_quota(volume: FileSystem, url: str) -> None:
    put(volume, b"run/a", bytes(10))
    limited(volume, b"/", 10 * MIB, 100)
    before = used(volume, b"/")
    taken = snapshots.create(volume, b"run", b"one", quiet)
    assert used(volume, b"/")[0] == before[0]
    with pytest.raises(ReadOnlyError):
        limited(volume, taken.place, MIB)
    overwrite(volume, b"run/a", bytes(PAGE + 1))
    assert used(volume, b"/")[0] == before[0] + PAGE
    assert_right(volume, url)
    snapshots.remove(volume, b"run", b"one", quiet)
    assert_right(volume, url)
    assert volume.volume.metadata.check_quota(b"/", repair=True).right


def test_going_back_keeps_the_quota_of_the_directory(volume: FileSystem, url: str) -> None:
    for name in (b"a", b"b", b"c"):
        put(volume, b"team/run/" + name, bytes(PAGE))
    limited(volume, b"/team/run", 40 * PAGE, 50)
    limited(volume, b"/team", 100 * PAGE)
    snapshots.create(volume, b"team/run", b"one", quiet)
    volume.remove(b"team/run/a")
    for number in range(5):
        put(volume, b"team/run/more-%d" % number, bytes(PAGE))
    was = quotas_of(volume)
    assert used(volume, b"/team/run") == (7 * PAGE, 7)
    restore(volume, b"team/run", b"one", b"team/run", force=True)
    assert used(volume, b"/team/run") == (3 * PAGE, 3)
    assert used(volume, b"/team") == (3 * PAGE, 4)
    assert quotas_of(volume) == was
    assert get(volume, b"team/run/a") == bytes(PAGE)
    for number in range(50 - 3):
        put(volume, b"team/run/again-%d" % number, b"")
    with pytest.raises(QuotaExceededError):
        put(volume, b"team/run/one-more", b"")
    assert_right(volume, url)


@pytest.mark.parametrize("count", [3, QUOTA_MOVED_MAX + 10])
def test_below_a_quota_any_number_of_entries_can_go_back(volume: FileSystem, url: str, count: int) -> None:
    volume.make_directories(b"team/run/deep")
    for number in range(count):
        put(volume, b"team/run/deep/%d" % number, b"")
    limited(volume, b"/team", 10 * MIB)
    snapshots.create(volume, b"team/run", b"one", quiet)
    put(volume, b"team/run/x", bytes(PAGE))
    restore(volume, b"team/run", b"one", b"team/run", force=True)
    assert used(volume, b"/team") == (0, count + 2)
    restore(volume, b"team/run", b"one", b"team/beside")
    assert used(volume, b"/team") == (0, 2 * (count + 2))
    assert quotas_of(volume) == [(b"/team", 10 * MIB, 0)]
    assert_right(volume, url)


def test_what_would_exceed_a_quota_does_not_go_back_and_nothing_changes(volume: FileSystem, url: str) -> None:
    put(volume, b"team/run/large", bytes(20 * PAGE))
    volume.flush(FLUSH_S)
    snapshots.create(volume, b"team/run", b"one", quiet)
    volume.remove(b"team/run/large")
    put(volume, b"team/run/small", bytes(PAGE))
    limited(volume, b"/team", 10 * PAGE)
    for target, force in ((b"team/run", True), (b"team/beside", False)):
        with pytest.raises(QuotaExceededError, match="/team"):
            restore(volume, b"team/run", b"one", target, force=force)
    assert used(volume, b"/team") == (PAGE, 2)
    assert [entry.name for entry, _ in volume.entries(b"team/run")] == [b"small"]
    held = volume.volume.metadata.quotas_over(volume.stat(b"team/run").inode)
    assert [quota.path for quota in held] == [b"/team"], "none that was there only to know what moves"
    assert isinstance(held[0], Quota)
    assert_right(volume, url)
