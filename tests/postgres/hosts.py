"""Another host of a lab's volume, on this machine: it has a host name and a mount table of its own, and at the lab's `ssd` an SSD
of its own, which is not seen here. Metadata and chunk directories are the lab's.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.mount.volumes import Lab
from tests.nodes.rig import SECRET
from tieredfs.cache.peers import LISTEN_VARIABLE
from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.fuse.control import ControlClient

WAIT_S = 60.0


class OtherHost:
    """Its processes serve what is staged there."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.mount_id = ""
        own, shown = lab.root / f"ssd-of-{name}", lab.root / "ssd"
        own.mkdir()
        shown.mkdir(exist_ok=True)
        script = f"hostname {name} && mount --bind {own} {shown} && echo up && exec sleep 3600"
        self._holder = subprocess.Popen(["unshare", "--mount", "--uts", "sh", "-c", script], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"

    def path(self, name: str) -> Path:
        """A file below the lab's folder as that host has it."""
        return Path(f"/proc/{self._holder.pid}/root{self.lab.root}/{name}")

    def run(self, *arguments: str) -> str:
        """`tieredfs` on that host, to its end."""
        environment = os.environ | {
            "TIEREDFS_STATE_DIR": f"{self.lab.root}/ssd/state",
            SECRET_VARIABLE: SECRET,
            LISTEN_VARIABLE: "127.0.0.1:0",
        }
        there = ["nsenter", "-t", str(self._holder.pid), "--mount", "--uts", "--"]
        command = [*there, sys.executable, "-m", "tieredfs", *arguments]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mount(self) -> None:
        made = self.run("mount", self.lab.url, str(self.lab.mnt), "--cache-dir", f"{self.lab.root}/ssd/cache", "--json")
        self.mount_id = json.loads(made)["mount_id"]

    def daemon_pid(self) -> int:
        status: Any = ControlClient(self.mount_id).call("status", {}, lambda *_: None)
        return int(status["mount"]["process"])

    def close(self) -> None:
        try:
            if self.mount_id:
                self.run("umount", str(self.lab.mnt))
        finally:
            self._holder.kill()
            with self._holder:  # closes its pipe
                pass


@contextmanager
def other_host(lab: Lab, name: str) -> Iterator[OtherHost]:
    made = OtherHost(lab, name)
    try:
        yield made
    finally:
        made.close()


def children_of(process: int, marked: str) -> list[int]:
    """Its child processes whose command line has `marked`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and marked in Path(f"/proc/{name}/cmdline").read_text():
                found.append(int(name))
    return found
