"""Each batch is made once for all trainers of this host that read the same epoch.

A *lane* is one stride of an epoch (batches `first`, `first + stride`, ...) of one reader. One thread makes its batches and
keeps the last of them in a *window*; *followers*, one per trainer, take them from there. Batches that are at hand together are
made a *parcel* (`parcels`), encoded once for each form that somebody wants; the first batch of a lane is one alone.

Where a reader makes batches of what is in memory already (`contract.Reader.is_at_hand`) a lane has no thread: the follower that
comes to its end first makes the next parcel, and others wait for it. A thread would have to be started for each epoch, and then
hold the GIL for the second batch while the first one waits for it to be handed over (1.4 of the 4.6 ms until a trainer had it).

How far apart may followers be? A lane's thread works at most `AHEAD_*` beyond the fastest. When the window is full and the slowest
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
from functools import partial
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
GROWTH: Final = 2
GROWTH_AT_HAND: Final = 4
"""How many times as many batches the next parcel has, up to a whole one: more where nothing has to be read for them."""
Batches = Callable[[Position, int], Iterator[NumberedBatch]]


class LeftBehindError(Exception):
    """The lane has gone on without this follower: within this module only."""


class _Making:
    """The batches of a lane, some at a time. For one thread at a time; `close` it."""

    def __init__(self, begin: Callable[[], Iterator[NumberedBatch]], limit_bytes: int, growth: int) -> None:
        """`limit_bytes`: of what is given at a time. `growth`: how many times as many batches each time, up to a parcel."""
        self._begin = begin
        self._batches: Iterator[NumberedBatch] | None = None
        self._limit_bytes = limit_bytes
        self._growth = growth
        self._most = 1  # the first comes alone, at once
        self._scale = Scale()

    def some(self, put: Callable[[list[NumberedBatch], int], None]) -> bool:
        """Put the next batch, and those after it that need no waiting, up to a parcel, and their bytes. False when there are no
        more."""
        if self._batches is None:
            self._batches = self._begin()
        found: list[NumberedBatch] = []
        size_bytes = 0
        try:
            while (batch := next(self._batches, None)) is not None:
                found.append(batch)
                size_bytes += self._scale.bytes_of(batch)
                is_full = len(found) >= self._most or size_bytes + size_bytes // len(found) > self._limit_bytes
                if is_full or not batch.is_followed:
                    break
        finally:  # what was good before an error is given to those who follow
            if found:
                put(found, size_bytes)
        self._most = min(self._growth * self._most, PARCEL_BATCHES)
        return bool(found)

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


class Lane:
    """See the module. Lives while it has followers."""

    def __init__(
        self, batches: Batches, epoch: int, first: int, stride: int, window: "Window", *, is_at_hand: bool = False
    ) -> None:
        self.epoch, self.first, self.stride = epoch, first, stride
        self._making = _Making(
            partial(batches, Position(epoch, first), stride),
            window.encoders.parcel_bytes,
            GROWTH_AT_HAND if is_at_hand else GROWTH,
        )
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
        self._thread: threading.Thread | None = None
        """None: followers make what they need."""
        self._is_being_made = False
        """By a follower, at the moment."""
        if not is_at_hand:
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
            if self._thread is not None and not self._thread.is_alive() and not self._ended:
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

        deadline_s = time.monotonic() + timeout_s

        def is_turn() -> bool:
            return self._is_decided(follower) or (self._thread is None and not self._is_being_made)

        while True:
            with self._lock:
                if not self._came.wait_for(is_turn, deadline_s - time.monotonic()):
                    raise DeadlineError(f"batch {follower.next_index} was not there in {timeout_s:.0f} s")
                if self._is_decided(follower):
                    return self._taken(follower)
                self._is_being_made = True
            self._make_next()

    def _is_decided(self, follower: "Follower") -> bool:
        return (
            follower not in self._followers
            or follower.next_index < self._next
            or self._ended
            or self._failure is not None
        )

    def _taken(self, follower: "Follower") -> Item | None:
        """Under the lock."""
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

    # ---- making batches ------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """The thread's work."""
        try:
            with contextlib.closing(self._making):
                while self._may_go_on() and self._making.some(self._put):
                    pass
        except BaseException as error:  # noqa: BLE001 - followers raise it, in their threads
            self._failure = error
        with self._lock:
            self._ended = True
            self._came.notify_all()
        if self._closed:
            self._clear()

    def _make_next(self) -> None:
        """A follower's, which has said that it does."""
        more = False
        try:
            more = self._making.some(self._put)
        except BaseException as error:  # noqa: BLE001 - followers raise it, this one too
            self._failure = error
        with self._lock:
            self._ended = self._ended or not more
            is_closed = self._closed
            self._is_being_made = is_closed
            self._came.notify_all()
        if is_closed:
            self._end_making()

    def _end_making(self) -> None:
        """The lane is closed, and nobody makes anything any more but who calls this."""
        self._making.close()
        self._clear()
        with self._lock:
            self._is_being_made = False
            self._came.notify_all()

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
            is_being_made = self._is_being_made
        if self._thread is not None:
            is_being_made = self._thread.is_alive()
        if not is_being_made:  # else who makes it ends it
            self._end_making()

    def finish(self, timeout_s: float) -> None:
        """Wait for who makes batches; call after `close`."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._lock:
            self._came.wait_for(lambda: not self._is_being_made, timeout_s)


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

    def __init__(
        self,
        schema: pa.Schema,
        batches: Batches,
        encoders: Encoders,
        window_bytes: int,
        is_at_hand: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_at_hand`: what `batches` gives from now on is made of what is in memory."""
        self.head = frames.head(schema)
        self._is_at_hand = is_at_hand
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
            lane = Lane(
                self._batches,
                follower.epoch,
                follower.next_index,
                follower.stride,
                self._window,
                is_at_hand=self._is_at_hand(),
            )
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
