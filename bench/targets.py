"""The sides of a comparison: a file system to put files on, whatever is below it.

`MountedTarget` is what every row needs; `TieredTarget` is what the rows about the store need beyond it. A target is
used by one thread. `start` may raise `UnavailableTargetError`, whose message is printed in place of its figures;
`stop` leaves no mount, process or file behind, whatever happened before, and may be called twice.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from bench import machine

COMMAND_S: Final = 900.0
MOUNT_S: Final = 60.0
DISK_COUNT: Final = 6


class UnavailableTargetError(Exception):
    """This side cannot run here; the message says why."""


class MountedTarget(Protocol):
    """One side: `root` is a directory to work in once `start` has returned."""

    name: str
    root: Path

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def settle(self) -> None:
        """Return when nothing goes on behind the caller's back any more: all written, stored, synced."""
        ...


class PlainTarget:
    """A directory of the file system that everything else stands on."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.root = directory / "plain"

    def start(self) -> None:
        self.root.mkdir(parents=True)

    def stop(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def settle(self) -> None:
        os.sync()


class TieredTarget:
    """A TieredFS volume of six directories, mounted by its own command line, as a user would."""

    name = "tieredfs"

    def __init__(self, directory: Path, driver: str, code: str, cache_size: str, memory: str) -> None:
        self.directory = directory / "tieredfs"
        self.root = self.directory / "mnt"
        self.meta = f"sqlite://{self.directory}/volume.db"
        self.driver, self.code, self.cache_size, self.memory = driver, code, cache_size, memory

    def start(self) -> None:
        self.root.mkdir(parents=True)
        disks = f"disk://{self.directory}/d{{0..{DISK_COUNT - 1}}}"
        try:
            run_tieredfs("format", self.meta, "--data", disks, "--code", self.code, "--durability", "ssd")
            self.mount()
        except subprocess.CalledProcessError as error:
            raise UnavailableTargetError(f"tieredfs does not mount here: {_last_line(error)}") from error

    def mount(self) -> None:
        cache = ("--cache-dir", str(self.directory / "cache"), "--cache-size", self.cache_size)
        run_tieredfs("mount", self.meta, str(self.root), *cache, "--driver", self.driver, "--memory", self.memory)

    def stop(self) -> None:
        if machine.is_mounted(self.root):
            with contextlib.suppress(subprocess.SubprocessError):
                run_tieredfs("umount", str(self.root), timeout_s=MOUNT_S)
        machine.lazy_unmount(self.root)
        shutil.rmtree(self.directory, ignore_errors=True)

    def settle(self) -> None:
        run_tieredfs("drain", str(self.root))
        os.sync()

    def drain(self, path: Path) -> None:
        run_tieredfs("drain", str(path))

    def evict(self, path: Path) -> None:
        """Take a drained file, or all below a directory, off the SSD tier."""
        run_tieredfs("evict", str(path))

    def info(self, path: Path) -> dict[str, object]:
        found: dict[str, object] = json.loads(run_tieredfs("info", str(path), "--json").stdout)
        return found

    def disks(self) -> list[Path]:
        return [self.directory / f"d{index}" for index in range(DISK_COUNT)]

    def chunk_files(self) -> list[list[Path]]:
        """Large files of each disk directory, by disk: chunks are what is large there."""
        return [
            sorted(p for p in disk.rglob("*") if p.is_file() and p.stat().st_size > 1 << 20) for disk in self.disks()
        ]

    def daemons(self) -> set[int]:
        """The processes that serve this mount: they name its directory, or hold its metadata or SSD tier open. Asked
        while nobody else has a file of the mount open."""
        return machine.processes_naming("mount", str(self.directory)) | machine.processes_holding(self.directory)

    @contextlib.contextmanager
    def disks_away(self, *indexes: int) -> Iterator[None]:
        """Rename disk directories away, as if they had died, and back in the end."""
        taken = [(disk, disk.with_name(disk.name + ".away")) for disk in (self.disks()[index] for index in indexes)]
        for disk, away in taken:
            disk.rename(away)
        try:
            yield
        finally:
            for disk, away in taken:
                if disk.exists():  # the product may have made an empty directory again
                    shutil.rmtree(disk)
                away.rename(disk)


def run_tieredfs(*arguments: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """The command line of this interpreter's TieredFS. Raises CalledProcessError with its output."""
    command = [sys.executable, "-m", "tieredfs", *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
    )


def _last_line(error: subprocess.CalledProcessError) -> str:
    lines = ((error.stderr or "") + (error.stdout or "")).strip().splitlines()
    return lines[-1] if lines else f"exit code {error.returncode}"
