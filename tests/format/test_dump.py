"""A dump: what is written is read, and nothing that was cut short, damaged or is something else passes for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.format import dump
from tieredfs.format.dump import DumpHeader, Pair
from tieredfs.limits import KEY_BYTES_MAX

HEADER = DumpHeader("8f0a6a52-0000-4000-8000-000000000001", "träin", 1_764_000_000_000_000_000)
PAIRS = [(b"\0\0V", b"volume"), (b"\0\1N\0", b""), (b"\xff\xfeB" + bytes(8), bytes(range(256)))]
GOLDEN = Path(__file__).parent / "golden" / "dump-1.bin"


def encoded(pairs: list[Pair]) -> bytes:
    return b"".join(dump.encode(HEADER, pairs))


def pieces(raw: bytes, size: int = 1000) -> Iterator[bytes]:
    return (raw[start : start + size] for start in range(0, len(raw), size))


def decoded(raw: bytes, size: int = 1000) -> tuple[DumpHeader, list[Pair]]:
    given_pieces = pieces(raw, size)
    header, first = dump.decode_header(given_pieces)
    return header, list(dump.decode_body(first, given_pieces))


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=KEY_BYTES_MAX), st.binary(max_size=3000)), max_size=40),
    st.integers(1, 100_000),
)
def test_what_is_written_is_read(pairs: list[Pair], size: int) -> None:
    assert decoded(encoded(pairs), size) == (HEADER, pairs)


def test_more_than_fits_in_memory_at_a_time() -> None:
    pairs = [
        (b"%08d" % number, bytes(60_000)) for number in range(300)
    ]  # packs to a hundredth: bounded pieces all the same
    raw = encoded(pairs)
    assert len(raw) < 200_000
    assert decoded(raw) == (HEADER, pairs)


def test_the_golden_file_decodes_for_ever() -> None:
    assert decoded(GOLDEN.read_bytes()) == (HEADER, PAIRS)


def test_cut_short_anywhere() -> None:
    raw = encoded(PAIRS)
    for length in range(len(raw)):
        with pytest.raises(CorruptError):
            decoded(raw[:length])


def test_one_bit_wrong_anywhere_is_noticed_or_changes_nothing() -> None:
    raw = encoded(PAIRS)
    noticed = 0
    for position in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        try:
            assert decoded(bytes(damaged)) == (HEADER, PAIRS)
        except (CorruptError, NewerFormatError):
            noticed += 1
    assert noticed > len(raw) * 8 - 16, "but a few bits of padding before zlib's checksum"


def test_something_behind_it() -> None:
    with pytest.raises(CorruptError, match="follows the end"):
        decoded(encoded(PAIRS) + b"x")


def test_other_files() -> None:
    for raw in (b"", b"SQLite format 3\0" * 100, bytes(5000)):
        with pytest.raises(CorruptError, match="no dump"):
            decoded(raw)
    newer = bytearray(encoded(PAIRS))
    newer[8] += 1
    with pytest.raises(NewerFormatError, match="format 2"):
        decoded(bytes(newer))
    huge = bytearray(encoded(PAIRS))
    huge[12:16] = b"\xff\xff\xff\x7f"
    with pytest.raises(CorruptError, match="header has 2147483647 bytes"):
        decoded(bytes(huge))
