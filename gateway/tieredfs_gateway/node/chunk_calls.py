"""Reading, writing and deleting one chunk: the calls that carry most bytes, as plain ASGI below FastAPI's stack.

A read sends the file as it lies there, by ranges; who asked verifies it. A write is answered when the chunk is whole, checked
and durable; its pieces are written while the next ones come. Files are touched in threads; the event loop only moves messages.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from tieredfs.chunk.directory import parse_chunk_name
from tieredfs.chunk.node_protocol import DISKS_PATH
from tieredfs.chunk.store import ChunkName
from tieredfs.core.capability import Right, Verb
from tieredfs_gateway.node.authority import Authority
from tieredfs_gateway.node.disks import NodeDisks
from tieredfs_gateway.node.exchange import Exchange, OneBehind, in_thread, send_range
from tieredfs_gateway.node.refusals import RefusedError
from tieredfs_gateway.node.upload import PieceMemory, Upload

T = TypeVar("T")

READS_MAX: Final = 64
UPLOADS_MAX: Final = 32
"""Under way at one time: the others wait, unread. So the memory of bodies is 64 MiB and 128 MiB at most."""
_CHUNK_PATH: Final = re.compile(rf"{DISKS_PATH}/([^/]{{1,64}})/([^/]{{1,64}})/chunks/([0-9a-f]{{16}}\.[0-9a-f]{{2}})")
_VERBS: Final = {"GET": Verb.READ, "PUT": Verb.WRITE, "DELETE": Verb.DELETE}


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

    async def answer(self, exchange: Exchange) -> None:
        volume, disk, file_name = _parts(exchange.path)
        name = parse_chunk_name(file_name[14:16], file_name)
        assert name is not None, "the path says so"
        verb = _VERBS.get(exchange.method)
        if verb is None:
            raise RefusedError(405, "bad_request", "a chunk is read, written or deleted: GET, PUT, DELETE")
        self._authority.check(exchange.header(b"authorization"), Right(verb, volume, disk, file_name))
        if verb is Verb.READ:
            async with self._reads:
                await send_range(exchange, self._executor, lambda: self._disks.find(volume, disk).open_raw(name))
        elif verb is Verb.WRITE:
            async with self._uploads:
                await self._write(exchange, volume, disk, name)
        else:
            await self._run(lambda: self._disks.find(volume, disk).delete(name))
            await exchange.send_whole(204)

    async def _run(self, call: Callable[[], T]) -> T:
        return await in_thread(self._executor, call)

    # ---- writing ----------------------------------------------------------------------------------------------------

    async def _write(self, exchange: Exchange, volume: str, disk: str, name: ChunkName) -> None:
        length = exchange.header(b"content-length")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise RefusedError(411, "bad_request", "how long is it? Content-Length is missing")
        upload = await self._run(lambda: Upload(self._disks.find(volume, disk), name, int(length), self._memory))
        behind = OneBehind(self._executor)
        try:
            while not upload.is_complete:
                data = memoryview(await exchange.receive_piece())
                while data:
                    data = data[upload.take(data) :]
                    if upload.piece_is_full:
                        await behind.done()
                        behind.begin(upload.cut())
            await behind.done()
            await self._run(upload.publish)
        finally:
            await behind.ended()
            await self._run(upload.close)
        await exchange.send_whole(204)


def _parts(path: str) -> tuple[str, str, str]:
    match = _CHUNK_PATH.fullmatch(path)
    assert match is not None, "are_meant said so"
    return match[1], match[2], match[3]
