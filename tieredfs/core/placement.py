"""Which disks take the chunks of a block: copysets, weighted by free space. Pure; randomness is passed in.

Were every block spread over disks of its own choosing, any m + 1 disks of a large volume that fail together would hit
some block. With copysets (Cidon et al., "Copysets", USENIX ATC 2013) disks are grouped beforehand: `_PERMUTATIONS`
shuffles of all disks are cut into groups of the code's width, and a block lives within one group. Data is lost only
when m + 1 disks of one group fail, and there are few groups; each disk still has about `_PERMUTATIONS` * (width - 1)
partners, so that a rebuild reads from many. A group has one disk of each failure domain where there are enough
domains, else its disks are spread over the domains as evenly as they go.

The shuffles depend on the disks' ids alone (a hash, not the random numbers), so every process sees the same groups; a
new disk changes some of them. A disk that is full, away or not taking chunks stays in its groups and is stood in for.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeVar

from tieredfs.errors import UnavailableError
from tieredfs.model import DiskId

_PERMUTATIONS: Final = 4

T = TypeVar("T")

Draw = Callable[[], float]
"""A random number in [0, 1) per call."""


@dataclass(frozen=True, slots=True)
class DiskOption:
    """A disk as placement sees it. `usable`: it may take a chunk now; `away`: it may not, and not for want of room."""

    disk: DiskId
    domain: str
    free_bytes: int
    usable: bool
    away: bool = False


def place(options: Sequence[DiskOption], width: int, draw: Draw, *, may_share: bool = False) -> list[DiskId]:
    """A disk for each of `width` chunks, all distinct, on distinct domains where there are enough.

    With fewer usable disks than chunks: with `may_share` disks take several chunks each, as evenly as they go (a volume
    that was made with so few); otherwise UnavailableError.
    """
    usable = [option for option in options if option.usable]
    if len(usable) < width:
        if not (may_share and usable):
            raise UnavailableError(f"{width} disks are needed for a block's chunks, {len(usable)} can take one now")
        return _shared(usable, width, draw)
    by_id = {option.disk: option for option in options}
    groups = copysets(tuple(sorted((option.disk, option.domain) for option in options)), width)
    group = _draw_weighted(groups, [_group_weight(group, by_id) for group in groups], draw)
    chosen = [disk for disk in group if by_id[disk].usable]
    while len(chosen) < width:
        substitute = stand_in(options, chosen, (), draw)
        assert substitute is not None, "there are at least `width` usable disks"
        chosen.append(substitute)
    return _shuffled(chosen, draw)


def stand_in(
    options: Sequence[DiskOption], taken: Collection[DiskId], tried: Collection[DiskId], draw: Draw
) -> DiskId | None:
    """One more disk for a block with chunks on `taken`: not one of those nor of `tried`, of the domain least used.

    None: there is no such disk.
    """
    domain_of = {option.disk: option.domain for option in options}
    used = Counter(domain_of[disk] for disk in taken if disk in domain_of)
    fit = [option for option in options if option.usable and option.disk not in taken and option.disk not in tried]
    if not fit:
        return None
    least = min(used[option.domain] for option in fit)
    best = [option for option in fit if used[option.domain] == least]
    return _draw_weighted(best, [option.free_bytes for option in best], draw).disk


@lru_cache(maxsize=16)
def copysets(disks: tuple[tuple[DiskId, str], ...], width: int) -> tuple[tuple[DiskId, ...], ...]:
    """The groups: at most `_PERMUTATIONS` * ceil(disks / width); every disk is in one of each shuffle's at least."""
    assert len(disks) >= width > 0
    found: dict[tuple[DiskId, ...], None] = {}
    for shuffle in range(_PERMUTATIONS):
        for group in _cut(disks, width, shuffle):
            found[tuple(sorted(group))] = None
    return tuple(found)


def _cut(disks: Iterable[tuple[DiskId, str]], width: int, shuffle: int) -> Iterable[list[DiskId]]:
    """Cut one shuffle into groups: always from the domains least used in the group, and of those the fullest."""
    order = sorted(disks, key=lambda item: _hash(shuffle, item[0]))
    waiting: dict[str, list[DiskId]] = {}
    for disk, domain in order:
        waiting.setdefault(domain, []).append(disk)
    left = len(order)
    while left:
        group: list[DiskId] = []
        used: Counter[str] = Counter()
        while left and len(group) < width:
            domain = min(
                (name for name in waiting if waiting[name]), key=lambda name: (used[name], -len(waiting[name]))
            )
            group.append(waiting[domain].pop())
            used[domain] += 1
            left -= 1
        yield _completed(group, used, order, width)


def _completed(
    group: list[DiskId], used: Counter[str], order: Sequence[tuple[DiskId, str]], width: int
) -> list[DiskId]:
    """The last group of a shuffle may be short: disks that are already in another group fill it up."""
    while len(group) < width:
        disk, domain = min((item for item in order if item[0] not in group), key=lambda item: used[item[1]])
        group.append(disk)
        used[domain] += 1
    return group


def _hash(shuffle: int, disk: DiskId) -> bytes:
    return blake2b(disk.to_bytes(8, "little") + shuffle.to_bytes(8, "little"), digest_size=8).digest()


def _group_weight(group: Sequence[DiskId], by_id: dict[DiskId, DiskOption]) -> int:
    """The square of what its least free disk has: a group is spared while one of its disks is nearly full.

    Twelve disks, half of them three times as large, filled to 60 %: the fullest disk is then 1.2 times as full as the
    mean; 1.5 times without the square, 1.6 times with the sum of the group.
    """
    return min((by_id[disk].free_bytes for disk in group if by_id[disk].usable), default=0) ** 2


def _shared(usable: Sequence[DiskOption], width: int, draw: Draw) -> list[DiskId]:
    order = _shuffled([option.disk for option in usable], draw)
    return [order[at % len(order)] for at in range(width)]


def _shuffled(disks: Sequence[DiskId], draw: Draw) -> list[DiskId]:
    """So that parity, which is rarely read, is not always on the same disks."""
    return [disk for _, disk in sorted((draw(), disk) for disk in disks)]


def _draw_weighted(items: Sequence[T], weights: Sequence[int], draw: Draw) -> T:
    """An item, as likely as its weight; all weights zero: all alike."""
    total = sum(weights)
    if total <= 0:
        return items[int(draw() * len(items))]
    point = draw() * total
    for item, weight in zip(items, weights, strict=True):
        point -= weight
        if point < 0:
            return item
    return items[max(range(len(items)), key=lambda at: weights[at])]
