"""Plans against brute force, and their cost by count."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tieredfs_client.checkpoint import plan
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.checkpoint.plan import Copy, Offer, assign_writers, copies, reads


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], plan.Box, plan.Box]:
    whole = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))

    def box() -> plan.Box:
        ranges = [sorted((draw(st.integers(0, length)), draw(st.integers(0, length)))) for length in whole]
        return tuple(low for low, _ in ranges), tuple(high - low for low, high in ranges)

    return whole, box(), box()


def box_of(depth: int) -> st.SearchStrategy[plan.Box]:
    axes = st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 4))] * depth)
    return axes.map(lambda pairs: (tuple(at for at, _ in pairs), tuple(length for _, length in pairs)))


def cells(whole: Sequence[int], box: plan.Box) -> list[int]:
    """The numbers of a box's elements in the whole tensor, in the order of the box."""
    found = []
    for index in itertools.product(*(range(start, start + length) for start, length in zip(*box, strict=True))):
        number = 0
        for at, length in zip(index, whole, strict=True):
            number = number * length + at
        found.append(number)
    return found


@given(boxes(), st.sampled_from([1, 2, 8]))
def test_copies_bring_every_common_element_to_its_place(
    case: tuple[tuple[int, ...], plan.Box, plan.Box], item: int
) -> None:
    whole, stored, wanted = case
    source, target = cells(whole, stored), cells(whole, wanted)
    got: list[int | None] = [None] * len(target)
    last = -1
    for run in copies(stored, wanted, item):
        assert run.source > last, "in the order of the source"
        last = run.source + run.length - 1
        for step in range(0, run.length, item):
            got[(run.target + step) // item] = source[(run.source + step) // item]
    common = set(source) & set(target)
    assert got == [number if number in common else None for number in target]


@given(st.integers(1, 3).flatmap(lambda depth: st.lists(box_of(depth), max_size=6)))
def test_what_boxes_cover(found: list[plan.Box]) -> None:
    elements: set[tuple[int, ...]] = set()
    for start, shape in found:
        elements |= set(itertools.product(*(range(at, at + length) for at, length in zip(start, shape, strict=True))))
    assert plan.covered(found) == len(elements)


@given(st.integers(0, 6), st.integers(0, 2), st.lists(st.tuples(*[st.integers(0, 6)] * 2), max_size=5), st.booleans())
def test_slices_make_up_a_tensor_or_it_is_told(
    rows: int, columns: int, cuts: list[tuple[int, int]], mend: bool
) -> None:
    """Slices along the first dimension, in any order; where mended, they follow one another."""
    spans = {(min(*pair, rows), min(max(pair), rows)) for pair in cuts}
    edges = sorted({0, rows, *(at for at, _ in spans)})
    spans = set(itertools.pairwise(edges)) if mend else spans
    boxes: list[plan.Box] = [((low, 0), (high - low, columns)) for low, high in spans]
    elements = [(row, column) for low, high in spans for row in range(low, high) for column in range(columns)]
    right = sorted(elements) == list(itertools.product(range(rows), range(columns)))
    assert (plan.flaw((rows, columns), boxes) is None) == right


def test_rows_are_one_copy_and_columns_one_each() -> None:
    assert len(list(copies(((0, 0), (64, 32)), ((16, 0), (16, 32)), 4))) == 1
    assert len(list(copies(((0, 0), (64, 32)), ((0, 8), (64, 8)), 4))) == 64


@st.composite
def runs_in(draw: st.DrawFn) -> tuple[int, list[Copy]]:
    size = draw(st.integers(1, 12 * PIECE_BYTES))
    cuts = sorted(set(draw(st.lists(st.integers(0, size), max_size=12))))
    found, target = [], 0
    for start, end in itertools.pairwise(cuts):
        if draw(st.booleans()):
            found.append(Copy(start, target, end - start))
            target += end - start
    return size, found


@given(runs_in(), st.booleans())
def test_reads_carry_out_the_copies(case: tuple[int, list[Copy]], verified: bool) -> None:
    size, runs = case
    carried: list[tuple[int, int, int]] = []
    for read in reads(iter(runs), size, verified=verified):
        assert 0 <= read.offset < read.offset + read.length <= size
        if verified:
            assert read.offset % PIECE_BYTES == 0
            assert read.length % PIECE_BYTES == 0 or read.offset + read.length == size
        if read.target is None:
            assert read.length <= PIECE_BYTES
            assert all(0 <= copy.source <= read.length - copy.length for copy in read.scattered)
            carried += [(read.offset + copy.source, copy.target, copy.length) for copy in read.scattered]
        else:
            assert read.length <= plan.READ_BYTES_MAX
            carried.append((read.offset, read.target, read.length))
    assert joined(carried) == joined([(run.source, run.target, run.length) for run in runs])


def joined(pieces: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours on both sides become one."""
    merged: list[tuple[int, int, int]] = []
    for source, target, length in sorted(pieces):
        if merged and merged[-1][0] + merged[-1][2] == source and merged[-1][1] + merged[-1][2] == target:
            merged[-1] = (merged[-1][0], merged[-1][1], merged[-1][2] + length)
        else:
            merged.append((source, target, length))
    return merged


def test_an_unverified_slice_reads_little_more_than_itself() -> None:
    runs = [Copy(1000, 0, 500), Copy(3000, 500, 500)]
    (read,) = reads(iter(runs), 100 * PIECE_BYTES, verified=False)
    assert (read.offset, read.length) == (1000, 2500)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50)), max_size=12), min_size=1, max_size=6),
    st.integers(1, 10),
)
def test_every_identity_is_written_once_by_one_that_has_it(ranks: list[list[tuple[int, int]]], names: int) -> None:
    """However identities share names, and in whatever order ranks have them."""
    sizes = {identity: size for own in ranks for identity, size in own}
    had = [list({identity: 0 for identity, _ in own}) for own in ranks]
    offers = [Offer([each % names for each in own], own, [sizes[each] for each in own]) for own in had]
    written = [had[rank][index] for rank, own in enumerate(assign_writers(offers)) for index in own]
    assert sorted(written) == sorted({identity for own in had for identity in own})


def test_ranks_with_other_names_around_it_share_a_tensor() -> None:
    """As the stages of a pipeline share an embedding: its writer is the one with less to write."""
    first = Offer(["embedding", "layer.0", "layer.1"], [b"tied", b"a", b"b"], [100, 10, 10])
    last = Offer(["layer.2", "embedding"], [b"c", b"tied"], [10, 100])
    assert [list(own) for own in assign_writers([first, last])] == [[1, 2], [0, 1]]


def test_equal_hashes_are_not_equal_tensors() -> None:
    """Python's own -1 and -2 have one hash."""
    first, second = Offer(["w", "b"], [-1, 5], [8, 8]), Offer(["w", "b"], [-2, 5], [8, 8])
    chosen = [list(own) for own in assign_writers([first, second])]
    assert [0 in own for own in chosen] == [True, True]
    assert sorted(1 in own for own in chosen) == [False, True]


def test_a_tensor_is_found_again_wherever_its_name_is_among_many() -> None:
    """More names than are looked at together."""
    width = 2 * plan.COLUMNS + 3
    shared = {0, plan.COLUMNS - 1, plan.COLUMNS, width - 1}
    ranks = [[(at, 0 if at in shared else rank) for at in range(width)] for rank in range(3)]
    chosen = assign_writers([Offer(range(width), own, [8] * width) for own in ranks])
    written = [ranks[rank][index] for rank, own in enumerate(chosen) for index in own]
    assert sorted(written) == sorted({identity for own in ranks for identity in own})


def test_what_all_have_is_spread_evenly() -> None:
    own = Offer(range(64), range(64), [100 + number for number in range(64)])
    chosen = assign_writers([own] * 8)
    totals = [sum(own.sizes[index] for index in indexes) for indexes in chosen]
    assert max(totals) - min(totals) <= 163


class Counted:
    """An identity that counts how often it is hashed or compared."""

    calls = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        Counted.calls += 1
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        Counted.calls += 1
        return isinstance(other, Counted) and self.number == other.number


def planning_calls(ranks: int, shared: int, own: int) -> float:
    """Operations on identities per tensor offered."""
    offers = [
        Offer(
            range(shared + own),
            [Counted(number) for number in (*range(shared), *range(shared + rank * own, shared + (rank + 1) * own))],
            [8] * (shared + own),
        )
        for rank in range(ranks)
    ]
    Counted.calls = 0
    chosen = assign_writers(offers)
    assert sum(map(len, chosen)) == shared + ranks * own
    return Counted.calls / (ranks * (shared + own))


def test_planning_is_linear() -> None:
    assert planning_calls(4096, 6, 4) <= 1.5 * planning_calls(64, 6, 4)
