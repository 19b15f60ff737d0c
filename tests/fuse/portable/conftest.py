"""A mount of the portable driver over a plain directory, served by a child process, for the tests of this folder."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tieredfs.host import libc
from tieredfs.testing.features import Features

READY_S = 20.0
PORTABLE = Features(
    nanosecond_times=False,
    single_time_changes=False,
    fallocate=False,
    punch_hole=False,
    rename_flags=False,
    allocated_blocks=False,
    binary_xattrs=False,
    xattr_value_bytes_max=3500,
    seamless_replacement=False,
    coherent_links=False,
    open_removed_directories=False,
)
SERVE = """
import logging, sys
from tieredfs.fuse.portable import serve_portable
from tieredfs.testing.loopback import LoopbackOperations
logging.basicConfig(level=logging.WARNING)
operations = LoopbackOperations(sys.argv[1])
serve_portable(operations, sys.argv[2], source="loopback", read_only="ro" in sys.argv, allow_other=True,
               on_ready=lambda: print("ready", flush=True), foreground=True)
print("handles", *operations.open_handles(), flush=True)
"""


def is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


@dataclass(frozen=True, slots=True)
class Mount:
    path: Path
    behind: Path
    process: subprocess.Popen[str]
    log: Path


def start(folder: Path, *options: str) -> Mount:
    behind, path, log = folder / "behind", folder / "mnt", folder / "log"
    behind.mkdir(mode=0o755)
    path.mkdir(mode=0o755)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, behind, path, *options], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    # The child dies at the latest with this timer, which closes its output and so ends the wait below.
    guard = threading.Timer(READY_S, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "ready\n", f"the driver said {said!r}; {log.read_text()}"
        os.stat(path)
        assert is_mounted(path)
    except BaseException:
        stop(Mount(path, behind, process, log))
        raise
    finally:
        guard.cancel()
    return Mount(path, behind, process, log)


def stop(mount: Mount) -> str:
    """Unmount lazily, and reap the child by its pid; its last words."""
    if is_mounted(mount.path):
        libc.unmount(str(mount.path), libc.MNT_DETACH)
    try:
        output, _ = mount.process.communicate(timeout=READY_S)
    except subprocess.TimeoutExpired:
        mount.process.kill()
        output, _ = mount.process.communicate(timeout=READY_S)
    return output


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Reachable by every user, unlike pytest's own temporary directories."""
    path = Path(tempfile.mkdtemp(prefix="tieredfs-portable-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def mount(folder: Path) -> Iterator[Mount]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/fuse")
    if os.geteuid() != 0 and shutil.which("fusermount") is None:
        pytest.skip("mounting needs root or fusermount")
    (folder / "shared").mkdir(mode=0o755)
    mounted = start(folder / "shared")
    try:
        yield mounted
    finally:
        last_words = stop(mounted)
    assert mounted.process.returncode == 0
    assert last_words == "handles 0 0\n", "every open file was released"
    # fuse-python prints what it cannot decode: `cp -a` sets access control lists, which are no text.
    said = [line for line in mounted.log.read_text().splitlines() if not line.startswith("UnicodeDecodeError:")]
    assert said == [], "the driver logged or printed something unexpected"


@pytest.fixture
def mounted(mount: Mount) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=mount.path))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def features() -> Features:
    return PORTABLE
