"""Each batch is made once for all trainers of this host that read the same epoch.

A *lane* is one stride of an epoch (batches `first`, `first + stride`, ...) of one reader. One thread makes its batches and
keeps the last of them in a *window*; *followers*, one per trainer, take them from there. Batches that are at hand together are
made a *parcel* (`parcels`), encoded once for each form that somebody wants; the first batch of a lane is one alone.

How far apart may followers be? The lane works at most `AHEAD_*` beyond the fastest. When the window is full and the slowest
follower still needs the oldest batch, it is given `GRACE_S` to take it. Then it is *left behind*: it moves to a lane of its
own, so it has slowed the others by that much, once. Whoever comes while the beginning is still in the window (in a small
epoch: always) joins; whoever comes later starts a lane. Lanes of one reader share fetch and decode below, in the reader.

Locks: each lane has one; nothing slow happens under it. `Share` has one for its list of lanes.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from tieredfs.errors import DeadlineError, WaitInterruptedError
from tieredfs.limits import MIB
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.contract import NumberedBatch, Position
from tieredfs_gateway.datasets.parcels import (
    BATCH_WAIT_S,
    PARCEL_BATCHES,
    Encoders,
    Form,
    Item,
    Parcel,
    Scale,
)

AHEAD_BATCHES: Final = 16
AHEAD_BYTES: Final = 32 * MIB
WINDOW_BATCHES: Final = 512
WINDOWS_MAX: Final = 4
"""So many windows may be full; with more in use they shrink to what is ahead of their followers."""
GRACE_S: Final = 0.25
Batches = Callable[[Position, int], Iterator[NumberedBatch]]


class LeftBehindError(Exception):
    """The lane has gone on without this follower: within this module only."""


class Lane:
    """See the module. Lives while it has followers."""

    def __init__(self, batches: Batches, epoch: int, first: int, stride: int, window: "Window") -> None:
        self.epoch, self.first, self.stride = epoch, first, stride
        self._batches = batches
        self._window = window
        self._parcels: deque[Parcel] = deque()
        self._bytes = 0
        self._next = first
        self._ended = False
        self._failure: BaseException | None = None
        self._followers: set[Follower] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        """There is more to take, or never will be: followers wait for it."""
        self._moved = threading.Condition(self._lock)
        """A follower has taken, came or left: the lane waits for it, and nobody else. With one condition for both, each of four
        trainers that took a batch woke the other three for nothing."""
        self._thread = threading.Thread(target=self._make, name=f"lane-{epoch}-{first}-{stride}", daemon=True)

    # ---- followers --------------------------------------------------------------------------------------------------

    def join(self, follower: "Follower") -> bool:
        """Whether this lane will still serve what the follower wants next."""
        with self._lock:
            oldest = self._parcels[0].first if self._parcels else self._next
            reachable = oldest <= follower.next_index <= self._next + self.stride
            if self._closed or self._failure or not reachable or (follower.next_index - self.first) % self.stride:
                return False
            self._followers.add(follower)
            self._moved.notify()
            if not self._thread.is_alive() and not self._ended:
                self._thread.start()
            return True

    def leave(self, follower: "Follower") -> None:
        with self._lock:
            self._followers.discard(follower)
            self._moved.notify()
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

        with self._lock:
            if not self._came.wait_for(is_decided, timeout_s):
                raise DeadlineError(f"batch {follower.next_index} was not there in {timeout_s:.0f} s")
            if follower not in self._followers:
                raise LeftBehindError
            if follower.next_index < self._next:
                item = self._item(follower.next_index)
                follower.next_index += self.stride
                follower.moved_s = time.monotonic()
                self._moved.notify()
                return item
            if self._failure is not None:
                raise self._failure
            return None

    def advance(self, follower: "Follower", next_index: int) -> None:
        """It has more than it took one by one."""
        with self._lock:
            follower.next_index = next_index
            self._moved.notify()

    def _item(self, index: int) -> Item:
        parcel = next(one for one in reversed(self._parcels) if one.first <= index)
        return Item(parcel, (index - parcel.first) // self.stride)

    # ---- the thread that makes batches ---------------------------------------------------------------------------------

    def _make(self) -> None:
        try:
            batches = self._batches(Position(self.epoch, self.first), self.stride)
            with contextlib.closing(batches):  # type: ignore[type-var]
                most, scale = 1, Scale()  # the first comes alone, at once
                while self._may_go_on() and self._make_some(batches, most, scale):
                    most = min(2 * most, PARCEL_BATCHES)
        except BaseException as error:  # noqa: BLE001 - followers raise it, in their threads
            self._failure = error
        with self._lock:
            self._ended = True
            self._came.notify_all()
        if self._closed:
            self._clear()

    def _make_some(self, batches: Iterator[NumberedBatch], most: int, scale: Scale) -> bool:
        """The next batch, and those after it that need no waiting, up to a parcel. False when there are no more."""
        found: list[NumberedBatch] = []
        size_bytes, limit_bytes = 0, self._window.encoders.parcel_bytes
        try:
            while (batch := next(batches, None)) is not None:
                found.append(batch)
                size_bytes += scale.bytes_of(batch)
                is_full = len(found) >= most or size_bytes + size_bytes // len(found) > limit_bytes
                if is_full or not batch.is_followed:
                    break
        finally:  # what was good before an error is given to those who follow
            if found:
                self._put(found, size_bytes)
        return bool(found)

    def _may_go_on(self) -> bool:
        """Wait until somebody needs more. False when nobody follows any more."""
        with self._lock:
            self._moved.wait_for(lambda: self._closed or not self._is_far_ahead())
            return not self._closed

    def _is_far_ahead(self) -> bool:
        fastest = max((follower.next_index for follower in self._followers), default=self._next)
        ahead = max(0, (self._next - fastest) // self.stride)
        if ahead < 2:
            return False
        ahead_bytes = sum(parcel.size_bytes for parcel in self._parcels if parcel.last >= fastest)
        return ahead >= AHEAD_BATCHES or ahead_bytes >= AHEAD_BYTES

    def _put(self, batches: list[NumberedBatch], size_bytes: int) -> None:
        encoders = self._window.encoders
        encoders.note(made=len(batches), rows=sum(batch.row_count for batch in batches))
        parcel = Parcel(batches, self.stride, size_bytes, self._window.head, encoders)
        with self._lock:
            dropped = self._make_room(parcel.size_bytes)
            forms = {form for follower in self._followers for form in follower.forms}
        for old in dropped:
            old.drop()
        parcel.want(forms)
        with self._lock:
            self._parcels.append(parcel)
            self._bytes += parcel.size_bytes
            encoders.keep(parcel.size_bytes)
            self._next = parcel.last + self.stride
            self._came.notify_all()

    def _make_room(self, size_bytes: int) -> list[Parcel]:
        """Under the lock: what leaves the window. Waits for the slowest follower, boundedly; leaves it behind then."""
        dropped: list[Parcel] = []
        limit = self._window.limit_now()
        while self._parcels and (self._bytes + size_bytes > limit or self._kept_batches() >= WINDOW_BATCHES):
            oldest = self._parcels[0].last
            slow = [follower for follower in self._followers if follower.next_index <= oldest]
            wait_s = max((follower.moved_s for follower in slow), default=0.0) + GRACE_S - time.monotonic()
            if slow and wait_s > 0:
                self._moved.wait(wait_s)
                continue
            self._followers.difference_update(slow)
            self._window.encoders.note(left_behind=len(slow))
            self._came.notify_all()
            dropped.append(self._pop())
        return dropped

    def _kept_batches(self) -> int:
        return (self._next - self._parcels[0].first) // self.stride

    def _pop(self) -> Parcel:
        parcel = self._parcels.popleft()
        self._bytes -= parcel.size_bytes
        self._window.encoders.keep(-parcel.size_bytes)
        return parcel

    def trim(self) -> None:
        """Let go of what no follower needs any more."""
        dropped = []
        with self._lock:
            needed = min((follower.next_index for follower in self._followers), default=self._next)
            while self._parcels and self._parcels[0].last < needed:
                dropped.append(self._pop())
        for parcel in dropped:
            parcel.drop()

    def _clear(self) -> None:
        with self._lock:
            parcels = [self._pop() for _ in range(len(self._parcels))]
        for parcel in parcels:
            parcel.drop()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._followers.clear()
            self._came.notify_all()
            self._moved.notify()
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

    def served(self, count: int = 1) -> None:
        self._encoders.note(served=count)


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

    def rest(self, item: Item, count: int | None = None) -> int:
        """Take the batches behind it in its parcel, too; how many batches that are, with it (None: all)."""
        if count is None:
            count = len(item.parcel.row_counts) - item.place
        if count > 1:
            lane = self._lane
            assert lane is not None, "the item came from there"
            lane.advance(self, item.index + count * self.stride)
            self._share.served(count - 1)
        return count

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
