"""Who writes what, and what a load reads: pure planning, linear in what is planned.

Saving: every rank reports its tensors; tensors that are the same (same key and content, or the same piece of a sharded
one) are written by one rank, chosen so that bytes are spread evenly. Loading: a wanted box of a tensor, against the
boxes that are stored, becomes copies of runs of bytes; copies become reads, of whole checksummed pieces when they are
verified. Boxes are (offsets, shape), row-major, in elements.
"""

import bisect
import heapq
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tieredfs_client.checkpoint.layout import PIECE_BYTES

READ_BYTES_MAX: Final = 4 << 20
"""Longest single read straight into a target. Threads that take reads of one piece in the order of the file are one stream to
the disk: from cold 1.76 and 2.06 GB/s in two runs by two of them, 1.60 and 1.70 by four with 32 MiB each (one `readinto`: 2.14
and 2.22)."""

COLUMNS: Final = 64
"""Of 4096 ranks: 2 MiB of hashes."""


# ---- saving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """The tensors that one rank holds, in order. An identity is equal for the same bytes of the same tensor on several ranks,
    and there once per rank; equal ones have equal names."""

    names: Sequence[Hashable]
    identities: Sequence[Hashable]
    sizes: Sequence[int]


def assign_writers(offers: Sequence[Offer]) -> list[Sequence[int]]:
    """`offers[rank]` in the order of its tensors; the result is which of them (indexes) each rank writes.

    Every identity is written exactly once, by a rank that has it. What one rank alone has is its own; what several have
    goes, largest first, to the one of them that has least to write. O(n log ranks).

    Tensors are compared with those of their name only, one name after the other, by their hashes first: a set of 4096 is in the
    CPU's cache, one of 4096 x 1000 is not. Hashes are taken rank after rank, as identities lie in memory: to look at them name
    after name took 0.60 us a tensor, a page of memory for each, and this 0.27. Where ranks have the same names in the same
    order, in most jobs all, no step of the interpreter is spent on a tensor, but on one that several have.
    """
    starts = list(itertools.accumulate((len(offer.identities) for offer in offers), initial=0))
    shared: list[list[int]] = []
    for columns in _columns(offers):
        shared += _repeated(columns, offers, starts)
    if not shared:
        return [range(len(offer.identities)) for offer in offers]
    return _chosen(offers, starts, shared)


class _Column(NamedTuple):
    """Tensor number `at` of each of `ranks`, and the hashes of their identities."""

    ranks: Sequence[int]
    at: int
    hashes: "array[int]"


def _columns(offers: Sequence[Offer]) -> Iterator[list[_Column]]:
    """All of one name, for each name of which several ranks may have the same tensor."""
    alike = _alike(offers)
    scattered = _repeated_names(alike)
    found: dict[Hashable, list[_Column]] = {}
    for names, ranks in alike.items():
        if len(ranks) == 1 and scattered.isdisjoint(names):
            continue
        columns = _hashes([offers[rank].identities for rank in ranks])
        for at, (name, hashes) in enumerate(zip(names, columns, strict=True)):
            column = _Column(ranks, at, hashes)
            if name in scattered:
                found.setdefault(name, []).append(column)
            elif len(ranks) > 1:
                yield [column]
    yield from found.values()


def _hashes(rows: Sequence[Sequence[Hashable]]) -> Iterator["array[int]"]:
    """Column after column of rows of one length, so many of them at a time that those are in the CPU's cache."""
    width = len(rows[0])
    for start in range(0, width, COLUMNS):
        count = min(COLUMNS, width - start)
        block = array("q")
        for row in rows:
            block.fromlist(list(map(hash, row[start : start + count])))
        for at in range(count):
            yield block[at::count]


def _alike(offers: Sequence[Offer]) -> dict[tuple[Hashable, ...], list[int]]:
    """The ranks that have the same names in the same order."""
    alike: dict[tuple[Hashable, ...], list[int]] = {}
    last: Sequence[Hashable] | None = None
    ranks: list[int] = []
    for rank, offer in enumerate(offers):
        if offer.names != last:  # to compare costs half of what it costs to hash
            last = offer.names
            ranks = alike.setdefault(tuple(last), [])
        ranks.append(rank)
    return alike


def _repeated_names(rows: Iterable[Sequence[Hashable]]) -> set[Hashable]:
    """Names that are in several rows, or in one of them twice."""
    seen: set[Hashable] = set()
    repeated: set[Hashable] = set()
    for names in rows:
        own = set(names)
        if len(own) < len(names):
            repeated.update(name for name, count in Counter(names).items() if count > 1)
        repeated |= own & seen
        seen |= own
    return repeated


def _repeated(columns: Sequence[_Column], offers: Sequence[Offer], starts: Sequence[int]) -> list[list[int]]:
    """For each identity that several ranks have, the numbers of its tensors over all ranks, in order."""
    hashes = columns[0].hashes if len(columns) == 1 else [each for one in columns for each in one.hashes]
    if len(set(hashes)) == len(hashes):
        return []
    found: dict[Hashable, list[int]] = {}
    for column in columns:
        for rank in column.ranks:
            found.setdefault(offers[rank].identities[column.at], []).append(starts[rank] + column.at)
    return [sorted(same) for same in found.values() if len(same) > 1]


def _chosen(offers: Sequence[Offer], starts: Sequence[int], shared: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """`shared`: see `_repeated`, of all names."""
    writes = bytearray(b"\1") * starts[-1]
    loads = [sum(offer.sizes) for offer in offers]
    groups: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = {}
    for numbers in shared:
        ranks = tuple(bisect.bisect_right(starts, number) - 1 for number in numbers)
        size = offers[ranks[0]].sizes[numbers[0] - starts[ranks[0]]]
        groups.setdefault(ranks, []).append((size, numbers))
        for rank, number in zip(ranks, numbers, strict=True):
            loads[rank] -= size
            writes[number] = 0
    for ranks, members in groups.items():
        heap = [(loads[rank], rank, position) for position, rank in enumerate(ranks)]
        heapq.heapify(heap)
        for size, numbers in sorted(members, key=lambda one: -one[0]):
            load, rank, position = heap[0]
            writes[numbers[position]] = 1
            loads[rank] = load + size
            heapq.heapreplace(heap, (loads[rank], rank, position))
    return [_indexes(writes[start:end]) for start, end in itertools.pairwise(starts)]


def _indexes(writes: bytearray) -> Sequence[int]:
    every = range(len(writes))
    return every if writes.count(1) == len(writes) else list(itertools.compress(every, writes))


# ---- loading: boxes to copies ----------------------------------------------------------------------------------------

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and shape."""


@dataclass(frozen=True, slots=True)
class Copy:
    """`length` bytes at `source` of a stored piece go to `target` of the memory that is filled."""

    source: int
    target: int
    length: int


def intersection(left: Box, right: Box) -> Box | None:
    """What two boxes have in common; None: nothing."""
    offsets, shape = [], []
    for start, length, other_start, other_length in zip(*left, *right, strict=True):
        low = max(start, other_start)
        high = min(start + length, other_start + other_length)
        if high <= low:
            return None
        offsets.append(low)
        shape.append(high - low)
    return tuple(offsets), tuple(shape)


def covered(boxes: Sequence[Box]) -> int:
    """Elements in the union of boxes. Linear for boxes that do not overlap (a grid of pieces), after sorting."""
    if len(boxes) <= 1 or not boxes[0][0]:
        return volume(boxes[0][1]) if boxes else 0
    waiting = sorted((box for box in boxes if box[1][0]), key=lambda box: -box[0][0])
    cuts = sorted({edge for start, shape in waiting for edge in (start[0], start[0] + shape[0])})
    active: list[Box] = []
    total = 0
    for low, high in itertools.pairwise(cuts):
        active = [box for box in active if box[0][0] + box[1][0] > low]
        while waiting and waiting[-1][0][0] == low:
            active.append(waiting.pop())
        total += (high - low) * covered([(start[1:], shape[1:]) for start, shape in active])
    return total


def flaw(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Why different boxes do not make up a tensor of that shape, each element once, for a message. None: they do."""
    if _is_stack(shape, boxes):
        return None
    expected, there = volume(shape), covered(boxes)
    if there != expected:
        return f"the shards of all ranks have {there} of the {expected} elements of shape {tuple(shape)}"
    if sum(volume(box[1]) for box in boxes) != expected:
        return "shards overlap, " + " and ".join(f"{box[1]} at {box[0]}" for box in _overlapping(boxes))
    return None


def _is_stack(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether they are slices along the first dimension, each beginning where the one before it ends: nearly all are, and a box
    takes 0.3 us then."""
    if not shape or 0 in shape:
        return False
    rest, zeros = tuple(shape[1:]), (0,) * (len(shape) - 1)
    at = 0
    for offsets, lengths in sorted(boxes):
        if offsets[0] != at or offsets[1:] != zeros or lengths[1:] != rest:
            return False
        at += lengths[0]
    return at == shape[0]


def _overlapping(boxes: Sequence[Box]) -> tuple[Box, Box]:
    """Two of boxes of which some overlap: the first that does with those before it, and one of these."""
    last = bisect.bisect_left(range(len(boxes)), 1, key=lambda end: _lost(boxes[: end + 1]) > 0)
    return next((box, boxes[last]) for box in boxes[:last] if intersection(box, boxes[last]) is not None)


def _lost(boxes: Sequence[Box]) -> int:
    return sum(volume(box[1]) for box in boxes) - covered(boxes)


def copies(stored: Box, wanted: Box, item_bytes: int) -> Iterator[Copy]:
    """What of `stored` goes where in `wanted`, in order of the source; runs as long as both sides allow."""
    common = intersection(stored, wanted)
    if common is None:
        return
    source_strides, target_strides = _strides(stored[1], item_bytes), _strides(wanted[1], item_bytes)
    source = sum((at - start) * step for at, start, step in zip(common[0], stored[0], source_strides, strict=True))
    target = sum((at - start) * step for at, start, step in zip(common[0], wanted[0], target_strides, strict=True))
    depth, run = len(common[1]), item_bytes
    while depth > 0:  # the innermost dimensions in which one run goes on without a gap on either side
        depth -= 1
        run *= common[1][depth]
        if not common[1][depth] == stored[1][depth] == wanted[1][depth]:
            break
    outer = common[1][:depth]
    yield from _runs(outer, source_strides, target_strides, Copy(source, target, run))


def _runs(
    outer: tuple[int, ...], source_strides: Sequence[int], target_strides: Sequence[int], first: Copy
) -> Iterator[Copy]:
    source, target = first.source, first.target
    counter = [0] * len(outer)
    while True:
        yield Copy(source, target, first.length)
        for axis in reversed(range(len(outer))):
            counter[axis] += 1
            source += source_strides[axis]
            target += target_strides[axis]
            if counter[axis] < outer[axis]:
                break
            source -= source_strides[axis] * outer[axis]
            target -= target_strides[axis] * outer[axis]
            counter[axis] = 0
        else:
            return


def _strides(shape: Sequence[int], item_bytes: int) -> list[int]:
    strides = [item_bytes] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def volume(shape: Sequence[int]) -> int:
    """Elements."""
    return math.prod(shape)


# ---- loading: copies to reads ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """`length` bytes at `offset` of a stored piece of a tensor, which begins at a checksummed piece when it is verified.

    `target` not None: straight into the target's memory there. None: into scratch (at most `PIECE_BYTES`), and then
    `scattered` (sources count from `offset`).
    """

    offset: int
    length: int
    target: int | None
    scattered: tuple[Copy, ...] = ()


def reads(runs: Iterator[Copy], size_bytes: int, *, verified: bool) -> Iterator[Read]:
    """The reads that carry out `runs` (in order of the source) of a stored piece of `size_bytes`."""
    pending: list[Copy] = []  # what goes through scratch, all of one checksummed piece
    for run in runs:
        at, end = run.source, run.source + run.length
        while at < end:
            piece_start = at - at % PIECE_BYTES
            piece_end = min(piece_start + PIECE_BYTES, size_bytes)
            whole = at == piece_start and end >= piece_end
            if pending and pending[0].source // PIECE_BYTES != at // PIECE_BYTES:
                yield _through_scratch(pending, size_bytes, verified=verified)
                pending = []
            if whole or (not verified and end - at >= _DIRECT_BYTES_MIN):
                stop = _last_whole(at, end, size_bytes) if whole else min(piece_end, end)
                yield Read(at, stop - at, run.target + at - run.source)
            else:
                stop = min(piece_end, end)
                pending.append(Copy(at, run.target + at - run.source, stop - at))
            at = stop
    if pending:
        yield _through_scratch(pending, size_bytes, verified=verified)


_DIRECT_BYTES_MIN: Final = 256 << 10
"""Unverified runs shorter than this are read together: a read of 256 KiB costs about what its copy would."""


def _last_whole(at: int, end: int, size_bytes: int) -> int:
    """The end of the longest read from `at` that is made of whole pieces."""
    stop = min(end, at + READ_BYTES_MAX)
    return stop if stop == size_bytes else stop - stop % PIECE_BYTES


def _through_scratch(pending: Sequence[Copy], size_bytes: int, *, verified: bool) -> Read:
    start = pending[0].source
    end = max(one.source + one.length for one in pending)
    if verified:
        start -= start % PIECE_BYTES
        end = min(start + PIECE_BYTES, size_bytes)
    scattered = tuple(Copy(one.source - start, one.target, one.length) for one in pending)
    return Read(start, end - start, None, scattered)
