"""A real gateway for the tests of this folder: a volume with Parquet in it, `tieredfs gateway` as a process."""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.s3.endpoint import announce_verbs, command, free_port
from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_client.dataset import GatewayDataset

WAIT_S = 30.0
ROWS = 20_000
SOURCE = "datasets/numbers"


def numbers(count: int = ROWS, first: int = 0) -> pa.Table:
    """`id` says which row it is; the others are made of it."""
    ids = np.arange(first, first + count)
    words = pa.array([f"word {number % 97}" for number in ids])
    return pa.table({"id": ids, "half": ids / 2.0, "word": words, "maybe": pa.array(ids, mask=ids % 5 == 0)})


def put_table(volume: FileSystem, path: str, table: pa.Table, row_group_size: int = 1000) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    volume.make_directories(os.path.dirname(path).encode())
    with volume.create() as writing:
        os.pwrite(writing.descriptor, sink.getvalue(), 0)
        writing.commit(path.encode())


@dataclass
class Gateway:
    """One server over one volume."""

    root: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def meta_url(self) -> str:
        return f"sqlite://{self.root}/volume.db"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        arguments = ["gateway", self.meta_url, "--listen", f"127.0.0.1:{self.port}", "--shared-memory", "64MiB"]
        line, environment = command(self.root / "entry-points", *arguments, *self.options)
        with open(self.root / "log", "ab") as log:
            self.process = subprocess.Popen(line, env=environment | self.environment, stdout=log, stderr=log)
        deadline_s = time.monotonic() + WAIT_S
        while not self._answers():
            assert self.process.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < deadline_s, "the gateway does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.url}/healthz", timeout=2).status == 200)
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(WAIT_S)

    def volume(self) -> FileSystem:
        return FileSystem.at(self.meta_url, purpose="test")

    def dataset(self, source: str = SOURCE, **options: Any) -> GatewayDataset:
        return GatewayDataset(self.url, source, **({"batch_size": 256, "retry_s": 20.0} | options))

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=WAIT_S).read().decode()
        found = re.findall(rf"^tieredfs_gateway_{name}(?:_total)?(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def log(self) -> str:
        return (self.root / "log").read_text()


def ids(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch.column("id").to_pylist()]


def eventually(check: Any, wanted: Any = True, wait_s: float = WAIT_S) -> None:
    deadline_s = time.monotonic() + wait_s
    while (found := check()) != wanted:
        assert time.monotonic() < deadline_s, f"still {found!r}, not {wanted!r}"
        time.sleep(0.05)


@contextlib.contextmanager
def gateway(*options: str, **environment: str) -> Iterator[Gateway]:
    root = Path(tempfile.mkdtemp(prefix="tieredfs-gateway-"))
    announce_verbs(root / "entry-points")
    made = Gateway(root, free_port(), environment, options)
    format_volume(
        made.meta_url,
        [f"disk://{root}/d{{0..2}}"],
        code=parse_code("rs:2+1"),
        durability=Durability.SSD,
        name="gateway",
        block_bytes=4 * MIB,
    )
    with made.volume() as volume:
        put_table(volume, f"{SOURCE}/a.parquet", numbers(ROWS // 2))
        put_table(volume, f"{SOURCE}/b.parquet", numbers(ROWS // 2, ROWS // 2))
        put_table(volume, "datasets/other/a.parquet", numbers(100))
        volume.flush(WAIT_S)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)


__all__ = [
    "ROWS",
    "SOURCE",
    "WAIT_S",
    "Gateway",
    "eventually",
    "gateway",
    "ids",
    "numbers",
    "put_table",
    "sys",
    "urllib",
]
