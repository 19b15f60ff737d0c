"""The plan of a drain: blocks are full, pieces cover the data once, extents put the files together again."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tieredfs.core.drain_plan import extents_of, plan_blocks, widen_segments
from tieredfs.limits import CHUNK_ALIGNMENT_BYTES
from tieredfs.model import BlockId

Segments = list[tuple[int, int]]


@st.composite
def segments(draw: st.DrawFn, unit: int = 1) -> Segments:
    """Runs of data in order, with holes between them (or not)."""
    found: Segments = []
    position = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 200)), max_size=6)):
        position += gap * unit
        found.append((position, length * unit))
        position += length * unit
    return found


def content_of(number: int, offset: int) -> tuple[int, int]:
    """What stands for the byte of a file at an offset."""
    return number, offset


@given(st.lists(segments(), max_size=5), st.integers(1, 300))
def test_the_plan_holds_every_byte_once_and_the_extents_find_it(files: list[Segments], block_bytes: int) -> None:
    plans = plan_blocks(files, block_bytes)
    assert all(plan.size_bytes == block_bytes for plan in plans[:-1])
    assert all(0 < plan.size_bytes <= block_bytes for plan in plans)
    stored: list[list[tuple[int, int]]] = []
    for plan in plans:
        block: list[tuple[int, int]] = []
        for piece in plan.pieces:
            assert piece.block_offset == len(block), "pieces follow one another without a gap"
            block += [content_of(piece.file, piece.offset + at) for at in range(piece.length)]
        assert len(block) == plan.size_bytes
        stored.append(block)
    extents = extents_of(plans, [BlockId(number) for number in range(len(plans))], len(files))
    for number, runs in enumerate(files):
        wanted = [offset for start, length in runs for offset in range(start, start + length)]
        found: dict[int, tuple[int, int]] = {}
        for extent in extents[number]:
            assert extent.offset not in found, "extents do not overlap"
            block = stored[int(extent.block)]
            for at in range(extent.length):
                found[extent.offset + at] = block[extent.block_offset + at]
        assert found == {offset: content_of(number, offset) for offset in wanted}
        assert list(extents[number]) == sorted(extents[number])


@given(segments(), st.integers(1, 300))
def test_a_large_file_fills_its_blocks(runs: Segments, block_bytes: int) -> None:
    total = sum(length for _, length in runs)
    assert len(plan_blocks([runs], block_bytes)) == -(-total // block_bytes)


def test_small_files_share_a_block() -> None:
    (plan,) = plan_blocks([[(0, 10)], [], [(0, 20)], [(5, 1)]], 64)
    assert [(piece.file, piece.block_offset, piece.length) for piece in plan.pieces] == [
        (0, 0, 10),
        (2, 10, 20),
        (3, 30, 1),
    ]


@given(segments(unit=1000), st.integers(0, 300_000))
def test_widened_segments_cover_the_data_below_the_size_and_leave_holes_of_a_unit_or_more(
    runs: Segments, size_bytes: int
) -> None:
    widened = widen_segments(runs, size_bytes)
    covered = [(offset, offset + length) for offset, length in widened]
    for start, length in runs:
        end = min(start + length, size_bytes)
        assert start >= end or any(low <= start and end <= high for low, high in covered)
    for (_, before), (after, _) in pairwise(covered):
        assert after - before >= CHUNK_ALIGNMENT_BYTES
    assert all(low < high <= size_bytes for low, high in covered)
