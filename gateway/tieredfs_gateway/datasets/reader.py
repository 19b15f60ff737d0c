"""`open_reader`: a dataset, pinned and ordered, as one sequence of batches per epoch. The implementation of `contract.Reader`.

Threads of a pool read ahead of every iterator, segment by segment, within the reader's memory; iterators that need the same segment
share it. A consumer that comes before the pool makes its segment itself, so a reader works with any number of threads, and
closing an iterator only has to give its loans back.

Memory: `memory_bytes` bounds what is decoded and kept. Past it reading ahead stops. What each open iterator is being served from
always has its place: with many iterators far apart, or segments larger than the memory, that is one segment each.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa

from tieredfs.errors import (
    ConfigurationError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    NotSupportedError,
    StaleError,
)
from tieredfs.limits import MEMORY_BYTES_DEFAULT
from tieredfs.volume.filesystem import FileSystem
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.arrow_files import ByteCount
from tieredfs_gateway.datasets.coming import Schedule
from tieredfs_gateway.datasets.contract import DatasetSpec, NumberedBatch, OrderSpec, Position, Shuffle, Views
from tieredfs_gateway.datasets.dataset import Dataset
from tieredfs_gateway.datasets.lending import Lending
from tieredfs_gateway.datasets.listing import list_source, partitions
from tieredfs_gateway.datasets.order import Permutation, Sequence, epoch_key, split_order
from tieredfs_gateway.datasets.pieces import Pieces
from tieredfs_gateway.datasets.pin_record import Pin
from tieredfs_gateway.datasets.pins import Pins
from tieredfs_gateway.datasets.row_index import RowIndex
from tieredfs_gateway.datasets.scratch import Scratch
from tieredfs_gateway.datasets.segments import Counts, EpochPlan, Segment, Slice, SplitPlan, SplitShelf, WindowPlan
from tieredfs_gateway.datasets.shelf import WAIT_S, Loan, Shelf
from tieredfs_gateway.datasets.shuffling import BucketPlan, Buckets, GatherPlan, bucket_rows
from tieredfs_gateway.datasets.sources.formats import Chosen, choose, source_of
from tieredfs_gateway.datasets.sources.indexes import IndexCache
from tieredfs_gateway.datasets.sources.protocol import FileIndex, HasOffsets, HasStoredBytes, Source
from tieredfs_gateway.datasets.sources.viewed import VIEWED, ViewedSource
from tieredfs_gateway.datasets.threads import Threads
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot

SCRATCH_BYTES_DEFAULT: Final = 16 << 30
INDEXES: Final = IndexCache()
"""Of this process."""
INDEX_BYTES_MAX: Final = 1 << 30
"""Of what is known of all rows, in one place. Of a small memory it may be a sixteenth."""
KNOWN_TOGETHER: Final = 4
"""Segments that are known whose batches are handed over together: to do so costs as much for one batch as for many, and of the
values nothing is in them. More would have the kernel told of more than it should read ahead."""
AHEAD_MAX: Final = 32
"""Segments that one iterator reads ahead at most."""


def open_reader(
    volume: FileSystem,
    spec: DatasetSpec,
    order: OrderSpec,
    *,
    memory_bytes: int = MEMORY_BYTES_DEFAULT,
    threads: int | None = None,
    scratch_directory: str | None = None,
    scratch_bytes: int = SCRATCH_BYTES_DEFAULT,
    indexes: IndexCache = INDEXES,
    announce: bool = True,
    version: str | None = None,
    pins: Pins | None = None,
) -> "DatasetReader":
    """List, pin, and look into every file. Blocking. Raises what `contract.Reader` raises; NotSupportedError for `spec.views` of a
    format whose values do not lie in its files as they are, or with a filter.

    `version`: open that one, if `pins` still have it; else what is there now, which may be another. `pins` keep what is opened.

    `scratch_directory` None: that of temporary files; it should be on the local SSD. `indexes`: what is known of files already.
    `announce`: let the SSD tier know what will be read (see `coming`).
    """
    if order.batch_size < 1:
        raise ConfigurationError(f"batch_size is {order.batch_size}; it must be at least 1")
    if order.window_rows < 1:
        raise ConfigurationError(f"window_rows is {order.window_rows}; it must be at least 1")
    room = Room(memory_bytes, scratch_directory, scratch_bytes)
    with contextlib.ExitStack() as stack:
        base, chosen, snapshot = _pinned(volume, spec, version, pins)
        stack.enter_context(contextlib.closing(snapshot))
        lending = stack.enter_context(contextlib.closing(Lending(snapshot, volume))) if spec.views else None
        tally = Tally()
        unpacked = stack.enter_context(contextlib.closing(room.scratch(tally)))
        pool = stack.enter_context(contextlib.closing(Threads(threads or max(2, os.cpu_count() or 2))))
        source = source_of(chosen, volume, snapshot, unpacked, tally.read)
        constants = partitions(base, [path for path, _ in chosen.files])
        schedule = stack.enter_context(contextlib.closing(Schedule(volume))) if announce else None
        if schedule is not None and isinstance(source, HasStoredBytes):
            schedule.glance([file for file in snapshot.files if source.is_glance(file)])
        look: Look = partial(indexes.look, volume.volume.config.uuid, chosen.format, look=source.look)
        if lending is not None:
            source, look = _with_views(source, look, spec, lending, tally)
        visited = schedule.visited if schedule is not None else lambda _: None
        dataset = Dataset(source, snapshot.files, constants, spec, pool.map, look, visited)
        if pins is not None:
            files, holds = snapshot.held
            more = len(files) - len(snapshot.files)
            pin = Pin(snapshot.version, spec.source, spec.format, base, chosen.format, files, more)
            stack.callback(pins.let_go, pins.keep(pin, holds))
        return DatasetReader(snapshot.version, dataset, order, pool, room, tally, stack.pop_all(), schedule, lending)


Look = Callable[[PinnedFile], FileIndex]


def _with_views(
    source: Source, look: Look, spec: DatasetSpec, lending: Lending, tally: "Tally"
) -> tuple[ViewedSource, Look]:
    """Raises NotSupportedError."""
    if not isinstance(source, HasOffsets) or spec.filter is not None:
        raise NotSupportedError(f"{spec.source}: there are no values that could be looked at where they lie")
    viewed = ViewedSource(source, lending, tally.viewed)
    return viewed, lambda file: viewed.seen(look(file))


def _pinned(
    volume: FileSystem, spec: DatasetSpec, version: str | None, pins: Pins | None
) -> tuple[bytes, Chosen, Snapshot]:
    """The files, from the pins if those have the version, else as they are now; below which directory; and of which format."""
    found = pins.find(version, spec.source, spec.format) if pins is not None and version is not None else None
    if found is not None:
        pin, holds = found
        sizes = [(inode, pin.hold_bytes(number)) for number, inode in enumerate(holds)]
        with contextlib.suppress(NotFoundError, StaleError, InvalidRequestError):  # it was taken away at this moment
            snapshot = Snapshot.of_holds(volume, pin.files, pin.more, sizes)
            return pin.base, Chosen(pin.format, tuple((f.path, f.attributes) for f in snapshot.files)), snapshot
    listing = list_source(volume, spec.source)
    chosen = choose(volume, listing.files, spec.format)
    return listing.base, chosen, Snapshot(volume, chosen.files)


class Tally:
    """What was read, written to scratch files, and only shown."""

    def __init__(self) -> None:
        self.read = ByteCount()
        self.spilled = ByteCount()
        self.viewed = ByteCount()


@dataclass(frozen=True, slots=True)
class Room:
    """What a reader may take: memory, and scratch files below `directory` (None: that of temporary files)."""

    memory_bytes: int
    directory: str | None
    scratch_bytes: int

    def scratch(self, tally: Tally) -> Scratch:
        return Scratch(self.directory, self.scratch_bytes, tally.spilled.add)


@dataclass(frozen=True, slots=True)
class Shares:
    """Of a reader's memory, in bytes: for segments, for decoded splits that segments are made of, for scattered pieces."""

    segments: int
    splits: int = 0
    pieces: int = 0


def shares(memory_bytes: int, shuffle: Shuffle, dataset: Dataset) -> Shares:
    """At least a quarter is left for what is being decoded, with the pages that it is decoded from. Splits that are scattered are
    kept for the next epoch only if all fit: each is needed once an epoch, in one order, so of fewer the least recently used is
    never the right one to drop. Single rows are read straight to their place, and what that leaves is for the next bucket: with
    buckets of 100 MB nothing would be read ahead of a consumer otherwise (one that only hashes: 75 and 80 thousand pictures a
    second)."""
    quarter = memory_bytes // 4
    if shuffle in (Shuffle.NONE, Shuffle.SHARDS):
        return Shares(2 * quarter)
    if shuffle is Shuffle.WINDOW:
        return Shares(quarter, splits=quarter)
    if dataset.rows_source is not None:
        return Shares(2 * quarter)
    if dataset.total_bytes() <= quarter:
        return Shares(quarter, splits=quarter, pieces=quarter)
    return Shares(quarter, pieces=2 * quarter)


@dataclass(slots=True, eq=False)
class _Epoch:
    """A plan, and how many iterators use it (under the reader's lock)."""

    plan: EpochPlan
    users: int = 0


@dataclass(frozen=True, slots=True)
class _Common:
    """What all epochs of a full shuffle have in common: rows in the order of files, and how many positions a bucket has."""

    sequence: Sequence
    row_bytes: int
    bucket_rows: int
    index: RowIndex | None


class DatasetReader:
    """See `contract.Reader`."""

    def __init__(
        self,
        version: str,
        dataset: Dataset,
        order: OrderSpec,
        threads: Threads,
        room: Room,
        tally: Tally,
        held: contextlib.ExitStack,
        schedule: Schedule | None = None,
        lending: Lending | None = None,
    ) -> None:
        """`held`: what is to be let go at the end, `lending` among it."""
        self._schedule = schedule
        self._version = version
        self._dataset = dataset
        self._order = order
        self._threads = threads
        self._room = room
        self._tally = tally
        self._held = held
        self._counts = Counts(dataset, threads.map)
        self._shares = shares(room.memory_bytes, order.shuffle, dataset)
        self._segments: Shelf[Segment] = Shelf(self._shares.segments, lambda segment: segment.size_bytes)
        by_splits = order.shuffle in (Shuffle.NONE, Shuffle.SHARDS)
        self._fits = by_splits and dataset.about_total_bytes() <= self._shares.segments
        """Segments are the same in every epoch, and there is room for all."""
        self._splits = SplitShelf(dataset, self._shares.splits)
        self._common: _Common | None = None
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._working = 0
        self._closed = False
        self._schema = pa.schema(
            [
                field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in dataset.encoded else field
                for field in dataset.schema
            ]
        )

        viewed = tuple(field.name for field in self._schema if field.type == VIEWED)
        self._views = None if lending is None else Views(viewed, lending)

    @property
    def version(self) -> str:
        return self._version

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @property
    def views(self) -> Views | None:
        return self._views

    @property
    def is_at_hand(self) -> bool:
        common = self._common  # of no epoch yet: the first one puts it together
        return common is not None and common.index is not None and common.index.sufficed

    def row_count(self) -> int:
        with self._work():
            return int(self._counts.all().sum())

    def batch_count(self) -> int:
        return -(-self.row_count() // self._order.batch_size)

    def skipped(self) -> dict[str, str]:
        return dict(self._dataset.skipped)

    def counters(self) -> dict[str, int]:
        return {
            "splits_decoded": self._dataset.splits_decoded,
            "rows_decoded": self._dataset.rows_decoded,
            "bytes_decoded": self._dataset.bytes_decoded,
            "bytes_read": self._tally.read.total,
            "bytes_viewed": self._tally.viewed.total,
            "spilled_bytes": self._tally.spilled.total,
            "segments_built": self._segments.made,
            "segments_shared": self._segments.shared,
        }

    # ---- batches ----------------------------------------------------------------------------------------------------

    def batches(self, position: Position, stride: int = 1) -> Iterator[NumberedBatch]:
        self._check_open()
        if position.epoch < 0 or position.batches < 0 or stride < 1:
            raise ConfigurationError(f"{position}, stride {stride}: they begin at 0 and 1")
        return self._generate(position, stride)

    def _generate(self, position: Position, stride: int) -> Iterator[NumberedBatch]:
        with self._work():
            epoch = self._enter(position.epoch)
        cursor = _Cursor(epoch.plan, self._segments, self._threads)
        size = self._order.batch_size
        try:
            number = position.batches
            with self._work():
                self._announce(position.epoch, epoch, number * size)
            while True:
                self._check_open()
                pieces = cursor.rows_at_hand(number * size, (number + 1) * size)
                if pieces is None:
                    with self._work():
                        pieces = cursor.rows(number * size, (number + 1) * size)
                if pieces is None:
                    return
                is_followed = cursor.is_followed((number + stride) * size, (number + stride + 1) * size)
                yield self._batch(number, pieces, is_followed)
                number += stride
        finally:
            cursor.close()
            self._leave(position.epoch, epoch)

    def _batch(self, number: int, pieces: list[Slice], is_followed: bool) -> NumberedBatch:
        """One batch, with dictionaries of its own."""
        if not pieces:
            return NumberedBatch(number, frames.empty(self._schema), is_followed=is_followed)
        only = pieces[0] if len(pieces) == 1 else None
        if only is not None and not self._dataset.encoded:
            return NumberedBatch(number, only.whole, only.start, only.count, is_followed)
        rows = only.rows() if only is not None else pa.concat_batches([each.rows() for each in pieces])
        if self._dataset.encoded:
            columns = [
                column.dictionary_encode() if name in self._dataset.encoded else column
                for name, column in zip(rows.schema.names, rows.columns, strict=True)
            ]
            rows = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        return NumberedBatch(number, rows, is_followed=is_followed)

    # ---- epochs -----------------------------------------------------------------------------------------------------

    def _enter(self, number: int) -> _Epoch:
        """The plan of an epoch, shared by its iterators; a new one where the last one failed."""
        with self._lock:
            epoch = self._epochs.get(number)
            if epoch is not None and not epoch.plan.failed:
                epoch.users += 1
                self._keep_what_is_read_again()
                return epoch
        made = _Epoch(self._planned(number))
        with self._lock:
            epoch = self._epochs.get(number)
            if epoch is None or epoch.plan.failed:
                epoch = self._epochs[number] = made
            epoch.users += 1
            self._keep_what_is_read_again()
            return epoch

    def _keep_what_is_read_again(self) -> None:
        """Under the lock. What one iterator alone has read is of use to nobody, unless the next epoch finds all of it there; and
        what is decoded next goes into its memory, which is warm: in memory that was never touched a scan takes a quarter longer."""
        several = sum(epoch.users for epoch in self._epochs.values()) > 1
        self._segments.keep_idle(self._shares.segments if several or self._fits else 0)

    def _announce(self, number: int, epoch: _Epoch, row: int) -> None:
        """What will be read from that row on, and in the epoch after. The first iterator of an epoch speaks for the others."""
        if self._schedule is None or epoch.users > 1:
            return
        segment, _ = epoch.plan.find(row)
        here = epoch.plan.visits(segment)
        if here is not None:
            mixed = self._order.shuffle in (Shuffle.SHARDS, Shuffle.WINDOW)
            count = len(self._dataset.splits)
            following = split_order(count, self._order.seed, number + 1, shuffled=mixed)
            splits = np.concatenate([here, following])
            self._schedule.begin(self._dataset, lambda: map(int, splits))

    def _leave(self, number: int, epoch: _Epoch) -> None:
        with self._lock:
            epoch.users -= 1
            self._keep_what_is_read_again()
            if epoch.users:
                return
            if self._epochs.get(number) is epoch:
                del self._epochs[number]
        epoch.plan.close()

    def _planned(self, epoch: int) -> EpochPlan:
        shuffle, seed, count = self._order.shuffle, self._order.seed, len(self._dataset.splits)
        if shuffle is Shuffle.FULL:
            return self._planned_full(epoch)
        splits = split_order(count, seed, epoch, shuffled=shuffle is not Shuffle.NONE)
        if shuffle is Shuffle.WINDOW:
            sequence = Sequence(splits, self._counts.all())
            return WindowPlan(self._splits, sequence, (self._order.window_rows, seed, epoch))
        return SplitPlan(self._dataset, self._counts, splits)

    def _planned_full(self, epoch: int) -> EpochPlan:
        dataset, room = self._dataset, self._room
        common = self._common = self._common or self._of_all_epochs()
        sequence = common.sequence
        permutation = Permutation(sequence.size, epoch_key(self._order.seed, epoch, "rows"))
        buckets = Buckets(epoch, permutation, common.bucket_rows, common.row_bytes)
        if dataset.rows_source is not None:
            return GatherPlan(dataset, sequence, common.index, buckets, self._threads, room.memory_bytes // 4 * 3)
        pieces = Pieces(dataset.schema, self._shares.pieces, room.scratch(self._tally))
        return BucketPlan(self._splits, sequence, buckets, pieces)

    def _of_all_epochs(self) -> "_Common":
        """Two threads may both find it; it is the same."""
        dataset, memory_bytes = self._dataset, self._room.memory_bytes
        sequence = Sequence(split_order(len(dataset.splits), 0, 0, shuffled=False), self._counts.all())
        row_bytes = dataset.row_bytes()
        rows = bucket_rows(row_bytes, memory_bytes, self._order.batch_size)
        return _Common(sequence, row_bytes, rows, RowIndex.of(dataset, min(memory_bytes // 16, INDEX_BYTES_MAX)))

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("the reader is closed")

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        """A consumer's thread reads for itself: what it reads from stays open as long."""
        with self._lock:
            self._check_open()
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Waits for what is being decoded at the moment. Raises DeadlineError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._changed.wait_for(lambda: not self._working, WAIT_S):
                raise DeadlineError(f"a batch was still being read after {WAIT_S:.0f} s")
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Cursor:
    """An iterator's place in an epoch, and what it has on loan. For one thread at a time."""

    def __init__(self, plan: EpochPlan, shelf: Shelf[Segment], threads: Threads) -> None:
        self._plan = plan
        self._shelf = shelf
        self._threads = threads
        self._ahead = min(AHEAD_MAX, 2 * threads.count)
        self._loans: dict[int, Loan[Segment]] = {}
        self._begun = False
        self._is_short_of_room = False
        self._number = -1
        self._start = 0
        self._here: Segment | None = None
        """The segment that begins at `_start`."""

    def rows(self, start: int, end: int) -> list[Slice] | None:
        """Those of the positions [start, end), which only move forward; None beyond the last position."""
        if self._number < 0:
            self._number, self._start = self._plan.find(start)
        pieces: list[Slice] = []
        at = start
        while at < end:
            segment = self._forward(at)
            if segment is None:
                return None if at == start else pieces
            stop = min(end, self._start + segment.length)
            pieces += segment.slice(at - self._start, stop - self._start)
            at = stop
        return pieces

    def rows_at_hand(self, start: int, end: int) -> list[Slice] | None:
        """As `rows`, where nothing has to be read for it, and no lock taken; None elsewhere."""
        if self._here is None or self._is_short_of_room or not self.is_at_hand(start, end):
            return None
        return self._here.slice(start - self._start, end - self._start)

    def is_at_hand(self, start: int, end: int) -> bool:
        """Whether those positions are all in what the last ones were in."""
        return self._here is not None and self._start <= start and end <= self._start + self._here.length

    def is_followed(self, start: int, end: int) -> bool:
        """Whether those positions, which come next, are at hand, or as good as that: in a segment that is known, and of the same
        `KNOWN_TOGETHER`."""
        if self.is_at_hand(start, end):
            return True
        if not self._plan.is_known:
            return False
        number, first = self._plan.find(start)
        if number >= self._plan.segment_count or number // KNOWN_TOGETHER != self._number // KNOWN_TOGETHER:
            return False
        stop = first + (self._plan.length(number) or 0)
        return start < stop and (end <= stop or number == self._plan.segment_count - 1)

    def _forward(self, row: int) -> Segment | None:
        """The segment with that position."""
        while self._number < self._plan.segment_count:
            length = self._plan.length(self._number)
            if length is None or row < self._start + length:
                self._here = segment = self._segment()
                if row < self._start + segment.length:
                    return segment
                length = segment.length
            self._here = None
            self._release(self._number)
            self._number += 1
            self._start += length
        return None

    def _segment(self) -> Segment:
        if self._number not in self._loans:
            self._loans[self._number] = self._shelf.borrow(*self._order(self._number))
        if self._begun or self._plan.is_begun_by_all:
            self._read_ahead()
        segment = self._loans[self._number].value()
        if not self._begun:  # nothing competed with what was waited for
            self._begun = True
            self._read_ahead()
        return segment

    def _read_ahead(self) -> None:
        last = min(self._number + self._ahead, self._plan.segment_count - 1)
        self._is_short_of_room = False
        if self._plan.is_known:
            return
        for number in range(self._number + 1, last + 1):
            if number not in self._loans:
                loan = self._shelf.borrow_ahead(*self._order(number))
                if loan is None:
                    self._is_short_of_room = True
                    return
                self._loans[number] = loan
                self._threads.submit(loan.fill)

    def _order(self, number: int) -> tuple[Any, Callable[[], Segment], int]:
        return self._plan.key(number), partial(self._plan.make, number), self._plan.estimate(number)

    def _release(self, number: int) -> None:
        loan = self._loans.pop(number, None)
        if loan is not None:
            loan.release()

    def close(self) -> None:
        for number in list(self._loans):
            self._release(number)
