"""The contract of a place for dumps of a volume's metadata: every chunk store has one beside its chunks.

A dump may have gigabytes, so it goes and comes in pieces, and nothing here holds more than one of them. What is in it, and
whether it is whole, is the business of `tieredfs.format.dump`: a shelf promises that what has a name was put completely. The
shipped conformance suite is `tieredfs.testing.dump_suite`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tieredfs.errors import UnavailableError
from tieredfs.host import Files
from tieredfs.limits import KIB

HEAD_BYTES: Final = 64 * KIB
"""Of the first piece that is read: enough for the header, by which a dump is chosen."""


@dataclass(frozen=True, slots=True)
class DumpSource:
    """A dump in a file that is open, and does not change."""

    files: Files
    descriptor: int
    size_bytes: int

    def piece(self, offset: int, length: int) -> bytes:
        """What the file has there, `length` bytes at most. Raises UnavailableError."""
        target = bytearray(min(length, self.size_bytes - offset))
        try:
            count = self.files.read_into(self.descriptor, memoryview(target), offset)
        except OSError as error:
            raise UnavailableError(f"the dump cannot be read back: {error.strerror}") from error
        if count != len(target):
            raise UnavailableError("the dump cannot be read back: its file was cut short")
        return bytes(target)


class DumpShelf(Protocol):
    """Dumps by the moment at which they were taken, in nanoseconds since 1970. Safe from any thread.

    Raises UnavailableError (gone, an I/O error, or not the disk any more that it was), NoSpaceError, NotFoundError. Every
    request to a far side is bounded in time; a dump is as many of them as it has pieces.
    """

    def put(self, taken_ns: int, source: DumpSource) -> None:
        """Durable and whole on return, absent or whole after a crash of either side. Repeating it is harmless.

        What an upload that broke off has left is never seen, and removed within a day.
        """
        ...

    def taken(self) -> list[int]:
        """Those that are there, newest first."""
        ...

    def read(self, taken_ns: int) -> Iterator[bytes]:
        """From its beginning, in pieces: `HEAD_BYTES`, then `DUMP_PIECE_BYTES` at most. Raises NotFoundError."""
        ...

    def delete(self, taken_ns: int) -> None:
        """No error when absent."""
        ...

    def label(self, taken_ns: int) -> str:
        """Where that dump is, for people. No secret is in it."""
        ...


def ranges(size_bytes: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Offset and length of the pieces of something. Pure."""
    for offset in range(0, size_bytes, piece_bytes):
        yield offset, min(piece_bytes, size_bytes - offset)
