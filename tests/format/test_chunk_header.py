"""The chunk header: its golden file, its round trip, and garbage."""

import struct
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.format.chunk import VERSION, ChunkHeader, cell_count, decode_header, encode_header
from tieredfs.limits import BLOCK_BYTES_MAX, CELL_BYTES, CHUNK_HEADER_BYTES
from tieredfs.model import BlockId, Code, CodeKind

GOLDEN = Path(__file__).parent / "golden" / "chunk-header-1.bin"
EXAMPLE = ChunkHeader(
    BlockId(0x0123456789ABCDEF),
    5,
    Code(CodeKind.REED_SOLOMON, 4, 2),
    3_000_000,
    753_664,
    0xDEADBEEF,
    bytes(range(1, 13)),
)


def test_the_golden_file_decodes_forever() -> None:
    raw = GOLDEN.read_bytes()
    assert decode_header(raw) == EXAMPLE
    assert encode_header(EXAMPLE) == raw


@st.composite
def headers(draw: st.DrawFn) -> ChunkHeader:
    k, m = draw(st.integers(1, 20)), draw(st.integers(0, 12))
    size = draw(st.integers(0, BLOCK_BYTES_MAX))
    table = draw(st.binary(min_size=4 * cell_count(size), max_size=4 * cell_count(size)))
    return ChunkHeader(
        BlockId(draw(st.integers(0, (1 << 64) - 1))),
        draw(st.integers(0, k + m - 1)),
        Code(draw(st.sampled_from(CodeKind)), k, m),
        draw(st.integers(0, 1 << 40)),
        size,
        draw(st.integers(0, (1 << 32) - 1)),
        table,
    )


@given(headers())
def test_a_header_comes_back(header: ChunkHeader) -> None:
    raw = encode_header(header)
    assert len(raw) == CHUNK_HEADER_BYTES
    assert decode_header(raw) == header


@given(st.integers(0, CHUNK_HEADER_BYTES * 8 - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    raw = bytearray(encode_header(EXAMPLE))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((CorruptError, NewerFormatError)):
        decode_header(bytes(raw))


@given(st.binary(max_size=CHUNK_HEADER_BYTES + 10))
def test_garbage_is_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_header(raw)


def altered(offset: int, form: str, value: int) -> bytes:
    """A header with one field changed and its checksum made right: a bug of ours, or malice."""
    raw = bytearray(encode_header(EXAMPLE))
    struct.pack_into(form, raw, offset, value)
    struct.pack_into("<I", raw, 12, 0)
    struct.pack_into("<I", raw, 12, google_crc32c.value(bytes(raw)))
    return bytes(raw)


def test_a_newer_version_is_told_from_garbage() -> None:
    with pytest.raises(NewerFormatError, match="version 2"):
        decode_header(altered(8, "<I", VERSION + 1))


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (24, "<H", 6),  # index beyond the code
        (26, "<B", 9),  # no such code
        (27, "<B", 0),  # k = 0
        (28, "<B", 200),  # too wide
        (40, "<Q", 10 * CELL_BYTES),  # payload and table disagree
        (52, "<I", 0),  # cell size
        (52, "<I", 2 * CELL_BYTES),
        (56, "<I", 1 << 31),  # a table larger than the header
    ],
)
def test_a_header_that_contradicts_itself_is_corrupt(offset: int, form: str, value: int) -> None:
    with pytest.raises(CorruptError):
        decode_header(altered(offset, form, value))
