"""An epoch in *segments*: runs of positions whose rows are made together, in memory, in their order.

Batches are cut from segments, so neither the size of a segment nor who made it shows in a batch. A position may have no row: its
split turned out to be damaged, and damaged ones are left out.

`EpochPlan` says which segments there are; the plans here are of whole splits (`none`, `shards`) and of windows. `shuffling` has
that of `full`.
"""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tieredfs_gateway.datasets.dataset import Dataset
from tieredfs_gateway.datasets.order import Indices, Run, window_order
from tieredfs_gateway.datasets.order import Sequence as RowSequence
from tieredfs_gateway.datasets.shelf import Shelf

Rows = tuple[pa.RecordBatch, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` positions. `present`: the positions that have a row, ascending; None: all have."""

    length: int
    rows: Rows
    present: Indices | None = None

    @property
    def size_bytes(self) -> int:
        return sum(batch.nbytes for batch in self.rows)

    def slice(self, start: int, end: int) -> "list[Slice]":
        """The rows of the positions [start, end); no byte is copied."""
        if self.present is not None:
            start, end = (int(at) for at in np.searchsorted(self.present, (start, end)))
        return slices(self.rows, start, end)


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` rows of `whole` from `start` on."""

    whole: pa.RecordBatch
    start: int
    count: int

    def rows(self) -> pa.RecordBatch:
        return self.whole.slice(self.start, self.count)


def slices(rows: Iterable[pa.RecordBatch], start: int, end: int) -> list[Slice]:
    """Rows [start, end) of the batches one after another."""
    found, at = [], 0
    for batch in rows:
        first, last = max(start - at, 0), min(end - at, batch.num_rows)
        if first < last:
            found.append(Slice(batch, first, last - first))
        at += batch.num_rows
        if at >= end:
            break
    return found


def take_rows(schema: pa.Schema, pieces: Sequence[pa.RecordBatch], indices: Indices) -> Rows:
    """The rows of the pieces one after another, in that order."""
    if not pieces:
        return ()
    whole = pieces[0] if len(pieces) == 1 else None
    if whole is None:
        table = pa.Table.from_batches(list(pieces), schema).take(pa.array(indices))
        return tuple(table.to_batches())
    return (whole.take(pa.array(indices)),)


class EpochPlan(Protocol):
    """The segments of one epoch. Safe from any thread."""

    @property
    def segment_count(self) -> int: ...
    @property
    def is_begun_by_all(self) -> bool:
        """Whoever makes a segment first does so for all of them: threads that read ahead help the first one along. Elsewhere they
        would compete with it."""
        ...

    @property
    def is_known(self) -> bool:
        """As far as one can tell, segments are made of what is known already: threads that made them ahead would only take the
        GIL from whoever waits for the first one."""
        ...

    @property
    def failed(self) -> bool:
        """It is of no more use: who comes next makes another."""
        ...

    def find(self, row: int) -> tuple[int, int]:
        """The segment with that position, and the first position of it; the number of segments for one beyond the last."""
        ...

    def length(self, number: int) -> int | None:
        """Positions of a segment; None: not known before it is made."""
        ...

    def key(self, number: int) -> Hashable:
        """Of the segment; equal only for segments with equal rows, of any plan."""
        ...

    def estimate(self, number: int) -> int:
        """About how many bytes it takes."""
        ...

    def visits(self, number: int) -> Indices | None:
        """The splits that segments from that one on are made of, in the order in which they will be read; None: no such order."""
        ...

    def make(self, number: int) -> Segment: ...
    def close(self) -> None:
        """No iterator uses the plan any more."""
        ...


class Counts:
    """How many rows of each split match. Found when they are asked for, or learned from a reading. Safe from any thread."""

    def __init__(
        self, dataset: Dataset, parallel: Callable[[Callable[[int], int], Iterable[int]], Iterable[Any]]
    ) -> None:
        self._dataset = dataset
        self._parallel = parallel
        self._lock = threading.Lock()
        known = dataset.filter is None
        self._rows = np.array([split.rows if known or not split.rows else -1 for split in dataset.splits], np.int64)

    def known(self, split: int) -> int | None:
        count = int(self._rows[split])
        return None if count < 0 else count

    def of(self, split: int) -> int:
        known = self.known(split)
        if known is None:
            known = self._dataset.count(split)
            self.learn(split, known)
        return known

    def learn(self, split: int, count: int) -> None:
        with self._lock:
            self._rows[split] = count

    def all(self) -> Indices:
        """Of every split, in parallel; not from a thread of the pool."""
        unknown = [int(split) for split in np.flatnonzero(self._rows < 0)]
        for split, count in zip(unknown, self._parallel(self._dataset.count, unknown), strict=True):
            self.learn(split, count)
        return self._rows


class SplitPlan:
    """`none` and `shards`: a segment is a split. Splits whose rows are not counted yet are counted by reading them."""

    failed = False
    is_begun_by_all = False
    is_known = False

    def __init__(self, dataset: Dataset, counts: Counts, order: Indices) -> None:
        self._dataset = dataset
        self._counts = counts
        self._order = order
        self._sequence: RowSequence | None = None

    @property
    def segment_count(self) -> int:
        return len(self._order)

    def find(self, row: int) -> tuple[int, int]:
        if row == 0:
            return 0, 0
        if self._sequence is None:
            self._sequence = RowSequence(self._order, self._counts.all())
        place = self._sequence.place_of(row)
        return place, self._sequence.start(place)

    def length(self, number: int) -> int | None:
        return self._counts.known(int(self._order[number]))

    def key(self, number: int) -> Hashable:
        return int(self._order[number])

    def estimate(self, number: int) -> int:
        return self._dataset.decoded_bytes(int(self._order[number]))

    def visits(self, number: int) -> Indices:
        return self._order[number:]

    def make(self, number: int) -> Segment:
        split = int(self._order[number])
        rows = self._dataset.read(split)
        if rows is None:
            return Segment(self._counts.of(split), (), np.empty(0, np.int64))
        count = sum(batch.num_rows for batch in rows)
        self._counts.learn(split, count)
        return Segment(count, tuple(rows))

    def close(self) -> None:
        """Nothing is kept."""


class SplitShelf:
    """Decoded splits, shared by those who arrange their rows anew, and kept for the next epoch where there is room."""

    def __init__(self, dataset: Dataset, limit_bytes: int) -> None:
        self.dataset = dataset
        self._shelf: Shelf[Rows] = Shelf(limit_bytes, lambda rows: sum(batch.nbytes for batch in rows))

    @contextlib.contextmanager
    def rows(self, split: int) -> Iterator[Rows]:
        """None at all when the split is left out."""
        loan = self._shelf.borrow(split, partial(self._read, split), self.dataset.decoded_bytes(split))
        try:
            yield loan.value()
        finally:
            loan.release()

    def _read(self, split: int) -> Rows:
        return tuple(self.dataset.read(split) or ())


class WindowPlan:
    """`window`: splits in random order, cut into windows of equally many rows, each mixed."""

    failed = False
    is_begun_by_all = False
    is_known = False

    def __init__(self, splits: SplitShelf, sequence: RowSequence, order: tuple[int, int, int]) -> None:
        """`order`: rows of a window, seed, epoch."""
        self._dataset = splits.dataset
        self._sequence = sequence
        self._splits = splits
        self._window_rows, self._seed, self._epoch = order

    @property
    def segment_count(self) -> int:
        return -(-self._sequence.size // self._window_rows)

    def find(self, row: int) -> tuple[int, int]:
        number = min(row // self._window_rows, self.segment_count)
        return number, number * self._window_rows

    def length(self, number: int) -> int:
        return min(self._window_rows, self._sequence.size - number * self._window_rows)

    def key(self, number: int) -> Hashable:
        return self._epoch, number

    def _runs(self, number: int) -> list[Run]:
        start = number * self._window_rows
        return self._sequence.runs(start, start + self.length(number))

    def estimate(self, number: int) -> int:
        total = 0.0
        for run in self._runs(number):
            total += self._dataset.decoded_bytes(run.split) * run.count / max(1, self._dataset.splits[run.split].rows)
        return int(total)

    def visits(self, number: int) -> Indices:
        return self._sequence.order[self._sequence.place_of(number * self._window_rows) :]

    def make(self, number: int) -> Segment:
        order = window_order(number, self.length(number), self._seed, self._epoch)
        pieces: list[pa.RecordBatch] = []
        there: list[Indices] = []
        at = 0
        for run in self._runs(number):
            with self._splits.rows(run.split) as rows:
                found = [each.rows() for each in slices(rows, run.first, run.first + run.count)]
            if found:
                pieces += found
                there.append(np.arange(at, at + run.count, dtype=np.int64))
            at += run.count
        return arranged(self._dataset.schema, pieces, there, order)

    def close(self) -> None:
        """Nothing is kept."""


def arranged(schema: pa.Schema, pieces: Sequence[pa.RecordBatch], there: Sequence[Indices], order: Indices) -> Segment:
    """A segment whose position p has source row `order[p]`, of the source rows `there`, which are those of the pieces."""
    length = len(order)
    present = np.concatenate(there) if there else np.empty(0, np.int64)
    if len(present) == length:
        return Segment(length, take_rows(schema, pieces, order))
    place = np.full(length, -1, np.int64)
    place[present] = np.arange(len(present))
    at = place[order]
    return Segment(length, take_rows(schema, pieces, at[at >= 0]), np.flatnonzero(at >= 0))
