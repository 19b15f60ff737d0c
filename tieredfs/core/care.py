"""What the curator decides: who is dead, what is garbage, how bad a block is, what is repaired next. Pure.

The rule above all others: nothing is deleted on doubt. What is not certainly nobody's is somebody's.
"""

import enum
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tieredfs.limits import REPAIR_ATTEMPTS_MAX, REPAIR_PAUSE_FIRST_S, REPAIR_PAUSE_LAST_S, SESSION_TIMEOUT_S
from tieredfs.model import NEVER_NS, Block, BlockId, Code, DiskId, Session, SessionId

_NS_PER_S: Final = 1_000_000_000


# ---- sessions --------------------------------------------------------------------------------------------------------


def timed_out(
    sessions: Iterable[Session], lost: Iterable[SessionId], now_ns: int, own: SessionId
) -> dict[SessionId, int]:
    """Sessions without a heartbeat for `SESSION_TIMEOUT_S`, with that of their last one; never our own.

    `lost`: those that were ended and hold something all the same. Their processes, if they live, are about to beat.
    """
    limit_ns = now_ns - int(SESSION_TIMEOUT_S * _NS_PER_S)
    beats = dict.fromkeys(lost, NEVER_NS) | {session.session: session.heartbeat_ns for session in sessions}
    return {session: beat_ns for session, beat_ns in beats.items() if session != own and beat_ns < limit_ns}


def still_silent(before: Mapping[SessionId, int], after: Mapping[SessionId, int]) -> list[SessionId]:
    """Those that were timed out at two looks, and did not beat between them.

    One look does not suffice: on a machine that slept for an hour every heartbeat is an hour old when it wakes.
    """
    return sorted(session for session, beat in before.items() if after.get(session) == beat)


# ---- chunks ----------------------------------------------------------------------------------------------------------


class ChunkFate(enum.Enum):
    """What to do with a chunk that was found on a disk."""

    NAMED = enum.auto()
    """The block's record says that it is there."""
    IN_FLIGHT = enum.auto()
    """Its block is being written, or the chunk may be the only one of its index: kept."""
    STRAY = enum.auto()
    """Its block exists and has this chunk on another disk that answers. A repair under way looks the same."""
    UNKNOWN = enum.auto()
    """There is no such block, and nobody writes it."""


def chunk_fate(index: int, disk: DiskId, block: Block | None, reserved: bool, working: Collection[DiskId]) -> ChunkFate:
    """`block`, `reserved`: of the chunk's block, in one snapshot taken after the chunk was seen on `disk`.

    That order matters: a writer reserves before it puts, and the record comes with the end of the reservation, so a
    chunk that was seen has a reservation or a record in every later snapshot, unless it is garbage. `working`: disks that
    hold chunks and answer.
    """
    if block is None:
        return ChunkFate.IN_FLIGHT if reserved else ChunkFate.UNKNOWN
    place = next((chunk.disk for chunk in block.chunks if chunk.index == index), None)
    if place == disk:
        return ChunkFate.NAMED
    if reserved or place not in working:
        return ChunkFate.IN_FLIGHT
    return ChunkFate.STRAY


class Ailment(enum.Enum):
    """What is wrong with a chunk that a block's record has, or should have."""

    UNPLACED = enum.auto()
    """The record has no disk for it: it was never written, or dropped."""
    MISSING = enum.auto()
    """Its disk works and does not have it; or the disk is declared lost."""
    ROTTEN = enum.auto()
    """Its disk has something else under its name: wrong bytes, wrong length, another chunk."""
    UNREACHABLE = enum.auto()
    """Its disk does not answer."""


class Health(enum.Enum):
    """What the ailments of a block's chunks mean for its bytes."""

    WHOLE = enum.auto()
    DEGRADED = enum.auto()
    """Readable, with less redundancy than promised."""
    UNAVAILABLE = enum.auto()
    """Not readable until a disk answers again."""
    LOST = enum.auto()
    """Not readable, whatever comes back."""


def health(code: Code, ailments: Collection[Ailment]) -> Health:
    """`ailments`: one for each chunk that is not well."""
    if not ailments:
        return Health.WHOLE
    away = sum(ailment is Ailment.UNREACHABLE for ailment in ailments)
    readable = code.width - len(ailments)
    if readable >= code.data_count:
        return Health.DEGRADED
    return Health.UNAVAILABLE if readable + away >= code.data_count else Health.LOST


# ---- the order of repairs --------------------------------------------------------------------------------------------


def pause_s(attempts: int) -> float:
    """How long to wait after the `attempts`-th failure: doubling, bounded."""
    assert attempts > 0
    return min(REPAIR_PAUSE_FIRST_S * 2.0 ** (attempts - 1), REPAIR_PAUSE_LAST_S)


@dataclass(frozen=True, slots=True)
class RepairCounts:
    """Since the repairer was made. Every block that was taken into the queue is in it, or in one of the last four."""

    noted: int = 0
    """Times that somebody told of damage."""
    merged: int = 0
    """Of them: the block was waiting already, or being repaired."""
    refused: int = 0
    """Of them: the queue was full. A later read or check finds the damage again."""
    retried: int = 0
    """Repairs that failed and were put back."""
    repaired: int = 0
    gone: int = 0
    """The block was deleted before its turn."""
    lost: int = 0
    """More is gone than the code can rebuild."""
    given_up: int = 0
    """Failed `REPAIR_ATTEMPTS_MAX` times. A later read or check finds the damage again."""


class RepairQueue:
    """Blocks that wait for repair, in the order in which they are due. Not thread-safe; time comes from the caller.

    Bounded by `capacity`; a block is in it once. A failed block waits `pause_s`, and others go first meanwhile.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self._capacity = capacity
        self._waiting: OrderedDict[BlockId, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, block: BlockId, now_s: float) -> bool | None:
        """True: added; None: it waits already; False: there is no room."""
        if block in self._waiting:
            return None
        if len(self._waiting) >= self._capacity:
            return False
        self._waiting[block] = (now_s, 0)
        return True

    def next_due_s(self) -> float | None:
        """When the next block is due; None: none waits."""
        return min((due_s for due_s, _ in self._waiting.values()), default=None)

    def take(self, now_s: float) -> tuple[BlockId, int] | None:
        """The first block that is due, with how often it has failed. It is no longer in the queue."""
        for block, (due_s, attempts) in self._waiting.items():
            if due_s <= now_s:
                del self._waiting[block]
                return block, attempts
        return None

    def put_back(self, block: BlockId, attempts: int, now_s: float) -> bool:
        """After the `attempts`-th failure. False: that was the last attempt; it is dropped."""
        if attempts >= REPAIR_ATTEMPTS_MAX:
            return False
        self._waiting[block] = (now_s + pause_s(attempts), attempts)
        return True
