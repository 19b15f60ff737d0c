"""Clairvoyant keeping against the best that any policy can do, found by trying everything."""

import random
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.core.foresight import LATE_MAX, ComingUses, Use
from tieredfs.model import InodeId

SOURCE = 1


def visit_all(uses: Sequence[Use], capacity: int) -> int:
    """What the policy fetches, in bytes; every rule that must hold is checked on the way."""
    coming = ComingUses()
    coming.replace(SOURCE, uses)
    fetched = 0
    for at, use in enumerate(uses):
        if not coming.has_copy(use.inode):
            room = capacity - coming.copied_bytes
            decision = coming.decide(use.inode, room, lambda _: True)
            for victim in decision.victims:
                assert next_use(uses, at + 1, victim) > next_use(uses, at + 1, use.inode), "it is needed sooner"
                coming.gone(victim)
            if decision.keep:
                coming.here(use.inode)
            fetched += use.size_bytes if decision.keep else use.read_bytes
        assert coming.copied_bytes <= capacity
        assert not (coming.is_all_here and coming.ahead(len(uses)))
        coming.used(SOURCE, use.inode)
    assert coming.left(SOURCE) == 0
    return fetched


def next_use(uses: Sequence[Use], start: int, inode: InodeId) -> int:
    return next((at for at in range(start, len(uses)) if uses[at].inode == inode), len(uses) + 1)


def least_fetched(uses: Sequence[Use], capacity: int) -> int:
    """By trying every way: after each visit, any subset of what was here and what was visited whole may stay."""
    sizes = {use.inode: use.size_bytes for use in uses}

    @cache
    def least(at: int, here: frozenset[InodeId]) -> int:
        if at == len(uses):
            return 0
        use = uses[at]
        if use.inode in here:
            return least(at + 1, here)
        best = use.read_bytes + least(at + 1, here)
        for count in range(len(here) + 1):
            for kept in combinations(here, count):
                if sum(sizes[inode] for inode in kept) + use.size_bytes <= capacity:
                    best = min(best, use.size_bytes + least(at + 1, frozenset({*kept, use.inode})))
        return best

    return least(0, frozenset())


def lru_fetched(uses: Sequence[Use], capacity: int) -> int:
    here: OrderedDict[InodeId, int] = OrderedDict()
    fetched = 0
    for use in uses:
        if use.inode in here:
            here.move_to_end(use.inode)
            continue
        fetched += use.size_bytes
        here[use.inode] = use.size_bytes
        while sum(here.values()) > capacity:
            here.popitem(last=False)
    return fetched


INODES = st.integers(1, 6).map(InodeId)


@settings(deadline=None)
@given(st.lists(INODES, max_size=14), st.integers(0, 5))
def test_files_of_one_size_that_are_read_whole_are_fetched_as_rarely_as_possible(
    inodes: list[InodeId], capacity: int
) -> None:
    uses = [Use(inode, 1, 1) for inode in inodes]
    assert visit_all(uses, capacity) == least_fetched(uses, capacity)


@settings(deadline=None)
@given(st.lists(INODES, max_size=14), st.dictionaries(INODES, st.integers(1, 9)), st.integers(0, 20), st.integers(1, 4))
def test_with_sizes_and_parts_the_rules_hold_and_nothing_is_better_than_the_best(
    inodes: list[InodeId], sizes: dict[InodeId, int], capacity: int, parts: int
) -> None:
    uses = [Use(inode, 12 * sizes.get(inode, 1), 12 * sizes.get(inode, 1) // parts) for inode in inodes]
    fetched = visit_all(uses, 12 * capacity)
    assert least_fetched(uses, 12 * capacity) <= fetched <= sum(use.read_bytes for use in uses) * parts


def epochs(files: int, splits: int, count: int, seed: int, sizes: Sequence[int]) -> list[Use]:
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        order = [file for file in range(files) for _ in range(splits)]
        chance.shuffle(order)
        found += [Use(InodeId(file), sizes[file], sizes[file] // splits) for file in order]
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_epochs_of_one_visit_per_file_cost_what_the_tier_cannot_hold(seed: int) -> None:
    """Whatever a policy does, no more than the tier holds is here when an epoch begins; Belady reaches that."""
    uses = epochs(32, 1, 3, seed, [8] * 32)
    assert visit_all(uses, 64) == 8 * (32 + 24 + 24) < lru_fetched(uses, 64)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_epochs_of_many_visits_per_file_are_close_to_what_the_tier_cannot_hold(seed: int, even: bool) -> None:
    chance = random.Random(seed)
    sizes = [64] * 32 if even else [8 * chance.randint(4, 12) for _ in range(32)]
    capacity = sum(sizes) // 4
    uses = epochs(32, 8, 3, seed, sizes)
    fetched = visit_all(uses, capacity)
    assert fetched <= 1.1 * (3 * sum(sizes) - 2 * capacity)
    assert fetched <= 0.6 * lru_fetched(uses, capacity)


def test_what_may_not_be_moved_stays_and_what_nobody_expects_is_not_kept() -> None:
    coming = ComingUses()
    one, two = InodeId(1), InodeId(2)
    coming.replace(SOURCE, [Use(two, 10, 10), Use(two, 10, 10), Use(one, 10, 10)])
    coming.here(one)
    assert coming.decide(two, 0, lambda inode: inode == one).victims == (one,)
    assert not coming.decide(two, 0, lambda _: False).keep
    coming.cancel(SOURCE)
    assert not coming.copies
    assert not coming.decide(two, 100, lambda _: True).keep


def test_readers_are_known_together_and_leave_alone() -> None:
    coming = ComingUses()
    shared, near, far = InodeId(1), InodeId(2), InodeId(3)
    coming.replace(1, [Use(near, 10, 10), Use(far, 10, 10), Use(near, 10, 10)])
    coming.replace(2, [Use(shared, 10, 10), Use(shared, 10, 10)])
    assert set(coming.ahead(1)) == {near, shared}
    for inode in (near, far, shared):
        coming.here(inode)
    assert coming.surplus(1, lambda _: True) == [far]
    assert coming.surplus(11, lambda inode: inode != far) in ([near, shared], [shared, near])
    coming.cancel(2)
    assert coming.copies == {near, far}
    assert not coming.is_expected(shared)


def test_nothing_is_ahead_when_all_is_here() -> None:
    coming = ComingUses()
    assert coming.is_all_here
    coming.replace(SOURCE, [Use(InodeId(inode), 10, 10) for inode in (1, 2, 1)])
    for inode, is_all in ((1, False), (3, False), (2, True)):  # 3: nobody names it
        coming.here(InodeId(inode))
        assert coming.is_all_here is is_all
    assert coming.ahead(3) == []
    coming.gone(InodeId(1))
    assert (coming.is_all_here, coming.ahead(3)) == (False, [1])


def test_visits_that_never_come_are_given_up() -> None:
    """Their rows were still in memory: nobody says so."""
    coming = ComingUses()
    skipped = InodeId(1)
    others = [Use(InodeId(10 + number), 1, 1) for number in range(LATE_MAX + 2)]
    coming.replace(SOURCE, [Use(skipped, 1, 1), *others])
    coming.here(skipped)
    for use in others[:-1]:
        coming.used(SOURCE, use.inode)
    assert coming.surplus(1, lambda _: True) == [skipped]
    assert coming.left(SOURCE) <= 2
