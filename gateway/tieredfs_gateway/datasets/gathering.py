"""Rows read one by one, each from where it lies, straight to where it comes.

Columns of bytes, which are nearly all of a picture dataset, are read into one allocation in their final order: a row's bytes are
copied once, from the page cache. The other columns are small; they are read by split and put in order afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tieredfs.errors import IntegrityError, TooLargeError
from tieredfs_gateway.datasets.dataset import Dataset, DatasetFile
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import HasRows
from tieredfs_gateway.datasets.sources.tar import COLUMN_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Group:
    """Rows `rows` of a split come at `places`."""

    split: int
    rows: Indices
    places: Indices


def gather(dataset: Dataset, groups: Sequence[Group]) -> tuple[pa.Table, Indices]:
    """The rows in the order of their places, and the places. Splits that are damaged are left out where such are."""
    source = dataset.rows_source
    assert source is not None
    left = list(groups)
    while left:
        gathering = _Gathering(dataset, source, left)
        try:
            table = gathering.table()
        except IntegrityError as error:
            bad = gathering.current
            dataset.skip(dataset.files[dataset.splits[bad.split].file].file, error)
            left.remove(bad)
            continue
        dataset.count_decoded(table.num_rows, table.nbytes)
        return table, gathering.places
    return dataset.schema.empty_table(), np.empty(0, np.int64)


class _Gathering:
    """One attempt. `current`: the group that is being read."""

    def __init__(self, dataset: Dataset, source: HasRows, groups: Sequence[Group]) -> None:
        self._dataset = dataset
        self._source = source
        self._groups = groups
        self.current = groups[0]
        places = np.concatenate([group.places for group in groups])
        self._order = np.argsort(places, kind="stable")
        self.places: Indices = places[self._order]

    def table(self) -> pa.Table:
        columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        small = []
        for one in self._dataset.selected:
            name, path, kind = one
            lengths = self._lengths(path) if kind == pa.binary() else None
            if lengths is None:
                small.append(one)
            else:
                columns[name] = self._payloads(path, lengths)
        if small:
            tables = [self._small(group, small) for group in self._groups]
            table = pa.concat_tables(tables).take(pa.array(self._order))
            columns |= dict(zip(table.schema.names, table.columns, strict=True))
        return pa.table([columns[name] for name in self._dataset.schema.names], schema=self._dataset.schema)

    def _lengths(self, path: Path) -> Indices | None:
        """Of the payloads in the order of the groups; None where one of them has none for this column."""
        found = []
        for group in self._groups:
            each, part = self._place(group)
            if path[0] in each.constants:
                return None
            lengths = self._source.payload_lengths(each.index, part, group.rows, path)
            if lengths is None:
                return None
            found.append(lengths)
        return np.concatenate(found)

    def _payloads(self, path: Path, lengths: Indices) -> pa.BinaryArray:
        final = lengths[self._order]
        ends = np.zeros(len(final) + 1, np.int64)
        np.cumsum(np.maximum(final, 0), out=ends[1:])
        total = int(ends[-1])
        if total > COLUMN_BYTES_MAX:
            raise TooLargeError(
                f"{len(final)} rows of {path[0]!r} have {total} bytes; {COLUMN_BYTES_MAX} fit one column"
            )
        starts = np.empty(len(final), np.int64)
        starts[self._order] = ends[:-1]
        data = pa.allocate_buffer(total)
        view = memoryview(data).cast("B") if total else memoryview(b"")
        at = 0
        for group in self._groups:
            self.current = group
            each, part = self._place(group)
            count = len(group.rows)
            places = zip(starts[at : at + count].tolist(), lengths[at : at + count].tolist(), strict=True)
            targets = [view[start : start + max(0, length)] for start, length in places]
            self._source.fill(each.file, each.index, part, group.rows, path, targets)
            at += count
        missing = final < 0
        validity = pa.array(~missing).buffers()[1] if missing.any() else None
        buffers = [validity, pa.py_buffer(ends.astype(np.int32)), data]
        return pa.BinaryArray.from_buffers(pa.binary(), len(final), buffers)

    def _small(self, group: Group, wanted: Sequence[tuple[str, Path, pa.DataType]]) -> pa.Table:
        self.current = group
        each, part = self._place(group)
        paths = [path for _, path, _ in wanted if path[0] not in each.constants]
        return self._dataset.fitted(
            each, self._source.take(each.file, each.index, part, group.rows, paths), list(wanted)
        )

    def _place(self, group: Group) -> tuple[DatasetFile, int]:
        split = self._dataset.splits[group.split]
        return self._dataset.files[split.file], split.part
