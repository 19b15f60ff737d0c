"""The body of a request as it comes in, piece by piece, with patience that ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from tieredfs_gateway.s3.errors import S3Error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BATCH_BYTES: Final = 1 << 20
PIECE_WAIT_S: Final = 30.0
SLOW_AFTER_S: Final = 60.0
RATE_BYTES_PER_S_MIN: Final = 1024


class ClientGoneError(Exception):
    """The connection ended before the request did: there is nobody to answer."""


class IncomingBody:
    """One request's body. For one task."""

    def __init__(self, receive: Receive, announced_bytes: int | None = None) -> None:
        """`announced_bytes`: what the server below makes sure that it has. Then its end is not waited for, which would be another
        change of threads for each request. None: it ends where the server says so."""
        self._receive = receive
        self._announced_bytes = announced_bytes
        self._started_s = time.monotonic()
        self.received_bytes = 0
        self.ended = announced_bytes == 0

    async def batch(self) -> list[bytes]:
        """The next pieces, about `BATCH_BYTES`; fewer at the end, then none. Raises ClientGoneError, S3Error RequestTimeout."""
        pieces: list[bytes] = []
        size = 0
        while not self.ended and size < BATCH_BYTES:
            try:
                async with asyncio.timeout(PIECE_WAIT_S):
                    message = await self._receive()
            except TimeoutError as error:
                raise S3Error("RequestTimeout") from error
            if message["type"] != "http.request":
                raise ClientGoneError
            piece = message.get("body", b"")
            size += len(piece)
            if piece:
                pieces.append(piece)
            self._check_rate(len(piece))
            self.ended = not message.get("more_body", False) or self.received_bytes == self._announced_bytes
        return pieces

    def _check_rate(self, size_bytes: int) -> None:
        self.received_bytes += size_bytes
        elapsed_s = time.monotonic() - self._started_s
        if elapsed_s > SLOW_AFTER_S and self.received_bytes < elapsed_s * RATE_BYTES_PER_S_MIN:
            raise S3Error("RequestTimeout")

    async def all(self, limit: int) -> list[bytes]:
        """Everything. Raises S3Error MaxMessageLengthExceeded past `limit`."""
        pieces: list[bytes] = []
        while not self.ended:
            pieces += await self.batch()
            if self.received_bytes > limit:
                raise S3Error("MaxMessageLengthExceeded")
        return pieces
