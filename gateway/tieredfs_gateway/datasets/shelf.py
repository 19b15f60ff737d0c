"""A bounded shelf of decoded things: made once, by whoever needs them first, and shared while they are needed.

`borrow` puts a thing on the shelf, unmade, and returns a loan. Whoever first calls `fill` or `value` of a loan makes it: a thread
of the pool that reads ahead, or the consumer itself when it comes first; so nobody waits for a queue, and threads that wait are
waiting for one that works. Things on loan stay; others stay as long as there is room, the least recently used goes first.
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
        self.limit_bytes = limit_bytes
        self._size = size
        self._things: OrderedDict[Hashable, _Thing[V]] = OrderedDict()
        self._lock = threading.Lock()
        self._estimated = self._actual = 1
        self.made = 0
        self.shared = 0

    def borrow(self, key: Hashable, make: Callable[[], V], estimate: int) -> Loan[V]:
        """What a consumer needs now."""
        with self._lock:
            return self._lend(key, make, estimate)

    def borrow_ahead(self, key: Hashable, make: Callable[[], V], estimate: int) -> Loan[V] | None:
        """None: there is no room for it."""
        with self._lock:
            if key not in self._things:
                on_loan = sum(thing.size_bytes for thing in self._things.values() if thing.loans)
                if on_loan + self._corrected(estimate) > self.limit_bytes:
                    return None
            return self._lend(key, make, estimate)

    def _lend(self, key: Hashable, make: Callable[[], V], estimate: int) -> Loan[V]:
        thing = self._things.get(key)
        if thing is None:
            thing = self._things[key] = _Thing(key, make, self._corrected(estimate))
            thing.estimate = estimate
        else:
            self.shared += 1
        thing.loans += 1
        self._things.move_to_end(key)
        self._make_room()
        return Loan(self, thing)

    def _corrected(self, estimate: int) -> int:
        """Formats guess; what was made so far says by how much they err."""
        return estimate * max(1, -(-self._actual // max(1, self._estimated)))

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
            thing.size_bytes = self._size(value)
            self.made += 1
            if thing.estimate:
                self._estimated += thing.estimate
                self._actual += thing.size_bytes
            self._make_room()
        thing.future.set_result(value)

    def give_back(self, thing: _Thing[V]) -> None:
        with self._lock:
            thing.loans -= 1
            if not thing.loans and not thing.future.done() and thing.make is not None:
                self._forget(thing)
            self._make_room()

    def _make_room(self) -> None:
        total = sum(thing.size_bytes for thing in self._things.values())
        for thing in list(self._things.values()):
            if total <= self.limit_bytes:
                return
            if not thing.loans and thing.future.done():
                total -= thing.size_bytes
                self._forget(thing)

    def _forget(self, thing: _Thing[V]) -> None:
        if self._things.get(thing.key) is thing:
            del self._things[thing.key]

    def drop(self, wanted: Callable[[Hashable], bool]) -> None:
        """Forget what nobody has on loan and is not wanted any more."""
        with self._lock:
            for thing in list(self._things.values()):
                if not thing.loans and thing.future.done() and not wanted(thing.key):
                    self._forget(thing)
