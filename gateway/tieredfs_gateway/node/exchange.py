"""One call that carries bytes: a request and its answer as plain ASGI, bounded in time."""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Final, TypeVar

from tieredfs.limits import MIB, REMOTE_CALL_S, REMOTE_SILENCE_S
from tieredfs_gateway.node.refusals import RefusedError, bad_request, refusal_of
from tieredfs_gateway.node.upload import BODY_BYTES_MAX

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

READ_PIECE_BYTES: Final = MIB
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})", re.ASCII)
_log: Final = logging.getLogger("tieredfs_gateway.node")


class ClientGoneError(Exception):
    """There is nobody to answer."""


async def in_thread(executor: Executor, call: Callable[[], T]) -> T:
    """For what touches files."""
    return await asyncio.get_running_loop().run_in_executor(executor, call)


class OneBehind:
    """Calls that block, in order, one at a time, each in a thread while its caller goes on."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._call: Future[None] | None = None

    def begin(self, call: Callable[[], None]) -> None:
        """The one before must be `done`."""
        assert self._call is None
        self._call = self._executor.submit(call)

    async def done(self) -> None:
        """Waits for the one that was begun. Raises what it raises."""
        if self._call is not None:
            await asyncio.wrap_future(self._call)
            self._call = None

    async def ended(self) -> None:
        """Waits for it, also if nobody wants to know how it went: what it works on may be taken away then."""
        if self._call is not None:
            ending = asyncio.wrap_future(self._call)
            await asyncio.wait([ending])
            ending.exception()  # it was raised by `done`, or the request has failed anyhow


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._deadline_s = time.monotonic() + REMOTE_CALL_S
        self._received_all = not int(self._headers.get(b"content-length", b"0") or 0)
        self._started = False

    def header(self, name: bytes) -> str:
        return self._headers.get(name, b"").decode("latin-1")

    async def receive_piece(self) -> bytes:
        """Raises RefusedError when it takes too long or ends early, ClientGoneError."""
        if self._received_all:
            raise bad_request("the body is shorter than was said")
        left_s = self._deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(min(REMOTE_SILENCE_S, left_s)):
                message = await self._receive()
        except TimeoutError as error:
            raise RefusedError(408, "unavailable", "the body took too long") from error
        if message["type"] != "http.request":
            raise ClientGoneError
        self._received_all = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def start(self, status: int, headers: list[tuple[bytes, bytes]], *, content_bytes: int) -> None:
        self._started = True
        headers = [*headers, (b"content-length", b"%d" % content_bytes), (b"content-type", b"application/octet-stream")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_piece(self, piece: bytes | bytearray, *, more: bool) -> None:
        """Raises ClientGoneError when nobody takes it."""
        left_s = self._deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(min(REMOTE_SILENCE_S, left_s)):
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError as error:
            raise ClientGoneError from error

    async def send_whole(self, status: int, body: bytes = b"") -> None:
        await self.start(status, [], content_bytes=len(body))
        await self.send_piece(body, more=False)

    async def refuse(self, refusal: RefusedError) -> None:
        """What is left of the body is received first, if it may be a chunk: who sends does not look for an answer until then."""
        if self._started:
            raise ClientGoneError
        with contextlib.suppress(RefusedError):
            announced = self.header(b"content-length")
            if refusal.status != 408 and len(announced) < 16 and int(announced or 0) <= BODY_BYTES_MAX:
                while not self._received_all:
                    await self.receive_piece()
        self._started = True
        body = refusal.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if not self._received_all:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send_piece(body, more=False)


async def carry_out(exchange: Exchange, answer: Callable[[Exchange], Awaitable[None]]) -> None:
    """Whatever goes wrong becomes an answer, if there is somebody to hear it."""
    try:
        try:
            await answer(exchange)
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was becomes an answer
            refusal = refusal_of(error)
            if refusal.status == 500:
                _log.exception("%s %s failed", exchange.method, exchange.path)
            await exchange.refuse(refusal)
    except ClientGoneError:
        return


# ---- files -----------------------------------------------------------------------------------------------------------


async def send_range(exchange: Exchange, executor: Executor, open_file: Callable[[], int]) -> None:
    """The bytes that are asked for, of a file as it lies there. Raises RefusedError, and what `open_file` raises."""
    first, last = _range(exchange.header(b"range"))
    descriptor, size = await in_thread(executor, partial(_opened, open_file))
    try:
        if first >= size:
            raise RefusedError(416, "corrupt", f"it has {size} bytes")
        end = size if last is None else min(last + 1, size)
        content_range = b"bytes %d-%d/%d" % (first, end - 1, size)
        await exchange.start(206, [(b"content-range", content_range)], content_bytes=end - first)
        await _send_file(exchange, executor, descriptor, first, end)
    finally:
        await in_thread(executor, partial(os.close, descriptor))


def _opened(open_file: Callable[[], int]) -> tuple[int, int]:
    descriptor = open_file()
    return descriptor, os.fstat(descriptor).st_size


async def _send_file(exchange: Exchange, executor: Executor, descriptor: int, first: int, end: int) -> None:
    """What is in the page cache is read here: a hop to a thread costs as much as the copy. One buffer serves for all of it,
    because `send` has copied it when it is called."""
    buffer, at = bytearray(READ_PIECE_BYTES), first
    while at < end:
        length = min(READ_PIECE_BYTES, end - at)
        count = _read_cached(descriptor, memoryview(buffer)[:length], at)
        if count == READ_PIECE_BYTES:
            piece: bytes | bytearray = buffer
        elif count:
            piece = bytes(memoryview(buffer)[:count])
        else:
            piece = await in_thread(executor, partial(os.pread, descriptor, length, at))
        if not piece:
            raise ClientGoneError  # it was cut short just now: so is the answer
        at += len(piece)
        await exchange.send_piece(piece, more=at < end)


def _read_cached(descriptor: int, view: memoryview, offset: int) -> int:
    """How much of it the page cache had; 0: ask the disk."""
    try:
        return os.preadv(descriptor, [view], offset, os.RWF_NOWAIT)
    except OSError:  # EAGAIN; or a file system that cannot tell
        return 0


def _range(text: str) -> tuple[int, int | None]:
    """First and last byte; None: to the end. Raises RefusedError."""
    if not text:
        return 0, None
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        raise bad_request("that is no range: bytes=FIRST-LAST")
    return int(match[1]), int(match[2])
