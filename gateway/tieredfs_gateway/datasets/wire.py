"""Batches over HTTP: one Arrow IPC stream per response, each frame compressed as the link of that moment wants. A frame is some
batches for a trainer that says it cuts them apart, one for any other.

The response begins when the first batch is there, so what goes wrong before is an ordinary JSON error. What goes wrong later
ends the stream without its end mark; the trainer notices, asks again from there, and is told.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.responses import Response

from tieredfs.errors import TieredError, WaitInterruptedError
from tieredfs.limits import MIB
from tieredfs_gateway.addresses import is_loopback
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.parcels import Packing
from tieredfs_gateway.datasets.sessions import Stream

MEDIA_TYPE: Final = "application/vnd.apache.arrow.stream"
SEND_WAIT_S: Final = 60.0
"""A trainer that takes nothing for so long has left; one that pauses longer comes back by itself. For each batch of a frame: the
trainer takes frames as wholes."""
MEASURE_BYTES: Final = 8 * MIB
_log: Final = logging.getLogger("tieredfs_gateway.datasets")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(slots=True)
class Link:
    """How fast a trainer takes bytes, and what follows for their compression. Fed with every frame that was sent."""

    codec: Codec
    is_adaptive: bool
    joins: bool = False
    """Whether the trainer cuts apart what comes as one."""
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    _bytes: int = 0
    _seconds: float = 0.0

    @classmethod
    def to(cls, client: str | None, wish: Codec, *, joins: bool = False) -> "Link":
        if wish is not Codec.AUTO:
            return cls(wish, is_adaptive=False, joins=joins)
        if is_loopback(client):
            return cls(Codec.NONE, is_adaptive=False, joins=joins)
        return cls(Codec.LZ4, is_adaptive=True, joins=joins)

    @property
    def packing(self) -> Packing:
        return Packing(self.codec, self.joins)

    def sent(self, size_bytes: int, seconds: float) -> None:
        if not self.is_adaptive:
            return
        self._bytes += size_bytes
        self._seconds += seconds
        if self._bytes >= MEASURE_BYTES:
            self.codec = frames.choose(self._bytes / max(self._seconds, 1e-9), self.cores)
            self._bytes, self._seconds = 0, 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A frame, ready to be sent. `index`: of its last batch."""

    index: int
    batches: int
    rows: int
    body: bytes


def next_piece(stream: Stream, link: Link) -> Piece | None:
    """Blocking. Raises what making the batch raised."""
    began_s = time.monotonic()
    try:
        stream.check_open()
        stream.follower.forms = (link.packing.form,)  # what the lane has compressed before it is asked for
        while (item := stream.follower.next()) is not None:
            try:
                body, count = item.frame(link.packing)
            except WaitInterruptedError:
                stream.follower.again(item)
                continue
            stream.follower.rest(item, count)
            rows = sum(item.parcel.row_counts[item.place : item.place + count])
            return Piece(item.index + (count - 1) * item.parcel.stride, count, rows, body)
        return None
    finally:
        stream.progress.waited_s += time.monotonic() - began_s


class BatchResponse(Response):
    """A stream of batches that are made while it is sent; the next one is made while one is sent. Closes `stream`."""

    def __init__(
        self, stream: Stream, head: bytes, first: Piece | None, link: Link, limit: int | None, executor: Executor
    ) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self.headers["x-tieredfs-version"] = stream.session.opened.reader.version
        self._stream = stream
        self._head = head
        self._first = first
        self._link = link
        self._limit = limit
        self._executor = executor

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_all(receive, send)
        except (Refusal, TieredError, TimeoutError) as error:  # too late to say so: the trainer misses the end mark
            _log.info("a stream of session %s ended early: %s", self._stream.session.id, error)
        finally:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._stream.close)

    async def _send_all(self, receive: Receive, send: Send) -> None:
        await receive()
        gone = asyncio.ensure_future(receive())
        piece, head, sent = self._first, self._head, 0
        try:
            while piece is not None and not gone.done() and sent != self._limit:
                is_last = sent + 1 == self._limit
                following = None if is_last else self._start_next()
                began_s = time.monotonic()
                async with asyncio.timeout(SEND_WAIT_S * piece.batches):
                    # Of anything but `bytes`, Granian takes byte after byte.
                    body = head + piece.body if head else piece.body
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                self._link.sent(len(piece.body), time.monotonic() - began_s)
                self._stream.sent(piece.index, piece.rows, len(piece.body), piece.batches)
                head, sent = b"", sent + 1
                piece = None if following is None else await following
            if not gone.done():
                await send({"type": "http.response.body", "body": head + frames.END, "more_body": False})
        finally:
            gone.cancel()

    def _start_next(self) -> "asyncio.Future[Piece | None]":
        return asyncio.get_running_loop().run_in_executor(self._executor, next_piece, self._stream, self._link)
