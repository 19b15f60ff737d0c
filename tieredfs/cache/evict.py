"""The evictor: keeps the SSD below its watermarks."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from tieredfs.cache.drain import Drainer
from tieredfs.cache.tier import Tier
from tieredfs.core.file_life import DIRTY
from tieredfs.errors import TieredError

_log: Final = logging.getLogger("tieredfs.cache.evict")
_TICK_S: Final = 0.25


class Evictor:
    """One thread per tier."""

    def __init__(self, tier: Tier, drainer: Drainer, make_room: Callable[[int], int] | None = None) -> None:
        """`make_room` evicts so many bytes, and returns how many files those were: by the tier's policy if None."""
        self._tier = tier
        self._make_room = make_room or tier.evict_bytes
        self._drainer = drainer
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.evicted_files = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="evict", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Somebody waits for room."""
        self._drainer.hurry()
        self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            try:
                self.turn()
            except TieredError as error:
                _log.warning("eviction was left for the next time: %s", error)
            self._wake.wait(_TICK_S)
            self._wake.clear()

    def turn(self) -> None:
        """One look at the budget: evict, hurry the drain, let writers go on or wait."""
        room = self._tier.room
        excess = room.excess(self.clean_bytes())
        if excess:
            self.evicted_files += self._make_room(excess)
            if room.excess(self.clean_bytes()):  # there are no more copies that may go
                self._tier.segments.shrink()
        if room.settle(self.clean_bytes()) or room.excess(self.clean_bytes()):
            self._drainer.hurry()

    def clean_bytes(self) -> int:
        """Copies, idle and open, and fills under way."""
        return clean_bytes(self._tier)


def clean_bytes(tier: Tier) -> int:
    """Copies, idle and open, and fills under way."""
    active = sum(file.held_bytes for file in tier.active() if file.state not in DIRTY)
    return tier.resident_bytes() + active
