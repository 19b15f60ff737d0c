"""Each batch is made once for all trainers of this host that read the same epoch.

A *lane* is one stride of an epoch (batches `first`, `first + stride`, ...) of one reader. One thread makes its batches and
keeps the last of them in a *window*; *followers*, one per trainer, take them from there. A batch is encoded once for each
form that somebody wants: into shared memory by the lane itself, as a compressed frame in the pool of encoders.

How far apart may followers be? The lane works at most `AHEAD_*` beyond the fastest. When the window is full and the slowest
follower still needs the oldest batch, it is given `GRACE_S` to take it. Then it is *left behind*: it moves to a lane of its
own, so it has slowed the others by that much, once. Whoever comes while the beginning is still in the window (in a small
epoch: always) joins; whoever comes later starts a lane. Lanes of one reader share fetch and decode below, in the reader.

Locks: each lane has one; nothing slow happens under it. `Share` has one for its list of lanes.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from tieredfs.errors import DeadlineError, WaitInterruptedError
from tieredfs.limits import MIB
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.contract import NumberedBatch, Position
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.slabs import Slab, SlabPool

AHEAD_BATCHES: Final = 16
AHEAD_BYTES: Final = 32 * MIB
WINDOW_BATCHES: Final = 512
WINDOWS_MAX: Final = 4
"""So many windows may be full; with more in use they shrink to what is ahead of their followers."""
GRACE_S: Final = 0.25
BATCH_WAIT_S: Final = 120.0
"""For one batch to be made; a transform that takes longer has a limit of its own."""
SHARED: Final = "shared"
"""The form of a batch in a slab; the others are codecs."""

Form = str
Batches = Callable[[Position, int], Iterator[NumberedBatch]]


@dataclass(slots=True)
class Counts:
    """What was done for all trainers together. Only rise; read without a lock."""

    made: int = 0
    rows: int = 0
    encoded: dict[str, int] = field(default_factory=dict)
    served: int = 0
    left_behind: int = 0
    lanes: int = 0


class Encoders:
    """Threads, slabs and counts that all lanes share."""

    def __init__(self, slabs: SlabPool, threads: int | None = None) -> None:
        self.slabs = slabs
        self.counts = Counts()
        self.pool = ThreadPoolExecutor(threads or max(2, os.cpu_count() or 2), "encode")
        self.kept_bytes = 0
        """In the windows of all lanes."""
        self._lock = threading.Lock()

    def keep(self, more_bytes: int) -> None:
        with self._lock:
            self.kept_bytes += more_bytes

    def count(self, form: Form) -> None:
        with self._lock:
            self.counts.encoded[form] = self.counts.encoded.get(form, 0) + 1

    def note(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


class Item:
    """A batch in a window, in the forms that were asked for.

    Its rows are let go when a form holds them: they may be a slice of something large. A further form is made from that one.
    """

    def __init__(self, batch: NumberedBatch, head: bytes, encoders: Encoders) -> None:
        self.index = batch.index
        self.row_count = batch.rows.num_rows
        self.size_bytes = max(1, batch.rows.nbytes)
        self._rows: pa.RecordBatch | None = batch.rows
        self._head = head
        self._encoders = encoders
        self._forms: dict[Form, Future[Any]] = {}
        self._lock = threading.Lock()
        self._dropped = False

    def want(self, form: Form) -> "Future[Any]":
        """Its encoding is under way, now or since long. A `Slab` or bytes. Raises WaitInterruptedError: see `slab`."""
        with self._lock:
            if self._dropped and (form == SHARED or self._rows is None) and form not in self._forms:
                raise WaitInterruptedError("this batch has left its window")
            future = self._forms.get(form)
            if future is not None:
                return future
            if form != SHARED:
                future = self._forms[form] = self._encoders.pool.submit(self._encode, form)
                return future
            future = self._forms[form] = Future()
        try:  # a copy costs less than asking another thread for one
            future.set_result(self._encode(form))
        except BaseException as error:  # noqa: BLE001 - whoever wants the batch raises it
            future.set_exception(error)
        return future

    def _encode(self, form: Form) -> Slab | memoryview:
        self._encoders.count(form)
        encoded: Slab | memoryview
        with self._lent_rows() as rows:
            if form == SHARED:
                encoded = self._into_slab(rows)
            else:
                encoded = frames.frame(rows, len(self._head), Codec(form))
        self._rows = None
        return encoded

    def _into_slab(self, rows: pa.RecordBatch) -> Slab:
        slab = self._encoders.slabs.take(frames.stream_bytes(rows))
        try:
            frames.write_stream(rows, slab.writable())
        except BaseException:
            slab.release()
            raise
        return slab

    @contextlib.contextmanager
    def _lent_rows(self) -> Iterator[pa.RecordBatch]:
        rows = self._rows
        if rows is not None:
            yield rows
            return
        with self._lock:
            made = [future for future in self._forms.values() if future.done() and future.exception() is None]
            bodies = [future.result() for future in made]
            slab = next((body for body in bodies if isinstance(body, Slab)), None)
            if slab is not None and self._dropped:
                raise WaitInterruptedError("this batch has left its window")
            if slab is not None:
                slab.retain()
        try:
            yield frames.read_frame(self._head, bodies[0]) if slab is None else frames.read_stream(slab.writable())
        finally:
            if slab is not None:
                slab.release()

    def slab(self) -> Slab:
        """On loan to the caller, who releases it. Raises what encoding raised, DeadlineError; WaitInterruptedError when the
        batch left its window too early: ask for it again (`Follower.again`)."""
        wait_for(self.want(SHARED))
        with self._lock:
            if self._dropped:
                raise WaitInterruptedError("this batch has left its window")
            slab: Slab = self._forms[SHARED].result()
            slab.retain()
            return slab

    def frame(self, codec: Codec) -> memoryview:
        """Raises as `slab` does."""
        future = self.want(codec.value)
        wait_for(future)
        body: memoryview = future.result()
        return body

    def drop(self) -> None:
        """The window lets it go; who has it on loan keeps it."""
        with self._lock:
            self._dropped = True
            future = self._forms.get(SHARED)
        if future is not None:
            future.add_done_callback(_release)


def _release(future: "Future[Slab]") -> None:
    if future.exception() is None:
        future.result().release()


def wait_for(future: "Future[Any]") -> None:
    """Raises DeadlineError, and what the work raised."""
    try:
        future.result(BATCH_WAIT_S)
    except TimeoutError as error:
        raise DeadlineError(f"a batch was not encoded in {BATCH_WAIT_S:.0f} s") from error
    except CancelledError as error:
        raise WaitInterruptedError("this batch has left its window") from error


class LeftBehindError(Exception):
    """The lane has gone on without this follower: within this module only."""


class Lane:
    """See the module. Lives while it has followers."""

    def __init__(self, batches: Batches, epoch: int, first: int, stride: int, window: "Window") -> None:
        self.epoch, self.first, self.stride = epoch, first, stride
        self._batches = batches
        self._window = window
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._next = first
        self._ended = False
        self._failure: BaseException | None = None
        self._followers: set[Follower] = set()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._make, name=f"lane-{epoch}-{first}-{stride}", daemon=True)

    # ---- followers --------------------------------------------------------------------------------------------------

    def join(self, follower: "Follower") -> bool:
        """Whether this lane will still serve what the follower wants next."""
        with self._changed:
            oldest = self._items[0].index if self._items else self._next
            reachable = oldest <= follower.next_index <= self._next + self.stride
            if self._closed or self._failure or not reachable or (follower.next_index - self.first) % self.stride:
                return False
            self._followers.add(follower)
            self._changed.notify_all()
            if not self._thread.is_alive() and not self._ended:
                self._thread.start()
            return True

    def leave(self, follower: "Follower") -> None:
        with self._changed:
            self._followers.discard(follower)
            self._changed.notify_all()
            if self._followers or self._closed:
                return
            self._closed = True
        self._window.forget(self)

    def take(self, follower: "Follower", timeout_s: float = BATCH_WAIT_S) -> Item | None:
        """The follower's next item; None at the end. Raises LeftBehindError, DeadlineError, what making it raised."""

        def is_decided() -> bool:
            return (
                follower not in self._followers
                or follower.next_index < self._next
                or self._ended
                or self._failure is not None
            )

        with self._changed:
            if not self._changed.wait_for(is_decided, timeout_s):
                raise DeadlineError(f"batch {follower.next_index} was not there in {timeout_s:.0f} s")
            if follower not in self._followers:
                raise LeftBehindError
            if follower.next_index < self._next:
                item = self._items[(follower.next_index - self._items[0].index) // self.stride]
                follower.next_index += self.stride
                follower.moved_s = time.monotonic()
                self._changed.notify_all()
                return item
            if self._failure is not None:
                raise self._failure
            return None

    # ---- the thread that makes batches ---------------------------------------------------------------------------------

    def _make(self) -> None:
        try:
            batches = self._batches(Position(self.epoch, self.first), self.stride)
            with contextlib.closing(batches):  # type: ignore[type-var]
                while self._may_go_on():
                    batch = next(batches, None)
                    if batch is None:
                        break
                    self._put(batch)
        except BaseException as error:  # noqa: BLE001 - followers raise it, in their threads
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._closed:
            self._clear()

    def _may_go_on(self) -> bool:
        """Wait until somebody needs more. False when nobody follows any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._is_far_ahead())
            return not self._closed

    def _is_far_ahead(self) -> bool:
        fastest = max((follower.next_index for follower in self._followers), default=self._next)
        ahead = max(0, (self._next - fastest) // self.stride)
        if ahead < 2:
            return False
        ahead_bytes = sum(item.size_bytes for item in self._items if item.index >= fastest)
        return ahead >= AHEAD_BATCHES or ahead_bytes >= AHEAD_BYTES

    def _put(self, batch: NumberedBatch) -> None:
        encoders = self._window.encoders
        encoders.note(made=1, rows=batch.rows.num_rows)
        item = Item(batch, self._window.head, encoders)
        with self._changed:
            dropped = self._make_room(item.size_bytes)
            forms = {form for follower in self._followers for form in follower.forms}
        for old in dropped:
            old.drop()
        for form in forms:
            item.want(form)
        with self._changed:
            self._items.append(item)
            self._bytes += item.size_bytes
            encoders.keep(item.size_bytes)
            self._next = batch.index + self.stride
            self._changed.notify_all()

    def _make_room(self, size_bytes: int) -> list[Item]:
        """Under the lock: what leaves the window. Waits for the slowest follower, boundedly; leaves it behind then."""
        dropped: list[Item] = []
        limit = self._window.limit_now()
        while self._items and (self._bytes + size_bytes > limit or len(self._items) >= WINDOW_BATCHES):
            oldest = self._items[0].index
            slow = [follower for follower in self._followers if follower.next_index <= oldest]
            wait_s = max((follower.moved_s for follower in slow), default=0.0) + GRACE_S - time.monotonic()
            if slow and wait_s > 0:
                self._changed.wait(wait_s)
                continue
            self._followers.difference_update(slow)
            self._window.encoders.note(left_behind=len(slow))
            self._changed.notify_all()
            dropped.append(self._pop())
        return dropped

    def _pop(self) -> Item:
        item = self._items.popleft()
        self._bytes -= item.size_bytes
        self._window.encoders.keep(-item.size_bytes)
        return item

    def trim(self) -> None:
        """Let go of what no follower needs any more."""
        dropped = []
        with self._changed:
            needed = min((follower.next_index for follower in self._followers), default=self._next)
            while self._items and self._items[0].index < needed:
                dropped.append(self._pop())
        for item in dropped:
            item.drop()

    def _clear(self) -> None:
        with self._changed:
            items = [self._pop() for _ in range(len(self._items))]
        for item in items:
            item.drop()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._followers.clear()
            self._changed.notify_all()
        if not self._thread.is_alive():
            self._clear()

    def finish(self, timeout_s: float) -> None:
        """Wait for the thread; call after `close`."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)


class Window:
    """What the lanes of one share have in common."""

    def __init__(self, encoders: Encoders, head: bytes, limit_bytes: int, forget: Callable[[Lane], None]) -> None:
        self.encoders = encoders
        self.head = head
        self._limit_bytes = limit_bytes
        self.forget = forget

    def limit_now(self) -> int:
        """A lane's share; with many lanes, only what reading ahead needs."""
        is_crowded = self.encoders.kept_bytes > WINDOWS_MAX * self._limit_bytes
        return min(AHEAD_BYTES, self._limit_bytes) if is_crowded else self._limit_bytes


class Share:
    """All lanes over one reader. Safe from any thread."""

    def __init__(self, schema: pa.Schema, batches: Batches, encoders: Encoders, window_bytes: int):
        self.head = frames.head(schema)
        self._batches = batches
        self._encoders = encoders
        self._window = Window(encoders, self.head, window_bytes, self._forget)
        self._lanes: list[Lane] = []
        self._closed = False
        self._lock = threading.Lock()

    def follow(self, position: Position, stride: int, form: Form) -> "Follower":
        return Follower(self, position, stride, form)

    def lane_for(self, follower: "Follower") -> Lane:
        with self._lock:
            if self._closed:
                raise WaitInterruptedError("the session is closed")
            for lane in self._lanes:
                if (lane.epoch, lane.stride) == (follower.epoch, follower.stride) and lane.join(follower):
                    return lane
            lane = Lane(self._batches, follower.epoch, follower.next_index, follower.stride, self._window)
            self._encoders.note(lanes=1)
            self._lanes.append(lane)
            joined = lane.join(follower)
            assert joined, "a new lane begins where its first follower is"
            return lane

    def _forget(self, lane: Lane) -> None:
        with self._lock:
            if lane in self._lanes:
                self._lanes.remove(lane)
        lane.close()

    def trim(self) -> None:
        with self._lock:
            lanes = list(self._lanes)
        for lane in lanes:
            lane.trim()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.close()
        for lane in lanes:
            lane.finish(BATCH_WAIT_S)

    def served(self) -> None:
        self._encoders.note(served=1)


class Follower:
    """One trainer's way through an epoch. For one thread at a time; a context manager."""

    def __init__(self, share: Share, position: Position, stride: int, form: Form) -> None:
        self.epoch = position.epoch
        self.next_index = position.batches
        self.stride = stride
        self.forms: tuple[Form, ...] = (form,)
        self.moved_s = time.monotonic()
        self._share = share
        self._lane: Lane | None = None

    def next(self) -> Item | None:
        """None at the end of the epoch. Raises what the reader raised, DeadlineError."""
        while True:
            if self._lane is None:
                self.moved_s = time.monotonic()
                self._lane = self._share.lane_for(self)
            try:
                item = self._lane.take(self)
            except LeftBehindError:
                self._leave()
                continue
            if item is not None:
                self._share.served()
            return item

    def again(self, item: Item) -> None:
        """The item left its window before it was used: the next call of `next` gives that batch again."""
        self._leave()
        self.next_index = item.index

    def _leave(self) -> None:
        if self._lane is not None:
            self._lane.leave(self)
            self._lane = None

    def close(self) -> None:
        self._leave()

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
