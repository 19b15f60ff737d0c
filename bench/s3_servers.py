"""The servers that `bench.s3` compares: ours, the one below it sending a plain file, uvicorn, moto and JuiceFS's gateway.

Each is a child process of this one, listens on a port that was free, and ends with it. One that cannot run here raises
UnavailableTargetError, and its rows are without it.
"""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.juicefs import JuiceTarget
from bench.targets import UnavailableTargetError
from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_gateway.s3.keystore import AccessKey, Keystore, Scope, make_key

READY_S: Final = 30.0
SERVE: Final = """
import json, sys
from tieredfs_gateway.s3.starting import serve
from tieredfs_gateway.s3.serving import Serving
url, port, workers, memory = json.loads(sys.argv[1])
serve(Serving(url, "127.0.0.1", port, [], None, None, False, 1 << 36, memory, workers=workers))
"""
PLAIN: Final = """
import os
from fastapi import FastAPI
from fastapi.responses import FileResponse

app = FastAPI()


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(os.environ["PLAIN_FILE"])
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One that listens."""

    name: str
    port: int
    pid: int
    key: AccessKey | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    name: str,
    line: Sequence[str],
    port: int,
    folder: Path,
    environment: Mapping[str, str],
    key: AccessKey | None = None,
) -> Iterator[Server]:
    """Once it listens. Raises UnavailableTargetError."""
    log_path = folder / f"{name.replace(' ', '-')}.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(line, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + READY_S
        while _refuses(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise UnavailableTargetError(f"{name} does not start here: {log_path.read_text()[-300:]}")
            time.sleep(0.05)
        yield Server(name, port, process.pid, key)
    finally:
        process.terminate()
        try:
            process.wait(READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def new_volume(folder: Path) -> tuple[str, AccessKey]:
    url = f"sqlite://{folder}/volume.db"
    code, data = parse_code("rs:2+1"), [f"disk://{folder}/d{{0..2}}"]
    format_volume(url, data, code=code, durability=Durability.SSD, name="bench", block_bytes=64 * MIB)
    key = make_key(Scope(), 0)
    with FileSystem.at(url, purpose="bench") as volume:
        Keystore(volume, volume.volume.host.clock).add(key)
        volume.flush(READY_S)
    return url, key


@contextlib.contextmanager
def tieredfs(folder: Path, url: str, key: AccessKey, workers: int, memory_bytes: int) -> Iterator[Server]:
    root = Path(__file__).parent.parent
    paths = [str(root), str(root / "gateway"), os.environ.get("PYTHONPATH", "")]
    port = free_port()
    line = [sys.executable, "-c", SERVE, json.dumps([url, port, workers, memory_bytes])]
    with serving("tieredfs", line, port, folder, {"PYTHONPATH": os.pathsep.join(paths)}, key) as server:
        time.sleep(2.0)  # the other workers listen a moment later
        yield server


@contextlib.contextmanager
def plain(folder: Path, name: str, file: Path, workers: int) -> Iterator[Server]:
    """FastAPI's FileResponse under Granian (which sends the file itself) or under uvicorn."""
    (folder / "plain.py").write_text(PLAIN)
    port = free_port()
    options = ["--interface", "asginl", "--log-level", "error"] if name == "granian" else ["--log-level", "error"]
    line = [sys.executable, "-m", name, *options, "--workers", str(workers), "--port", str(port), "plain:app"]
    with serving(f"{name} plain", line, port, folder, {"PLAIN_FILE": str(file)}) as server:
        yield server


@contextlib.contextmanager
def moto(folder: Path, key: AccessKey) -> Iterator[Server]:
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask_cors") is None:
        raise UnavailableTargetError("moto's server is not installed: pip install -r requirements/bench.txt")
    port = free_port()
    with serving("moto", [sys.executable, "-m", "moto.server", "-p", str(port)], port, folder, {}, key) as server:
        yield server


@contextlib.contextmanager
def juicefs(folder: Path, key: AccessKey) -> Iterator[tuple[Server, JuiceTarget]]:
    """The gateway, over a volume that is mounted too (its `root`). Keys of the mount's files are in bucket `bench`."""
    target = JuiceTarget(folder, 4096)
    try:
        target.start()
        port = free_port()
        words = {"ROOT_USER": key.access_key_id, "ROOT_PASSWORD": key.secret_access_key}
        words |= {"ACCESS_KEY": key.access_key_id, "SECRET_KEY": key.secret_access_key}
        environment = {f"MINIO_{name}": word for name, word in words.items()} | {
            "HOME": str(folder / "juicefs" / "home")
        }
        with serving("juicefs gateway", target.gateway_line(port), port, folder, environment, key) as server:
            yield server, target
    finally:
        target.stop()
