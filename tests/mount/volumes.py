"""Real volumes under real mounts, for the tests of this folder: six directories, an SSD directory, one mount point."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tieredfs.config import parse_code
from tieredfs.fuse.control import ControlClient
from tieredfs.fuse.mounting import MountedVolume, MountOptions, mount_volume, unmount
from tieredfs.host import crash, libc
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import Volume, format_volume

WAIT_S = 30.0


@dataclass
class Lab:
    """A volume in a folder of its own; `meta_url` where its metadata are not there. Every process that is started here is
    ended by `clean`."""

    root: Path
    mounts: list[MountedVolume] = field(default_factory=list)
    started: "list[subprocess.Popen[str]]" = field(default_factory=list)
    meta_url: str = ""

    @property
    def url(self) -> str:
        return self.meta_url or f"sqlite://{self.root}/volume.db"

    @property
    def mnt(self) -> Path:
        return self.root / "mnt"

    def disk(self, number: int) -> Path:
        return self.root / f"d{number}"

    def format(self, code: str = "rs:4+2", disks: int = 6, **settings: Any) -> None:
        self.mnt.mkdir(exist_ok=True)
        usual: dict[str, Any] = {"durability": Durability.SSD, "block_bytes": 4 * MIB, "name": "lab"}
        data = f"disk://{self.root}/d{{0..{disks - 1}}}"
        format_volume(self.url, [data], code=parse_code(code), **(usual | settings))

    def mount(self, point: Path | None = None, **options: Any) -> MountedVolume:
        mounted = mount_volume(MountOptions(self.url, str(point or self.mnt), **options))
        self.mounts.append(mounted)
        return mounted

    def unmount(self, *, flush: bool = False, point: Path | None = None) -> None:
        unmount(str(point or self.mnt), flush=flush, progress=lambda *_: None)
        self._reap()

    def _reap(self) -> None:
        for mounted in self.mounts:
            with contextlib.suppress(subprocess.TimeoutExpired):
                mounted.process.wait(0.01 if is_mounted(Path(mounted.mountpoint)) else WAIT_S)
        self.mounts = [mounted for mounted in self.mounts if mounted.process.poll() is None]

    def ask(self, verb: str, **arguments: object) -> Any:
        return ControlClient(self.mounts[-1].mount_id).call(verb, arguments, lambda *_: None)

    def open(self) -> Volume:
        return Volume.open(self.url, purpose="test")

    def takeovers(self) -> int:
        """How often a successor took over one of the mounts so far, as the keepers' log has it."""
        return self.log().count("a new daemon took over")

    def log(self) -> str:
        return Path(f"{self.root}/volume.db.log").read_text()

    def daemon_pid(self) -> int:
        """The process that serves the newest mount (its keeper's child, or itself)."""
        return int(self.ask("status")["mount"]["process"])

    def run(self, *arguments: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        """`tieredfs` as a user runs it."""
        return subprocess.run(
            [sys.executable, "-m", "tieredfs", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """`tieredfs` as a user runs it, and goes on meanwhile; what it says can be read."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tieredfs", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def clean(self) -> None:
        for process in self.started:
            with process:  # closes its pipes
                process.kill()
        for mounted in self.mounts:
            while is_mounted(Path(mounted.mountpoint)):
                libc.unmount(mounted.mountpoint, libc.MNT_DETACH)
            try:
                mounted.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(mounted.process.pid, signal.SIGKILL)
                mounted.process.wait(WAIT_S)
        shutil.rmtree(self.root, ignore_errors=True)


def is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


@contextlib.contextmanager
def lab(meta_url: str = "") -> Iterator[Lab]:
    root = Path(tempfile.mkdtemp(prefix="tieredfs-lab-"))
    root.chmod(0o755)
    made = Lab(root, meta_url=meta_url)
    try:
        yield made
    finally:
        made.clean()


@contextlib.contextmanager
def crash_at(point: str, count: int = 1) -> Iterator[None]:
    """Daemons started inside die at the `count`-th arrival at a crash point."""
    os.environ[crash.ENVIRONMENT] = f"{point}:{count}"
    try:
        yield
    finally:
        del os.environ[crash.ENVIRONMENT]


class CrashTokens:
    """Processes that start inside `armed` die at a point when its token lies in the folder: once, for dying takes it.

    So a daemon can be told to die when everything is prepared, and its successor lives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        os.environ[crash.TOKENS] = str(self.folder)
        try:
            yield
        finally:
            del os.environ[crash.TOKENS]

    def lay(self, point: str, *, everybody: bool = False) -> None:
        """The next process to arrive at `point` dies; with `everybody`, its keeper at the same moment."""
        assert point in crash.POINTS
        (self.folder / (f"{point}.all" if everybody else point)).touch()

    def left(self) -> list[str]:
        """Points at which nobody has died yet."""
        return os.listdir(self.folder)


def wait_until(condition: Any, what: str, timeout_s: float = WAIT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s in vain until {what}"
        time.sleep(0.02)
