"""Time as an argument. Wall time is for records; monotonic time is for waiting and for measuring."""

import time
from typing import Protocol


class Clock(Protocol):
    """Safe from any thread. `monotonic_s` never goes back; `wall_ns` may."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for times at rest."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start, for deadlines."""
        ...

    def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The kernel's clocks."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)
