"""Runs of bytes: nothing is lost when they are brought together or cut, and what is brought together is what lies nearest."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tieredfs.core.spans import Span, cut, few

RUNS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=12)
"""(hole before it, length), in units of 4 KiB."""


def placed(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], 0
    for hole, length in runs:
        found.append(((at + hole) * 4096, length * 4096))
        at += hole + length
    return found


def covered(spans: list[Span]) -> set[int]:
    return {page for span in spans for page in range(span.offset // 4096, span.end // 4096)}


@given(runs=RUNS, count_max=st.integers(1, 12))
def test_few_covers_all_in_order_and_no_more_than_it_must(runs: list[tuple[int, int]], count_max: int) -> None:
    before = placed(runs)
    after = few(before, count_max)
    assert len(after) <= count_max
    assert covered(after) >= covered([Span(*run) for run in before])
    assert all(one.end < other.offset for one, other in pairwise(after))
    if len(before) <= count_max:
        assert after == before


def test_the_smallest_holes_go_first() -> None:
    runs = [(0, 10), (10 + 4096, 10), (1 << 30, 10)]
    assert few(runs, 2) == [(0, 4096 + 20), (1 << 30, 10)]


@given(runs=RUNS, length_max=st.integers(1, 40))
def test_cut_is_the_same_bytes(runs: list[tuple[int, int]], length_max: int) -> None:
    before = [Span(*run) for run in placed(runs)]
    after = list(cut(before, length_max * 4096))
    assert covered(after) == covered(before)
    assert sum(span.length for span in after) == sum(span.length for span in before)
    assert all(span.length <= length_max * 4096 for span in after)
