"""The header of a content in a segment: its golden file, its round trip, and garbage."""

from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.format.segment import HEADER_BYTES, PackedHeader, decode_header, encode_header, record_bytes
from tieredfs.model import InodeId

GOLDEN = Path(__file__).parent / "golden" / "segment-header-1.bin"
EXAMPLE = PackedHeader(InodeId(0x0123456789ABCDEF), 6, 4097, 0xDEADBEEF)
U64 = st.integers(0, (1 << 64) - 1)


def test_the_golden_file_decodes_forever() -> None:
    raw = GOLDEN.read_bytes()
    assert decode_header(raw) == EXAMPLE
    assert encode_header(EXAMPLE) == raw


@given(U64, U64, U64, st.integers(0, (1 << 32) - 1))
def test_a_header_comes_back(inode: int, version: int, size_bytes: int, crc: int) -> None:
    header = PackedHeader(InodeId(inode), version, size_bytes, crc)
    raw = encode_header(header)
    assert len(raw) == HEADER_BYTES
    assert decode_header(raw) == header


@given(st.integers(0, HEADER_BYTES * 8 - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    raw = bytearray(encode_header(EXAMPLE))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError):
        decode_header(bytes(raw))


@given(st.binary(max_size=2 * HEADER_BYTES))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_header(raw)


def test_a_newer_version_is_told_as_that() -> None:
    raw = bytearray(encode_header(EXAMPLE))
    raw[8:16] = (2).to_bytes(4, "little") + bytes(4)
    raw[12:16] = google_crc32c.value(bytes(raw)).to_bytes(4, "little")
    with pytest.raises(NewerFormatError, match="format 2"):
        decode_header(bytes(raw))


def test_a_content_takes_whole_units_behind_its_header() -> None:
    assert [record_bytes(size) for size in (0, 1, 64, 65, 4096)] == [64, 128, 128, 192, 4160]
