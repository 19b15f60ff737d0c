"""A column of bytes in memory of its own, laid out before it is read: so many readers may each fill a part of it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tieredfs.errors import TooLargeError
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.sources.tar import COLUMN_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Payloads:
    """`lengths` (-1: null) and `starts` in `data` of the rows as they are read; `final` lengths, and `ends`, as they are in the
    column."""

    lengths: Indices
    starts: Indices
    final: Indices
    ends: Indices
    data: pa.Buffer

    @classmethod
    def laid_out(cls, name: str, lengths: Indices, order: Indices, allocate: Callable[[int], pa.Buffer]) -> "Payloads":
        """Row `order[n]` of those that are read is row n of the column. Raises TooLargeError."""
        final = lengths[order]
        ends = np.zeros(len(final) + 1, np.int64)
        np.cumsum(np.maximum(final, 0), out=ends[1:])
        total = int(ends[-1])
        if total > COLUMN_BYTES_MAX:
            raise TooLargeError(f"{len(final)} rows of {name!r} have {total} bytes; {COLUMN_BYTES_MAX} fit one column")
        starts = np.empty(len(final), np.int64)
        starts[order] = ends[:-1]
        return cls(lengths, starts, final, ends, allocate(total))

    def targets(self, first: int, end: int) -> list[memoryview]:
        """To fill, of the rows [first, end) as they are read."""
        view = memoryview(self.data).cast("B") if self.data.size else memoryview(b"")
        starts, stops = self.starts[first:end], self.starts[first:end] + np.maximum(self.lengths[first:end], 0)
        return [view[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    def array(self) -> pa.BinaryArray:
        missing = self.final < 0
        validity = pa.array(~missing).buffers()[1] if missing.any() else None
        buffers = [validity, pa.py_buffer(self.ends.astype(np.int32)), self.data]
        return pa.BinaryArray.from_buffers(pa.binary(), len(self.final), buffers)
