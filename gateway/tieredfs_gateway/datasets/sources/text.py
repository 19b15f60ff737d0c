"""Text in lines, cut into parts at the ends of records; compressed files are unpacked once, into scratch space.

What a part of a text file holds, and of which types it is, is only known by parsing it: so `look` parses every part once, counts
its rows and joins the types, and a later reading knows what it will find. That is one pass over the file when a dataset is
opened; formats with a footer (Parquet, IPC) do without.
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tieredfs.errors import CorruptError
from tieredfs_gateway.datasets.arrow_files import ByteCount, arrow_file, read_range
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.scratch import Scratch
from tieredfs_gateway.datasets.sources.protocol import PART_BYTES
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot

RECORD_BYTES_MAX: Final = 1 << 30
"""A record without an end up to here is not text in lines."""
_COMPRESSIONS: Final = {b".gz": "gzip", b".tgz": "gzip", b".zst": "zstd", b".zstd": "zstd"}
_INTEGERS_END: Final = 2.0**63
_NEWLINE: Final = 0x0A
_QUOTE: Final = 0x22
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stretch:
    """`length` bytes at `offset` of the file, or of the scratch file; the first line has the number `line`, from 1."""

    offset: int
    length: int
    line: int
    unpacked: bool


def compression_of(path: bytes) -> str | None:
    """What the name says."""
    return next((kind for ending, kind in _COMPRESSIONS.items() if path.lower().endswith(ending)), None)


def bare_name(path: bytes) -> bytes:
    """Without what says how it is compressed."""
    lower = path.lower()
    ending = next((ending for ending in _COMPRESSIONS if lower.endswith(ending)), b"")
    return path[: len(path) - len(ending)] + (b".tar" if ending == b".tgz" else b"")


def held_bytes(stretches: Sequence[Stretch]) -> int:
    """See `FileIndex`: what was unpacked is in this reader's scratch file."""
    return 0 if any(stretch.unpacked for stretch in stretches) else 4096 + 256 * len(stretches)


class TextFiles:
    """Reads text files of a snapshot by stretches. Safe from any thread."""

    def __init__(self, snapshot: Snapshot, scratch: Scratch, count: ByteCount) -> None:
        self._snapshot = snapshot
        self._scratch = scratch
        self._count = count

    def stretches(
        self, file: PinnedFile, end_of_records: Callable[[bytes], int]
    ) -> Iterator[tuple[Stretch, pa.Buffer]]:
        """The file in parts of about `PART_BYTES`. `end_of_records` says where the last whole record of a text ends (0: none
        does yet)."""
        packed = compression_of(file.path)
        left, offset, line = b"", 0, 1
        with unreadable(file, "text"), self._chunks(file, packed) as chunks:
            for chunk in chunks:
                left += chunk
                end = end_of_records(left)
                if not end:
                    if len(left) > RECORD_BYTES_MAX:
                        raise CorruptError(f"{file.name}: line {line} has no end within {RECORD_BYTES_MAX} bytes")
                    continue
                yield self._stretch(left[:end], offset, line, packed)
                line += left.count(b"\n", 0, end)
                offset, left = offset + end, left[end:]
            if left:
                yield self._stretch(left, offset, line, packed)

    def _stretch(self, data: bytes, offset: int, line: int, packed: str | None) -> tuple[Stretch, pa.Buffer]:
        at = self._scratch.append(memoryview(data)) if packed else offset
        return Stretch(at, len(data), line, packed is not None), pa.py_buffer(data)

    @contextmanager
    def _chunks(self, file: PinnedFile, packed: str | None) -> Iterator[Iterator[bytes]]:
        with self._snapshot.reading(file) as reading, arrow_file(reading, self._count, file.size_bytes) as native:
            stream = pa.CompressedInputStream(native, packed) if packed else native
            yield iter(lambda: stream.read(PART_BYTES), b"")

    def read(self, file: PinnedFile, stretch: Stretch) -> pa.Buffer:
        if stretch.unpacked:
            return self._scratch.read(stretch.offset, stretch.length)
        with self._snapshot.reading(file) as reading:
            return read_range(reading, stretch.offset, stretch.length, self._count)


def end_of_lines(text: bytes) -> int:
    return text.rfind(b"\n") + 1


def end_of_quoted_lines(text: bytes, delimiter: bytes = b",") -> int:
    """As CSV has it: a line goes on while a quote is open, and a quote opens only where a field begins (`6" nails` has none).
    Doubled quotes keep the parity."""
    if b'"' not in text:
        return end_of_lines(text)
    view = np.frombuffer(text, np.uint8)
    newlines = np.flatnonzero(view == _NEWLINE)
    quotes = np.flatnonzero(view == _QUOTE)
    begins = _begins_field(view, delimiter)
    if not (begins(quotes[::2]) | (view[quotes[::2] - 1] == _QUOTE)).all():
        quotes = _opening_and_closing(quotes, begins(quotes))
    outside = np.searchsorted(quotes, newlines) % 2 == 0
    ends = newlines[outside]
    return int(ends[-1]) + 1 if len(ends) else 0


def _begins_field(view: Bytes, delimiter: bytes) -> Callable[[Indices], npt.NDArray[np.bool_]]:
    before = np.zeros(256, bool)
    before[list(delimiter + b"\r\n")] = True
    first = len(_BYTE_ORDER_MARK) if view[: len(_BYTE_ORDER_MARK)].tobytes() == _BYTE_ORDER_MARK else 0
    return lambda places: before[view[places - 1]] | (places == first) | (places == 0)


def _opening_and_closing(quotes: Indices, begins: npt.NDArray[np.bool_]) -> Indices:
    """Those of the quotes: some are parts of fields."""
    found: list[int] = []
    skipped = -1
    following = np.append(quotes[1:], -1).tolist()
    for at, opens, after in zip(quotes.tolist(), begins.tolist(), following, strict=True):
        if len(found) % 2 == 0:
            if opens:
                found.append(at)
        elif after == at + 1 and at != skipped:  # doubled: the next is skipped with it
            skipped = after
        elif at != skipped:
            found.append(at)
    return np.array(found, np.int64)


@contextmanager
def unreadable(file: PinnedFile, what: str, line_of_row_0: int | None = None) -> Iterator[None]:
    """Arrow's complaints as CorruptError with the file's name, and the line where Arrow says a row (of lines that go on, the
    one with as many rows before it)."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        found = re.search(r"[Rr]ow #?(\d+)", str(error))
        line = f", line {line_of_row_0 + int(found[1])}" if line_of_row_0 is not None and found else ""
        raise CorruptError(f"{file.name}{line}: not readable as {what}: {error}") from error


def has_large_numbers(column: pa.ChunkedArray) -> bool:
    """Whether floats in it, at any depth, are beyond what integers of 64 bits reach."""
    kind = column.type
    if pa.types.is_struct(kind):
        return any(map(has_large_numbers, column.flatten()))
    if pa.types.is_list(kind):
        return has_large_numbers(pc.list_flatten(column))
    if not pa.types.is_floating(kind):
        return False
    ends = pc.min_max(column)
    return any(abs(end.as_py() or 0.0) >= _INTEGERS_END for end in ends.values())


def loses_digits(integer: str) -> bool:
    """Whether the float that is nearest stands for another number: it is neither that integer nor written so."""
    nearest = float(integer)
    return math.isinf(nearest) or Decimal(integer) not in (Decimal(nearest), Decimal(repr(nearest)))


def as_file(buffer: pa.Buffer) -> io.BytesIO:
    return io.BytesIO(memoryview(buffer))
