"""Sizes, pieces, windows, and checksums joined from checksums."""

import google_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.core.crc import join, join_cells
from tieredfs.core.layout import choose_sources, chunk_bytes, chunks_needed, encoded_bytes, pieces, windows
from tieredfs.limits import CELL_BYTES, CHUNK_ALIGNMENT_BYTES, MIB, SCRATCH_BYTES
from tieredfs.model import Code, CodeKind

RS42 = Code(CodeKind.REED_SOLOMON, 4, 2)
REPLICA3 = Code(CodeKind.REPLICA, 1, 2)


def test_chunks_are_no_larger_than_needed() -> None:
    assert chunk_bytes(RS42, 1) == CHUNK_ALIGNMENT_BYTES
    assert chunk_bytes(RS42, 64 * MIB) == 16 * MIB
    assert chunk_bytes(RS42, 64 * MIB + 1) == 16 * MIB + CHUNK_ALIGNMENT_BYTES
    assert encoded_bytes(RS42, 64 * MIB) == 96 * MIB
    assert encoded_bytes(REPLICA3, 64 * MIB) == 64 * MIB


def test_a_stored_block_can_lose_one_chunk_where_there_is_parity() -> None:
    assert chunks_needed(RS42, some_are_away=False) == 5
    assert chunks_needed(REPLICA3, some_are_away=False) == 2
    assert chunks_needed(Code(CodeKind.REPLICA, 1, 0), some_are_away=False) == 1
    assert chunks_needed(Code(CodeKind.REED_SOLOMON, 4, 0), some_are_away=False) == 4


def test_while_disks_are_away_a_stored_block_is_one_that_can_be_read() -> None:
    assert chunks_needed(RS42, some_are_away=True) == 4
    assert chunks_needed(REPLICA3, some_are_away=True) == 1
    assert chunks_needed(Code(CodeKind.REPLICA, 1, 0), some_are_away=True) == 1


@given(st.integers(1, 100), st.integers(0, 1000), st.integers(0, 1000))
def test_pieces_are_the_bytes_asked_for_in_order(chunk: int, offset: int, length: int) -> None:
    found = pieces(chunk, offset, length)
    listed = [
        (piece.index * chunk + piece.chunk_offset + at, piece.target_offset + at)
        for piece in found
        for at in range(piece.length)
    ]
    assert listed == [(offset + at, at) for at in range(length)]
    assert len({piece.index for piece in found}) == len(found)


@given(st.integers(0, 40 * CELL_BYTES), st.integers(0, 80 * CELL_BYTES), st.integers(1, 32))
def test_windows_cover_a_span_and_fit_their_room(start: int, length: int, rows: int) -> None:
    found = windows(start, start + length, rows, SCRATCH_BYTES)
    assert [at for at, _ in found[1:]] == [end for _, end in found[:-1]]
    assert sum(end - at for at, end in found) == length
    assert all(end - at > 0 and -(-(end - at) // CELL_BYTES) * CELL_BYTES * rows <= SCRATCH_BYTES for at, end in found)
    assert all(at % CELL_BYTES == 0 for at, _ in found[1:])


def test_sources_at_hand_come_first_then_data() -> None:
    present = {0, 1, 2, 3, 4, 5}
    assert choose_sources(RS42, {0}, {3, 5}, present) == [1, 2, 3, 5]
    assert choose_sources(RS42, {0, 1}, set(), present) == [2, 3, 4, 5]
    assert choose_sources(RS42, {0, 1, 2}, set(), present) is None


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_joining_is_the_checksum_of_both(first: bytes, second: bytes) -> None:
    joined = join(google_crc32c.value(first), google_crc32c.value(second), len(second))
    assert joined == google_crc32c.value(first + second)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 70))
def test_joining_cells_is_the_checksum_of_the_whole(whole: bytes, cell: int) -> None:
    cells = [google_crc32c.value(whole[at : at + cell]) for at in range(0, len(whole), cell)]
    table = b"".join(crc.to_bytes(4, "little") for crc in cells)
    assert join_cells(table, cell, len(whole)) == google_crc32c.value(whole)
