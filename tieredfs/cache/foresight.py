"""Foresight: whoever knows what it will read next says so, and the SSD keeps, fetches and evicts by that.

`core.foresight` decides; here it is carried out. A file that an expectation names is evicted by that rule, not by the ordinary
policy, and a thread fetches ahead what is worth keeping; what is not is read through (`admit` says so to whoever opens it).
Files that nobody expects, pins, files that are open and data that is not stored yet keep their rights: expected files may use
room that is free, and beyond that half of the SSD; when the watermark is passed, what they have beyond their half goes first.

Expectations are hints. A wrong one costs reads, never correctness: contents and versions are checked where files are opened.

Locks: this one's, then the tier's. Decisions are made under the lock, files are evicted and fetched after.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from tieredfs.cache.evict import clean_bytes
from tieredfs.cache.tier import Tier
from tieredfs.core.budget import Traffic
from tieredfs.core.file_life import FileState
from tieredfs.core.foresight import ComingUses, Decision, Use
from tieredfs.errors import TieredError
from tieredfs.limits import CACHE_HIGH_WATERMARK, KIB
from tieredfs.model import InodeId

EXPECTED_SHARE: Final = 0.5
"""Of the SSD: what expected files may take from others, and what they keep when others need room."""
AHEAD_VISITS: Final = 64
"""How far ahead of a reader files are fetched."""
_FILE_BLOCK_BYTES: Final = 4 * KIB
_TICK_S: Final = 0.5

_log: Final = logging.getLogger("tieredfs.cache.foresight")


class Expectation:
    """What one reader will read next. Close it when it reads no more. Safe from any thread."""

    def __init__(self, owner: "Foresight", source: int) -> None:
        self._owner = owner
        self._source = source

    def replace(self, uses: Iterable[Use]) -> None:
        """The visits to come from now on, in order; see `core.foresight.USES_MAX`."""
        self._owner.replace(self._source, uses)

    def used(self, inode: InodeId) -> None:
        """The next visit to that file has begun."""
        self._owner.used(self._source, inode)

    def left(self) -> int:
        """About how many visits are still to come."""
        return self._owner.left(self._source)

    def close(self) -> None:
        """Repeating it is harmless."""
        self._owner.cancel(self._source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Foresight:
    """One per tier. Its thread starts with the first expectation."""

    def __init__(self, tier: Tier, pace: Callable[[Traffic, int], None] = lambda _traffic, _size: None) -> None:
        """`pace` waits until so many bytes may be fetched."""
        self._tier = tier
        self._pace = pace
        self._coming = ComingUses()
        self._sources = itertools.count(1)
        self._promised: dict[InodeId, int] = {}
        """Files that are about to be fetched, and their sizes."""
        self._refused: set[InodeId] = set()
        """Files that could not be fetched ahead."""
        self._lock = threading.Condition()
        self._news = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self.fetched_ahead = self.read_through = 0
        """Files, and openings."""

    def expect(self, uses: Iterable[Use] = ()) -> Expectation:
        """A new reader announces itself."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="foresight", daemon=True)
                self._thread.start()
        expectation = Expectation(self, next(self._sources))
        expectation.replace(uses)
        return expectation

    # ---- what an expectation asks -----------------------------------------------------------------------------------

    def replace(self, source: int, uses: Iterable[Use]) -> None:
        """See `Expectation.replace`."""
        with self._lock:
            self._coming.replace(source, map(_on_disk, uses))
            self._refused.clear()
            for inode in self._coming.inodes:
                if self._tier.state_of(inode) is not FileState.ABSENT:
                    self._coming.here(inode)
            self._tell()

    def used(self, source: int, inode: InodeId) -> None:
        """See `Expectation.used`."""
        with self._lock:
            self._coming.used(source, inode)
            if not self._coming.is_all_here:  # else a thread wakes at each visit, for nothing
                self._tell()

    def left(self, source: int) -> int:
        """See `Expectation.left`."""
        with self._lock:
            return self._coming.left(source)

    def cancel(self, source: int) -> None:
        """See `Expectation.close`."""
        with self._lock:
            self._coming.cancel(source)

    # ---- opening and evicting ---------------------------------------------------------------------------------------

    @contextmanager
    def admit(self, inode: InodeId) -> Iterator[bool]:
        """Around the opening of a file: True: open it as ever, there is room; False: not worth keeping, read it through."""
        with self._lock:
            decision = self._decide(inode)
            if not decision.keep:
                self.read_through += 1
        try:
            self._evict(inode, decision)
            yield decision.keep
        finally:
            self._settle(inode)

    def make_room(self, bytes_needed: int) -> int:
        """For others: the number of files evicted. By the tier's policy, but for what is expected and within its share."""
        with self._lock:
            copied = self._coming.copied_bytes
            ordinary = max(0, self._tier.resident_bytes(pinned=False) - copied)
            beyond = copied - int(EXPECTED_SHARE * self._tier.room.capacity_bytes)
            from_ours = min(bytes_needed, max(beyond, bytes_needed - ordinary, 0))
            ours = self._coming.surplus(from_ours, self._tier.is_movable) if from_ours else []
            freed = sum(self._coming.size(inode) for inode in ours)
            for inode in ours:
                self._coming.gone(inode)
            spared = self._coming.copies
        evicted = sum(self._tier.evict(inode) for inode in ours)
        if freed < bytes_needed:
            evicted += self._tier.evict_bytes(bytes_needed - freed, spared)
        return evicted

    def _decide(self, inode: InodeId) -> Decision:
        """Under the lock. What is kept is promised room until `_settle`."""
        if not self._coming.is_expected(inode):
            return Decision(keep=True)
        if inode in self._promised or self._tier.state_of(inode) is not FileState.ABSENT:
            self._coming.here(inode)
            return Decision(keep=True)
        self._coming.gone(inode)
        decision = self._coming.decide(inode, self._room(), self._tier.is_movable)
        if decision.keep:
            for victim in decision.victims:
                self._coming.gone(victim)
            self._coming.here(inode)
            self._promised[inode] = self._coming.size(inode)
        return decision

    def _room(self) -> int:
        """Bytes for one more expected file: free ones, or those of others below our share."""
        free = self._free()
        capacity, copied = self._tier.room.capacity_bytes, self._coming.copied_bytes
        ordinary = max(0, self._tier.resident_bytes(pinned=False) - copied)
        return max(free, min(int(EXPECTED_SHARE * capacity) - copied, free + ordinary))

    def _free(self) -> int:
        """Below the watermark at which the evictor begins."""
        room = self._tier.room
        coming = sum(size for inode, size in self._promised.items() if self._tier.state_of(inode) is FileState.ABSENT)
        used = clean_bytes(self._tier) + room.dirty_bytes() + room.spare_bytes() + coming
        return int(CACHE_HIGH_WATERMARK * room.capacity_bytes) - used

    def _evict(self, inode: InodeId, decision: Decision) -> None:
        for victim in decision.victims:
            self._tier.evict(victim)
        if decision.keep and not decision.victims:
            with self._lock:
                lacking, spared = -self._free() if inode in self._promised else 0, self._coming.copies
            if lacking > 0:
                self._tier.evict_bytes(lacking, spared)

    def _settle(self, inode: InodeId) -> None:
        with self._lock:
            self._promised.pop(inode, None)
            if self._tier.state_of(inode) is FileState.ABSENT:
                self._coming.gone(inode)

    # ---- fetching ahead ---------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self._news = True
        self._lock.notify_all()

    def close(self) -> None:
        """Waits for the file that is being fetched."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._news, _TICK_S)
                if self._closing:
                    return
                self._news = False
                chosen = self._next()
            if chosen is not None:
                self._fetch(*chosen)

    def _next(self) -> tuple[InodeId, Decision] | None:
        """Under the lock: the soonest file that is worth keeping and not here."""
        for inode in self._coming.ahead(AHEAD_VISITS):
            if inode not in self._refused:
                decision = self._decide(inode)
                if decision.keep and inode in self._promised:
                    return inode, decision
        return None

    def _size(self, inode: InodeId) -> int:
        with self._lock:
            return self._promised.get(inode, 0)

    def _fetch(self, inode: InodeId, decision: Decision) -> None:
        try:
            self._pace(Traffic.BACKFILL, self._size(inode))
            self._evict(inode, decision)
            self._tier.warm(inode, pin=False)
            self.fetched_ahead += 1
        except TieredError as error:
            _log.info("inode %d was not fetched ahead: %s", inode, error)
            self._refused.add(inode)
        finally:
            self._settle(inode)
            with self._lock:
                self._tell()


def _on_disk(use: Use) -> Use:
    """What a whole copy takes of the SSD."""
    size = -(-use.size_bytes // _FILE_BLOCK_BYTES) * _FILE_BLOCK_BYTES
    return Use(use.inode, size, size if use.read_bytes >= use.size_bytes else use.read_bytes)
