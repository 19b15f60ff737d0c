"""A mount in a child process, for tests: started, waited for, and ended whatever happens.

The child runs a Python script with the arguments `behind` (a directory for its data), the mount point, and options; it
prints `ready` when the mount is made and may print last words when it ends. Its stderr goes to a file.
"""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tieredfs.host import libc

READY_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Mount:
    """`behind` is what the script was given as its first argument, `path` is the mount point."""

    path: Path
    behind: Path
    process: subprocess.Popen[str]
    log: Path


def is_mounted(path: Path) -> bool:
    """By this process's mount table: asking the path itself could wait for a dead server."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def start(script: str, folder: Path, *options: str) -> Mount:
    """Run `script` over new directories below `folder`; returns when the mount answers, bounded by `READY_S`."""
    behind, path, log = folder / "behind", folder / "mnt", folder / "log"
    behind.mkdir(mode=0o755)
    path.mkdir(mode=0o755)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", script, behind, path, *options], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    mount = Mount(path, behind, process, log)
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
        stop(mount)
        raise
    finally:
        guard.cancel()
    return mount


def stop(mount: Mount) -> str:
    """Unmount lazily, and reap the child by its pid; its last words. Harmless when it has ended already."""
    if is_mounted(mount.path):
        libc.unmount(str(mount.path), libc.MNT_DETACH)
    try:
        output, _ = mount.process.communicate(timeout=READY_S)
    except subprocess.TimeoutExpired:
        mount.process.kill()
        output, _ = mount.process.communicate(timeout=READY_S)
    return output
