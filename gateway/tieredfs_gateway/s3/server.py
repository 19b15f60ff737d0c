"""The process that serves S3 (or each of several): a volume, the endpoint, FastAPI around it, Granian below it."""

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import uvloop
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from tieredfs.host import memory
from tieredfs.host.turn import Turn
from tieredfs.volume import FileSystem
from tieredfs_gateway.listening import server_of
from tieredfs_gateway.s3 import metrics as counting
from tieredfs_gateway.s3.body import Receive
from tieredfs_gateway.s3.endpoint import Endpoint, Send
from tieredfs_gateway.s3.epoch import Epoch, shared_directory
from tieredfs_gateway.s3.serving import Serving, begin_logging
from tieredfs_gateway.s3.sweep import Sweep
from tieredfs_gateway.volume_metrics import VolumeMetrics

THREADS: Final = 32
TURN_NAME: Final = "s3-sweep"
"""Of the file with the lock for passing over lifecycle rules: one process of a volume does it."""
PROBES: Final = ("/healthz", "/metrics")
_log: Final = logging.getLogger("tieredfs_gateway.s3")


class Health(BaseModel):
    """This process answers."""

    status: Literal["ok"] = "ok"


class S3App(FastAPI):
    """FastAPI for the probes; everything that is signed, or names something else, is S3's.

    S3's routing is not FastAPI's (sub-resources, keys with any bytes, raw paths under signatures), and its stack of
    middleware costs more than a small GET. `openapi()` describes the probes; it has no address, which would be a bucket's.
    """

    def __init__(self, endpoint: Endpoint, metrics: counting.Metrics, of_volume: VolumeMetrics | None = None) -> None:
        super().__init__(title="TieredFS S3", docs_url=None, redoc_url=None, openapi_url=None)
        self._endpoint = endpoint

        @self.get("/healthz")
        async def healthz() -> Health:
            return Health()

        @self.get("/metrics", response_class=PlainTextResponse)
        async def show_metrics() -> Response:
            stored = b"" if of_volume is None else await asyncio.to_thread(of_volume.text)
            return Response(metrics.text() + stored, media_type=counting.CONTENT_TYPE)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_probe(scope):
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _is_probe(scope: Mapping[str, Any]) -> bool:
    if scope["path"] not in PROBES or scope["query_string"]:
        return False
    return not any(name == b"authorization" for name, _ in scope["headers"])


def serve_alone(asked: Serving, orphaned: int | None = None) -> None:
    """In this process. `orphaned`: a descriptor that becomes readable when it has to end."""
    begin_logging(asked)
    memory.keep_freed_memory_low()
    with FileSystem.at(
        asked.meta_url, purpose="s3", cache_bytes=asked.cache_bytes, memory_bytes=asked.memory_bytes
    ) as volume:
        uvloop.run(_serve(asked, volume, orphaned))


async def _serve(asked: Serving, volume: FileSystem, orphaned: int | None) -> None:
    metrics = counting.Metrics()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3") as executor:
        clock, epoch = volume.volume.host.clock, Epoch.of(asked.meta_url, volume.uuid)
        endpoint = Endpoint(volume, clock, executor, metrics, asked.domains, epoch, asked.share)
        await asyncio.get_running_loop().run_in_executor(executor, endpoint.uploads.sweep)
        server = server_of(
            S3App(endpoint, metrics, VolumeMetrics(volume.volume)),
            asked.host,
            asked.port,
            cert=asked.cert,
            key=asked.key,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        if orphaned is not None:
            loop.add_reader(orphaned, server.stop)
        scheme = "https" if asked.cert else "http"
        _log.info("serving %s at %s://%s:%d", asked.meta_url, scheme, asked.host, asked.port)
        turn = Turn(f"{shared_directory(asked.meta_url, volume.uuid)}/{TURN_NAME}")
        sweep = Sweep(endpoint.store, endpoint.uploads, volume.volume.host.clock, turn)
        sweeping = threading.Thread(target=sweep.run, name="s3-lifecycle")
        sweeping.start()
        gc.collect()
        gc.freeze()  # what is there now stays: no collection looks at it again
        try:
            await server.serve()
        finally:
            sweep.stop()
            endpoint.close()
            await loop.run_in_executor(executor, sweeping.join)
            turn.close()
