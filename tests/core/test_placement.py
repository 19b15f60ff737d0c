"""Placement: distinct disks, spread over domains, few copysets, and fuller disks get less."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.core.placement import DiskOption, copysets, place, stand_in
from tieredfs.errors import UnavailableError
from tieredfs.model import DiskId

GIB = 1 << 30


def disks(count: int, domains: int, free_bytes: int = 100 * GIB) -> list[DiskOption]:
    return [DiskOption(DiskId(at + 1), f"rack{at % domains}", free_bytes, True) for at in range(count)]


@st.composite
def options(draw: st.DrawFn) -> list[DiskOption]:
    domains = draw(st.integers(1, 8))
    count = draw(st.integers(1, 24))
    return [
        DiskOption(
            DiskId(at + 1), f"rack{draw(st.integers(0, domains - 1))}", draw(st.integers(0, GIB)), draw(st.booleans())
        )
        for at in range(count)
    ]


@settings(max_examples=150, deadline=None)
@given(options(), st.integers(1, 8), st.integers(0, 1 << 32))
def test_chunks_are_on_distinct_usable_disks(choice: list[DiskOption], width: int, seed: int) -> None:
    usable = {option.disk for option in choice if option.usable}
    draw = random.Random(seed).random
    if len(usable) < width:
        with pytest.raises(UnavailableError):
            place(choice, width, draw)
        return
    chosen = place(choice, width, draw)
    assert len(set(chosen)) == len(chosen) == width
    assert set(chosen) <= usable


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 8), st.integers(0, 1 << 32))
def test_domains_are_used_evenly(domains: int, per_domain: int, width: int, seed: int) -> None:
    choice = disks(domains * per_domain, domains)
    if len(choice) < width:
        return
    domain_of = {option.disk: option.domain for option in choice}
    used = Counter(domain_of[disk] for disk in place(choice, width, random.Random(seed).random))
    assert max(used.values()) == -(-width // domains)
    assert len(used) == min(width, domains)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9))
def test_copysets_are_few_and_reach_every_disk(count: int, domains: int, width: int) -> None:
    if count < width:
        return
    choice = tuple((option.disk, option.domain) for option in disks(count, domains))
    groups = copysets(choice, width)
    assert len(groups) <= 4 * -(-count // width)
    assert {disk for group in groups for disk in group} == {disk for disk, _ in choice}
    assert all(len(set(group)) == width for group in groups)


def test_placements_stay_within_the_copysets() -> None:
    choice = disks(60, 12)
    draw = random.Random(3).random
    seen = {tuple(sorted(place(choice, 6, draw))) for _ in range(3000)}
    assert seen <= set(copysets(tuple((option.disk, option.domain) for option in choice), 6))
    assert len(seen) <= 40, "of 50 million combinations of six disks"


def test_disks_of_two_sizes_fill_together() -> None:
    total = {DiskId(at + 1): (40 if at < 6 else 120) * GIB for at in range(12)}
    free = dict(total)
    draw = random.Random(5).random
    while sum(free.values()) > 0.4 * sum(total.values()):
        choice = [DiskOption(disk, f"rack{disk % 6}", space, space > GIB) for disk, space in free.items()]
        for disk in place(choice, 4, draw):
            free[disk] -= GIB // 4
    fullest = max(1 - free[disk] / total[disk] for disk in total)
    assert fullest <= 1.3 * 0.6


def test_equal_disks_fill_alike() -> None:
    draw = random.Random(5).random
    used = Counter(disk for _ in range(2000) for disk in place(disks(12, 6), 4, draw))
    assert len(used) == 12
    assert max(used.values()) <= 1.5 * min(used.values())


def test_the_same_random_numbers_give_the_same_placement() -> None:
    choice = disks(20, 5)
    assert place(choice, 6, random.Random(1).random) == place(choice, 6, random.Random(1).random)


def test_every_disk_gets_every_kind_of_chunk() -> None:
    draw = random.Random(1).random
    firsts = Counter(place(disks(6, 6), 6, draw)[0] for _ in range(600))
    assert len(firsts) == 6
    assert min(firsts.values()) > 50


def test_one_directory_takes_all_chunks_of_a_volume_made_with_one() -> None:
    assert place(disks(1, 1), 3, random.Random(1).random, may_share=True) == [1, 1, 1]
    assert place(disks(1, 1), 1, random.Random(1).random) == [1]
    with pytest.raises(UnavailableError, match="3 disks are needed"):
        place(disks(1, 1), 3, random.Random(1).random)


def test_sharing_disks_take_chunks_evenly() -> None:
    used = Counter(place(disks(4, 2), 6, random.Random(1).random, may_share=True))
    assert sorted(used.values()) == [1, 1, 2, 2]


def test_a_disk_out_of_service_is_stood_in_for_from_its_domain() -> None:
    choice = disks(12, 6)
    down = DiskOption(DiskId(1), "rack0", 0, False)
    choice[0] = down
    draw = random.Random(1).random
    for _ in range(200):
        chosen = place(choice, 6, draw)
        assert len({(disk - 1) % 6 for disk in chosen}) == 6
        assert 1 not in chosen


def test_a_stand_in_is_of_the_domain_least_used() -> None:
    choice = disks(6, 3)
    assert stand_in(choice, [DiskId(1), DiskId(2)], [], random.Random(1).random) in (3, 6)
    assert stand_in(choice, [DiskId(1), DiskId(2)], [DiskId(3), DiskId(6)], random.Random(1).random) in (4, 5)
    assert stand_in(choice, [option.disk for option in choice], [], random.Random(1).random) is None
