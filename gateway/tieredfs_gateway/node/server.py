"""The process behind `tieredfs node`: directories, their calls, Granian below them."""

import asyncio
import logging
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from tieredfs.host import Host, local_host, memory
from tieredfs_gateway.addresses import check_free
from tieredfs_gateway.listening import server_of
from tieredfs_gateway.node.app import NodeApp
from tieredfs_gateway.node.authority import Authority
from tieredfs_gateway.node.chunk_calls import ChunkCalls
from tieredfs_gateway.node.disk_watch import DiskWatch
from tieredfs_gateway.node.disks import NodeDisks
from tieredfs_gateway.node.dump_calls import DumpCalls
from tieredfs_gateway.node.metrics import Metrics, Observed

THREADS_PER_DISK: Final = 4
THREADS_MAX: Final = 64
_log: Final = logging.getLogger("tieredfs_gateway.node")


@dataclass(frozen=True, slots=True)
class Serving:
    """What `tieredfs node` was asked for. `roots`: absolute paths."""

    roots: Sequence[str]
    host: str
    port: int
    secret: bytes
    cert: Path | None
    key: Path | None
    access_log: bool = True


def serve(asked: Serving) -> None:
    """Until SIGTERM or SIGINT. Raises BusyError, ConfigurationError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("tieredfs_gateway.node.access").setLevel(logging.INFO if asked.access_log else logging.WARNING)
    memory.keep_freed_memory_low()
    check_free(asked.host, asked.port)
    uvloop.run(_serve(asked, local_host()))


async def _serve(asked: Serving, host: Host) -> None:
    threads = min(THREADS_MAX, THREADS_PER_DISK * len(asked.roots) + THREADS_PER_DISK)
    with ThreadPoolExecutor(threads, thread_name_prefix="node") as executor:
        disks, metrics = NodeDisks(asked.roots, host), Metrics()
        authority, watch = Authority(asked.secret, host.clock), DiskWatch(disks)
        carriers = ChunkCalls(disks, authority, executor), DumpCalls(disks, authority, executor)
        app = Observed(NodeApp(disks, authority, *carriers, metrics, watch), metrics)
        server = server_of(app, asked.host, asked.port, cert=asked.cert, key=asked.key)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        for root, problem in disks.problems().items():
            _log.info("%s waits to be made a disk: %s", root, problem)
        _log.info("serving %d directories at %s:%d", len(asked.roots), asked.host, asked.port)
        try:
            await server.serve()
        finally:
            watch.close()
            disks.close()
