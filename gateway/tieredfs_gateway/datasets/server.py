"""The process behind `tieredfs gateway`: a volume, readers on it, sessions, FastAPI over HTTP, the socket of this host."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tieredfs.core.budget import Budget
from tieredfs.errors import ConfigurationError
from tieredfs.host import memory
from tieredfs.limits import GIB
from tieredfs.volume import FileSystem, Volume
from tieredfs_gateway.addresses import check_free, check_tls, is_loopback
from tieredfs_gateway.datasets import local_socket
from tieredfs_gateway.datasets.app import Authorizer, Gateway, create_app
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Reader
from tieredfs_gateway.datasets.documents import LocalOffer
from tieredfs_gateway.datasets.metrics import Metrics
from tieredfs_gateway.datasets.parcels import Encoders
from tieredfs_gateway.datasets.pins import Pins
from tieredfs_gateway.datasets.reader import open_reader
from tieredfs_gateway.datasets.sessions import READERS_MAX, STREAMS_MAX, OpenReader, Sessions
from tieredfs_gateway.datasets.slabs import SlabPool
from tieredfs_gateway.datasets.transform_pool import TransformPool
from tieredfs_gateway.datasets.transforms import Transform
from tieredfs_gateway.listening import server_of

EXPIRE_EVERY_S: Final = 30.0
WINDOWS_PER_MEMORY: Final = 8
"""A window has this part of the shared memory, and slabs are up to twice their batch: four windows of the largest size fit."""
_log: Final = logging.getLogger("tieredfs_gateway.datasets")


@dataclass(frozen=True, slots=True)
class Serving:
    """What `tieredfs gateway` was asked for. `unix_socket`: None for an abstract one, an empty text for none."""

    meta_url: str
    host: str
    port: int
    secret: bytes | None = None
    unix_socket: str | None = None
    transforms: dict[str, Transform] = field(default_factory=dict)
    cert: Path | None = None
    key: Path | None = None
    cache_bytes: int = 100 * GIB
    memory_bytes: int = 4 * GIB
    """Of decoded rows, all readers together."""
    shared_bytes: int = GIB
    bandwidth_bytes_s: int | None = None
    flight_port: int | None = None
    job_lease_s: float = 30.0


def serve(asked: Serving) -> None:
    """Until SIGTERM or SIGINT. Raises what opening the volume raises."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if asked.secret is None and not is_loopback(asked.host):
        raise ConfigurationError(
            f"{asked.host} is not loopback: off this machine trainers need tokens; give a secret "
            "(TIEREDFS_GATEWAY_SECRET or --secret-file), and make tokens with `tieredfs gateway-token`"
        )
    check_tls(asked.cert, asked.key)
    check_free(asked.host, asked.port)
    memory.keep_freed_memory_low()
    with FileSystem.at(asked.meta_url, purpose="gateway", cache_bytes=asked.cache_bytes) as volume:
        if asked.bandwidth_bytes_s is not None:
            volume.limit(Budget(asked.bandwidth_bytes_s, asked.bandwidth_bytes_s))

        pins = Pins(volume)

        def opened(spec: DatasetSpec, order: OrderSpec, version: str | None) -> Reader:
            memory_bytes = asked.memory_bytes // READERS_MAX
            return open_reader(volume, spec, order, memory_bytes=memory_bytes, version=version, pins=pins)

        with gateway_over(opened, asked, volume.volume) as gateway, _flight(asked, gateway, volume), pins:
            asyncio.run(_serve(asked, gateway))


@contextlib.contextmanager
def gateway_over(opened: OpenReader, asked: Serving, volume: Volume | None = None) -> Iterator[Gateway]:
    """All but HTTP, over any readers; ends it in the reverse order. `volume`: whose metrics are shown, too."""
    slabs = SlabPool(asked.shared_bytes)
    encoders = Encoders(slabs)
    transforms = TransformPool(asked.transforms)
    sessions = Sessions(opened, transforms, encoders, asked.shared_bytes // WINDOWS_PER_MEMORY)
    authorize = Authorizer(asked.secret)
    with contextlib.ExitStack() as stack:
        stack.callback(slabs.close)
        stack.callback(encoders.pool.shutdown, cancel_futures=True)
        stack.callback(transforms.close)
        stack.callback(sessions.close_all)
        local = None
        if asked.unix_socket != "":
            name = asked.unix_socket or f"@tieredfs-gateway-{os.getpid()}-{secrets.token_hex(8)}"
            listening = local_socket.LocalServer(name, sessions, slabs, authorize)
            stack.callback(listening.close)
            local = LocalOffer(boot_id=local_socket.boot_id(), socket=name)
        executor = stack.enter_context(ThreadPoolExecutor(STREAMS_MAX + 16, thread_name_prefix="gateway"))
        yield Gateway(sessions, authorize, Metrics(sessions, transforms, volume), executor, local)
        sessions.close_all()


@contextlib.contextmanager
def _flight(asked: Serving, gateway: Gateway, volume: FileSystem) -> Iterator[None]:
    """Arrow Flight beside HTTP, over the same sessions, if it was asked for."""
    if asked.flight_port is None:
        yield
        return
    from tieredfs_gateway.datasets.flight import FlightServer
    from tieredfs_gateway.datasets.jobs import register_of

    tls = (asked.cert.read_bytes(), asked.key.read_bytes()) if asked.cert and asked.key else None
    registers = partial(register_of, volume)
    with FlightServer(
        gateway.sessions, gateway.authorize, asked.host, asked.flight_port, tls, registers, asked.job_lease_s
    ) as server:
        _log.info("Arrow Flight at %s:%d", asked.host, server.port)
        yield


async def _serve(asked: Serving, gateway: Gateway) -> None:
    server = server_of(create_app(gateway), asked.host, asked.port, cert=asked.cert, key=asked.key)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    expiring = asyncio.ensure_future(_expire(gateway))
    scheme = "https" if asked.cert else "http"
    _log.info("serving datasets of %s at %s://%s:%d", asked.meta_url, scheme, asked.host, asked.port)
    try:
        await server.serve()
    finally:
        expiring.cancel()


async def _expire(gateway: Gateway) -> None:
    while True:
        await asyncio.sleep(EXPIRE_EVERY_S)
        ended = await gateway.run(gateway.sessions.expire)
        if ended:
            _log.info("%d sessions that nobody used were closed", ended)
