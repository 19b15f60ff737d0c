"""The mount survives its daemon: real processes, real mounts, SIGKILL."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.kernel.mounts import needs_root_mount
from tieredfs.errors import MountPointError, UnavailableError, VolumeNotFoundError
from tieredfs.fuse.kernel import mounting
from tieredfs.fuse.kernel.keeper import RESTART_DELAYS_S, KeeperOptions, start
from tieredfs.limits import DAEMON_RESTART_WINDOW_S, DAEMON_RESTARTS_MAX

pytestmark = [pytest.mark.mount, needs_root_mount, pytest.mark.timeout(90)]

DAEMON = str(Path(__file__).with_name("loopback_daemon.py"))
ROOT = str(Path(__file__).parents[3])


class Mounted:
    """A loopback mount under a keeper."""

    def __init__(self, directory: Path, *arguments: str, restarts_max: int = 50, hang_s: float = 60.0) -> None:
        self.below = directory / "below"
        self.point = directory / "mount"
        self.below.mkdir(exist_ok=True)
        self.point.mkdir(exist_ok=True)
        self.log = directory / "log"
        command = (sys.executable, DAEMON, str(self.below), *arguments)
        options = KeeperOptions(
            str(self.point), command, log_path=str(self.log), restarts_max=restarts_max, hang_s=hang_s
        )
        self.keeper = start(options)

    def daemon(self) -> int:
        """The daemon's process id, when it is there."""
        while True:
            children = Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)

    def takeovers(self) -> int:
        return self.log.read_text().count("a new daemon took over")

    def kill_daemon(self) -> None:
        """SIGKILL, and wait until another has taken over."""
        before = self.takeovers()
        os.kill(self.daemon(), signal.SIGKILL)
        while self.takeovers() == before:
            assert self.keeper.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def stop(self) -> int:
        self.keeper.terminate()
        return self.keeper.wait(60)


def clean(directory: Path) -> None:
    while (entry := mounting.mount_at(str(directory / "mount"))) is not None:
        mounting.unmount(entry.path, lazy=True)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    try:
        found = Mounted(tmp_path)
        yield found
        if found.keeper.poll() is None:
            found.stop()
    finally:
        clean(tmp_path)


def test_ready_then_stopped(mounted: Mounted) -> None:
    (mounted.point / "file").write_bytes(b"content")
    assert (mounted.below / "file").read_bytes() == b"content"
    assert mounted.stop() == 0
    assert mounting.mount_at(str(mounted.point)) is None


def test_unmount_by_hand_ends_keeper_and_daemon(mounted: Mounted) -> None:
    daemon = mounted.daemon()
    mounting.unmount(str(mounted.point))
    assert mounted.keeper.wait(30) == 0
    assert not Path(f"/proc/{daemon}").exists()


def test_open_files_and_directories_survive_a_killed_daemon(mounted: Mounted) -> None:
    for index in range(300):
        (mounted.point / f"{index:04}").touch()
    with open(mounted.point / "log", "wb", buffering=0) as writer, os.scandir(mounted.point) as listing:
        seen = {next(listing).name}
        writer.write(b"before ")
        os.unlink(mounted.point / "0000")
        mounted.kill_daemon()
        writer.write(b"after")
        os.fsync(writer.fileno())
        seen |= {entry.name for entry in listing}
    assert (mounted.point / "log").read_bytes() == b"before after"
    assert {f"{index:04}" for index in range(1, 300)} <= seen
    assert mounted.takeovers() == 1


def _work(mounted: Mounted, stop: threading.Event, counts: list[int]) -> None:
    """Names and bytes for as long as asked; any error, loss or double ends it loudly."""
    with open(mounted.point / "stream", "wb", buffering=0) as stream:
        while not stop.is_set():
            number = counts[0]
            directory = mounted.point / f"d{number}"
            directory.mkdir()
            file = directory / "file"
            file.write_bytes(str(number).encode())
            assert file.stat().st_size == len(str(number))
            file.rename(directory / "renamed")
            assert (directory / "renamed").read_bytes() == str(number).encode()
            (directory / "gone").touch()
            (directory / "gone").unlink()
            stream.write(number.to_bytes(8, "big"))
            counts[0] += 1


def test_work_goes_on_while_daemons_are_killed(mounted: Mounted) -> None:
    stop, counts, failures = threading.Event(), [0], []

    def work() -> None:
        try:
            _work(mounted, stop, counts)
        except BaseException as error:
            failures.append(error)
            raise

    worker = threading.Thread(target=work)
    worker.start()
    progress = []
    try:
        for _ in range(5):
            before = counts[0]
            while counts[0] < before + 20 and not failures:
                time.sleep(0.01)
            mounted.kill_daemon()
            progress.append(counts[0])
    finally:
        stop.set()
        worker.join(60)
    assert not worker.is_alive()
    assert not failures
    assert mounted.takeovers() == 5, "the fault happened"
    assert (mounted.below / "stream").read_bytes() == b"".join(n.to_bytes(8, "big") for n in range(counts[0]))
    for number in range(counts[0]):
        assert [path.name for path in (mounted.below / f"d{number}").iterdir()] == ["renamed"]
    assert len(list(mounted.below.iterdir())) == counts[0] + 1


def test_hang_up_replaces_the_daemon(mounted: Mounted) -> None:
    first = mounted.daemon()
    os.kill(mounted.keeper.pid, signal.SIGHUP)
    while mounted.takeovers() == 0:
        time.sleep(0.01)
    assert mounted.daemon() != first
    (mounted.point / "file").touch()


def test_a_daemon_that_hangs_is_replaced(tmp_path: Path) -> None:
    try:
        mounted = Mounted(tmp_path, hang_s=1.5)
        hung = mounted.daemon()
        with (mounted.point / "file").open("wb") as file:
            os.kill(hung, signal.SIGSTOP)
            file.write(b"written meanwhile")
        assert (mounted.point / "file").read_bytes() == b"written meanwhile"
        while mounted.takeovers() == 0:  # it serves before the keeper says so
            time.sleep(0.01)
        assert mounted.takeovers() == 1
        assert mounted.daemon() != hung
        assert "hangs" in mounted.log.read_text()
        assert mounted.stop() == 0
    finally:
        clean(tmp_path)


def test_a_daemon_without_a_keeper_serves_and_says_that_nobody_guards_it(tmp_path: Path) -> None:
    try:
        mounted = Mounted(tmp_path, hang_s=1.5)
        mounted.keeper.kill()
        mounted.keeper.wait(10)
        while "the keeper of this mount is gone" not in mounted.log.read_text():
            time.sleep(0.02)
        (mounted.point / "file").write_bytes(b"still served")
        assert (mounted.below / "file").read_bytes() == b"still served"
        mounting.unmount(str(mounted.point))
    finally:
        clean(tmp_path)


def test_gives_up_after_too_many_crashes(tmp_path: Path) -> None:
    try:
        mounted = Mounted(tmp_path, restarts_max=1)
        mounted.kill_daemon()
        os.kill(mounted.daemon(), signal.SIGKILL)
        assert mounted.keeper.wait(30) == 1
        assert "giving up" in mounted.log.read_text()
        assert mounting.mount_at(str(mounted.point)) is None
    finally:
        clean(tmp_path)


def test_a_daemon_that_never_comes_up_again_is_given_up_within_the_window() -> None:
    waits_s = sum(RESTART_DELAYS_S) + (DAEMON_RESTARTS_MAX - len(RESTART_DELAYS_S)) * RESTART_DELAYS_S[-1]
    assert waits_s < DAEMON_RESTART_WINDOW_S / 3, (
        "the rest is for daemons that take seconds to find out that they cannot start"
    )


def test_error_before_the_mount_reaches_the_starter(tmp_path: Path) -> None:
    with pytest.raises(VolumeNotFoundError, match="no volume here"):
        Mounted(tmp_path, "--fail-to-open")
    assert mounting.mount_at(str(tmp_path / "mount")) is None


def test_crash_before_the_mount_reaches_the_starter(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="died before"):
        Mounted(tmp_path, "--crash")
    assert mounting.mount_at(str(tmp_path / "mount")) is None


def test_bad_mount_point_reaches_the_starter(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "precious").touch()
    with pytest.raises(MountPointError, match="not empty"):
        Mounted(tmp_path)
