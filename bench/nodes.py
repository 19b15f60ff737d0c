"""A storage node beside what lies below it: chunks of 16 MiB by HTTP, the same chunks on the local disk, and the same server
sending a plain file.

    python -m bench.nodes [--rounds 5] [--chunks 12] [--folder /tmp] [--no-save]

Everything is on one machine, so the node's CPU and the client's are the same cores; a network is not in it. All sides alternate,
figures are medians. Reads come from the page cache and are verified, except those of the plain file. Writes are durable.
Writes bench/results/nodes.json.
"""

import argparse
import http.client
import json
import mmap
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from bench import machine
from bench.report import Row, Series, Target, alternate, document, failures, print_table, write_json
from bench.s3_servers import free_port, plain, serving
from bench.targets import UnavailableTargetError
from bench.workspace import workspace
from tieredfs.chunk.directory import DiskIdentity, format_disk
from tieredfs.chunk.disk import open_directory
from tieredfs.chunk.node import NodeSite
from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.chunk.store import ChunkInfo, ChunkName, ChunkStore
from tieredfs.config import NodeUrl
from tieredfs.core.crc import join_cells
from tieredfs.host import isal, local_host
from tieredfs.limits import CELL_BYTES, MIB
from tieredfs.model import BlockId, Code, CodeKind

CHUNK_BYTES: Final = 16 * MIB
CODE: Final = Code(CodeKind.REED_SOLOMON, 4, 2)
IDENTITY: Final = DiskIdentity("bench", "disk")
RESULTS: Final = Path(__file__).parent / "results"
NODE, DISK, PLAIN = "node", "local disk", "plain file"
SERVE: Final = """
import json, os, sys
from tieredfs_gateway.node.server import Serving, serve
root, port = json.loads(sys.argv[1])
serve(Serving([root], "127.0.0.1", port, os.environb[b"TIEREDFS_NODE_SECRET"], None, None))
"""


class Chunks:
    """`count` chunks of one content, and memory to read into."""

    def __init__(self, count: int) -> None:
        self.payload = memoryview(mmap.mmap(-1, CHUNK_BYTES))
        self.payload[:] = random.Random(1).randbytes(CHUNK_BYTES)
        self.target = memoryview(mmap.mmap(-1, CHUNK_BYTES))
        self.target[:] = bytes(CHUNK_BYTES)
        self.crcs = isal.cell_crcs(self.payload, CELL_BYTES)
        whole = join_cells(self.crcs, CELL_BYTES, CHUNK_BYTES)
        names = [ChunkName(BlockId(block), 0) for block in range(count)]
        self.infos = [ChunkInfo(name, CODE, 4 * CHUNK_BYTES, CHUNK_BYTES, whole) for name in names]

    def rate(self, act: Callable[[ChunkInfo], None]) -> float:
        """MB/s of doing it with each chunk."""
        begun_s = time.perf_counter()
        for info in self.infos:
            act(info)
        return len(self.infos) * CHUNK_BYTES / 1e6 / (time.perf_counter() - begun_s)

    def put(self, store: ChunkStore) -> float:
        return self.rate(lambda info: store.put(info, self.payload, memoryview(self.crcs)))

    def read(self, store: ChunkStore) -> float:
        rate = self.rate(lambda info: store.read_into(info.name, 0, self.target))
        assert self.target == self.payload
        return rate

    def fetch(self, port: int) -> float:
        """A file of the same length from the server that sends it."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def get(_: ChunkInfo) -> None:
            connection.request("GET", "/file")
            response = connection.getresponse()
            assert response.readinto(self.target) == CHUNK_BYTES
            response.read()

        try:
            return self.rate(get)
        finally:
            connection.close()


def measure(chunks: Chunks, node: ChunkStore, disk: ChunkStore, plain_port: int, rounds: int) -> list[Row]:
    writes: tuple[Series, ...] = alternate({NODE: partial(chunks.put, node), DISK: partial(chunks.put, disk)}, rounds)
    reads = alternate(
        {NODE: partial(chunks.read, node), DISK: partial(chunks.read, disk), PLAIN: partial(chunks.fetch, plain_port)},
        rounds,
    )
    return [
        Row("put", "write chunks of 16 MiB, one client", "MB/s", writes, (Target(NODE, DISK),)),
        Row("read", "read them, verified", "MB/s", reads, (Target(NODE, DISK), Target(NODE, PLAIN))),
    ]


def run(folder: Path, count: int, rounds: int) -> list[Row]:
    chunks, host = Chunks(count), local_host()
    with workspace(folder, "tieredfs-nodes-") as (directory, stack):
        os.environ[SECRET_VARIABLE] = secrets.token_hex(16)
        port = free_port()
        line = [sys.executable, "-c", SERVE, json.dumps([str(directory / "d"), port])]
        stack.enter_context(serving("node", line, port, directory, {}))
        site = NodeSite(NodeUrl("127.0.0.1", port, str(directory / "d")), host)
        site.format(IDENTITY)
        node = site.open(IDENTITY)
        stack.callback(node.close)
        format_disk(host, str(directory / "local"), IDENTITY)
        disk = open_directory(str(directory / "local"), IDENTITY, host)
        stack.callback(disk.close)
        file = directory / "plain.bin"
        file.write_bytes(chunks.payload)
        server = stack.enter_context(plain(directory, "granian", file, 1))
        return measure(chunks, node, disk, server.port, rounds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    parser.add_argument("--no-save", action="store_true")
    chosen = parser.parse_args(argv)
    try:
        rows = run(chosen.folder, chosen.chunks, chosen.rounds)
    except UnavailableTargetError as error:
        print(error, file=sys.stderr)
        return 1
    print_table("A storage node, its client on the same machine", rows)
    if not chosen.no_save:
        settings = {"rounds": chosen.rounds, "chunks": chosen.chunks}
        write_json(RESULTS / "nodes.json", document("nodes", machine.facts(chosen.folder), settings, rows))
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
