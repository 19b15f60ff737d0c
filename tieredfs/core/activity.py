"""What a mount does, from what it has counted: two looks at counters that only rise, and the rates between them.

A daemon counts always, with one addition where the event is; what costs more than that (the time of each request, who asked
for it) is measured only while somebody watches. Here is the arithmetic, and the table that says which requests are of a kind.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from tieredfs.errors import InvalidRequestError


class Kind(enum.Enum):
    """What a request is for; `HOUSEKEEPING` is the kernel's own, and no operation of a program."""

    LOOK = "look"
    OPEN = "open"
    CLOSE = "close"
    LIST = "list"
    CHANGE = "change"
    READ = "read"
    WRITE = "write"
    SYNC = "sync"
    HOUSEKEEPING = "housekeeping"


_REQUESTS_OF: Final[Mapping[Kind, str]] = {
    Kind.LOOK: "lookup getattr readlink getxattr listxattr access statx statfs bmap",
    Kind.OPEN: "open create tmpfile",
    Kind.CLOSE: "flush release releasedir",
    Kind.LIST: "opendir readdir readdirplus",
    Kind.CHANGE: "setattr symlink mknod mkdir unlink rmdir rename rename2 link setxattr removexattr fallocate",
    Kind.READ: "read lseek",
    Kind.WRITE: "write copy_file_range",
    Kind.SYNC: "fsync fsyncdir syncfs",
    Kind.HOUSEKEEPING: "forget batch_forget interrupt init destroy notify_reply ioctl poll getlk setlk setlkw "
    "setupmapping removemapping",
}
KIND_OF: Final[Mapping[str, Kind]] = {name: kind for kind, names in _REQUESTS_OF.items() for name in names.split()}
"""By the kernel's name of the request, in lower case; total over `fuse.kernel.wire.Op`, as a test has it."""

OPERATIONS: Final = tuple(kind for kind in Kind if kind is not Kind.HOUSEKEEPING)


@dataclass(frozen=True, slots=True)
class DiskCounts:
    """Chunk I/O of one process on one disk, since it began. `_s`: the sum of how long each took."""

    reads: int = 0
    read_bytes: int = 0
    read_s: float = 0.0
    writes: int = 0
    written_bytes: int = 0
    write_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Counters:
    """One look at a daemon. What only rises, since it began; then (from `staged_files`) what is so now.

    `at_s`: its monotonic clock. `requests`: by name; None under a driver that counts none. Bytes read and written are those that
    passed through the daemon: passthrough's never do. `fills`: contents fetched from the store. `room_waits`: openings for
    writing that waited for room.
    """

    process: int
    at_s: float
    requests: Mapping[str, int] | None = None
    passthrough_opens: int = 0
    other_opens: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    fills: int = 0
    filled_bytes: int = 0
    stored_files: int = 0
    stored_bytes: int = 0
    evicted_files: int = 0
    room_waits: int = 0
    cpu_s: float = 0.0
    disks: Mapping[int, DiskCounts] = field(default_factory=dict)
    staged_files: int = 0
    staged_bytes: int = 0
    staged_oldest_age_s: float = 0.0
    ssd_full: bool = False
    resident_bytes: int = 0
    drain_error: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests of one kind that were timed, and their time together."""

    count: int = 0
    duration_s: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.count + other.count, self.duration_s + other.duration_s)

    @property
    def mean_s(self) -> float | None:
        return self.duration_s / self.count if self.count else None


@dataclass(frozen=True, slots=True)
class OperationActivity:
    """`mean_s`: how long one took in the daemon; None: there were none."""

    per_s: float
    mean_s: float | None


@dataclass(frozen=True, slots=True)
class DiskActivity:
    """Chunk I/O on a disk. `mean_s`: how long one took; None: there were none."""

    reads_per_s: float
    read_bytes_per_s: float
    read_mean_s: float | None
    writes_per_s: float
    written_bytes_per_s: float
    write_mean_s: float | None


@dataclass(frozen=True, slots=True)
class Activity:
    """What a mount did for `interval_s`. None: not counted by its driver.

    `hit_ratio`: opens that had nothing to fetch from the store; None: nothing was opened. `cpu_ratio`: 1.0 is one core.
    """

    interval_s: float
    process: int
    operations: OperationActivity | None
    kinds: Mapping[str, OperationActivity]
    passthrough_opens_per_s: float
    other_opens_per_s: float
    read_bytes_per_s: float
    written_bytes_per_s: float
    fills_per_s: float
    filled_bytes_per_s: float
    hit_ratio: float | None
    stored_files_per_s: float
    stored_bytes_per_s: float
    evicted_files_per_s: float
    room_waits_per_s: float
    cpu_ratio: float
    staged_files: int
    staged_bytes: int
    staged_oldest_age_s: float
    ssd_full: bool
    resident_bytes: int
    drain_error: str | None
    disks: Mapping[int, DiskActivity]


def between(before: Counters, after: Counters, spent: Mapping[Kind, Spent]) -> Activity:
    """The rates between two looks at one daemon; `spent`: what was timed meanwhile. Raises InvalidRequestError for two daemons."""
    if before.process != after.process or after.at_s <= before.at_s:
        raise InvalidRequestError("counters of two daemons, or in the wrong order, have no rates between them")
    interval_s = after.at_s - before.at_s

    def rate(name: str) -> float:
        return float(getattr(after, name) - getattr(before, name)) / interval_s

    opened = sum(_counted(after, Kind.OPEN)) - sum(_counted(before, Kind.OPEN))
    filled = after.fills - before.fills
    return Activity(
        interval_s=interval_s,
        process=after.process,
        operations=_all_operations(before, after, spent, interval_s) if after.requests is not None else None,
        kinds=_by_kind(before, after, spent, interval_s) if after.requests is not None else {},
        passthrough_opens_per_s=rate("passthrough_opens"),
        other_opens_per_s=rate("other_opens"),
        read_bytes_per_s=rate("read_bytes"),
        written_bytes_per_s=rate("written_bytes"),
        fills_per_s=rate("fills"),
        filled_bytes_per_s=rate("filled_bytes"),
        hit_ratio=max(0.0, 1.0 - filled / opened) if opened else None,
        stored_files_per_s=rate("stored_files"),
        stored_bytes_per_s=rate("stored_bytes"),
        evicted_files_per_s=rate("evicted_files"),
        room_waits_per_s=rate("room_waits"),
        cpu_ratio=rate("cpu_s"),
        staged_files=after.staged_files,
        staged_bytes=after.staged_bytes,
        staged_oldest_age_s=after.staged_oldest_age_s,
        ssd_full=after.ssd_full,
        resident_bytes=after.resident_bytes,
        drain_error=after.drain_error,
        disks={disk: _disk(before.disks.get(disk, DiskCounts()), now, interval_s) for disk, now in after.disks.items()},
    )


def _counted(counters: Counters, kind: Kind) -> list[int]:
    return [count for name, count in (counters.requests or {}).items() if KIND_OF.get(name, Kind.HOUSEKEEPING) is kind]


def _by_kind(
    before: Counters, after: Counters, spent: Mapping[Kind, Spent], interval_s: float
) -> dict[str, OperationActivity]:
    return {
        kind.value: OperationActivity(
            (sum(_counted(after, kind)) - sum(_counted(before, kind))) / interval_s, spent.get(kind, Spent()).mean_s
        )
        for kind in OPERATIONS
    }


def _all_operations(
    before: Counters, after: Counters, spent: Mapping[Kind, Spent], interval_s: float
) -> OperationActivity:
    count = sum(sum(_counted(after, kind)) - sum(_counted(before, kind)) for kind in OPERATIONS)
    total = sum((spent.get(kind, Spent()) for kind in OPERATIONS), Spent())
    return OperationActivity(count / interval_s, total.mean_s)


def _disk(before: DiskCounts, after: DiskCounts, interval_s: float) -> DiskActivity:
    reads, writes = after.reads - before.reads, after.writes - before.writes
    return DiskActivity(
        reads_per_s=reads / interval_s,
        read_bytes_per_s=(after.read_bytes - before.read_bytes) / interval_s,
        read_mean_s=(after.read_s - before.read_s) / reads if reads else None,
        writes_per_s=writes / interval_s,
        written_bytes_per_s=(after.written_bytes - before.written_bytes) / interval_s,
        write_mean_s=(after.write_s - before.write_s) / writes if writes else None,
    )


def counters_from(tree: Mapping[str, object]) -> Counters:
    """Counters out of what JSON made of them. Raises InvalidRequestError: they are of another release."""
    known = {one.name for one in fields(Counters)}
    disks = tree.get("disks")
    try:
        counted = {int(disk): DiskCounts(**counts) for disk, counts in disks.items()} if isinstance(disks, dict) else {}
        named = {name: value for name, value in tree.items() if name in known and name != "disks"}
        return Counters(**named, disks=counted)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"a daemon of another release counts other things: {error}") from error
