"""A real endpoint for the tests of this folder: a volume of three directories, `tieredfs s3` as a process, and its clients."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from tests import web
from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_gateway.s3.keystore import AccessKey, Keystore, Scope, make_key

WAIT_S = 30.0
ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def announce_verbs(folder: Path) -> None:
    """The entry points of `pyproject.toml`, for a tree that is not installed."""
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    metadata = folder / "tieredfs_tree-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tieredfs-tree\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
        for group, names in entry_points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """`tieredfs ...` with this tree's entry points (unless they are installed)."""
    from importlib.metadata import entry_points

    environment = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "gateway"), str(ROOT / "clients")]
    if not {"node", "s3", "status-page"} <= {entry.name for entry in entry_points(group="tieredfs.cli")}:
        paths.append(str(folder))
    environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
    return [sys.executable, "-m", "tieredfs", *arguments], environment


@dataclass
class Endpoint:
    """One server over one volume; `key` may do everything."""

    root: Path
    port: int
    key: AccessKey
    process: "subprocess.Popen[bytes] | None" = None
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    database: str = ""
    """A URL, where the metadata are not in a file of the volume's own."""

    @property
    def meta_url(self) -> str:
        return self.database or f"sqlite://{self.root}/volume.db"

    @property
    def url(self) -> str:
        return f"{'https' if '--cert' in self.options else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["s3", self.meta_url, "--listen", f"127.0.0.1:{self.port}", *self.options]
        line, environment = command(self.root / "entry-points", *arguments)
        with open(self.root / "log", "ab") as log:
            self.process = subprocess.Popen(line, env=environment | self.environment, stdout=log, stderr=log)
        deadline_s = time.monotonic() + WAIT_S
        while not self._answers():
            assert self.process.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < deadline_s, "the endpoint does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=2, verify=False).status_code == 200
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(WAIT_S)

    def client(self, key: AccessKey | None = None, host: str = "127.0.0.1", **options: Any) -> Any:
        key = key or self.key
        config = Config(retries={"max_attempts": 1}, **options)
        return boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{self.port}",
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret_access_key,
            region_name="us-east-1",
            config=config,
        )

    def add_key(self, scope: Scope) -> AccessKey:
        with self.volume() as volume:
            made = make_key(scope, 0)
            Keystore(volume, volume.volume.host.clock).add(made)
            volume.flush(WAIT_S)
        return made

    def volume(self) -> FileSystem:
        return FileSystem.at(self.meta_url, purpose="test")

    def signed(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, payload: str = ""
    ) -> AWSRequest:
        """A request signed by botocore, with headers of the test's choice."""
        request = AWSRequest(method, f"{self.url}{path}", headers=headers or {}, data=body)
        request.context["payload_signing_enabled"] = True
        if payload:
            request.headers["X-Amz-Content-SHA256"] = payload
            signer: Any = type(
                "Fixed",
                (S3SigV4Auth,),
                {
                    "payload": lambda *_: payload,
                    "_inject_signature_to_request": S3SigV4Auth._inject_signature_to_request,
                },
            )
        else:
            signer = S3SigV4Auth
        signer(Credentials(self.key.access_key_id, self.key.secret_access_key), "s3", "us-east-1").add_auth(request)
        return request

    def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, payload: str = ""
    ) -> httpx.Response:
        request = self.signed(method, path, body, headers, payload)
        return web.request(
            method, f"{self.url}{path}", content=body, headers=dict(request.headers.items()), timeout=WAIT_S
        )

    def raw(self, head: bytes, body: bytes = b"", *, close_early: bool = False) -> bytes:
        """Bytes as they are over a socket; what came back until the server closed or fell silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(head + body)
            if close_early:
                return b""
            answer = b""
            connection.settimeout(2)
            with contextlib.suppress(OSError):
                while piece := connection.recv(65536):
                    answer += piece
            return answer

    def head_of(self, request: AWSRequest, extra: Sequence[tuple[str, str]] = ()) -> bytes:
        """The request's head as HTTP/1.1."""
        path = re.sub(r"^https?://[^/]+", "", request.url)
        lines = [f"{request.method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in [*request.headers.items(), *extra]]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def is_tidy(self) -> bool:
        """Nothing unfinished is left in the volume: no unnamed files of living sessions."""
        with self.volume() as volume:
            return volume.volume.metadata.orphans() == []


@contextlib.contextmanager
def endpoint(*options: str, database: str = "") -> Iterator[Endpoint]:
    root = Path(tempfile.mkdtemp(prefix="tieredfs-s3-"))
    announce_verbs(root / "entry-points")
    made = Endpoint(root, free_port(), make_key(Scope(), 0), options=options, database=database)
    format_volume(
        made.meta_url,
        [f"disk://{root}/d{{0..2}}"],
        code=parse_code("rs:2+1"),
        durability=Durability.SSD,
        name="s3",
        block_bytes=4 * MIB,
    )
    made.key = made.add_key(Scope())
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)


def new_bucket(client: Any) -> str:
    name = f"b-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    return name
