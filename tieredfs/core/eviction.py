"""Which resident files leave the SSD first: a byte-weighted S3-FIFO.

New files enter a small queue (10 % of the bytes). A file that is not used again before it reaches the head leaves at once, so
one pass over a large dataset passes through the small queue and leaves the working set in the main queue alone. A file
that is used again moves to the main queue, which evicts in FIFO order with a second chance per recorded use. Files
evicted from the small queue are remembered, as many as there are files here, and come back into the main queue directly.
(To remember more would take a dataset that is read once per epoch for a working set.)

Source of the algorithm: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. Pure: no clock, no lock.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from tieredfs.model import InodeId

SMALL_SHARE: Final = 0.1
USES_MAX: Final = 3
GHOSTS_MIN: Final = 16
GHOSTS_MAX: Final = 65_536


@dataclass(slots=True)
class Resident:
    """A clean, idle copy. `uses` counts its uses since it came, up to `USES_MAX`."""

    version: int
    size_bytes: int
    uses: int = 0


class Victim(NamedTuple):
    """A copy that may go. `size_bytes` as it was counted: if it stays after all, it is admitted with that again."""

    inode: InodeId
    version: int
    size_bytes: int


class ResidentIndex:
    """The clean, idle files on the SSD: their versions and sizes, and the order in which they would go.

    Not thread-safe: its owner holds a lock.
    """

    def __init__(self) -> None:
        self._small: dict[InodeId, Resident] = {}
        self._main: dict[InodeId, Resident] = {}
        self._ghosts: dict[InodeId, None] = {}
        self._small_bytes = 0
        self._main_bytes = 0
        self._pinned: set[InodeId] = set()

    @property
    def bytes(self) -> int:
        """Sum of the sizes of all files in the index."""
        return self._small_bytes + self._main_bytes

    @property
    def pinned_bytes(self) -> int:
        """Of those, what is pinned."""
        here = (self._small.get(inode) or self._main.get(inode) for inode in self._pinned)
        return sum(resident.size_bytes for resident in here if resident is not None)

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __contains__(self, inode: InodeId) -> bool:
        return inode in self._small or inode in self._main

    def version_of(self, inode: InodeId) -> int | None:
        """Of the copy that is here."""
        resident = self._small.get(inode) or self._main.get(inode)
        return None if resident is None else resident.version

    def admit(self, inode: InodeId, version: int, size_bytes: int, *, uses: int = 0) -> None:
        """A file became clean and idle. `uses`: how often it was used since it came."""
        self.take(inode)
        resident = Resident(version, size_bytes, min(uses, USES_MAX))
        if inode in self._ghosts:
            del self._ghosts[inode]
            self._main[inode] = resident
            self._main_bytes += size_bytes
        else:
            self._small[inode] = resident
            self._small_bytes += size_bytes

    def touch(self, inode: InodeId) -> None:
        """The file was used. Nothing if it is not here."""
        resident = self._small.get(inode) or self._main.get(inode)
        if resident is not None:
            resident.uses = min(resident.uses + 1, USES_MAX)

    def take(self, inode: InodeId) -> Resident | None:
        """Remove the file (it is opened, evicted or deleted), and say what was known of it."""
        resident = self._small.pop(inode, None)
        if resident is not None:
            self._small_bytes -= resident.size_bytes
            return resident
        resident = self._main.pop(inode, None)
        if resident is not None:
            self._main_bytes -= resident.size_bytes
        return resident

    def pin(self, inode: InodeId) -> None:
        """Never evict it, whatever the pressure."""
        self._pinned.add(inode)

    def unpin(self, inode: InodeId) -> None:
        self._pinned.discard(inode)

    @property
    def pinned(self) -> frozenset[InodeId]:
        return frozenset(self._pinned)

    def is_pinned(self, inode: InodeId) -> bool:
        return inode in self._pinned

    def victims(self, bytes_needed: int, spared: Container[InodeId] = ()) -> list[Victim]:
        """Take out files of at least `bytes_needed` in sum (all there are if fewer), in the order to delete. Those that are
        pinned or `spared` stay."""
        chosen: list[Victim] = []
        freed = 0
        skipped: list[tuple[InodeId, Resident]] = []
        while freed < bytes_needed and (self._small or self._main):
            candidate = self._next_candidate()
            if candidate is None:
                continue
            inode, resident = candidate
            if inode in self._pinned or inode in spared:
                skipped.append(candidate)
                continue
            chosen.append(Victim(inode, resident.version, resident.size_bytes))
            freed += resident.size_bytes
        for inode, resident in skipped:
            self._main[inode] = resident
            self._main_bytes += resident.size_bytes
        return chosen

    def _next_candidate(self) -> tuple[InodeId, Resident] | None:
        """Pop the head of the queue whose turn it is; None when that file got another chance instead."""
        from_small = bool(self._small) and (not self._main or self._small_bytes > SMALL_SHARE * self.bytes)
        queue = self._small if from_small else self._main
        inode = next(iter(queue))
        resident = queue.pop(inode)
        if from_small:
            self._small_bytes -= resident.size_bytes
        else:
            self._main_bytes -= resident.size_bytes
        if resident.uses > 0:
            resident.uses = 0 if from_small else resident.uses - 1
            self._main[inode] = resident
            self._main_bytes += resident.size_bytes
            return None
        if from_small:
            self._remember(inode)
        return inode, resident

    def _remember(self, inode: InodeId) -> None:
        self._ghosts[inode] = None
        while len(self._ghosts) > min(max(len(self), GHOSTS_MIN), GHOSTS_MAX):
            del self._ghosts[next(iter(self._ghosts))]

    def __iter__(self) -> Iterator[InodeId]:
        """In no order that means anything."""
        yield from self._small
        yield from self._main

    def admit_all(self, found: Iterable[tuple[InodeId, int, int]]) -> None:
        """What recovery found on the SSD: (inode, version, size)."""
        for inode, version, size_bytes in found:
            self.admit(inode, version, size_bytes)
