"""`aws-chunked` bodies as a state machine: frames in, content out, signatures and trailers checked in passing.

    size [;chunk-signature=hex] CRLF  content CRLF  ...  0 [;chunk-signature=hex] CRLF  name:value CRLF ...  CRLF

Signed bodies chain: each chunk's signature covers the one before, and the trailer's covers the last. What comes out is not yet
believed: only when `finish` returns was everything there and right. Memory is bounded: a line, the trailers, and what was
fed.
"""

import enum
import hashlib
import hmac
import re
from collections.abc import Iterator
from typing import Final

from tieredfs_gateway.s3.errors import S3Error

_LINE_BYTES_MAX: Final = 256
_TRAILER_BYTES_MAX: Final = 8 * 1024
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_HEADER: Final = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?[ \t]*", re.ASCII)
_TRAILER_NAME: Final = re.compile(r"[a-z0-9-]{1,128}", re.ASCII)


class ChunkSigner:
    """The chain of signatures of one body, begun with the signature of its request."""

    def __init__(self, key: bytes, time: str, scope: str, seed: str) -> None:
        self._key = key
        self._lines = (time, scope)
        self._last = seed

    def check(self, content_sha256: str, signature: str) -> None:
        """The next chunk. Raises S3Error SignatureDoesNotMatch."""
        self._next("AWS4-HMAC-SHA256-PAYLOAD", [_EMPTY_SHA256, content_sha256], signature)

    def check_trailer(self, canonical: bytes, signature: str) -> None:
        self._next("AWS4-HMAC-SHA256-TRAILER", [hashlib.sha256(canonical).hexdigest()], signature)

    def _next(self, kind: str, hashes: list[str], signature: str) -> None:
        text = "\n".join([kind, *self._lines, self._last, *hashes])
        expected = hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            raise S3Error("SignatureDoesNotMatch")
        self._last = expected


class State(enum.Enum):
    HEADER = "header"
    CONTENT = "content"
    CONTENT_END = "content end"
    TRAILERS = "trailers"
    DONE = "done"


class Decoder:
    """One body of `size_bytes` of content. Not for several threads.

    `signer` None: chunks are not signed. `trailers_expected`: there may be trailers; otherwise the end is an empty line.
    """

    def __init__(self, size_bytes: int, signer: ChunkSigner | None, *, trailers_expected: bool) -> None:
        self._left = size_bytes
        self._signer = signer
        self._trailers_expected = trailers_expected
        self._state = State.HEADER
        self._line = bytearray()
        self._chunk_left = 0
        self._chunk_signature = ""
        self._chunk_hash = hashlib.sha256()
        self._canonical = bytearray()
        self.trailers: dict[str, str] = {}

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """The content in `data`, as views of it. Raises S3Error for what is no such body."""
        view = memoryview(data)
        while view:
            if self._state is State.CONTENT:
                taken = view[: self._chunk_left]
                view = view[len(taken) :]
                self._take(taken)
                yield taken
            elif self._state is State.DONE:
                raise _bad("bytes after the end")
            else:
                view = self._take_line(view)

    def finish(self) -> dict[str, str]:
        """The trailers, when everything was there. Raises S3Error IncompleteBody."""
        if self._state is not State.DONE or self._left:
            raise S3Error("IncompleteBody")
        return self.trailers

    def _take(self, content: memoryview) -> None:
        if self._signer:
            self._chunk_hash.update(content)
        self._chunk_left -= len(content)
        if not self._chunk_left:
            self._state = State.CONTENT_END

    def _take_line(self, view: memoryview) -> memoryview:
        """Up to the end of a line; what is left of `view`."""
        data = bytes(view[: _TRAILER_BYTES_MAX + 2])
        end = data.find(b"\n")
        self._line += data if end < 0 else data[: end + 1]
        limit = _TRAILER_BYTES_MAX if self._state is State.TRAILERS else _LINE_BYTES_MAX
        if len(self._line) > limit:
            raise _bad("a line that is too long")
        if end < 0:
            return view[len(data) :]
        if not self._line.endswith(b"\r\n") and self._state is not State.TRAILERS:
            raise _bad("a line that does not end with CRLF")
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        _ON_LINE[self._state](self, line)
        return view[end + 1 :]

    def _on_header(self, line: bytes) -> None:
        match = _HEADER.fullmatch(line)
        if match is None or (self._signer is not None and match[2] is None):
            raise _bad("a chunk header that is none")
        size = int(match[1], 16)
        if size > self._left:
            raise S3Error("IncompleteBody", "The body is longer than x-amz-decoded-content-length.")
        self._left -= size
        self._chunk_signature = (match[2] or b"").decode()
        self._chunk_hash = hashlib.sha256()
        self._chunk_left = size
        if size:
            self._state = State.CONTENT
            return
        if self._left:
            raise S3Error("IncompleteBody", "The body is shorter than x-amz-decoded-content-length.")
        self._check_chunk()
        self._state = State.TRAILERS

    def _on_content_end(self, line: bytes) -> None:
        if line:
            raise _bad("a chunk longer than its header says")
        self._check_chunk()
        self._state = State.HEADER

    def _check_chunk(self) -> None:
        if self._signer:
            self._signer.check(self._chunk_hash.hexdigest(), self._chunk_signature)

    def _on_trailer(self, line: bytes) -> None:
        if not line:
            self._end()
            return
        name, colon, value = line.decode("latin-1").partition(":")
        name, value = (
            name.strip(" \t").lower(),
            value.strip(" \t"),
        )  # no other white space, or two texts had one signature
        if not colon or not _TRAILER_NAME.fullmatch(name) or name in self.trailers or not self._trailers_expected:
            raise _bad("a trailer that is none")
        self.trailers[name] = value
        if name != "x-amz-trailer-signature":
            self._canonical += f"{name}:{value}\n".encode("latin-1")
        if len(self._canonical) > _TRAILER_BYTES_MAX:
            raise _bad("trailers that are too long")

    def _end(self) -> None:
        if self._trailers_expected and self._signer:
            self._signer.check_trailer(bytes(self._canonical), self.trailers.pop("x-amz-trailer-signature", ""))
        self._state = State.DONE


_ON_LINE: Final = {
    State.HEADER: Decoder._on_header,  # noqa: SLF001 - its own table
    State.CONTENT_END: Decoder._on_content_end,  # noqa: SLF001
    State.TRAILERS: Decoder._on_trailer,  # noqa: SLF001
}


def _bad(what: str) -> S3Error:
    return S3Error("InvalidRequest", f"The aws-chunked body is malformed: {what}.")
