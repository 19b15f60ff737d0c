"""A body on its way into a file: framing, checksums and the write in one pass over the bytes. Blocking; one thread at a
time, but for the MD5, which a second thread may do meanwhile (0.6 GB/s, where everything else here is faster)."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tieredfs.host import libc
from tieredfs_gateway.s3 import checksums
from tieredfs_gateway.s3.checksums import Announced
from tieredfs_gateway.s3.errors import S3Error

WRITE_BEHIND_BYTES: Final = 8 << 20
"""The disk begins with each of these. Of 256 MiB the fsync then takes 2 to 7 ms, and beginning costs 12 ms of CPU in all."""
_VECTOR_MAX: Final = 512
"""IOV_MAX is 1024."""


class Framing(Protocol):
    """What takes the content out of a body: `chunked.Decoder`, `forms.FormDecoder`."""

    def feed(self, data: bytes, /) -> Iterable[memoryview]: ...
    def finish(self) -> Mapping[str, str]: ...


Sink = Callable[[Sequence[memoryview], int], None]
"""Takes content and its offset in the whole."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the headers of an upload say of its body. `sha256`: of the signed payload, hex."""

    size_bytes: int
    announced: Announced
    sha256: str | None
    exact: bool = True
    """False: `size_bytes` is only the most that it may have."""


@dataclass(frozen=True, slots=True)
class Received:
    """A body that was whole and right. `checksum`: algorithm and base64, when the client named one."""

    size_bytes: int
    md5: str
    checksum: tuple[str, str] | None


class Ingest:
    """One body into one local file."""

    def __init__(self, expected: Expected, decoder: Framing | None) -> None:
        self._expected = expected
        self._decoder = decoder
        self._size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256() if expected.sha256 is not None else None
        algorithm = expected.announced.algorithm
        self._hasher = algorithm.make() if algorithm else None

    def take(self, pieces: Sequence[bytes], sink: Sink) -> list[memoryview]:
        """Give the sink what came next; the content of it, for `take_md5`. Raises S3Error."""
        views = self._content(pieces)
        length = sum(map(len, views))
        if self._size + length > self._expected.size_bytes:
            if not self._expected.exact:
                raise S3Error("EntityTooLarge", fields={"MaxSizeAllowed": str(self._expected.size_bytes)})
            raise S3Error("IncompleteBody", "The body is longer than was announced.")
        sink(views, self._size)
        self._size += length
        for view in views:
            if self._sha256 is not None:
                self._sha256.update(view)
            if self._hasher is not None:
                self._hasher.update(view)
        return views

    def take_md5(self, views: Sequence[memoryview]) -> None:
        for view in views:
            self._md5.update(view)

    def _content(self, pieces: Sequence[bytes]) -> list[memoryview]:
        if self._decoder is None:
            return [memoryview(piece) for piece in pieces if piece]
        return [view for piece in pieces for view in self._decoder.feed(piece) if view]

    def finish(self) -> Received:
        """Raises S3Error IncompleteBody, BadDigest, XAmzContentSHA256Mismatch."""
        expected = self._expected
        trailers = self._decoder.finish() if self._decoder else {}
        if expected.exact and self._size != expected.size_bytes:
            raise S3Error("IncompleteBody")
        if self._sha256 is not None and self._sha256.hexdigest() != expected.sha256:
            raise S3Error("XAmzContentSHA256Mismatch")
        checksums.check_digest("Content-MD5", expected.announced.md5, self._md5.digest())
        algorithm = expected.announced.algorithm
        if algorithm is None or self._hasher is None:
            return Received(self._size, self._md5.hexdigest(), None)
        digest = self._hasher.digest()
        checksums.check_digest(algorithm.name, checksums.check_trailer(expected.announced, trailers), digest)
        return Received(self._size, self._md5.hexdigest(), (algorithm.name, checksums.encode(digest)))


class FileSink:
    """A sink that writes to a file and has the disk begin with what is there, so that little is left when the body ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun = 0

    def __call__(self, views: Sequence[memoryview], offset: int) -> None:
        write_all(self._descriptor, views, offset)
        end = offset + sum(map(len, views))
        if end - self._begun >= WRITE_BEHIND_BYTES:
            with contextlib.suppress(OSError):  # not on this file system: fsync does it all
                libc.begin_writing(self._descriptor, self._begun, end - self._begun)
            self._begun = end


def write_all(descriptor: int, views: Sequence[memoryview], offset: int) -> None:
    """All of it at `offset`. Raises OSError."""
    for start in range(0, len(views), _VECTOR_MAX):
        pending = list(views[start : start + _VECTOR_MAX])
        while pending:
            count = os.pwritev(descriptor, pending, offset)
            offset += count
            while pending and count >= len(pending[0]):
                count -= len(pending.pop(0))
            if count:
                pending[0] = pending[0][count:]
