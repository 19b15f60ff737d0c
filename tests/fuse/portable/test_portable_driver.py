"""The portable driver itself: how it starts, ends and fails."""

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tieredfs import errors, limits
from tieredfs.fuse import portable
from tieredfs.fuse.operations import Caller
from tieredfs.host import SystemClock
from tieredfs.model import ROOT, Attributes, InodeId
from tieredfs.testing.features import fails
from tieredfs.testing.loopback import LoopbackOperations
from tieredfs.testing.mounting import READY_S, Mount, is_mounted, start, stop

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root")


@pytest.fixture
def own(folder: Path, serve: str, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount for one test, which may end it."""
    (folder / "own").mkdir(mode=0o755)
    mount = start(serve, folder / "own", *getattr(request, "param", ()))
    try:
        yield mount
    finally:
        stop(mount)
        shutil.rmtree(folder / "own")


@pytest.mark.mount
@needs_root
class TestLifeOfAMount:
    def test_unmounting_ends_the_server(self, own: Mount) -> None:
        (own.path / "f").write_bytes(b"kept")
        subprocess.run(["umount", own.path], check=True, timeout=READY_S)
        assert own.process.wait(timeout=READY_S) == 0
        assert (own.behind / "f").read_bytes() == b"kept"
        assert not is_mounted(own.path)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals_unmount(self, own: Mount, number: signal.Signals) -> None:
        own.process.send_signal(number)
        assert own.process.wait(timeout=READY_S) == 0
        assert not is_mounted(own.path)

    @pytest.mark.parametrize("own", [("ro",)], indirect=True)
    def test_read_only(self, own: Mount) -> None:
        (own.behind / "f").write_bytes(b"readable")
        assert (own.path / "f").read_bytes() == b"readable"
        with fails(errno.EROFS):
            (own.path / "g").write_bytes(b"")
        with fails(errno.EROFS):
            os.unlink(own.path / "f")

    def test_the_table_of_mounts_names_source_and_kind(self, own: Mount) -> None:
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {own.path} " in line)
        assert line.startswith(f"loopback {own.path} fuse.tieredfs rw,nosuid,nodev,")
        assert "default_permissions,allow_other" in line

    def test_nothing_hidden_is_left_when_the_server_dies(self, own: Mount) -> None:
        """libfuse would have renamed the open file, and left it so."""
        (own.path / "f").write_bytes(b"gone")
        descriptor = os.open(own.path / "f", os.O_RDONLY)
        os.unlink(own.path / "f")
        own.process.kill()
        own.process.wait(timeout=READY_S)
        with contextlib.suppress(OSError):
            os.close(descriptor)
        assert os.listdir(own.behind) == []

    def test_a_removed_open_file_outlives_a_rename_of_its_directory(self, own: Mount) -> None:
        (own.path / "d").mkdir()
        (own.path / "d/f").write_bytes(b"kept")
        with (own.path / "d/f").open("rb") as file:
            os.unlink(own.path / "d/f")
            os.rename(own.path / "d", own.path / "e")
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == b"kept"
            # libfuse could not reach it any more, so the directory waits for it.
            removals: list[Callable[[], None]] = [
                lambda: os.rmdir(own.path / "e"),
                lambda: os.replace(own.path / "g", own.path / "e"),
            ]
            for remove in removals:
                (own.path / "g").mkdir(exist_ok=True)
                with fails(errno.ENOTEMPTY):
                    remove()
            assert os.fstat(file.fileno()).st_size == 4
        # The last close reaches the server after close(2) has returned.
        deadline = threading.Event()
        for _ in range(200):
            with contextlib.suppress(OSError):
                os.rmdir(own.path / "e")
                break
            deadline.wait(0.05)
        assert os.listdir(own.behind) == ["g"]

    def test_a_directory_of_100_000_entries(self, own: Mount) -> None:
        for number in range(100_000):
            os.mknod(own.behind / f"entry-{number:06d}")
        with os.scandir(own.path) as entries:
            seen = [entry.name for entry in entries]
        assert len(seen) == 100_000
        assert set(seen) == {f"entry-{number:06d}" for number in range(100_000)}
        assert (own.path / "entry-099999").stat().st_size == 0

    def test_hard_links_are_seen_fresh_at_each_open(self, own: Mount) -> None:
        (own.path / "a").write_bytes(b"one")
        os.link(own.path / "a", own.path / "b")
        for text in (b"first", b"second", b"third!"):
            (own.path / "a").write_bytes(text)
            assert (own.path / "b").read_bytes() == text


@pytest.mark.mount
def test_a_mount_that_cannot_be_is_said(serve: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", serve, tmp_path, tmp_path / "absent"],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
    assert done.returncode == 1
    assert "MountPointError: cannot mount at" in done.stderr


class TestErrors:
    def test_domain_errors_and_system_errors_become_errnos(self) -> None:
        def refuse(kind: Exception) -> None:
            raise kind

        guarded = portable._guarded(refuse)
        assert guarded(errors.NoSpaceError("full")) == -errno.ENOSPC
        assert guarded(OSError(errno.EXDEV, "other device")) == -errno.EXDEV
        assert portable._guarded(lambda: None)() is None

    @pytest.mark.allows_warnings("failed unexpectedly")
    def test_a_bug_is_an_io_error_and_is_logged_with_its_traceback(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken(path: str) -> None:
            raise ValueError(f"a bug at {path}")

        with caplog.at_level(logging.ERROR):
            assert portable._guarded(broken)("/f") == -errno.EIO
        (record,) = caplog.records
        assert "broken failed unexpectedly" in record.getMessage()
        assert record.exc_info is not None
        assert "a bug at /f" in str(record.exc_info[1])


class CountingOperations(LoopbackOperations):
    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.lookups: list[bytes] = []

    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        self.lookups.append(name)
        return super().lookup(parent, name)


class StoppedClock(SystemClock):
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


class TestDirectories:
    """Paths back to inodes: each component is looked up once, until it may mean something else."""

    @pytest.fixture
    def operations(self, tmp_path: Path) -> Iterator[CountingOperations]:
        (tmp_path / "a/b/c").mkdir(parents=True)
        counting = CountingOperations(str(tmp_path))
        yield counting
        counting.close()

    def test_known_paths_cost_no_lookup(self, operations: CountingOperations) -> None:
        directories = portable._Directories(operations, StoppedClock())
        found = directories.find("/a/b/c")
        assert operations.lookups == [b"a", b"b", b"c"]
        assert directories.find("/a/b/c") == found
        assert directories.find("") == ROOT
        assert len(operations.lookups) == 3

    def test_knowledge_ages(self, operations: CountingOperations) -> None:
        clock = StoppedClock()
        directories = portable._Directories(operations, clock)
        directories.find("/a/b")
        clock.now_s += limits.ENTRY_TIMEOUT_S + 0.1
        directories.find("/a/b")
        assert operations.lookups == [b"a", b"b", b"a", b"b"]

    def test_a_rename_forgets_and_what_it_overtook_is_not_remembered(
        self, operations: CountingOperations, tmp_path: Path
    ) -> None:
        directories = portable._Directories(operations, StoppedClock())
        old = directories.find("/a/b")
        directories._remember("/stale", old, generation=directories._generation - 1)
        operations.rename(ROOT, b"a", ROOT, b"z", 0, Caller(0, 0, 1))
        directories.moved()
        with pytest.raises(errors.NotFoundError):
            directories.find("/a/b")
        with pytest.raises(errors.NotFoundError):
            directories.find("/stale")
        assert directories.find("/z/b") == old

    def test_a_removal_forgets_that_directory_only(self, operations: CountingOperations, tmp_path: Path) -> None:
        directories = portable._Directories(operations, StoppedClock())
        above = directories.find("/a/b")
        directories.find("/a/b/c")
        operations.remove_directory(above, b"c", Caller(0, 0, 1))
        directories.removed("/a/b/c")
        made = operations.make_directory(above, b"c", 0o755, Caller(0, 0, 1))
        operations.lookups.clear()
        assert directories.find("/a/b/c") == made.inode
        assert operations.lookups == [b"c"]

    def test_memory_is_bounded(self, operations: CountingOperations, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(portable, "DIRECTORIES_MAX", 2)
        directories = portable._Directories(operations, StoppedClock())
        directories.find("/a/b/c")
        assert len(directories._known) == 2

    def test_threads_agree(self, operations: CountingOperations) -> None:
        directories = portable._Directories(operations, StoppedClock())
        expected = directories.find("/a/b/c")
        wrong: list[InodeId] = []

        def look() -> None:
            for _ in range(200):
                found = directories.find("/a/b/c")
                if found != expected:
                    wrong.append(found)
                directories.moved()
                directories.removed("/a/b/c")

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert wrong == []
