"""The S3 endpoint against what lies below it, in one run: the same server sending a plain file, write + fsync, and uvicorn.

    python -m bench.s3 [--rounds 5] [--folder /tmp] [--size 256M] [--objects 2000]

Contenders alternate; numbers are medians, with the lowest and highest beside them. Large transfers are curl's (presigned
links), small ones a client of this file: 32 connections, presigned, one select loop. Client and server share the machine.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from bench.mount import parse_size
from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_gateway.s3.keystore import AccessKey, Keystore, Scope, make_key

CONNECTIONS: Final = 32
SMALL_BYTES: Final = 4096
READY_S: Final = 30.0
BUCKET: Final = "bench"
SERVE: Final = """
import json, sys
from tieredfs_gateway.s3.server import serve
from tieredfs_gateway.s3.serving import Serving
url, port = json.loads(sys.argv[1])
serve(Serving(url, "127.0.0.1", port, [], None, None, False, 1 << 36, 1 << 29))
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(arguments: Sequence[str], port: int, folder: Path, **environment: str) -> Iterator[int]:
    """A server process, once it listens; its id."""
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(arguments, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + READY_S
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(READY_S)


def new_volume(folder: Path) -> tuple[str, AccessKey]:
    url = f"sqlite://{folder}/volume.db"
    code, data = parse_code("rs:2+1"), [f"disk://{folder}/d{{0..2}}"]
    format_volume(url, data, code=code, durability=Durability.SSD, name="bench", block_bytes=64 * MIB)
    key = make_key(Scope(), 0)
    with FileSystem.at(url, purpose="bench") as volume:
        Keystore(volume, volume.volume.host.clock).add(key)
    return url, key


class Client:
    """Presigned links, curl, and a loop of many connections."""

    def __init__(self, port: int, key: AccessKey) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.port = port
        self.s3: Any = boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret_access_key,
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )
        self.s3.create_bucket(Bucket=BUCKET)

    def link(self, call: str, key: str) -> str:
        made: str = self.s3.generate_presigned_url(call, Params={"Bucket": BUCKET, "Key": key}, ExpiresIn=3600)
        return made

    def put_file(self, path: Path, key: str) -> None:
        curl("--upload-file", str(path), self.link("put_object", key))

    def small(self, method: str, keys: Sequence[str]) -> float:
        """Requests per second."""
        call, body = ("put_object", bytes(SMALL_BYTES)) if method == "PUT" else ("get_object", b"")
        heads = [
            f"{method} {self.link(call, key)[len(self.address) :]} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            for key in keys
        ]
        requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for head in heads]
        started_s = time.monotonic()
        exchange(self.port, requests)
        return len(keys) / (time.monotonic() - started_s)


def curl(*arguments: str) -> None:
    subprocess.run(["curl", "--silent", "--fail", "--output", "/dev/null", *arguments], check=True)


def fetch(link: str, times: int) -> None:
    """`times` clients at once."""
    line = ["curl", "--silent", "--fail", "--output", "/dev/null", link]
    clients = [subprocess.Popen(line) for _ in range(times)]
    if any(client.wait() for client in clients):
        raise RuntimeError(f"curl could not fetch {link}")


def exchange(port: int, requests: Sequence[bytes]) -> None:
    """Send them over `CONNECTIONS` connections, one at a time on each, and read every answer."""
    waiting, left = iter(requests), len(requests)
    selector = selectors.DefaultSelector()
    for request in [next(waiting) for _ in range(min(CONNECTIONS, left))]:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request)
        selector.register(connection, selectors.EVENT_READ, bytearray())
    while left:
        for ready, _ in selector.select(READY_S):
            connection, answer = ready.fileobj, ready.data
            assert isinstance(connection, socket.socket)
            answer += connection.recv(1 << 16)
            if not whole(answer):
                continue
            answer.clear()
            left -= 1
            following = next(waiting, None)
            if following is None:
                selector.unregister(connection)
                connection.close()
            else:
                connection.sendall(following)


def whole(answer: bytearray) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(answer[:500].decode("latin-1"))
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return len(answer) >= end + 4 + length


def write_and_hash(path: Path, target: Path) -> None:
    """What a PUT cannot do without: MD5 for the ETag, write, fsync."""
    content = path.read_bytes()
    with open(target, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    hashlib.md5(content, usedforsecurity=False).digest()


def rate(size_bytes: int, work: Callable[[], None]) -> float:
    """MB/s."""
    started_s = time.monotonic()
    work()
    return size_bytes / (time.monotonic() - started_s) / 1e6


def alternate(rounds: int, contenders: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            found[name].append(work())
    return found


def show(title: str, found: dict[str, list[float]]) -> None:
    print(title)
    for name, values in found.items():
        print(f"  {name:34} {statistics.median(values):9.1f}   ({min(values):.1f} to {max(values):.1f})")


def measure(client: Client, plain: dict[str, str], chosen: argparse.Namespace, folder: Path) -> None:
    size, big = parse_size(chosen.size), folder / "big"
    big.write_bytes(os.urandom(MIB) * (size // MIB))
    client.put_file(big, "big")
    for times in (1, 8):
        links = {"tieredfs s3": client.link("get_object", "big")} | plain
        contenders = {}
        for name, link in links.items():
            contenders[name] = functools.partial(rate, times * size, functools.partial(fetch, link, times))
        show(f"GET {chosen.size}, {times} clients, MB/s", alternate(chosen.rounds, contenders))
    puts = {
        "tieredfs s3, unsigned payload": lambda: rate(size, lambda: client.put_file(big, "put")),
        "write + fsync + MD5": lambda: rate(size, lambda: write_and_hash(big, folder / "written")),
    }
    show(f"PUT {chosen.size}, MB/s", alternate(chosen.rounds, puts))
    if not chosen.objects:
        return
    keys = [f"small/{number:06d}" for number in range(chosen.objects)]
    small = {"PUT": lambda: client.small("PUT", keys), "GET": lambda: client.small("GET", keys)}
    show(f"{SMALL_BYTES} bytes, {CONNECTIONS} connections, requests/s", alternate(chosen.rounds, small))

    def list_all() -> float:
        pages = client.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="small/")
        started_s = time.monotonic()
        count = sum(len(page["Contents"]) for page in pages)
        return count / (time.monotonic() - started_s)

    def copy() -> float:
        started_s = time.monotonic()
        client.s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/big")
        return (time.monotonic() - started_s) * 1e3

    show("listing, keys/s", alternate(chosen.rounds, {"list_objects_v2": list_all}))
    show(f"copy of {chosen.size}, ms", alternate(chosen.rounds, {"copy_object": copy}))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--size", default="256M")
    parser.add_argument("--objects", type=int, default=2000, help="0: only the large ones")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    folder = Path(tempfile.mkdtemp(prefix="tieredfs-bench-s3-", dir=chosen.folder))
    (folder / "plain.py").write_text(PLAIN)
    url, key = new_volume(folder)
    ports = {name: free_port() for name in ("tieredfs", "granian", "uvicorn")}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        served = [sys.executable, "-c", SERVE, json.dumps([url, ports["tieredfs"]])]
        pid = stack.enter_context(serving(served, ports["tieredfs"], folder))
        plain = {}
        for name, options in (("granian", ["--interface", "asginl"]), ("uvicorn", [])):
            line = [sys.executable, "-m", name, *options, "--port", str(ports[name]), "plain:app"]
            try:
                stack.enter_context(serving(line, ports[name], folder, PLAIN_FILE=str(folder / "big")))
            except RuntimeError:
                print(f"{name} does not start here: left out")
                continue
            plain[f"{name}, FastAPI's FileResponse"] = f"http://127.0.0.1:{ports[name]}/file"
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        measure(Client(ports["tieredfs"], key), plain, chosen, folder)
        peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(f"memory of the endpoint, at most: {int(peak.split()[1]) // 1024} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
