"""A clone is the same to look at, costs no byte, and is nobody else's business afterwards."""

import os
import subprocess
import sys

import pytest

from tests.volume.planted import TREE, assert_clean, overwrite, plant, put, quiet, shown
from tests.whole_files import get
from tieredfs.errors import (
    AlreadyExistsError,
    DeadlineError,
    NotDirectoryError,
    NotFoundError,
    QuotaExceededError,
)
from tieredfs.host import crash
from tieredfs.limits import MIB
from tieredfs.model import FileKind
from tieredfs.volume import FileSystem, clone
from tieredfs.volume import filesystem as filesystem_module

FLUSH_S = 30.0


def blocks_of(volume: FileSystem) -> int:
    return len(volume.volume.metadata.list_blocks(0, 10_000))  # type: ignore[arg-type]


def test_a_tree(volume: FileSystem, url: str) -> None:
    plant(volume)
    volume.flush(FLUSH_S)
    before, blocks = shown(volume, TREE), blocks_of(volume)
    told: list[int] = []
    report = clone(volume, TREE, b"copy", lambda done, _total, _unit: told.append(done))
    assert (report.file_count, report.directory_count) == (608, 5)
    sizes = {seen.inode: seen.size_bytes for _, seen in volume.walk(TREE) if seen.kind is FileKind.REGULAR}
    assert report.size_bytes == sum(sizes.values())
    assert told[-1] == report.file_count
    assert shown(volume, b"copy") == shown(volume, TREE) == before
    assert blocks_of(volume) == blocks, "nothing was stored"
    assert volume.stat(b"copy/a/linked").link_count == 2
    assert volume.stat(b"copy/a/outside").link_count == 1
    assert volume.stat(b"copy").link_count == volume.stat(TREE).link_count
    assert list(volume.walk(b".tieredfs/clones")) == []
    assert_clean(url)


def test_neither_feels_what_happens_to_the_other(volume: FileSystem, url: str) -> None:
    put(volume, b"run/f", b"original")
    volume.flush(FLUSH_S)
    clone(volume, b"run", b"copy", quiet)
    clone(volume, b"copy/f", b"copy/g", quiet)
    overwrite(volume, b"copy/f", b"changed")
    volume.flush(FLUSH_S)
    assert (get(volume, b"run/f"), get(volume, b"copy/f"), get(volume, b"copy/g")) == (
        b"original",
        b"changed",
        b"original",
    )
    volume.remove_tree(b"run")
    volume.volume.collect_garbage(quiet)
    assert get(volume, b"copy/g") == b"original"
    assert_clean(url)


def test_what_is_staged_is_stored_first(volume: FileSystem, url: str) -> None:
    plant(volume)
    clone(volume, TREE, b"copy", quiet)
    assert shown(volume, b"copy") == shown(volume, TREE)
    assert_clean(url)


def test_a_file_that_is_being_written_to(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    put(volume, b"run/busy", b"first")
    volume.flush(FLUSH_S)
    tier = volume._tier
    file = tier.open_write(volume.stat(b"run/busy").inode, truncate=False)
    monkeypatch.setattr(filesystem_module, "BACKPRESSURE_WAIT_S", 0.2)
    with pytest.raises(DeadlineError, match=r"busy: .*clone it when it is closed"):
        clone(volume, b"run", b"copy", quiet)
    tier.release(file, writer=True)
    assert [path for path, _ in volume.walk(b"")] == [b".tieredfs", b".tieredfs/clones", b"run", b"run/busy"]


def test_the_root_without_what_front_ends_keep_for_themselves(volume: FileSystem) -> None:
    put(volume, b"f", b"x")
    put(volume, b".tieredfs/s3/keys", b"secret")
    put(volume, b"d/.tieredfs", b"a name like others")
    for number in range(2):
        clone(volume, b"", b"root-%d" % number, quiet)
    assert sorted(path for path, _ in volume.walk(b"root-1")) == [
        b"root-1/d",
        b"root-1/d/.tieredfs",
        b"root-1/f",
        b"root-1/root-0",
        b"root-1/root-0/d",
        b"root-1/root-0/d/.tieredfs",
        b"root-1/root-0/f",
    ]
    clone(volume, b"root-0", b"root-0/into itself", quiet)
    assert get(volume, b"root-0/into itself/f") == b"x"


def test_what_cannot_be_cloned(volume: FileSystem) -> None:
    put(volume, b"run/f", b"x")
    for source, target, error in (
        (b"missing", b"copy", NotFoundError),
        (b"run", b"run/f", AlreadyExistsError),
        (b"run", b"run", AlreadyExistsError),
        (b"run", b"no/parent", NotFoundError),
        (b"run", b"run/f/below", NotDirectoryError),
    ):
        with pytest.raises(error):
            clone(volume, source, target, quiet)
    assert [path for path, _ in volume.walk(b"run")] == [b"run/f"]


CHILD = """
import sys
from tieredfs.volume import FileSystem, clone
with FileSystem.at(sys.argv[1], purpose="test") as volume:
    clone(volume, b"run", b"copy", lambda *_: None)
"""


def test_a_clone_that_was_killed_has_no_name_and_goes(url: str) -> None:
    with FileSystem.at(url, purpose="test") as volume:
        put(volume, b"run/f", b"x")
        volume.flush(FLUSH_S)
    environment = {**os.environ, crash.ENVIRONMENT: "clone.built", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", CHILD, url], env=environment, timeout=60, check=False)
    assert child.returncode == -9, "the crash happened"
    with FileSystem.at(url, purpose="test") as volume:
        left = [path for path, _ in volume.walk(b".tieredfs/clones")]
        assert len(left) == 3
        with pytest.raises(NotFoundError):
            volume.stat(b"copy")
        clone(volume, b"run", b"while its session lives", quiet)
        assert [path for path, _ in volume.walk(b".tieredfs/clones")] == left
        for session in volume.volume.metadata.sessions():
            if session.session != volume.volume.session:
                volume.volume.metadata.end_session(session.session)
        clone(volume, b"run", b"copy", quiet)
        assert list(volume.walk(b".tieredfs/clones")) == []
    assert_clean(url)


@pytest.mark.parametrize("several", [False, True])
def test_a_clone_counts_in_the_quota_of_where_it_goes(volume: FileSystem, several: bool) -> None:
    """One tree of more entries than a directory may have that moves between quotas otherwise; and one file."""
    quotas = volume.volume.quotas
    volume.make_directories(b"team")
    if several:
        plant(volume)
        for number in range(600):
            put(volume, TREE + b"/more/%03d" % number, b"x")
    else:
        put(volume, TREE, bytes(3 * MIB))
    entries = len({attributes.inode for _, attributes in volume.walk(TREE)}) + 1
    quotas.set("team", 2 * MIB, None)
    with pytest.raises(QuotaExceededError, match="/team has"):
        clone(volume, TREE, b"team/copy", quiet)
    assert (quotas.get("team").used_inodes, volume.entries(b"team")) == (0, [])
    quotas.set("team", 0, entries)
    clone(volume, TREE, b"team/copy", quiet)
    assert quotas.get("team").used_inodes == entries
    assert [quota.path for quota in quotas.list()] == ["/team"]
    assert quotas.check("team", repair=False).right
    assert quotas.get("team").used_bytes >= 3 * MIB
    volume.remove_tree(b"team/copy")
    assert (quotas.get("team").used_bytes, quotas.get("team").used_inodes) == (0, 0)
