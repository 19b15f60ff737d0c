"""A mount of the portable driver over a plain directory, served by a child process, for the tests of this folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.testing import mounting
from tieredfs.testing.features import Features
from tieredfs.testing.mounting import Mount

PORTABLE = Features(
    nanosecond_times=False,
    single_time_changes=False,
    fallocate=False,
    punch_hole=False,
    rename_flags=False,
    allocated_blocks=False,
    binary_xattrs=False,
    xattr_value_bytes_max=3500,  # what the ext4 behind holds
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


@pytest.fixture(scope="session")
def serve() -> str:
    """The script that a child runs."""
    return SERVE


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Reachable by every user, unlike pytest's own temporary directories."""
    path = Path(tempfile.mkdtemp(prefix="tieredfs-portable-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def mount(folder: Path) -> Iterator[Mount]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    if os.geteuid() != 0:
        pytest.skip("mounting for other users (allow_other) needs root")
    (folder / "shared").mkdir(mode=0o755)
    mounted = mounting.start(SERVE, folder / "shared")
    try:
        yield mounted
    finally:
        last_words = mounting.stop(mounted)
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
