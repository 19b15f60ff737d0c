"""One request as a reader thread sees it, and the encodings that most answers share.

A `Request` is the thread's own, reused for every request: its buffer is written by the kernel, so nothing may keep a
view of it after the answer. Handlers take it and return the body of the answer (`bytes`), or `NO_REPLY`, or raise.
"""

import os
from collections.abc import Callable
from typing import Final

from tieredfs.errors import InvalidRequestError
from tieredfs.fuse.kernel import wire
from tieredfs.fuse.operations import Caller, Span
from tieredfs.limits import FUSE_REQUEST_BYTES_MAX, KIB
from tieredfs.model import Attributes, FileKind, InodeId

BUFFER_BYTES: Final = FUSE_REQUEST_BYTES_MAX + 4 * KIB
"""The largest WRITE and its headers."""

BLOCK_BYTES: Final = 4 * KIB
"""`st_blksize`: as ext4 says."""

_NANOSECONDS: Final = 1_000_000_000
_DATA: Final = wire.IN_HEADER_BYTES

TYPE_BITS: Final[dict[FileKind, int]] = {
    FileKind.FIFO: 0o010000,
    FileKind.CHARACTER_DEVICE: 0o020000,
    FileKind.DIRECTORY: 0o040000,
    FileKind.BLOCK_DEVICE: 0o060000,
    FileKind.REGULAR: 0o100000,
    FileKind.SYMLINK: 0o120000,
    FileKind.SOCKET: 0o140000,
}
DIRENT_TYPE: Final = {kind: bits >> 12 for kind, bits in TYPE_BITS.items()}


Reply = bytes | None
NO_REPLY: Final = None
DONE: Final = b""
"""An answer without a body."""


class Request:
    """The request in a thread's buffer. `length` counts its header."""

    __slots__ = (
        "answer_unique",
        "buffer",
        "counts",
        "device",
        "gid",
        "inode",
        "leading",
        "length",
        "opcode",
        "process",
        "read_bytes",
        "reply",
        "reply_view",
        "resent",
        "slot",
        "step_aside",
        "turns",
        "uid",
        "unique",
        "view",
        "written_bytes",
    )

    def __init__(self, device: int, slot: int) -> None:
        self.device = device
        self.slot = slot
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.length = 0
        self.opcode = 0
        self.unique = 0
        self.answer_unique = 0
        """`unique` as the kernel wrote it; what an answer must repeat."""
        self.resent = False
        self.inode = InodeId(0)
        self.uid = 0
        self.gid = 0
        self.reply: bytearray | None = None
        """Made with the first READ: where passthrough works, few threads ever see one."""
        self.reply_view = memoryview(b"")
        self.counts = [0] * wire.OPCODE_LIMIT
        self.read_bytes = 0
        self.written_bytes = 0
        self.process = 0
        self.leading = False
        self.turns = 0
        """Rises when a request is begun, and when it is answered: odd while one is carried out."""
        """This thread is the one that reads requests."""
        self.step_aside: Callable[[], None] = _nothing
        """Let another thread read on: what follows may wait. May be called again."""

    def send_file(self, span: Span) -> Reply:
        """Answer with the bytes of a local file, never joined with their header: one copy in, one out. Raises OSError.

        Measured, page cache to page cache: 1.8-2.6 GB/s; splice through a pipe per thread 2.4-2.8 GB/s, but only for
        answers under 1 MiB (with its header, one of 1 MiB exceeds the largest pipe of an unprivileged process). Both
        are faster than the SSDs below, so the simple one is kept.
        """
        if self.reply is None:
            self.reply = bytearray(FUSE_REQUEST_BYTES_MAX)
            self.reply_view = memoryview(self.reply)
        count = os.preadv(span.descriptor, (self.reply_view[: span.length],), span.offset) if span.length else 0
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER_BYTES + count, 0, self.answer_unique)
        os.writev(self.device, (header, self.reply_view[:count]))
        return NO_REPLY

    def caller(self, umask: int = 0) -> Caller:
        return Caller(self.uid, self.gid, self.process, umask, self.unique, self.resent, self.slot)

    def name(self, offset: int = 0) -> bytes:
        """The NUL-terminated name at `offset` of the body. Raises InvalidRequestError."""
        start = _DATA + offset
        end = self.buffer.find(0, start, self.length)
        if end <= start:
            raise InvalidRequestError("a request's name is empty or has no end")
        return self.view[start:end].tobytes()

    def names(self, offset: int = 0) -> tuple[bytes, bytes]:
        """Two names, one after the other."""
        first = self.name(offset)
        return first, self.name(offset + len(first) + 1)

    def text(self, offset: int) -> bytes:
        """As `name`, but it may be empty."""
        start = _DATA + offset
        end = self.buffer.find(0, start, self.length)
        if end < 0:
            raise InvalidRequestError("a request's text has no end")
        return self.view[start:end].tobytes()

    def data(self, offset: int, size: int) -> memoryview:
        """`size` bytes at `offset` of the body; valid until the answer. Raises InvalidRequestError."""
        start = _DATA + offset
        if start + size > self.length:
            raise InvalidRequestError("a request is shorter than the data that it announces")
        return self.view[start : start + size]


def _nothing() -> None:
    pass


Handler = Callable[[Request], Reply]


class Timeouts:
    """How long the kernel may keep names and attributes, in the pieces that the structures want."""

    __slots__ = ("entry_ns", "entry_s", "negative_ns", "negative_s", "staged", "stored")

    def __init__(self, entry_s: float, attribute_s: float, negative_s: float, staged_s: float | None = None) -> None:
        self.entry_s, self.entry_ns = _split(entry_s)
        self.stored = _split(attribute_s)
        """Seconds and nanoseconds that attributes may be kept,"""
        self.staged = _split(attribute_s if staged_s is None else min(staged_s, attribute_s))
        """and those of an inode whose content is only staged."""
        self.negative_s, self.negative_ns = _split(negative_s)


def attribute_fields(attributes: Attributes) -> tuple[int, ...]:
    """`struct fuse_attr`, field by field."""
    inode, kind, mode, uid, gid, links, size, atime, mtime, ctime, device, _, _, _, _, allocated = attributes
    return (
        inode,
        size,
        (allocated + 511) >> 9,
        atime // _NANOSECONDS,
        mtime // _NANOSECONDS,
        ctime // _NANOSECONDS,
        atime % _NANOSECONDS,
        mtime % _NANOSECONDS,
        ctime % _NANOSECONDS,
        mode | TYPE_BITS[kind],
        links,
        uid,
        gid,
        device & 0xFFFFFFFF,
        BLOCK_BYTES,
        0,
    )


def encode_attributes(attributes: Attributes, timeouts: Timeouts) -> bytes:
    seconds, nanoseconds = timeouts.staged if attributes.staged_in else timeouts.stored
    return wire.ATTR_OUT.pack(seconds, nanoseconds, *attribute_fields(attributes))


def encode_entry(attributes: Attributes, timeouts: Timeouts) -> bytes:
    seconds, nanoseconds = timeouts.staged if attributes.staged_in else timeouts.stored
    return wire.ENTRY_OUT.pack(
        attributes.inode,
        0,
        timeouts.entry_s,
        seconds,
        timeouts.entry_ns,
        nanoseconds,
        *attribute_fields(attributes),
    )


def _split(duration_s: float) -> tuple[int, int]:
    whole = int(duration_s)
    return whole, int((duration_s - whole) * _NANOSECONDS)
