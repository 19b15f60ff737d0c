"""What is known of all rows of a dataset without reading it: where the large values lie, and what the small ones are.

A bucket of a full shuffle has rows of nearly every file. Asking the index of each file for its few takes time for each file (1,024
of 4,000 pictures in 10 files: 4 ms of CPU time), and the first batch of an epoch waits for it. So the indexes of all files are
put one after another once, for as long as the reader lives, and a bucket is a few calls of numpy and Arrow, whatever the number of
files (0.5 to 0.9 ms). Where all values are such as may be shown, all rows are laid out once, when all files are lent, and a bucket
is one call of Arrow (0.4 to 0.7 ms). It takes memory: a reader whose index would take more than its share asks file by file
(`gathering`), and so does one with a column that only reading tells.

Rows are numbered over all files, by path. What a value is does not depend on who gives it. Safe from any thread.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tieredfs.errors import IntegrityError, InvalidRequestError
from tieredfs.host.libc import cached_bytes
from tieredfs.limits import MIB
from tieredfs_gateway.datasets.contract import LentFile
from tieredfs_gateway.datasets.dataset import Dataset
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.payloads import Payloads
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import HasPlaces, Places
from tieredfs_gateway.datasets.sources.viewed import VIEWED, viewable, viewed_column
from tieredfs_gateway.datasets.threads import Submit

CARRIED_BYTES_MAX: Final = 4 * MIB
"""Of a bucket's values that have to be read: of more it is better that several threads read them (`gathering`)."""
SHOWN_BYTES: Final = 20
"""Of a value in a column of `VIEWED`."""
CACHED_S: Final = 1.0
"""A file that the page cache had all of is taken to be there for so long. To ask takes 5 us for a file of 40 MB in large folios; to
tell the kernel of a value that is there already takes 1 us, and each time the thread lets go of the GIL and waits for it."""


@dataclass(frozen=True, slots=True)
class _Laid:
    """A column of bytes: where each value begins in its file, its length (-1: null), and whether it may be shown there."""

    path: Path
    offsets: Indices
    lengths: Indices
    is_viewable: npt.NDArray[np.bool_]


class RowIndex:
    """See the module. Made by `of`."""

    def __init__(
        self, dataset: Dataset, source: HasPlaces, starts: Indices, laid: dict[str, _Laid], known: pa.RecordBatch
    ) -> None:
        self._dataset = dataset
        self._source = source
        self._starts = starts
        self._laid = laid
        self._known = known
        self._lent: list[LentFile | None] = [None] * len(dataset.files)
        self._numbers = np.full(len(dataset.files), -1, np.int64)
        """Of the files that are lent: they stay so for as long as the reader. -1: it is not, or was not yet."""
        self._cached_s = np.full(len(dataset.files), -np.inf)
        """When the page cache was seen to have all of a file."""
        self._shown: pa.RecordBatch | None = None
        """All rows, once every value of them is shown where it lies: a bucket is one call of Arrow then."""
        self._all_viewable = all(bool(each.is_viewable.all()) for each in laid.values())
        self.sufficed = True
        """Nothing had to be read for the last rows that were asked for."""

    @classmethod
    def of(cls, dataset: Dataset, limit_bytes: int) -> Self | None:
        """None: it would take more than that, or something is not known before it is read."""
        source = dataset.rows_source
        if not isinstance(source, HasPlaces):
            return None
        counts = [sum(each.index.rows) for each in dataset.files]
        shown: dict[str, list[tuple[Indices, Indices]]] = {}
        held: dict[str, list[pa.Array]] = {}
        taken_bytes = 0
        for each in dataset.files:
            for name, path, kind in dataset.selected:
                if path[0] in each.constants:
                    return None
                if kind == VIEWED:
                    found = source.layout(each.file, each.index, path)
                    if found is None:
                        return None
                    shown.setdefault(name, []).append(found)
                    taken_bytes += 2 * int(found[0].nbytes) + SHOWN_BYTES * len(found[0])
                else:
                    column = source.held(each.index, path)
                    if column is None or column.type != kind:
                        return None
                    held.setdefault(name, []).append(column)
                    taken_bytes += int(column.nbytes)
                if taken_bytes > limit_bytes:
                    return None
        paths = {name: path for name, path, _ in dataset.selected}
        sizes = [each.file.size_bytes for each in dataset.files]
        laid = {name: _joined(paths[name], columns, sizes) for name, columns in shown.items()}
        known = pa.RecordBatch.from_pydict({name: pa.concat_arrays(columns) for name, columns in held.items()})
        return cls(dataset, source, np.cumsum([0, *counts]), laid, known)

    def gathered(self, rows: Indices, submit: Submit) -> pa.RecordBatch | None:
        """Those rows, in that order. None: too much of them has to be read, or something that has to be is damaged. The kernel is
        told by a thread of `submit` what will be looked at: nobody waits for that."""
        if self._shown is None and self._all_viewable:
            self._shown = self._all_shown()
        if self._shown is not None:
            return self._taken(self._shown, rows, submit)
        files = np.searchsorted(self._starts, rows, side="right") - 1
        places = {name: self._places(laid, rows, files) for name, laid in self._laid.items()}
        carried_bytes = sum(int(np.maximum(each.carried, 0).sum()) for each in places.values())
        self.sufficed = not carried_bytes
        if carried_bytes > CARRIED_BYTES_MAX:
            return None
        columns: dict[str, pa.Array] = {}
        try:
            for name, each in places.items():
                columns[name] = viewed_column(each, self._carried(self._laid[name].path, each.carried, rows, files))
        except IntegrityError:  # whoever asks file by file finds out which, and leaves it out where that is wanted
            return None
        if self._known.num_columns:
            known = self._known.take(pa.array(rows))
            columns |= dict(zip(known.schema.names, known.columns, strict=True))
        schema = self._dataset.schema
        found = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
        self._dataset.count_decoded(len(rows), found.nbytes)
        for each in places.values():
            here = each.files >= 0
            self._show(files[here], each.offsets[here], each.lengths[here], submit)
        return found

    def _all_shown(self) -> pa.RecordBatch | None:
        """None: some file is not lent yet."""
        counts = np.diff(self._starts)
        if (self._numbers[counts > 0] < 0).any():
            return None
        numbers = np.repeat(self._numbers, counts)
        carried = pa.array([b""], pa.binary()).take(pa.array(np.zeros(len(numbers), np.int8)))
        columns: dict[str, pa.Array] = dict(zip(self._known.schema.names, self._known.columns, strict=True))
        for name, laid in self._laid.items():
            columns[name] = viewed_column(Places(numbers, laid.offsets, laid.lengths, np.zeros_like(numbers)), carried)
        schema = self._dataset.schema
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _taken(self, shown: pa.RecordBatch, rows: Indices, submit: Submit) -> pa.RecordBatch:
        found = shown.take(pa.array(rows))
        self.sufficed = True
        self._dataset.count_decoded(len(rows), found.nbytes)
        files = np.searchsorted(self._starts, rows, side="right") - 1
        for laid in self._laid.values():
            self._show(files, laid.offsets[rows], laid.lengths[rows], submit)
        return found

    def _places(self, laid: _Laid, rows: Indices, files: Indices) -> Places:
        is_viewable = laid.is_viewable[rows]
        self._lend(files[is_viewable])
        numbers = self._numbers[files]
        return Places.where(is_viewable & (numbers >= 0), numbers, laid.offsets[rows], laid.lengths[rows])

    def _lend(self, files: Indices) -> None:
        """Those that are not lent are asked for again: now they may be."""
        for number in np.unique(files[self._numbers[files] < 0]).tolist():
            found = self._source.lent(self._dataset.files[number].file)
            if found is not None:
                self._lent[number] = found
                self._numbers[number] = found.number

    def _carried(self, path: Path, lengths: Indices, rows: Indices, files: Indices) -> pa.BinaryArray:
        payloads = Payloads.laid_out(path[0], lengths, np.arange(len(rows)), pa.allocate_buffer)
        if payloads.data.size:
            targets = payloads.targets(0, len(rows))
            there = np.flatnonzero(lengths > 0)
            for number in np.unique(files[there]).tolist():
                at = there[files[there] == number]
                each = self._dataset.files[number]
                within = rows[at] - self._starts[number]
                self._source.fill(each.file, each.index, 0, within, path, [targets[place] for place in at.tolist()])
        return payloads.array()

    def _show(self, files: Indices, offsets: Indices, lengths: Indices, submit: Submit) -> None:
        """Those values are looked at where they lie."""
        self._source.count_shown(int(lengths.sum()))
        late = self._cached_s[files] < time.monotonic() - CACHED_S
        if late.any():
            with contextlib.suppress(InvalidRequestError):  # the reader is being closed: then nobody will look
                submit(partial(self._advise, files[late], offsets[late], lengths[late]))

    def _advise(self, files: Indices, offsets: Indices, lengths: Indices) -> None:
        """In the order in which they will be looked at; none of files that the page cache has all of."""
        for number in np.unique(files).tolist():
            if self._is_cached(number):
                self._cached_s[number] = time.monotonic()
        absent = self._cached_s[files] < time.monotonic() - CACHED_S
        looked_at = (each[absent].tolist() for each in (files, offsets, lengths))
        with contextlib.suppress(OSError):  # it is a hint
            for number, offset, length in zip(*looked_at, strict=True):
                os.posix_fadvise(self._descriptor(number), offset, length, os.POSIX_FADV_WILLNEED)

    def _is_cached(self, number: int) -> bool:
        size_bytes = self._dataset.files[number].file.size_bytes
        with contextlib.suppress(OSError):  # an older kernel does not say
            return cached_bytes(self._descriptor(number), size_bytes) >= size_bytes
        return False

    def _descriptor(self, number: int) -> int:
        lent = self._lent[number]
        assert lent is not None, "it is shown"
        return lent.descriptor


def _joined(path: Path, columns: Sequence[tuple[Indices, Indices]], sizes: Sequence[int]) -> _Laid:
    may = [viewable(offsets, lengths, size) for (offsets, lengths), size in zip(columns, sizes, strict=True)]
    offsets, lengths = (np.concatenate(each) for each in zip(*columns, strict=True))
    return _Laid(path, offsets, lengths, np.concatenate(may))
