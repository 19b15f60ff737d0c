"""Who serves which batches of a job: leases over ranges of batch numbers. What decides; `jobs` does.

An epoch's batches are cut into ranges of equally many. A range is *unclaimed*, *leased* by a gateway, or *done*. Ranges are claimed
in order, so all below `unclaimed` that are not leased are done, and the table stays small however long the epoch is.

A holder shows that it lives by its beat, which rises with every renewal. Whoever has seen a lease with the same beat for the
lease's time, by its own clock, may take it over: no two clocks are ever compared. A lease says how many batches of its range, from
its beginning, are acknowledged; a successor goes on after them. A range is done when all are.

**So no batch is lost**, whoever dies: its range is not done until it was acknowledged. **A batch may be delivered twice**: those
that were delivered and not yet recorded as acknowledged when their holder died, or was taken for dead and lived. Batches are pure
functions of their number, so a consumer that keeps the numbers it has, and drops what comes again, has each exactly once.

Pure: no clock, no I/O.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from tieredfs.errors import CorruptError

NOBODY: Final = ""
"""The holder of a lease that was given back."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Of one range."""

    holder: str
    beat: int
    acknowledged: int


@dataclass(frozen=True, slots=True)
class Table:
    """One epoch of a job. `identity`: of what is read, in which order, in what pieces. `leases` by number of the range."""

    identity: str
    epoch: int
    batch_count: int
    range_batches: int
    unclaimed: int = 0
    leases: Mapping[int, Lease] = field(default_factory=dict)

    @property
    def range_count(self) -> int:
        return -(-self.batch_count // self.range_batches)

    @property
    def is_done(self) -> bool:
        return self.unclaimed >= self.range_count and not self.leases

    def length(self, number: int) -> int:
        """Batches of a range; the last one may be shorter."""
        return min(self.range_batches, self.batch_count - number * self.range_batches)

    def packed(self) -> bytes:
        """For a register."""
        leases = [[number, each.holder, each.beat, each.acknowledged] for number, each in sorted(self.leases.items())]
        return json.dumps(
            [1, self.identity, self.epoch, self.batch_count, self.range_batches, self.unclaimed, leases]
        ).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Raises CorruptError."""
        try:
            form, identity, epoch, batch_count, range_batches, unclaimed, leases = json.loads(data)
            found = {int(number): Lease(str(holder), int(beat), int(done)) for number, holder, beat, done in leases}
            table = cls(str(identity), int(epoch), int(batch_count), int(range_batches), int(unclaimed), found)
        except (ValueError, TypeError) as error:
            raise CorruptError(f"this is no table of leases of a dataset job: {error}") from error
        if form != 1 or min(table.epoch, table.batch_count, table.unclaimed) < 0 or table.range_batches < 1:
            raise CorruptError(f"this is no table of leases of a dataset job: form {form}")
        return table


def empty(identity: str, epoch: int, batch_count: int, range_batches: int) -> Table:
    return Table(identity, epoch, batch_count, range_batches)


def claim(table: Table, holder: str, expired: Iterable[int]) -> tuple[Table, int] | None:
    """A range for `holder`: one that was given back or whose holder is dead, else the next; None: there is none now."""
    dead = set(expired)
    for number, lease in sorted(table.leases.items()):
        if lease.holder == NOBODY or (number in dead and lease.holder != holder):
            taken = Lease(holder, lease.beat + 1, lease.acknowledged)
            return replace(table, leases={**table.leases, number: taken}), number
    if table.unclaimed >= table.range_count:
        return None
    number = table.unclaimed
    leases = {**table.leases, number: Lease(holder, 0, 0)}
    return replace(table, unclaimed=number + 1, leases=leases), number


def renew(table: Table, holder: str, acknowledged: Mapping[int, int]) -> tuple[Table, set[int]]:
    """The beats of the holder's leases rise, with how far each of its ranges is acknowledged; those that are through are done.

    Also: which of those ranges are not its own any more."""
    leases: dict[int, Lease] = dict(table.leases)
    lost: set[int] = set()
    for number, count in acknowledged.items():
        lease = leases.get(number)
        if lease is None or lease.holder != holder:
            lost.add(number)
        elif count >= table.length(number):
            del leases[number]
        else:
            leases[number] = Lease(holder, lease.beat + 1, max(count, lease.acknowledged))
    return replace(table, leases=leases), lost


def give_back(table: Table, holder: str) -> Table:
    """The holder goes: anybody may go on with its ranges at once."""
    leases = {
        number: replace(lease, holder=NOBODY) if lease.holder == holder else lease
        for number, lease in table.leases.items()
    }
    return replace(table, leases=leases)


class Watch:
    """Which leases have not moved for how long, by one observer's clock."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[int, tuple[Lease, float]] = {}

    def expired(self, table: Table, now_s: float) -> set[int]:
        """Of the leases in this table, those whose holders are to be taken for dead."""
        before, self._seen = self._seen, {}
        for number, lease in table.leases.items():
            known = before.get(number)
            same = known is not None and (known[0].holder, known[0].beat) == (lease.holder, lease.beat)
            self._seen[number] = (lease, known[1] if same and known is not None else now_s)
        return {number for number, (_, since_s) in self._seen.items() if now_s - since_s >= self._lease_s}
