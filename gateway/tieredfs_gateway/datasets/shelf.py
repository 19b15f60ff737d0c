"""A bounded shelf of decoded things: made once, by whoever needs them first, and shared while they are needed.

`borrow` puts a thing on the shelf, unmade, and returns a loan. Whoever first calls `fill` or `value` of a loan makes it: a thread
of the pool that reads ahead, or the consumer itself when it comes first; so nobody waits for a queue, and threads that wait are
waiting for one that works. Things on loan stay; others stay as long as there is room for idle things, the least recently used goes
first.
Reading ahead takes room or is refused; what a consumer needs now is never refused, so a thing larger than the shelf passes alone.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final, Generic, TypeVar

from tieredfs.errors import DeadlineError

V = TypeVar("V")

WAIT_S: Final = 600.0
"""For somebody else to make what is needed: a split is decoded in seconds, and a fill of it waits 120 s at most."""


class _Thing(Generic[V]):
    """`loans`, `size_bytes` under the shelf's lock."""

    def __init__(self, key: Hashable, make: Callable[[], V], size_bytes: int) -> None:
        self.key = key
        self.make: Callable[[], V] | None = make
        self.size_bytes = size_bytes
        self.estimate = size_bytes
        self.loans = 0
        self.future: Future[V] = Future()


class Loan(Generic[V]):
    """One user's claim. Release it once."""

    def __init__(self, shelf: "Shelf[V]", thing: _Thing[V]) -> None:
        self._shelf = shelf
        self._thing = thing
        self._released = False

    def fill(self) -> None:
        """Make it, if nobody has begun and somebody still wants it. Errors are for those who ask for the value."""
        self._shelf.make(self._thing)

    def value(self) -> V:
        """Made now if need be. Raises what making it raised; DeadlineError."""
        self.fill()
        try:
            return self._thing.future.result(WAIT_S)
        except FutureTimeoutError:
            raise DeadlineError(f"another thread did not decode what is needed within {WAIT_S:.0f} s") from None

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._shelf.give_back(self._thing)


class Shelf(Generic[V]):
    """Safe from any thread."""

    def __init__(self, limit_bytes: int, size: Callable[[V], int]) -> None:
        self._limit_bytes = self._idle_limit_bytes = limit_bytes
        self._size = size
        self._lock = threading.Lock()
        self._things: dict[Hashable, _Thing[V]] = {}
        self._idle: OrderedDict[Hashable, _Thing[V]] = OrderedDict()
        """Made, and not on loan; the least recently used first."""
        self._bytes = self._idle_bytes = 0
        self._estimated = self._actual = 1
        self.made = 0
        self.shared = 0

    def keep_idle(self, limit_bytes: int) -> None:
        """From now on at most so much of what is made and not on loan, even where there is room for more."""
        with self._lock:
            self._idle_limit_bytes = limit_bytes
            self._make_room()

    def borrow(self, key: Hashable, make: Callable[[], V], estimate: int) -> Loan[V]:
        """What a consumer needs now."""
        with self._lock:
            return self._lend(key, make, estimate)

    def borrow_ahead(self, key: Hashable, make: Callable[[], V], estimate: int) -> Loan[V] | None:
        """None: there is no room for it."""
        with self._lock:
            on_loan = self._bytes - self._idle_bytes
            if key not in self._things and on_loan + self._corrected(estimate) > self._limit_bytes:
                return None
            return self._lend(key, make, estimate)

    def _lend(self, key: Hashable, make: Callable[[], V], estimate: int) -> Loan[V]:
        thing = self._things.get(key)
        if thing is None:
            thing = self._things[key] = _Thing(key, make, self._corrected(estimate))
            thing.estimate = estimate
            self._bytes += thing.size_bytes
        else:
            self.shared += 1
            if self._idle.pop(key, None) is not None:
                self._idle_bytes -= thing.size_bytes
        thing.loans += 1
        self._make_room()
        return Loan(self, thing)

    def _corrected(self, estimate: int) -> int:
        """Formats guess; what was made so far says by how much they err."""
        return estimate * max(1, -(-self._actual // self._estimated))

    def make(self, thing: _Thing[V]) -> None:
        """See `Loan.fill`."""
        with self._lock:
            make, thing.make = thing.make, None
            if make is None or not thing.loans:
                return
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._forget(thing)
            thing.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        with self._lock:
            self.made += 1
            actual = self._size(value)
            if thing.estimate:
                self._estimated += thing.estimate
                self._actual += actual
            self._bytes += actual - thing.size_bytes
            thing.size_bytes = actual
            thing.future.set_result(value)
            self._settle(thing)
            self._make_room()

    def give_back(self, thing: _Thing[V]) -> None:
        with self._lock:
            thing.loans -= 1
            self._settle(thing)
            self._make_room()

    def _settle(self, thing: _Thing[V]) -> None:
        """What nobody has on loan is idle, or was not begun and never will be."""
        if thing.loans or self._things.get(thing.key) is not thing:
            return
        if thing.future.done():
            self._idle[thing.key] = thing
            self._idle_bytes += thing.size_bytes
        elif thing.make is not None:
            self._forget(thing)

    def _make_room(self) -> None:
        while self._idle and (self._bytes > self._limit_bytes or self._idle_bytes > self._idle_limit_bytes):
            _, thing = self._idle.popitem(last=False)
            self._idle_bytes -= thing.size_bytes
            self._forget(thing)

    def _forget(self, thing: _Thing[V]) -> None:
        if self._things.get(thing.key) is thing:
            del self._things[thing.key]
            self._bytes -= thing.size_bytes

    def on_loan(self) -> int:
        """How many loans are out."""
        with self._lock:
            return sum(thing.loans for thing in self._things.values())
