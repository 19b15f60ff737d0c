"""Runs of bytes of a file: brought together, and cut. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from tieredfs.limits import CHUNK_ALIGNMENT_BYTES

_WIDER: Final = 4


class Span(NamedTuple):
    """`length` bytes at `offset`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def few(runs: Iterable[tuple[int, int]], count_max: int) -> list[Span]:
    """The runs of data (offset, length), in order, with what lies between neighbours added to them where there are more than
    `count_max`: the smallest holes first, by and by.
    """
    found = [Span(offset, length) for offset, length in runs]
    gap = CHUNK_ALIGNMENT_BYTES
    while len(found) > count_max:
        found = _joined(found, gap)
        gap *= _WIDER
    return found


def _joined(spans: Sequence[Span], gap: int) -> list[Span]:
    """Those that are no further apart than `gap` become one."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.offset - joined[-1].end <= gap:
            joined[-1] = Span(joined[-1].offset, span.end - joined[-1].offset)
        else:
            joined.append(span)
    return joined


def cut(spans: Iterable[Span], length_max: int) -> Iterator[Span]:
    """The same bytes in pieces of at most `length_max`."""
    for span in spans:
        for offset in range(span.offset, span.end, length_max):
            yield Span(offset, min(length_max, span.end - offset))
