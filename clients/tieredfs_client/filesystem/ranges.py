"""Which ranges of a file to read so that many small wishes become few reads. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GAP_BYTES_DEFAULT: Final = 64 << 10
"""Two ranges this far apart are read together: reading 64 KiB costs about what a second request would."""
READ_BYTES_MAX: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Wish:
    """Bytes `start` to `end` of a file, for answer `index`."""

    index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RangeRead:
    """One read, and the wishes that it serves."""

    start: int
    end: int
    wishes: tuple[Wish, ...]


def resolved(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """A range as Python's slices have it, negative positions from the end, within a file of `size` bytes."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def coalesced(wishes: Sequence[Wish], gap_bytes: int = GAP_BYTES_DEFAULT) -> list[RangeRead]:
    """The reads that serve `wishes` of one file, in order of the file; overlapping wishes share their bytes."""
    planned: list[RangeRead] = []
    group: list[Wish] = []
    end = 0
    for wish in sorted(wishes, key=lambda one: (one.start, one.end)):
        if group and (wish.start > end + gap_bytes or max(end, wish.end) - group[0].start > READ_BYTES_MAX):
            planned.append(RangeRead(group[0].start, end, tuple(group)))
            group, end = [], 0
        group.append(wish)
        end = max(end, wish.end)
    if group:
        planned.append(RangeRead(group[0].start, end, tuple(group)))
    return planned
