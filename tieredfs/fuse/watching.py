"""Times and callers of a mount's requests, while somebody watches.

Nothing here is on the way of a request until then. Then the driver calls a `Note` after each request, in the thread that
carried it out: 1.5 us for times, 2.3 us for callers (`fuse.kernel.metering`). What a note writes to belongs to that thread's
slot, so there is no lock; who reads adds the slots up.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from tieredfs.core.activity import KIND_OF, Kind, Spent
from tieredfs.model import InodeId

PAIRS_MAX: Final = 10_000
"""Pairs of a process and an inode that one thread keeps apart; further ones are one."""
ELSEWHERE: Final = (0, InodeId(0))


class Carried(NamedTuple):
    """A request that was carried out. `process`: the id of the thread that asked, 0 for the kernel itself. `inode`: as the
    request names it: a file, or the directory that a name is in. `moved_bytes`: that passed through the daemon."""

    slot: int
    name: str
    inode: InodeId
    process: int
    uid: int
    duration_ns: int
    moved_bytes: int


Note = Callable[[Carried], None]


class DriverCounts(Protocol):
    """What a driver counts (`fuse.kernel.session.SessionSnapshot`)."""

    @property
    def requests(self) -> Mapping[str, int]: ...
    @property
    def passthrough_opens(self) -> int: ...
    @property
    def cached_opens(self) -> int: ...
    @property
    def direct_opens(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...


class Watchable(Protocol):
    """A driver that can be watched."""

    def snapshot(self) -> DriverCounts: ...
    def watched(self, note: Note) -> AbstractContextManager[None]:
        """`note` is called after every request that is carried out until exit."""
        ...


class Times:
    """How long requests took, by kind. `note` from one thread for each slot."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[str, list[int]]] = {}

    def note(self, carried: Carried) -> None:
        slot = self._slots.get(carried.slot)
        if slot is None:
            slot = self._slots[carried.slot] = {}
        sums = slot.get(carried.name)
        if sums is None:
            sums = slot[carried.name] = [0, 0]
        sums[0] += 1
        sums[1] += carried.duration_ns

    def by_kind(self) -> dict[Kind, Spent]:
        found: dict[Kind, Spent] = {}
        for slot in list(self._slots.values()):
            for name, (count, duration_ns) in list(slot.items()):
                kind = KIND_OF.get(name, Kind.HOUSEKEEPING)
                found[kind] = found.get(kind, Spent()) + Spent(count, duration_ns / 1e9)
        return found


@dataclass(frozen=True, slots=True)
class Use:
    """What one process did with one inode."""

    process: int
    uid: int
    inode: InodeId
    requests: int
    opens: int
    duration_s: float
    moved_bytes: int

    def with_more(self, other: "Use") -> "Use":
        """Both together, under this one's names."""
        return replace(
            self,
            requests=self.requests + other.requests,
            opens=self.opens + other.opens,
            duration_s=self.duration_s + other.duration_s,
            moved_bytes=self.moved_bytes + other.moved_bytes,
        )


class Callers:
    """Who used what. `note` from one thread for each slot."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[tuple[int, InodeId], list[int]]] = {}

    def note(self, carried: Carried) -> None:
        kind = KIND_OF.get(carried.name, Kind.HOUSEKEEPING)
        if kind is Kind.HOUSEKEEPING:
            return
        slot = self._slots.get(carried.slot)
        if slot is None:
            slot = self._slots[carried.slot] = {}
        key = carried.process, carried.inode
        if key not in slot and len(slot) >= PAIRS_MAX:
            key = ELSEWHERE
        sums = slot.get(key)
        if sums is None:
            sums = slot[key] = [carried.uid, 0, 0, 0, 0]
        sums[1] += 1
        sums[2] += kind is Kind.OPEN
        sums[3] += carried.duration_ns
        sums[4] += carried.moved_bytes

    def processes(self) -> set[int]:
        """Whoever asked so far."""
        return {process for slot in list(self._slots.values()) for process, _ in list(slot)}

    def uses(self) -> Iterable[Use]:
        """Of all threads; one process and inode may come several times."""
        for slot in list(self._slots.values()):
            for (process, inode), (uid, requests, opens, duration_ns, moved_bytes) in list(slot.items()):
                yield Use(process, uid, inode, requests, opens, duration_ns / 1e9, moved_bytes)
