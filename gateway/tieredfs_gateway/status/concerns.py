"""What deserves attention: pure rules over a volume's status and its mounts, each with a word of what helps.

`BAD`: data is, or may soon be, out of reach, and somebody should act. `WATCH`: redundancy or speed is less than it should be.
What is merely staged is no concern: it is on its way.
"""

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs.chunk.directory import URL_PREFIX
from tieredfs.config import format_duration, format_size, parse_code
from tieredfs.limits import DRAIN_BUSY_DEADLINE_S, DUMP_INTERVAL_S
from tieredfs.volume import DiskStatus, VolumeStatus

DUMP_OLD_S: Final = 2 * DUMP_INTERVAL_S
STAGED_LONG_S: Final = 2 * DRAIN_BUSY_DEADLINE_S
"""Even what is written to without end is stored once in `DRAIN_BUSY_DEADLINE_S`."""
FREE_RATIO_LOW: Final = 0.05


class Level(enum.Enum):
    """How much it matters; in order."""

    GOOD = "good"
    WATCH = "watch"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Concern:
    level: Level
    text: str
    advice: str


@dataclass(frozen=True, slots=True)
class MountFacts:
    """What these rules ask of a mount."""

    mount_point: str
    answers: bool
    ssd_full: bool
    drain_error: str | None


def concerns_of(status: VolumeStatus, mounts: Sequence[MountFacts], problem: str | None) -> tuple[Concern, ...]:
    """Worst first."""
    found = [
        *_of_metadata(status, problem),
        *_of_blocks(status),
        *_of_disks(status),
        *_of_staging(status),
        *_of_mounts(mounts),
        *_of_sessions(status),
    ]
    return tuple(sorted(found, key=lambda concern: concern.level is not Level.BAD))


def level_of(concerns: Iterable[Concern]) -> Level:
    levels = {concern.level for concern in concerns}
    return next((level for level in (Level.BAD, Level.WATCH) if level in levels), Level.GOOD)


def _of_metadata(status: VolumeStatus, problem: str | None) -> Iterator[Concern]:
    if problem is not None:
        yield Concern(
            Level.BAD, f"The metadata does not answer: {problem}", "What is shown is the last that was known."
        )
    dump = status.metadata_dump
    if dump is None and any(disk.url.startswith(URL_PREFIX) for disk in status.disks):
        yield Concern(
            Level.WATCH,
            "There is no dump of the metadata",
            "tieredfs dump makes one now; a mount makes one each hour, on disks of this host.",
        )
    elif dump is not None and dump.age_s > DUMP_OLD_S:
        age = format_duration(dump.age_s)
        yield Concern(Level.WATCH, f"The newest dump of the metadata is {age} old", "tieredfs dump makes one now.")


def _of_blocks(status: VolumeStatus) -> Iterator[Concern]:
    short = status.short
    if short.bare_count:
        yield Concern(
            Level.BAD,
            f"{_blocks(short.bare_count)} can lose no disk more",
            "Bring disks back, add some, or give up what is gone: tieredfs disk rebuild.",
        )
    elif short.block_count:
        lacking = "lacks" if short.block_count == 1 else "lack"
        yield Concern(
            Level.WATCH,
            f"{_blocks(short.block_count)} {lacking} chunks, the oldest for {format_duration(short.oldest_age_s)}",
            "They get them by themselves as soon as disks take them.",
        )


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count:,} blocks"


def _of_disks(status: VolumeStatus) -> Iterator[Concern]:
    away = [disk for disk in status.disks if not disk.reachable]
    parity = parse_code(status.code).parity_count
    if len(away) > parity:
        yield Concern(
            Level.BAD,
            f"{len(away)} disks are away, more than {status.code} can do without",
            "What has chunks on all of them cannot be read until some come back.",
        )
    elif away and status.redundancy == 0:
        yield Concern(Level.BAD, "No further disk may be lost", "Bring disks back, or tieredfs disk rebuild.")
    for disk in away:
        yield Concern(
            Level.WATCH,
            f"Disk {disk.disk} is away: {disk.problem or 'it does not answer'}",
            f"If it does not come back: tieredfs disk rebuild META_URL {disk.disk}",
        )
    for disk in status.disks:
        if _is_full(disk):
            yield Concern(
                Level.WATCH,
                f"Disk {disk.disk} has {format_size(disk.free_bytes or 0)} free",
                "Delete, add disks, or make room beside it.",
            )


def _is_full(disk: DiskStatus) -> bool:
    return bool(disk.total_bytes) and (disk.free_bytes or 0) < FREE_RATIO_LOW * (disk.total_bytes or 0)


def _of_staging(status: VolumeStatus) -> Iterator[Concern]:
    alive = {session.host for session in status.sessions if session.alive}
    for cache in status.caches:
        if cache.staged_files and cache.host not in alive:
            yield Concern(
                Level.WATCH,
                f"{format_size(cache.staged_bytes)} are on an SSD of {cache.host} only, where nothing runs that stores them",
                "Mount the volume there, or say tieredfs drain META_URL there.",
            )
        elif cache.staged_files and cache.oldest_age_s > STAGED_LONG_S:
            yield Concern(
                Level.WATCH,
                f"{cache.host} has had content on its SSD only for {format_duration(cache.oldest_age_s)}",
                "tieredfs drain says what is in the way.",
            )


def _of_mounts(mounts: Sequence[MountFacts]) -> Iterator[Concern]:
    for mount in mounts:
        if not mount.answers:
            yield Concern(
                Level.WATCH,
                f"The daemon of {mount.mount_point} does not answer",
                "If it stays so: tieredfs umount, then mount again; what was acknowledged is recovered.",
            )
        if mount.ssd_full:
            yield Concern(
                Level.WATCH,
                f"The SSD of {mount.mount_point} is full: who writes waits for the store",
                "A larger --cache-size takes longer bursts; slow disks are shown below.",
            )
        if mount.drain_error:
            yield Concern(Level.WATCH, f"{mount.mount_point} cannot store: {mount.drain_error}", "It tries again.")


def _of_sessions(status: VolumeStatus) -> Iterator[Concern]:
    dead = [session for session in status.sessions if not session.alive]
    if dead:
        names = ", ".join(sorted({f"{session.purpose} on {session.host}" for session in dead}))
        yield Concern(
            Level.WATCH,
            f"{len(dead)} {'process has' if len(dead) == 1 else 'processes have'} no heartbeat any more: {names}",
            "What they held is let go by the next collection of garbage.",
        )
