"""Two mounts of one volume, and a process without a mount: the kernel keeps names for long, and is told when they change."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.mount import volumes
from tieredfs.fuse.control import ControlClient
from tieredfs.limits import ATTRIBUTE_TIMEOUT_S, ENTRY_TIMEOUT_S
from tieredfs.model import Attributes
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Naming

PUSHED_WITHIN_S = 10.0
"""Far less than what the kernel keeps by itself, and far more than a push takes on a busy machine."""
assert min(ATTRIBUTE_TIMEOUT_S, ENTRY_TIMEOUT_S) > 2 * PUSHED_WITHIN_S

pytestmark = [pytest.mark.timeout(90)]


class Pair:
    """Two mounts; `here` is the one that looks, `there` the one that changes."""

    def __init__(self, lab: volumes.Lab) -> None:
        self.lab = lab
        lab.format(code="rs:2+1", disks=3)
        point = lab.root / "there"
        point.mkdir()
        self._here = lab.mount()
        self._there = lab.mount(point, cache_dir=f"{lab.root}/cache-there")
        self.here, self.there = lab.mnt, point

    def counts(self) -> dict[str, int]:
        """Requests that the mount that looks was asked."""
        status: Any = ControlClient(self._here.mount_id).call("status", {}, lambda *_: None)
        counts: dict[str, int] = status["mount"]["requests"]
        return counts

    def pushed(self) -> int:
        status: Any = ControlClient(self._here.mount_id).call("status", {}, lambda *_: None)
        return int(status["mount"]["pushed"])


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with volumes.lab() as made:
        yield Pair(made)


def stored(pair: Pair, name: str, content: bytes = b"one") -> None:
    """A file written there, stored, and known here."""
    (pair.there / name).write_bytes(content)
    assert pair.lab.run("drain", str(pair.there)).returncode == 0
    eventually(lambda: (pair.here / name).read_bytes() == content)


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PUSHED_WITHIN_S
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.02)
    assert true()


def test_what_nobody_changes_is_not_asked_for_again(pair: Pair) -> None:
    stored(pair, "kept")
    time.sleep(0.5)  # for what was pushed of it
    os.stat(pair.here / "kept")
    before = pair.counts()
    time.sleep(1.2)  # longer than names are kept where nobody pushes
    for _ in range(50):
        os.stat(pair.here / "kept")
    after = pair.counts()
    assert after["lookup"] == before["lookup"]
    assert after.get("getattr", 0) == before.get("getattr", 0)
    for _ in range(50):
        (pair.here / "kept").read_bytes()
    last = pair.counts()
    assert last["open"] - after["open"] == 50
    assert last["lookup"] == before["lookup"]


def test_a_removed_name_goes(pair: Pair) -> None:
    stored(pair, "removed")
    (pair.there / "removed").unlink()
    eventually(lambda: not (pair.here / "removed").exists())
    assert pair.pushed() > 0


def test_a_renamed_file_is_seen_at_its_new_name_and_not_at_its_old_one(pair: Pair) -> None:
    stored(pair, "old")
    inode = (pair.here / "old").stat().st_ino
    (pair.there / "old").rename(pair.there / "new")
    eventually(lambda: not (pair.here / "old").exists())
    assert (pair.here / "new").stat().st_ino == inode


def test_changed_attributes_are_seen(pair: Pair) -> None:
    stored(pair, "attributes")
    assert (pair.here / "attributes").stat().st_mode & 0o777 == 0o644
    (pair.there / "attributes").chmod(0o600)
    eventually(lambda: (pair.here / "attributes").stat().st_mode & 0o777 == 0o600)
    os.utime(pair.there / "attributes", ns=(1_000, 2_000))
    eventually(lambda: (pair.here / "attributes").stat().st_mtime_ns == 2_000)


def test_a_replaced_file_shows_its_new_content(pair: Pair) -> None:
    stored(pair, "replaced")
    (pair.there / "next").write_bytes(b"two, and longer")
    (pair.there / "next").replace(pair.there / "replaced")
    eventually(lambda: (pair.here / "replaced").stat().st_size == 15)
    assert (pair.here / "replaced").read_bytes() == b"two, and longer"


def test_a_file_written_again_shows_its_new_content_and_size(pair: Pair) -> None:
    stored(pair, "again", b"x" * 100)
    with (pair.there / "again").open("ab") as file:
        file.write(b"y" * 50)
    eventually(lambda: (pair.here / "again").stat().st_size == 150)
    assert (pair.here / "again").read_bytes() == b"x" * 100 + b"y" * 50


def test_what_a_process_without_a_mount_changes_is_seen(pair: Pair) -> None:
    stored(pair, "by-path")
    with FileSystem.at(pair.lab.url, purpose="test") as system:
        system.remove(b"by-path")
        eventually(lambda: not (pair.here / "by-path").exists())


def test_what_is_uploaded_among_others_is_seen(pair: Pair) -> None:
    """Small files that get inode and name in one transaction, as those of S3: new names, and one in place of another."""
    stored(pair, "uploaded", b"old")
    assert not (pair.here / "never-there").exists()
    os.link(pair.there / "uploaded", pair.there / "other-name")  # so the inode stays, and nothing but the name changes
    eventually(lambda: os.stat(pair.here / "uploaded").st_nlink == 2)
    with FileSystem.at(pair.lab.url, purpose="test") as system:
        first, second = system.stage_group([b"newer", b"newer"])
        assert not isinstance(first, Exception)
        assert not isinstance(second, Exception)
        outcomes = system.commit_group([(first, Naming(b"uploaded")), (second, Naming(b"never-there"))])
        assert isinstance(outcomes[0], Attributes)
        inode = outcomes[0].inode
        eventually(lambda: os.stat(pair.here / "uploaded").st_ino == inode)
        eventually(lambda: os.stat(pair.here / "other-name").st_nlink == 1)
        eventually((pair.here / "never-there").exists)
        assert [(pair.here / name).read_bytes() for name in ("uploaded", "never-there")] == [b"newer"] * 2


def test_a_mapping_that_is_written_to_shows_its_time_within_a_moment(pair: Pair) -> None:
    """What the kernel cannot tell us, we do not let it keep: the attributes of a content that may be written to."""
    import mmap

    stored(pair, "mapped", b"x" * 4096)
    before = os.stat(pair.there / "mapped").st_mtime_ns
    with (pair.there / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[0] = 1
        mapped.flush()
        eventually(lambda: os.stat(pair.there / "mapped").st_mtime_ns > before)
