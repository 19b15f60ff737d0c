"""What to keep on the SSD when it is known what will be read next: Belady's rule, with what fetching a whole file costs.

Readers of datasets know the order in which they will visit files, of the next epoch too. A visit reads `read_bytes` of a file;
the SSD keeps whole files. So a visit to a file that is not here has two ways: fetch the file (its size) and keep it, or read
through (the bytes of this visit) and keep nothing. The file is kept

- if there is room for it, and its later visits are worth more bytes than fetching it whole costs beyond this visit;
- or instead of files that are all needed later than it is needed next, if the bytes of its visits until the first of them is
  needed are worth more than fetching it whole now, and them again then, costs beyond reading through.

Nothing that is needed sooner ever goes for what is needed later. Where every visit reads the whole file and files have one
size, that is Belady's rule with bypass, which is optimal; where files have several splits in random order it is reluctant
to exchange, because an exchange costs two whole files.

Source: Bélády, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966.

Several readers may be known at one time. Each has its own order; their times are compared as bytes read from when the later one
came. Pure: no clock, no lock, and memory for `USES_MAX` visits of each reader.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tieredfs.model import InodeId

USES_MAX: Final = 1 << 17
"""Visits that are remembered of one reader; later ones come with its next `replace`."""
LATE_MAX: Final = 64
"""A visit that was overtaken by so many others will not come: its rows were still in memory."""
NEVER: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Use:
    """A visit: `read_bytes` of a file of `size_bytes`."""

    inode: InodeId
    size_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Keep the file, once `victims` are gone, or read it through."""

    keep: bool
    victims: tuple[InodeId, ...] = ()


THROUGH: Final = Decision(keep=False)


@dataclass(slots=True)
class _Visit:
    at: int
    number: int
    read_bytes: int


class ComingUses:
    """The visits to come, and the copies that are here of what will be visited. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._visits: defaultdict[InodeId, dict[int, deque[_Visit]]] = defaultdict(dict)
        self._sizes: dict[InodeId, int] = {}
        self._queues: dict[int, deque[tuple[int, InodeId]]] = {}
        """Of each source: number and inode of its visits, in order; those that are over are dropped when they are met."""
        self._now: dict[int, int] = {}
        self._copies: dict[InodeId, int] = {}
        self._farthest: list[tuple[int, InodeId]] = []
        """A heap of (-time of the next visit, inode); entries whose time is not that any more are dropped when met."""

    # ---- what is known ----------------------------------------------------------------------------------------------

    def replace(self, source: int, uses: Iterable[Use]) -> None:
        """From now on those are the visits that the source will make, in that order; the first `USES_MAX` of them."""
        now = self._now.get(source, max(self._now.values(), default=0))
        self._forget(source)
        queue = self._queues[source] = deque()
        at = now
        for number, use in enumerate(islice(uses, USES_MAX)):
            visit = _Visit(at, number, min(use.read_bytes, use.size_bytes))
            self._visits[use.inode].setdefault(source, deque()).append(visit)
            self._sizes[use.inode] = use.size_bytes
            queue.append((number, use.inode))
            at += max(1, visit.read_bytes)
        self._now[source] = now
        self._tidy()

    def used(self, source: int, inode: InodeId) -> None:
        """The source makes its next visit to the file. Nothing if none was expected."""
        visits = self._visits.get(inode, {}).get(source)
        if not visits:
            return
        visit = visits.popleft()
        self._now[source] = max(self._now[source], visit.at)
        queue = self._queues[source]
        while queue and (queue[0][0] < visit.number - LATE_MAX or not self._is_coming(source, *queue[0])):
            number, late = queue.popleft()
            missed = self._visits[late][source]
            if missed and missed[0].number == number:
                missed.popleft()
                self._push(late)
        self._push(inode)

    def cancel(self, source: int) -> None:
        """The source reads no more."""
        self._forget(source)
        self._queues.pop(source, None)
        self._now.pop(source, None)
        self._tidy()

    def _forget(self, source: int) -> None:
        for by_source in self._visits.values():
            by_source.pop(source, None)

    def _tidy(self) -> None:
        """Files that no source names are not ours; of the others, the heap says anew when each is visited next."""
        for inode in [inode for inode, by_source in self._visits.items() if not by_source]:
            del self._visits[inode], self._sizes[inode]
            self._copies.pop(inode, None)
        self._farthest = [(-self._next(inode), inode) for inode in self._copies]
        heapq.heapify(self._farthest)

    def _is_coming(self, source: int, number: int, inode: InodeId) -> bool:
        visits = self._visits[inode].get(source)
        return bool(visits) and visits is not None and visits[0].number <= number

    def left(self, source: int) -> int:
        """How many visits of the source are still to come, about."""
        return len(self._queues.get(source, ()))

    def is_expected(self, inode: InodeId) -> bool:
        return inode in self._visits

    @property
    def inodes(self) -> Iterable[InodeId]:
        """Every file that some source names."""
        return self._visits.keys()

    @property
    def is_all_here(self) -> bool:
        """Of every file that some source names there is a copy: `ahead` has nothing."""
        return len(self._copies) == len(self._visits)

    def ahead(self, count: int) -> list[InodeId]:
        """The next files to be visited that are not here: from the next `count` visits of each source, soonest first."""
        found: dict[InodeId, int] = {}
        for source, queue in self._queues.items():
            for number, inode in islice(queue, count):
                if inode not in self._copies and inode not in found and self._is_coming(source, number, inode):
                    found[inode] = self._next(inode)
        return sorted(found, key=lambda inode: found[inode])

    # ---- copies -----------------------------------------------------------------------------------------------------

    def here(self, inode: InodeId) -> None:
        """A whole copy of an expected file is on the SSD, or about to be."""
        if inode in self._visits and inode not in self._copies:
            self._copies[inode] = self._sizes[inode]
            self._push(inode)

    def gone(self, inode: InodeId) -> None:
        self._copies.pop(inode, None)

    @property
    def copies(self) -> frozenset[InodeId]:
        return frozenset(self._copies)

    def has_copy(self, inode: InodeId) -> bool:
        return inode in self._copies

    @property
    def copied_bytes(self) -> int:
        return sum(self._copies.values())

    def size(self, inode: InodeId) -> int:
        return self._sizes[inode]

    # ---- decisions --------------------------------------------------------------------------------------------------

    def decide(self, inode: InodeId, room_bytes: int, movable: Callable[[InodeId], bool]) -> Decision:
        """Of an expected file that is not here, for its next visit. `room_bytes`: free; `movable`: it may be evicted now."""
        visits = self._coming(inode)
        first = next(visits, None)
        later = list(visits)
        if first is None or not later:
            return THROUGH
        extra = self._sizes[inode] - first.read_bytes
        if self._sizes[inode] <= room_bytes:
            return Decision(keep=True) if sum(visit.read_bytes for visit in later) > extra else THROUGH
        needed = self._sizes[inode] - room_bytes
        victims = self._later_than(later[0].at, needed, movable)
        if victims is None:
            return THROUGH
        until = min(self._next(victim) for victim in victims)
        again = sum(self._cost_of_again(victim) for victim in victims)
        saved = sum(visit.read_bytes for visit in later if visit.at < until)
        return Decision(keep=True, victims=tuple(victims)) if saved > extra + again else THROUGH

    def surplus(self, bytes_needed: int, movable: Callable[[InodeId], bool]) -> list[InodeId]:
        """Copies to give up for something else: those that are needed last, of `bytes_needed` if there are so many."""
        found: list[InodeId] = []
        taken = 0
        for inode in self._by_farthest(movable):
            if taken >= bytes_needed:
                break
            found.append(inode)
            taken += self._copies[inode]
        return found

    def _later_than(self, at: int, bytes_needed: int, movable: Callable[[InodeId], bool]) -> list[InodeId] | None:
        """Copies of `bytes_needed`, all of which are visited next after `at`, the last first; None: there are not so many."""
        found: list[InodeId] = []
        for inode in self._by_farthest(movable):
            if self._next(inode) <= at:
                return None
            found.append(inode)
            bytes_needed -= self._copies[inode]
            if bytes_needed <= 0:
                return found
        return None

    def _cost_of_again(self, inode: InodeId) -> int:
        """To have it here again at its next visit costs that beyond reading through."""
        first = next(self._coming(inode), None)
        return 0 if first is None else self._sizes[inode] - first.read_bytes

    def _by_farthest(self, movable: Callable[[InodeId], bool]) -> Iterator[InodeId]:
        """Copies that may go, the one that is needed last first."""
        met: list[tuple[int, InodeId]] = []
        seen: set[InodeId] = set()
        try:
            while self._farthest:
                entry = heapq.heappop(self._farthest)
                inode = entry[1]
                if inode in seen or inode not in self._copies or -entry[0] != self._next(inode):
                    continue  # an entry of another time
                met.append(entry)
                seen.add(inode)
                if movable(inode):
                    yield inode
        finally:
            for entry in met:
                heapq.heappush(self._farthest, entry)

    def _push(self, inode: InodeId) -> None:
        if inode in self._copies:
            heapq.heappush(self._farthest, (-self._next(inode), inode))

    def _coming(self, inode: InodeId) -> Iterator[_Visit]:
        by_source = list(self._visits.get(inode, {}).values())
        if len(by_source) == 1:
            return iter(by_source[0])
        return heapq.merge(*by_source, key=lambda visit: visit.at)

    def _next(self, inode: InodeId) -> int:
        """When it is visited next."""
        return min((visits[0].at for visits in self._visits[inode].values() if visits), default=NEVER)
