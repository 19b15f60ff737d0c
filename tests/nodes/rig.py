"""Real storage nodes for the tests of this folder: `tieredfs node` as processes, over directories of a test."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.s3.endpoint import announce_verbs, command, free_port
from tieredfs.config import NodeUrl

WAIT_S = 30.0
SECRET = "a-secret-of-the-tests-and-of-nobody"
ENVIRONMENT = {"TIEREDFS_NODE_SECRET": SECRET}


@dataclass
class Node:
    """One process; `disks` directories below `root`, named d0, d1, ..."""

    root: Path
    port: int
    disks: int
    options: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))

    @property
    def log(self) -> Path:
        return self.root / "log"

    def path(self, disk: int = 0) -> Path:
        return self.root / f"d{disk}"

    def url(self, disk: int = 0, port: int | None = None) -> NodeUrl:
        return NodeUrl("127.0.0.1", port or self.port, str(self.path(disk)), "--cert" in self.options)

    def start(self) -> None:
        data = f"disk://{self.root}/d{{0..{self.disks - 1}}}"
        line, environment = command(
            self.root / "entry-points", "node", "--data", data, "--listen", f"127.0.0.1:{self.port}", *self.options
        )
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(line, env=environment | self.environment, stdout=log, stderr=log)
        deadline_s = time.monotonic() + WAIT_S
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, "the node does not answer"
            time.sleep(0.05)

    def answers(self) -> bool:
        scheme = "https" if "--cert" in self.options else "http"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{scheme}://127.0.0.1:{self.port}/healthz", timeout=2, verify=False).status_code == 200
        return False

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(WAIT_S)


@contextlib.contextmanager
def node(disks: int = 1, *options: str) -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="tieredfs-node-"))
    announce_verbs(root / "entry-points")
    made = Node(root, free_port(), disks, options)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def secret_set() -> Iterator[None]:
    """The nodes' secret in this process's environment, too."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ |= ENVIRONMENT
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
