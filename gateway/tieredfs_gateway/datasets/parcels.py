"""What a window holds: *parcels*, each of a few batches that are encoded, handed over and let go together.

Why several: a message, a slab and a stream of Arrow's cost as much for one batch as for many. Batches that lie beside each other in
what was decoded are written as one, with one copy for each column; whoever gets them cuts them apart again, without copying.

A parcel is encoded once for each form that somebody wants. Its rows are let go when a form holds them: they may be slices of
something large. A further form is made from that one. Into shared memory it is encoded by the first trainer's own
thread when that one takes it, so that what nobody takes yet holds no slab. Safe from any thread.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from tieredfs.errors import DeadlineError, WaitInterruptedError
from tieredfs.limits import KIB, MIB
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.contract import NumberedBatch
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.slabs import Slab, SlabPool

PARCEL_BYTES: Final = 16 * MIB
"""About a row group. To hand a parcel over costs each trainer's thread some six waits for the GIL, for which those that decode
wait, too: at 4 MiB four trainers got a third fewer rows, and one got a sixth fewer."""
PARCELS_PER_MEMORY: Final = 64
"""Of little shared memory parcels are smaller, so that many trainers have two each."""
PARCEL_BATCHES: Final = 64
COPIED_BYTES: Final = MIB
"""Of batches that do not lie beside each other, and are made one for whoever gets them: 0.15 ms to copy 3,072 views of pictures,
and each piece more that a trainer gets takes it half a millisecond."""
BATCH_WAIT_S: Final = 120.0
"""For one batch to be made; a transform that takes longer has a limit of its own."""
SHARED: Final = "shared"
"""The form of a batch in a slab; the others are packings."""
_JOINED: Final = ", joined"
FRAME_BYTES: Final = 2 * MIB
"""Of batches that are one frame, where the trainer cuts them apart. Of 4,096 flights each: lz4 takes 0.31 s of CPU time for a
million rows, from Parquet to the trainer, where a frame for each batch takes 0.38 to 0.41."""
PLAIN_FRAME_BYTES: Final = MIB - 64 * KIB
"""The same, uncompressed. From 1 MiB on malloc gets new pages from the kernel for each (`memory.keep_freed_memory_low`): 5.2 M
rows/s with 2 MiB, 6.3 M with this."""
FRAME_BATCHES: Final = 8
"""A trainer takes a frame as a whole: of small batches it must not be what long steps need minutes for."""
SCRATCH_BYTES: Final = 4 * MIB
"""Of each thread that makes frames: to write there needs no memory that grows, and no new pages (3% of the CPU time of an epoch
over HTTP)."""

Form = str


@dataclass(frozen=True, slots=True)
class Packing:
    """How batches become frames: one each, or neighbours together."""

    codec: Codec
    joins: bool = False

    @property
    def form(self) -> Form:
        return f"{self.codec}{_JOINED}" if self.joins else self.codec.value

    def batches_in_frame(self, size_bytes: float) -> int:
        """At most, when each takes so many."""
        if not self.joins:
            return 1
        limit_bytes = PLAIN_FRAME_BYTES if self.codec is Codec.NONE else FRAME_BYTES
        return int(max(1, min(FRAME_BATCHES, limit_bytes // size_bytes)))

    @classmethod
    def of(cls, form: Form) -> "Packing":
        return cls(Codec(form.removesuffix(_JOINED)), joins=form.endswith(_JOINED))


@dataclass(slots=True)
class Counts:
    """What was done for all trainers together, in batches. Only rise; read without a lock."""

    made: int = 0
    rows: int = 0
    encoded: dict[str, int] = field(default_factory=dict)
    served: int = 0
    left_behind: int = 0
    lanes: int = 0


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffer = pa.py_buffer(bytearray(SCRATCH_BYTES))


class Encoders:
    """Threads, slabs and counts that all lanes share."""

    def __init__(self, slabs: SlabPool, threads: int | None = None) -> None:
        self.slabs = slabs
        self.parcel_bytes = min(PARCEL_BYTES, slabs.limit_bytes // PARCELS_PER_MEMORY)
        """Of batches that are made one parcel; one batch alone may be larger."""
        self.counts = Counts()
        self.pool = ThreadPoolExecutor(threads or max(2, os.cpu_count() or 2), "encode")
        self.scratch = _Scratch()
        self.kept_bytes = 0
        """In the windows of all lanes."""
        self._lock = threading.Lock()

    def keep(self, more_bytes: int) -> None:
        with self._lock:
            self.kept_bytes += more_bytes

    def count(self, form: Form, batches: int) -> None:
        with self._lock:
            self.counts.encoded[form] = self.counts.encoded.get(form, 0) + batches

    def note(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


class Scale:
    """How much memory batches take: a share of what they lie in, for that is asked of Arrow once, which looks at each column
    (34 us for 19). For one thread at a time."""

    def __init__(self) -> None:
        self._whole: pa.RecordBatch | None = None
        self._bytes = 0

    def bytes_of(self, batch: NumberedBatch) -> int:
        if batch.whole is not self._whole:
            self._whole, self._bytes = batch.whole, int(batch.whole.nbytes)
        return self._bytes * batch.row_count // max(1, int(batch.whole.num_rows))


_Frames = dict[int, tuple["Future[bytes]", int]]
"""By the place of its first batch: a frame, and how many batches it is."""


class Parcel:
    """Batches `first`, `first + stride` … of an epoch; at least one. They take about `size_bytes`."""

    def __init__(
        self, batches: Sequence[NumberedBatch], stride: int, size_bytes: int, head: bytes, encoders: Encoders
    ) -> None:
        self.first, self.stride = batches[0].index, stride
        self.row_counts: tuple[int, ...] = tuple(batch.row_count for batch in batches)
        self.size_bytes = max(1, size_bytes)
        self._batches: Sequence[NumberedBatch] | None = batches
        self._head = head
        self._encoders = encoders
        self._lock = threading.Lock()
        """A slab is filled under it: whoever wants that one waits for it anyway."""
        self._wanted: set[Form] = set()
        self._made: set[Form] = set()
        self._slab: Slab | None = None
        self._frames: dict[Packing, _Frames] = {}
        self._dropped = False

    @property
    def last(self) -> int:
        return self.first + (len(self.row_counts) - 1) * self.stride

    def want(self, forms: Iterable[Form]) -> None:
        """Frames are under way from now on. What goes into a slab is not, before somebody takes it."""
        with self._lock:
            self._wanted.update(forms)
            for form in self._wanted - {SHARED}:
                self._under_way(Packing.of(form))

    # ---- in shared memory -----------------------------------------------------------------------------------------------

    def slab(self, *, is_needed: bool = False) -> Slab | None:
        """All batches as one stream, on loan to the caller, who releases it. None: no shared memory is free, and `is_needed`
        does not say that a trainer waits for it. Raises TooLargeError, DeadlineError, what encoding raised;
        WaitInterruptedError when the parcel left its window too early: ask for its batches again (`Follower.again`)."""
        with self._lock:
            if self._slab is None:
                found = self._filled(is_needed)
                if found is None or self._dropped:  # a window that has dropped the parcel keeps nothing of it
                    return found
                self._slab = found
            self._slab.retain()
            return self._slab

    def _filled(self, is_needed: bool) -> Slab | None:
        rows = frames.joined(self._rows(), copies=self.size_bytes <= COPIED_BYTES)
        slab = self._encoders.slabs.take(frames.stream_bytes(rows), is_needed=is_needed)
        if slab is None:
            return None
        try:
            frames.write_stream(rows, slab.writable())
        except BaseException:
            slab.release()
            raise
        self._encoders.count(SHARED, len(self.row_counts))
        self._let_go(SHARED)
        return slab

    # ---- as frames ------------------------------------------------------------------------------------------------------

    def frame(self, packing: Packing, place: int) -> tuple[bytes, int]:
        """A frame that begins with that batch, and how many it is. Raises as `slab` does."""
        with self._lock:
            found = self._under_way(packing)
            if place not in found:  # somebody else's frame begins before it
                packing = Packing(packing.codec)
                found = self._under_way(packing)
        future, count = found[place]
        body = _result(future)
        if all(future.done() for future, _ in found.values()):
            with self._lock:
                self._let_go(packing.form)
        return body, count

    def _under_way(self, packing: Packing) -> _Frames:
        """Under the lock."""
        found = self._frames.get(packing)
        if found is None:
            found, place = {}, 0
            for run in frames.runs(self._rows(), packing.batches_in_frame(self.size_bytes / len(self.row_counts))):
                found[place] = self._encoders.pool.submit(self._framed, packing.codec, run), len(run.row_counts)
                place += len(run.row_counts)
            self._frames[packing] = found
        return found

    def _framed(self, codec: Codec, run: frames.Run) -> bytes:
        self._encoders.count(codec.value, len(run.row_counts))
        return frames.frame(run.rows, len(self._head), codec, run.row_counts, self._encoders.scratch.buffer)

    # ---- the rows -------------------------------------------------------------------------------------------------------

    def _rows(self) -> Sequence[NumberedBatch]:
        """Under the lock. Out of another form, where they were let go."""
        if self._batches is None:
            self._batches = [
                NumberedBatch(self.first + place * self.stride, rows) for place, rows in enumerate(self._kept())
            ]
        return self._batches

    def _kept(self) -> list[pa.RecordBatch]:
        if self._slab is not None:  # copied: it may be filled with something else before the rows are used
            return frames.cut(bytes(self._slab.writable()), self.row_counts)
        if not self._frames:
            raise WaitInterruptedError("this batch has left its window")
        found: list[pa.RecordBatch] = []
        for place, (future, count) in next(iter(self._frames.values())).items():
            rows, at = frames.read_frame(self._head, _result(future)), 0
            for row_count in self.row_counts[place : place + count]:
                found.append(rows.slice(at, row_count))
                at += row_count
        return found

    def _let_go(self, made: Form) -> None:
        """Under the lock."""
        self._made.add(made)
        if self._made >= self._wanted:
            self._batches = None

    def drop(self) -> None:
        """The window lets it go; who has it on loan keeps it."""
        with self._lock:
            self._dropped = True
            slab, self._slab = self._slab, None
        if slab is not None:
            slab.release()


def _result(future: "Future[bytes]") -> bytes:
    """Raises DeadlineError, and what the work raised."""
    try:
        return future.result(BATCH_WAIT_S)
    except FutureTimeoutError as error:
        raise DeadlineError(f"a batch was not encoded in {BATCH_WAIT_S:.0f} s") from error
    except CancelledError as error:
        raise WaitInterruptedError("this batch has left its window") from error


@dataclass(frozen=True, slots=True)
class Item:
    """One batch of a parcel."""

    parcel: Parcel
    place: int

    @property
    def index(self) -> int:
        return self.parcel.first + self.place * self.parcel.stride

    @property
    def row_count(self) -> int:
        return self.parcel.row_counts[self.place]

    def frame(self, packing: Packing) -> tuple[bytes, int]:
        """See `Parcel.frame`."""
        return self.parcel.frame(packing, self.place)
