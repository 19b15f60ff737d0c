"""The wait for one's turn on the link to the store: `core.budget` with a clock, a lock, and others who use the same link."""

import threading
from collections.abc import Callable
from typing import Final

from tieredfs.core.budget import Budget, TokenBuckets, Traffic
from tieredfs.errors import DeadlineError
from tieredfs.host import Clock
from tieredfs.limits import FILL_WAIT_S, SESSION_HEARTBEAT_S

_LOOK_S: Final = 0.1


class Pacer:
    """One per process and link. Safe from any thread."""

    def __init__(self, budget: Budget, clock: Clock, sharers: Callable[[], int] = lambda: 1) -> None:
        """`sharers`: how many processes use the link now, this one among them; asked with every heartbeat, and the rate is
        divided by it. A process that died counts until its session has timed out."""
        self._clock = clock
        self._sharers = sharers
        self._burst_bytes = budget.burst_bytes
        self._buckets = TokenBuckets(budget, clock.monotonic_s())
        self._granted: set[int] = set()
        self._share_due_s = float("-inf")
        self._changed = threading.Condition()

    def take(self, traffic: Traffic, size_bytes: int, timeout_s: float = FILL_WAIT_S) -> None:
        """Returns when so many bytes may be moved. Raises DeadlineError.

        What is larger than a burst waits burst by burst, each at most `timeout_s`: so others have their turn in between."""
        for start in range(0, size_bytes, self._burst_bytes):
            self._take(traffic, min(self._burst_bytes, size_bytes - start), timeout_s)

    def _take(self, traffic: Traffic, size_bytes: int, timeout_s: float) -> None:
        self._divide()
        deadline_s = self._clock.monotonic_s() + timeout_s
        with self._changed:
            number = self._buckets.ask(traffic, size_bytes)
            try:
                while True:
                    self._grant()
                    if number in self._granted:
                        self._granted.remove(number)
                        return
                    if self._clock.monotonic_s() > deadline_s:
                        raise DeadlineError(
                            f"the bandwidth budget left no room for {size_bytes} bytes in {timeout_s:.0f} s"
                        )
                    self._changed.wait(min(self._buckets.wait_s() or 0.0, _LOOK_S))
            finally:
                self._buckets.withdraw(number)
                self._granted.discard(number)

    def charge(self, traffic: Traffic, size_bytes: int) -> None:
        """Bytes that were moved without waiting."""
        with self._changed:
            self._buckets.charge(traffic, size_bytes, self._clock.monotonic_s())

    def granted_bytes(self) -> dict[Traffic, int]:
        """So far, of each class."""
        with self._changed:
            return dict(self._buckets.granted_bytes)

    def _grant(self) -> None:
        granted = self._buckets.grants(self._clock.monotonic_s())
        if granted:
            self._granted.update(granted)
            self._changed.notify_all()

    def _divide(self) -> None:
        now_s = self._clock.monotonic_s()
        with self._changed:
            if now_s < self._share_due_s:
                return
            self._share_due_s = now_s + SESSION_HEARTBEAT_S
        part = 1 / max(1, self._sharers())
        with self._changed:
            self._buckets.share(part, now_s)
