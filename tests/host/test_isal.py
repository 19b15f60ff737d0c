"""CRC32C against published vectors and a second implementation; Reed-Solomon over every loss pattern."""

import itertools
import random
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.errors import ConfigurationError
from tieredfs.host import isal

# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert isal.crc32c(data) == expected
    assert isal.crc32c(bytearray(data)) == expected
    assert google_crc32c.value(data) == expected


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_seeds_continue(data: bytes, cut: int) -> None:
    assert isal.crc32c(data[cut:], isal.crc32c(data[:cut])) == google_crc32c.value(data)


def test_every_short_length_and_every_alignment_has_its_checksum() -> None:
    """Wide code treats the beginning and the end of a buffer as special cases."""
    data = memoryview(random.Random(7).randbytes(1200))
    for length in range(1100):
        view = data[length % 64 :][:length]
        assert isal.crc32c(view, length) == google_crc32c.extend(length, bytes(view)), length


@pytest.mark.parametrize("size", [(4 << 20) + 13, (256 << 10) + 1])
def test_long_buffers_have_their_checksum(size: int) -> None:
    data = random.Random(8).randbytes(size)
    assert isal.crc32c(data) == google_crc32c.value(data)


WIDE = "flags\t\t: fpu sse4_2 " + " ".join(sorted(isal._WIDE_CRC_FLAGS))


@pytest.mark.parametrize(("cpuinfo", "wide"), [(WIDE, True), (WIDE.replace("vpclmulqdq", ""), False), ("", False)])
def test_what_the_kernel_says_of_a_processor_decides(cpuinfo: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    assert isal._has_wide_crc.__wrapped__() is wide


@pytest.mark.parametrize("flags", ["", "flags\t\t: fpu sse4_2 avx2 avx512f"])
def test_a_processor_without_wide_registers_takes_the_other_code(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(9).randbytes(70_001)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: flags)
    for cached in (isal._has_wide_crc, isal._library, isal._library_or_none):
        cached.cache_clear()
    try:
        assert isal._library().held_crc32c.__name__ == "crc32_iscsi"
        assert isal._library().held_crc64.__name__ == "crc64_rocksoft_refl"
        assert isal.crc32c(data) == google_crc32c.value(data)
    finally:
        monkeypatch.undo()
        for cached in (isal._has_wide_crc, isal._library, isal._library_or_none):
            cached.cache_clear()


@given(st.binary(max_size=2000), st.integers(1, 300))
def test_cells_are_checksummed_one_by_one(data: bytes, cell: int) -> None:
    expected = [google_crc32c.value(data[at : at + cell]) for at in range(0, len(data), cell)]
    assert isal.cell_crcs(memoryview(data), cell) == b"".join(crc.to_bytes(4, "little") for crc in expected)


def test_without_the_library_checksums_are_the_same_and_codes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(1).randbytes(3001)
    expected = isal.crc32c(data, 77), isal.cell_crcs(data, 1000)
    monkeypatch.setattr(isal, "_library_path", lambda: None)
    isal._library.cache_clear()
    isal._library_or_none.cache_clear()
    try:
        assert (isal.crc32c(data, 77), isal.cell_crcs(data, 1000)) == expected
        with pytest.raises(ConfigurationError, match="pyeclib"):
            isal.Encoder(4, 2)
    finally:
        isal._library_or_none.cache_clear()


def chunks_of(k: int, m: int, length: int, seed: int) -> list[bytearray]:
    source = random.Random(seed)
    chunks = [bytearray(source.randbytes(length)) for _ in range(k)] + [bytearray(length) for _ in range(m)]
    pointers = [isal.address_of(memoryview(chunk)) for chunk in chunks]
    isal.Encoder(k, m).encode(pointers[:k], pointers[k:], length)
    return chunks


def decode(encoder: isal.Encoder, chunks: list[bytearray], sources: list[int], wanted: list[int]) -> list[bytearray]:
    length = len(chunks[0])
    outputs = [bytearray(length) for _ in wanted]
    pointers = [isal.address_of(memoryview(chunks[index])) for index in sources]
    encoder.decode(sources, pointers, wanted, [isal.address_of(memoryview(out)) for out in outputs], length)
    return outputs


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 1), (4, 2), (6, 3), (9, 6)])
def test_every_loss_pattern_is_decoded(k: int, m: int) -> None:
    chunks = chunks_of(k, m, 331, seed=k)
    encoder = isal.Encoder(k, m)
    for lost in itertools.combinations(range(k + m), m):
        sources = [index for index in range(k + m) if index not in lost]
        assert decode(encoder, chunks, sources, list(lost)) == [chunks[index] for index in lost]
    assert len(encoder._decoders) <= 256


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 5000), st.randoms(use_true_random=False))
def test_any_code_and_length(k: int, m: int, length: int, pick: random.Random) -> None:
    chunks = chunks_of(k, m, length, seed=length)
    sources = sorted(pick.sample(range(k + m), k))
    wanted = [index for index in range(k + m) if index not in sources]
    assert decode(isal.Encoder(k, m), chunks, sources, wanted) == [chunks[index] for index in wanted]


def test_parity_is_part_of_the_format() -> None:
    """Row k + j, column c of the matrix is 1 / ((k + j) xor c): parity of unit data is that column. Never change."""
    parities = []
    for one in range(4):
        chunks = [bytearray([1 if index == one else 0]) for index in range(4)] + [bytearray(1), bytearray(1)]
        pointers = [isal.address_of(memoryview(chunk)) for chunk in chunks]
        isal.Encoder(4, 2).encode(pointers[:4], pointers[4:], 1)
        parities.append((chunks[4][0], chunks[5][0]))
    inverse = {1: 1, 4: 71, 5: 167, 6: 122, 7: 186}  # in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1
    assert parities == [(inverse[4 ^ at], inverse[5 ^ at]) for at in range(4)]
