"""What every test is held to: no unexpected warning in the log, no mount and no process left behind.

A warning that nobody looks at is a bug report that nobody reads, so a record of WARNING or above from our loggers fails
the test that caused it, unless the test is marked `allows_warnings("regex", ...)`. At the end of the session, mounts
and processes that the tests made and left are ended (by id, never by name) and the session fails, naming them.

Programs that tests start load compiled modules, as those of users do, also where PYTHONDONTWRITEBYTECODE is set (a
container, CI): a daemon needs 0.27 s of processor time to load, and 0.50 s when it compiles each module anew.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tieredfs", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # no test is held to a time
settings.load_profile("tieredfs")

LOGGERS = ("tieredfs", "tieredfs_client", "tieredfs_gateway")
MARK = "TIEREDFS_TEST_SESSION"
PREFIX = "tieredfs-tests-"
END_WAIT_S = 10.0
KEPT_S = 24 * 3600.0
KERNEL_THREAD = 0x200000  # PF_KTHREAD
EXECVE_LOOKS = 20


class Collector(logging.Handler):
    """Keeps records of WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def no_unexpected_warnings(request: pytest.FixtureRequest) -> Iterator[None]:
    collector = Collector()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(collector)
    yield
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(collector)
    allowed = [pattern for mark in request.node.iter_markers("allows_warnings") for pattern in mark.args]
    unexpected = [text for text in collector.messages if not any(re.search(pattern, text) for pattern in allowed)]
    if unexpected:
        pytest.fail("unexpected warnings in the log:\n" + "\n".join(unexpected), pytrace=False)


# ---- nothing is left behind ------------------------------------------------------------------------------------------


def our_mounts(below: str) -> set[str]:
    """Mount points below a directory: those of this session, for its temporary directories all lie in one."""
    points = set()
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        if point.startswith(f"{below}/"):
            points.add(point)
    return points


def _environment(pid: int) -> bytes:
    """That of a process that runs a program. In the middle of execve(2) it has none for a moment, nor a command line."""
    for _ in range(EXECVE_LOOKS):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if environment:
            break
        time.sleep(0.01)
    return environment


def _is_ours(pid: int, mark: bytes) -> bool:
    """A child of this process, or one that detached itself but still carries the mark of this session."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if int(stat[6]) & KERNEL_THREAD:
            return False
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        marked = mark in _environment(pid).split(b"\0")
    except OSError:
        return False  # it ended, or belongs to somebody else
    if b"multiprocessing.resource_tracker" in command or stat[0] == b"Z":
        return False  # the first is Python's own and ends with us; the second has ended
    return marked or int(stat[1]) == os.getpid()


def our_processes() -> set[int]:
    mark = f"{MARK}={os.environ[MARK]}".encode()
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return {pid for pid in pids if pid != os.getpid() and _is_ours(pid, mark)}


def end_processes(pids: set[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline_s = time.monotonic() + END_WAIT_S
        for pid in pids & our_processes():
            os.kill(pid, number)
        while pids & our_processes() and time.monotonic() < deadline_s:
            time.sleep(0.05)


def describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = "ended meanwhile"
    return f"process {pid}: {command}"


DIRECTORY = pytest.StashKey[str]()
LEFTOVERS = pytest.StashKey[list[str]]()


def _remove_old_sessions() -> None:
    """Directories of failed sessions are kept to be looked at, for a day."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_S and not our_mounts(str(path)):
                shutil.rmtree(path, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One directory for every temporary file of the session, also for the programs that tests start."""
    _remove_old_sessions()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    directory = os.path.realpath(tempfile.mkdtemp(prefix=PREFIX))
    config.stash[DIRECTORY] = directory
    os.environ[MARK] = f"{os.getpid()}-{os.urandom(4).hex()}"
    os.environ["TMPDIR"] = directory
    tempfile.tempdir = directory


def pytest_sessionfinish(session: pytest.Session) -> None:
    directory = session.config.stash[DIRECTORY]
    mounts, processes = our_mounts(directory), our_processes()
    session.config.stash[LEFTOVERS] = [f"mount at {mount}" for mount in sorted(mounts)]
    session.config.stash[LEFTOVERS] += [describe(pid) for pid in sorted(processes)]
    for mount in sorted(mounts, reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, timeout=END_WAIT_S)
    end_processes(processes)
    if session.config.stash[LEFTOVERS] and session.exitstatus in (0, 5):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if session.exitstatus in (0, 5) and not our_mounts(directory):
        shutil.rmtree(directory, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    leftovers = config.stash.get(LEFTOVERS, [])
    if leftovers:
        terminalreporter.section("left behind by the tests (ended now; this fails the session)", red=True)
        for line in leftovers:
            terminalreporter.line(line)
