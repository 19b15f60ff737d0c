"""The table of I/O modes against the real kernel: an open that it refused would fail with EIO."""

import contextlib
import errno
import itertools
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.kernel.mounts import needs_root_mount, served
from tieredfs.fuse.kernel.handles import BackingFiles
from tieredfs.fuse.kernel.mounting import MountOptions
from tieredfs.fuse.kernel.session import Session, SessionOptions
from tieredfs.fuse.operations import Caller, Opened, Span
from tieredfs.model import InodeId
from tieredfs.testing.loopback import LoopbackOperations

pytestmark = [pytest.mark.mount, pytest.mark.passthrough, needs_root_mount, pytest.mark.timeout(60)]

A, B = b"a" * 8192, b"b" * 8192


class Tier(LoopbackOperations):
    """Opens say what the test wants: whole or not, and over which of two local files."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory / "below"))
        self.other = os.open(directory / "other", os.O_RDWR | os.O_CREAT)
        os.write(self.other, B)
        self.whole = True
        self.replaced = False
        self.of_other: set[int] = set()

    def open(self, inode: InodeId, flags: int, caller: Caller) -> Opened:
        opened = super().open(inode, flags, caller)
        if self.replaced:
            self.of_other.add(opened.handle)
            opened = opened._replace(descriptor=self.other, backing=-1 % (1 << 64))
        return opened._replace(whole=self.whole, keep_cache=False)

    def read(self, handle: int, offset: int, size: int) -> Span:
        span = super().read(handle, offset, size)
        return span._replace(descriptor=self.other) if handle in self.of_other else span


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(A)
    tier = Tier(tmp_path)
    yield tier
    os.close(tier.other)
    tier.close()


def modes_of(session: Session) -> tuple[int, int, int]:
    """Opens so far: passthrough, cached, direct."""
    snapshot = session.snapshot()
    return snapshot.passthrough_opens, snapshot.cached_opens, snapshot.direct_opens


KINDS = tuple(itertools.product((True, False), (False, True)))
"""(whole, replaced)."""


@pytest.mark.parametrize("history", list(itertools.product(KINDS, repeat=3)))
def test_every_history_of_three_opens_is_accepted_and_reads_right(
    tier: Tier, tmp_path: Path, history: tuple[tuple[bool, bool], ...]
) -> None:
    point = tmp_path / "mount"
    with served(tier, point) as session, contextlib.ExitStack() as files:
        descriptors = []
        for tier.whole, tier.replaced in history:
            descriptor = os.open(point / "file", os.O_RDONLY)
            files.callback(os.close, descriptor)
            descriptors.append((descriptor, B if tier.replaced else A))
            for opened, content in descriptors:
                assert os.pread(opened, 8192, 0) == content
        assert sum(modes_of(session)) == 3


def settle(session: Session) -> None:
    """close(2) returns before its RELEASE is served."""
    while session.snapshot().open_handles:
        time.sleep(0.001)


def test_modes_follow_the_table(tier: Tier, tmp_path: Path) -> None:
    point = tmp_path / "mount"
    file = point / "file"
    with served(tier, point) as session:
        with open(file, "rb"), open(file, "rb"):
            assert modes_of(session) == (2, 0, 0)
            tier.whole = False
            with open(file, "rb") as veiled:
                assert veiled.read() == A
            assert modes_of(session) == (2, 0, 1)
        settle(session)
        with open(file, "rb"):
            tier.whole = True
            with open(file, "rb"):
                assert modes_of(session) == (2, 2, 1)
        settle(session)
        with open(file, "rb"):
            assert modes_of(session) == (3, 2, 1)


def test_written_by_passthrough_is_seen_at_once(tier: Tier, tmp_path: Path) -> None:
    point = tmp_path / "mount"
    with served(tier, point) as session:
        with open(point / "new", "w+b", buffering=0) as file:
            file.write(A)
            assert os.fstat(file.fileno()).st_size == len(A)
            with mmap.mmap(file.fileno(), len(A)) as view:
                view[:4] = b"mmap"
                assert os.pread(file.fileno(), 4, 0) == b"mmap"
        assert (tmp_path / "below" / "new").read_bytes()[:4] == b"mmap"
        assert session.snapshot().bytes_written == 0
        assert session.snapshot().bytes_read == 0


MAP_AND_LOOK = """
import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(f, 8192)
os.utime(f, (1_000, 1_000))
os.fstat(f)
view[:4] = b"mmap"
if sys.argv[2] == "fsync":
    os.fsync(f)
else:
    view.close()
    os.close(f)
print(os.stat(sys.argv[1]).st_mtime > 1_000)
"""


@pytest.mark.parametrize("end", ["fsync", "close"])
@pytest.mark.parametrize("passthrough", [True, False])
def test_attributes_that_a_map_has_changed_are_asked_for_again(
    tier: Tier, tmp_path: Path, end: str, passthrough: bool
) -> None:
    """Without passthrough it is the kernel that asks, which we rely on.

    Not from this process: a fault that waits for the mount keeps the GIL, and the mount is served here."""
    file = tmp_path / "mount" / "file"
    with served(tier, file.parent, SessionOptions(attribute_timeout_s=3600, passthrough=passthrough)) as session:
        command = [sys.executable, "-c", MAP_AND_LOOK, str(file), end]
        assert subprocess.run(command, check=True, timeout=30, capture_output=True).stdout == b"True\n"
        assert session.snapshot().passthrough_opens == passthrough


@pytest.mark.parametrize("end", [os.fsync, lambda descriptor: os.close(os.dup(descriptor))], ids=["fsync", "close"])
def test_attributes_are_asked_for_again_where_a_map_may_have_changed_them_and_nowhere_else(
    tier: Tier, tmp_path: Path, end: Callable[[int], None]
) -> None:
    file = tmp_path / "mount" / "file"
    asked = {}
    for passthrough, flags in itertools.product((True, False), (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)):
        with served(tier, file.parent, SessionOptions(attribute_timeout_s=3600, passthrough=passthrough)) as session:
            descriptor = os.open(file, flags)
            os.fstat(descriptor)
            before = session.snapshot().requests["getattr"]
            end(descriptor)
            os.fstat(descriptor)
            asked[passthrough, flags] = session.snapshot().requests["getattr"] - before
            os.close(descriptor)
    assert {key for key, count in asked.items() if count} == {(True, os.O_RDWR)}


@pytest.mark.parametrize("change", ["os.write(f, b'x')", "os.posix_fallocate(f, 0, 9)"])
def test_a_write_drops_setuid(tier: Tier, tmp_path: Path, change: str) -> None:
    point = tmp_path / "mount"
    (tmp_path / "below" / "file").chmod(0o6755)
    program = f"import os, sys; f = os.open(sys.argv[1], os.O_WRONLY); os.setuid(65534); {change}; os.close(f)"
    with served(tier, point, mount=MountOptions(allow_other=True)) as session:
        subprocess.run([sys.executable, "-c", program, str(point / "file")], check=True, timeout=30)
        assert (point / "file").stat().st_mode & 0o7777 == 0o755
        assert session.snapshot().passthrough_opens == 0


@pytest.mark.allows_warnings("kernel passthrough is off")
def test_refused_passthrough_falls_back_for_the_whole_mount(
    tier: Tier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = []

    def refuse(self: BackingFiles, descriptor: int) -> int:
        refusals.append(descriptor)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(BackingFiles, "open", refuse)
    point = tmp_path / "mount"
    with served(tier, point) as session:
        for name in ("file", "x", "y"):
            with open(point / name, "a+b", buffering=0) as file:
                file.write(b"more")
        assert (point / "file").read_bytes() == A + b"more"
        assert len(refusals) == 1
        assert modes_of(session) == (0, 4, 0)
        snapshot = session.snapshot()
        assert not snapshot.passthrough
        assert snapshot.passthrough_refused == "Operation not permitted"
        assert snapshot.bytes_written == 12


def test_large_reads_and_writes_through_the_daemon(tier: Tier, tmp_path: Path) -> None:
    point = tmp_path / "mount"
    content = os.urandom(5 * 1024 * 1024 + 17)
    with served(tier, point, SessionOptions(passthrough=False)) as session:
        (point / "large").write_bytes(content)
        assert (point / "large").read_bytes() == content
        assert session.snapshot().bytes_written == len(content)
        assert session.snapshot().bytes_read >= len(content)
