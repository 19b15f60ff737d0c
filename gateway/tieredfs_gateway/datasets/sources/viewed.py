"""A format whose payloads are shown where they lie, as far as that is possible: a source around another one.

Columns of bytes become columns of `VIEWED`: of each value either where it is (`file`, the number of a lent file, `offset` and
`length` in it) or, with `file` -1, its `bytes`. Which of both is decided value by value, when it is read: a value is carried where
its file is not whole on the SSD, or cannot be lent, and where it is small. What a value is does not depend on that.

The kernel is told what will be looked at (`POSIX_FADV_WILLNEED`) ahead of who looks: else a mapping waits for its pages a few at a
time.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tieredfs_gateway.datasets.arrow_files import ByteCount
from tieredfs_gateway.datasets.contract import LentFile
from tieredfs_gateway.datasets.lending import Lending
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.payloads import Payloads
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import FileIndex, HasOffsets, Places
from tieredfs_gateway.datasets.versions import PinnedFile

VIEW_BYTES_MIN: Final = 4096
"""A smaller value is carried: a page of it would be looked at anyway."""
VIEW_BYTES_MAX: Final = 1 << 30
"""A larger one, too: a trainer reaches it by 31 bits within a window that begins at a multiple of this."""
VIEWED: Final = pa.struct(
    [("file", pa.int32()), ("offset", pa.int64()), ("length", pa.int32()), ("bytes", pa.binary())]
)


def viewed_column(places: Places, carried: pa.BinaryArray) -> pa.StructArray:
    """Rows at `places`, the others `carried` (empty where there is a place)."""
    mask = carried.is_null() if carried.null_count else None
    small = [pa.array(each.astype(np.int32)) for each in (places.files, places.lengths)]
    children = [small[0], pa.array(places.offsets), small[1], carried]
    return pa.StructArray.from_arrays(children, fields=list(VIEWED), mask=mask)


def viewable(offsets: Indices, lengths: Indices, size_bytes: int) -> npt.NDArray[np.bool_]:
    """Which values of a file of that size may be shown."""
    is_large = (lengths >= VIEW_BYTES_MIN) & (lengths <= VIEW_BYTES_MAX)
    return is_large & (offsets + lengths <= size_bytes)


class ViewedSource:
    """See `Source`, `HasRows`, `HasPlaces`. Indexes are those of the source within: `seen` gives them their schema here."""

    columnar = True

    def __init__(self, within: HasOffsets, lending: Lending, count: ByteCount) -> None:
        """`count`: of the bytes that are shown."""
        self._within = within
        self._lending = lending
        self._count = count

    def look(self, file: PinnedFile) -> FileIndex:
        return self.seen(self._within.look(file))

    def seen(self, index: FileIndex) -> FileIndex:
        fields = [field.with_type(VIEWED) if field.type == pa.binary() else field for field in index.schema]
        return FileIndex(pa.schema(fields), index.rows, index)

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        """As if all of it had to be carried."""
        return self._within.decoded_bytes(index.detail, part, paths)

    def payload_lengths(self, index: FileIndex, part: int, rows: Indices, path: Path) -> Indices | None:
        """Columns of bytes have `places`."""
        del index, part, rows, path
        return None

    def places(self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path) -> Places | None:
        """Where those values are now; None: the file has no such column of bytes."""
        within: FileIndex = index.detail
        lengths = self._within.payload_lengths(within, part, rows, path)
        if lengths is None:
            return None
        offsets = self._within.payload_offsets(file, within, part, rows, path)
        is_here = np.zeros(len(rows), np.bool_) if offsets is None else viewable(offsets, lengths, file.size_bytes)
        lent = self._lending.lend(file) if is_here.any() else None
        if offsets is None or lent is None:
            nowhere = np.full(len(rows), -1, np.int64)
            return Places(nowhere, nowhere, nowhere, lengths)
        _advise(lent.descriptor, offsets[is_here], lengths[is_here])
        self.count_shown(int(lengths[is_here].sum()))
        return Places.where(is_here, np.full(len(rows), lent.number), offsets, lengths)

    def layout(self, file: PinnedFile, index: FileIndex, path: Path) -> tuple[Indices, Indices] | None:
        within: FileIndex = index.detail
        rows = np.arange(sum(index.rows), dtype=np.int64)
        lengths = self._within.payload_lengths(within, 0, rows, path) if len(rows) else rows
        offsets = self._within.payload_offsets(file, within, 0, rows, path) if len(rows) else rows
        return None if lengths is None or offsets is None else (offsets, lengths)

    def held(self, index: FileIndex, path: Path) -> pa.Array | None:
        return self._within.held(index.detail, path)

    def lent(self, file: PinnedFile) -> LentFile | None:
        return self._lending.lend(file)

    def count_shown(self, size_bytes: int) -> None:
        self._count.add(size_bytes)

    def fill(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path, targets: Sequence[memoryview]
    ) -> None:
        self._within.fill(file, index.detail, part, rows, path, targets)

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        return self.take(file, index, part, np.arange(index.rows[part], dtype=np.int64), paths)

    def take(self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, paths: Sequence[Path]) -> pa.Table:
        found: dict[str, pa.Array] = {}
        plain: list[Path] = []
        for path in dict.fromkeys(path[:1] for path in paths):
            at = index.schema.get_field_index(path[0])
            is_shown = at >= 0 and index.schema.field(at).type == VIEWED
            places = self.places(file, index, part, rows, path) if is_shown else None
            if places is None:
                plain.append(path)
            else:
                found[path[0]] = self._column(file, index, part, rows, path, places)
        if not found:
            return self._within.take(file, index.detail, part, rows, plain)
        if plain:
            table = self._within.take(file, index.detail, part, rows, plain)
            found |= dict(zip(table.schema.names, table.columns, strict=True))
        return pa.table(found)

    def _column(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path, places: Places
    ) -> pa.StructArray:
        payloads = Payloads.laid_out(path[0], places.carried, np.arange(len(rows)), pa.allocate_buffer)
        self.fill(file, index, part, rows, path, payloads.targets(0, len(rows)))
        return viewed_column(places, payloads.array())


def _advise(descriptor: int, offsets: Indices, lengths: Indices) -> None:
    with contextlib.suppress(OSError):  # it is a hint
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
