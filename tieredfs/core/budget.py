"""Whose bytes may go now: token buckets over one link to the store, with classes of traffic.

The link has `rate_bytes_s`, and lets bursts of `burst_bytes` through. A class that comes first (`Traffic`, ascending) goes first: a
request is granted while the link's bucket is not empty and nobody of a class before it waits. So that nobody starves, a class
may have a *floor*, a share of the rate that is its own: from its own bucket it is granted whoever else waits. Every grant takes
from the link's bucket too, and what goes from a floor may leave that in debt; floors are at most the whole rate together, so over
any time t no more than `burst + rate * t` goes, plus a last request of each class and its floor's burst.

A request larger than a bucket is granted when the bucket is full enough to be positive, and leaves a debt: so requests of any size
pass, and the rate holds on average. Within a class it is first come, first served.

Several users of one link each take a part of the rate: `share`. Pure: the clock is an argument.
"""

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tieredfs.errors import ConfigurationError


class Traffic(enum.IntEnum):
    """What bytes are moved for. Who comes first has the lower number."""

    CHECKPOINT = 0
    TRAINING = 1
    BACKFILL = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """`floors`: of the rate, for that class alone; what it does not use, others do."""

    rate_bytes_s: float
    burst_bytes: int
    floors: Mapping[Traffic, float] = field(default_factory=lambda: {Traffic.TRAINING: 0.2, Traffic.BACKFILL: 0.05})

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        if self.rate_bytes_s <= 0 or self.burst_bytes <= 0:
            raise ConfigurationError("a bandwidth budget has a rate and a burst, both above zero")
        if any(floor < 0 for floor in self.floors.values()) or sum(self.floors.values()) > 1:
            raise ConfigurationError(
                "the floors of a bandwidth budget are shares of it: none below 0, 1 at most together"
            )


class _Bucket:
    """Fills at `rate`, up to `size`; may be in debt."""

    def __init__(self, rate: float, size: float, now_s: float) -> None:
        self.rate = rate
        self.size = size
        self.level = size
        self._filled_s = now_s

    def fill(self, now_s: float) -> None:
        self.level = min(self.size, self.level + self.rate * max(0.0, now_s - self._filled_s))
        self._filled_s = max(now_s, self._filled_s)

    def wait_s(self) -> float:
        """Until it is positive."""
        if self.level > 0:
            return 0.0
        return float("inf") if self.rate <= 0 else -self.level / self.rate + 1e-9


class TokenBuckets:
    """Requests wait here for their turn. Not thread-safe: its owner holds a lock."""

    def __init__(self, budget: Budget, now_s: float) -> None:
        self._budget = budget
        self._link = _Bucket(budget.rate_bytes_s, budget.burst_bytes, now_s)
        self._floors = {
            traffic: _Bucket(budget.rate_bytes_s * floor, budget.burst_bytes * floor, now_s)
            for traffic, floor in budget.floors.items()
            if floor
        }
        self._waiting: dict[Traffic, deque[tuple[int, int]]] = {traffic: deque() for traffic in Traffic}
        self._number = 0
        self.granted_bytes = dict.fromkeys(Traffic, 0)

    def share(self, part: float, now_s: float) -> None:
        """From now on only this part of the rate is ours (0 < part <= 1)."""
        assert 0 < part <= 1
        self._fill(now_s)
        self._link.rate = self._budget.rate_bytes_s * part
        for traffic, bucket in self._floors.items():
            bucket.rate = self._link.rate * self._budget.floors[traffic]

    def ask(self, traffic: Traffic, size_bytes: int) -> int:
        """Join the queue of the class; the request's number. Granted by `grants`."""
        self._number += 1
        self._waiting[traffic].append((self._number, size_bytes))
        return self._number

    def withdraw(self, number: int) -> None:
        """Somebody waits no more. Nothing if it was granted."""
        for queue in self._waiting.values():
            for request in queue:
                if request[0] == number:
                    queue.remove(request)
                    return

    def charge(self, traffic: Traffic, size_bytes: int, now_s: float) -> None:
        """Bytes that went without asking: others wait the longer."""
        self._fill(now_s)
        self._take(traffic, size_bytes)

    def grants(self, now_s: float) -> list[int]:
        """The requests that may go now, in that order."""
        self._fill(now_s)
        found: list[int] = []
        for traffic, queue in self._waiting.items():
            first = not any(self._waiting[before] for before in Traffic if before < traffic)
            floor = self._floors.get(traffic)
            while queue and ((first and self._link.level > 0) or (floor is not None and floor.level > 0)):
                number, size_bytes = queue.popleft()
                self._take(traffic, size_bytes)
                found.append(number)
        return found

    def wait_s(self) -> float | None:
        """After `grants`: how long until it may grant something more; None: nobody waits."""
        waiting = [traffic for traffic, queue in self._waiting.items() if queue]
        if not waiting:
            return None
        return min(
            self._link.wait_s(),
            *(self._floors[traffic].wait_s() for traffic in waiting if traffic in self._floors),
            1e9,
        )

    def _take(self, traffic: Traffic, size_bytes: int) -> None:
        self._link.level -= size_bytes
        if traffic in self._floors:
            self._floors[traffic].level -= size_bytes
        self.granted_bytes[traffic] += size_bytes

    def _fill(self, now_s: float) -> None:
        self._link.fill(now_s)
        for bucket in self._floors.values():
            bucket.fill(now_s)
