"""Dumps of metadata on a disk: read by ranges, and written in pieces, each a call of its own; plain ASGI, as for chunks.

The node keeps nothing between two pieces but the file that they go into. A piece is checked against its CRC32C before it is
written; what the whole is worth is judged by who loads it.
"""

import asyncio
import re
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tieredfs.chunk.directory import parse_dump_name
from tieredfs.chunk.disk_dumps import DiskDumps
from tieredfs.chunk.node_protocol import DISKS_PATH
from tieredfs.core.capability import Right, Verb
from tieredfs.host import isal
from tieredfs.limits import DUMP_PIECE_BYTES
from tieredfs_gateway.node.authority import Authority
from tieredfs_gateway.node.disks import NodeDisks
from tieredfs_gateway.node.exchange import Exchange, in_thread, send_range
from tieredfs_gateway.node.refusals import RefusedError, bad_request

PIECES_MAX: Final = 4
"""Under way at one time, reads too: 32 MiB of memory."""
_DUMP_PATH: Final = re.compile(
    rf"{DISKS_PATH}/([^/]{{1,64}})/([^/]{{1,64}})/dumps/([0-9a-f]{{16}}\.dump)(?:/([0-9a-f]{{1,32}}))?"
)
_SIZE_MAX: Final = 1 << 62


class DumpCalls:
    """Everything at `/v1/disks/VOLUME/DISK/dumps/NAME` and below."""

    def __init__(self, disks: NodeDisks, authority: Authority, executor: ThreadPoolExecutor) -> None:
        self._disks = disks
        self._authority = authority
        self._executor = executor
        self._pieces = asyncio.Semaphore(PIECES_MAX)

    @staticmethod
    def are_meant(path: str) -> bool:
        return _DUMP_PATH.fullmatch(path) is not None

    async def answer(self, exchange: Exchange) -> None:
        """Raises RefusedError, ClientGoneError, and what touching the disk raises."""
        match = _DUMP_PATH.fullmatch(exchange.path)
        assert match is not None, "are_meant said so"
        volume, disk, name, token = match.groups()
        taken_ns = parse_dump_name(name)
        assert taken_ns is not None, "the path says so"
        whole = {"GET": Verb.READ, "DELETE": Verb.DELETE}
        verb = whole.get(exchange.method) if token is None else Verb.WRITE
        if verb is None or (token is not None and exchange.method not in {"PUT", "POST", "DELETE"}):
            raise RefusedError(405, "bad_request", "a dump is read or deleted, and uploaded in pieces")
        self._authority.check(exchange.header(b"authorization"), Right(verb, volume, disk, name))
        async with self._pieces:
            if verb is Verb.READ:
                await send_range(exchange, self._executor, lambda: self._dumps(volume, disk).open_raw(taken_ns))
                return
            if verb is Verb.DELETE:
                await in_thread(self._executor, lambda: self._dumps(volume, disk).delete(taken_ns))
            else:
                await self._upload(exchange, volume, disk, taken_ns, token)
            await exchange.send_whole(204)

    def _dumps(self, volume: str, disk: str) -> DiskDumps:
        return self._disks.find(volume, disk).dumps

    async def _upload(self, exchange: Exchange, volume: str, disk: str, taken_ns: int, token: str) -> None:
        asked = dict(urllib.parse.parse_qsl(exchange.query.decode("ascii", "replace")))
        if exchange.method == "POST":
            size_bytes = _number(asked, "size")
            await in_thread(self._executor, lambda: self._dumps(volume, disk).publish(taken_ns, token, size_bytes))
        elif exchange.method == "DELETE":
            await in_thread(self._executor, lambda: self._dumps(volume, disk).discard(taken_ns, token))
        else:
            offset, crc32c = _number(asked, "offset"), _number(asked, "crc32c", 16)
            piece = await _body(exchange)
            if isal.crc32c(piece) != crc32c:
                raise RefusedError(422, "torn", "a piece of a dump arrived damaged")
            await in_thread(self._executor, lambda: self._dumps(volume, disk).write(taken_ns, token, offset, piece))


def _number(asked: dict[str, str], name: str, base: int = 10) -> int:
    """Raises RefusedError."""
    try:
        found = int(asked.get(name, ""), base)
    except ValueError:
        found = -1
    if not 0 <= found <= _SIZE_MAX:
        raise bad_request(f"{name} is missing, or no number that can be")
    return found


async def _body(exchange: Exchange) -> bytearray:
    """Raises RefusedError, ClientGoneError."""
    length = exchange.header(b"content-length")
    if not (length.isascii() and length.isdigit() and len(length) < 16 and 0 < int(length) <= DUMP_PIECE_BYTES):
        raise bad_request(f"a piece of a dump has 1 to {DUMP_PIECE_BYTES} bytes, and says how many")
    piece = bytearray()
    while len(piece) < int(length):
        piece += await exchange.receive_piece()
    return piece
