"""Reading, writing and deleting one chunk: the calls that carry bytes, as plain ASGI below FastAPI's stack.

A read sends the file as it lies there, by ranges; who asked verifies it. A write is answered when the chunk is whole, checked
and durable. Files are touched in threads; the event loop only moves messages. Memory: a piece for each call under way.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from tieredfs.chunk.directory import parse_chunk_name
from tieredfs.chunk.node_protocol import DISKS_PATH
from tieredfs.chunk.store import ChunkName
from tieredfs.core.capability import Right, Verb, Verdict, judge
from tieredfs.host import Clock
from tieredfs.limits import MIB, REMOTE_CALL_S, REMOTE_SILENCE_S
from tieredfs_gateway.node.disks import NodeDisks
from tieredfs_gateway.node.refusals import RefusedError, bad_request, refusal_of, refused
from tieredfs_gateway.node.upload import BODY_BYTES_MAX, PieceMemory, Upload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

READ_PIECE_BYTES: Final = MIB
READS_MAX: Final = 64
UPLOADS_MAX: Final = 32
"""Under way at one time: the others wait, unread. So the memory of bodies is 64 MiB and 128 MiB at most."""
_CHUNK_PATH: Final = re.compile(rf"{DISKS_PATH}/([^/]{{1,64}})/([^/]{{1,64}})/chunks/([0-9a-f]{{16}}\.[0-9a-f]{{2}})")
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})", re.ASCII)
_VERBS: Final = {"GET": Verb.READ, "PUT": Verb.WRITE, "DELETE": Verb.DELETE}
_log: Final = logging.getLogger("tieredfs_gateway.node")


class ClientGoneError(Exception):
    """There is nobody to answer."""


class Authority:
    """Who may: whoever shows a token that was made with the secret, for this."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock

    def check(self, authorization: str, wanted: Right) -> None:
        """Raises RefusedError."""
        scheme, _, token = authorization.partition(" ")
        verdict = judge(token.strip() if scheme.lower() == "bearer" else "", self._secret, wanted, self._now_s())
        if verdict is not Verdict.GOOD:
            raise refused(verdict)

    def _now_s(self) -> float:
        return self._clock.wall_ns() / 1e9


class ChunkCalls:
    """Everything at `/v1/disks/VOLUME/DISK/chunks/NAME`."""

    def __init__(self, disks: NodeDisks, authority: Authority, executor: ThreadPoolExecutor) -> None:
        self._disks = disks
        self._authority = authority
        self._executor = executor
        self._reads = asyncio.Semaphore(READS_MAX)
        self._uploads = asyncio.Semaphore(UPLOADS_MAX)
        self._memory = PieceMemory()

    @staticmethod
    def are_meant(path: str) -> bool:
        return _CHUNK_PATH.fullmatch(path) is not None

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was becomes an answer
            refusal = refusal_of(error)
            if refusal.status == 500:
                _log.exception("%s %s failed", scope["method"], scope["path"])
            await exchange.refuse(refusal)

    async def _answer(self, exchange: "_Exchange") -> None:
        volume, disk, file_name = _parts(exchange.path)
        name = parse_chunk_name(file_name[14:16], file_name)
        assert name is not None, "the path says so"
        verb = _VERBS.get(exchange.method)
        if verb is None:
            raise RefusedError(405, "bad_request", "a chunk is read, written or deleted: GET, PUT, DELETE")
        self._authority.check(exchange.header(b"authorization"), Right(verb, volume, disk, file_name))
        if verb is Verb.READ:
            async with self._reads:
                await self._read(exchange, volume, disk, name)
        elif verb is Verb.WRITE:
            async with self._uploads:
                await self._write(exchange, volume, disk, name)
        else:
            await self._run(lambda: self._disks.find(volume, disk).delete(name))
            await exchange.send_whole(204)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    # ---- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, exchange: "_Exchange", volume: str, disk: str, name: ChunkName) -> None:
        first, last = _range(exchange.header(b"range"))
        descriptor, size = await self._run(partial(self._open, volume, disk, name))
        try:
            if first >= size:
                raise RefusedError(416, "corrupt", f"the chunk has {size} bytes")
            end = size if last is None else min(last + 1, size)
            await exchange.start(
                206, [(b"content-range", b"bytes %d-%d/%d" % (first, end - 1, size))], content_bytes=end - first
            )
            await self._send_file(exchange, descriptor, first, end)
        finally:
            await self._run(partial(os.close, descriptor))

    async def _send_file(self, exchange: "_Exchange", descriptor: int, first: int, end: int) -> None:
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
                piece = await self._run(partial(os.pread, descriptor, length, at))
            if not piece:
                raise ClientGoneError  # it was cut short just now: so is the answer
            at += len(piece)
            await exchange.send_piece(piece, more=at < end)

    def _open(self, volume: str, disk: str, name: ChunkName) -> tuple[int, int]:
        descriptor = self._disks.find(volume, disk).open_raw(name)
        return descriptor, os.fstat(descriptor).st_size

    # ---- writing ----------------------------------------------------------------------------------------------------

    async def _write(self, exchange: "_Exchange", volume: str, disk: str, name: ChunkName) -> None:
        length = exchange.header(b"content-length")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise RefusedError(411, "bad_request", "how long is it? Content-Length is missing")
        upload = await self._run(lambda: Upload(self._disks.find(volume, disk), name, int(length), self._memory))
        try:
            while not upload.is_complete:
                data = memoryview(await exchange.receive_piece())
                while data:
                    data = data[upload.take(data) :]
                    if upload.piece_is_full:
                        await self._run(upload.write_piece)
            await self._run(upload.publish)
        finally:
            await self._run(upload.close)
        await exchange.send_whole(204)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
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


def _read_cached(descriptor: int, view: memoryview, offset: int) -> int:
    """How much of it the page cache had; 0: ask the disk."""
    try:
        return os.preadv(descriptor, [view], offset, os.RWF_NOWAIT)
    except OSError:  # EAGAIN; or a file system that cannot tell
        return 0


def _parts(path: str) -> tuple[str, str, str]:
    match = _CHUNK_PATH.fullmatch(path)
    assert match is not None, "are_meant said so"
    return match[1], match[2], match[3]


def _range(text: str) -> tuple[int, int | None]:
    """First and last byte; None: to the end. Raises RefusedError."""
    if not text:
        return 0, None
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        raise bad_request("that is no range: bytes=FIRST-LAST")
    return int(match[1]), int(match[2])
