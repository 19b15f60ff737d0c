"""The demo's volume: six directories as disks, driven by the command line as a user would.

`PlainVolume` is a directory in its place, for work on the trainer and the story without a mount; the steps about disks
are left out there. One thread uses a volume.
"""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, Protocol

from bench import machine
from bench.targets import TieredTarget, run_tieredfs

CACHE_SIZE: Final = "4GiB"
MEMORY: Final = "512MiB"


class Volume(Protocol):
    """Somewhere to put files: `root`, from `start` to `stop` (which leaves no mount or process behind)."""

    root: Path

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def settle(self) -> None: ...


class PlainVolume:
    def __init__(self, directory: Path) -> None:
        self.root = directory / "plain"

    def start(self) -> None:
        self.root.mkdir()

    def stop(self) -> None:
        pass

    def settle(self) -> None:
        pass


class DemoVolume(TieredTarget):
    """What the story does to a volume beyond what the benchmark does."""

    def __init__(self, directory: Path, driver: str, code: str) -> None:
        super().__init__(directory, driver, code, CACHE_SIZE, MEMORY)

    def stop(self) -> None:
        """As the benchmark's, but the files stay: the workspace decides whether they are kept."""
        if machine.is_mounted(self.root):
            with contextlib.suppress(subprocess.SubprocessError):
                run_tieredfs("umount", str(self.root), "--flush")
        machine.lazy_unmount(self.root)

    def lose(self, *indexes: int) -> list[Path]:
        """rm -rf disk directories: what they held is gone. Returns them."""
        lost = [self.disks()[index] for index in indexes]
        for disk in lost:
            shutil.rmtree(disk)
        return lost

    def replace(self, lost: list[Path]) -> None:
        """Put in one new directory for each lost one, then rebuild what the lost ones held."""
        ids = {path: disk_id(self.disk_list(), path) for path in lost}
        for path in lost:
            run_tieredfs("disk", "add", self.meta, f"disk://{path}-new")
        for number in ids.values():
            run_tieredfs("disk", "rebuild", self.meta, str(number))

    def lose_metadata(self) -> str:
        """A dump on the disks, then the database is deleted and made anew from the disks; the dump that was taken."""
        run_tieredfs("dump", self.meta)
        run_tieredfs("umount", str(self.root))
        sources = [str(disk["url"]) for disk in self.disk_list()]
        for path in self.directory.glob("volume.db*"):
            path.unlink()
        found = json.loads(run_tieredfs("load", self.meta, *sources, "--json").stdout)
        self.mount()
        return str(found["dump"])

    def disk_list(self) -> Any:
        return json.loads(run_tieredfs("disk", "list", self.meta, "--json").stdout)

    def check(self) -> str:
        """fsck; its summary. Raises CalledProcessError when it finds damage."""
        return run_tieredfs("fsck", self.meta, "--json").stdout.strip()


def disk_id(listing: Any, path: Path) -> int:
    """The id of the disk at `path`, in the answer of `disk list --json` (a list, or an object that holds it)."""
    disks = listing["disks"] if isinstance(listing, dict) else listing
    for disk in disks:
        if "/" + disk["url"].removeprefix("disk://").lstrip("/") == str(path):
            return int(disk["disk"] if "disk" in disk else disk["id"])
    raise LookupError(f"no disk at {path} in {disks}")
