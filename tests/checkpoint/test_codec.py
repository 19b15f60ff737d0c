"""Packing: bit for bit what it was, for every type; never longer; nothing damaged or lying is believed or costs memory."""

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, InvalidRequestError
from tieredfs_client.checkpoint.codec import WIDTHS, Packer, Unpacker, width_of
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.checkpoint.packing import (
    OBSERVED_BYTES_MIN,
    SAMPLE_BYTES,
    SAMPLE_BYTES_MIN,
    SAMPLE_COUNT,
    SAMPLE_SHARE,
    Compression,
    Pace,
    Sample,
    faster,
    is_worth,
    parse_compression,
    sample_ranges,
)


def packed(data: bytes, width: int, level: int | None = None) -> bytes:
    scratch = memoryview(bytearray(len(data)))
    return b"".join(bytes(each) for each in Packer(level).pack(memoryview(data), width, scratch))


def unpacked(stored: bytes, width: int, size: int) -> bytes:
    target = bytearray(size)
    Unpacker().unpack(memoryview(stored), width, memoryview(target))
    return bytes(target)


def weights(count: int, seed: int = 0) -> Any:
    """As a layer has them."""
    return (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)


@st.composite
def contents(draw: st.DrawFn) -> tuple[int, bytes]:
    """A width and elements: of few values, of random bits (NaNs of every payload among them), or like weights."""
    width = draw(st.sampled_from(WIDTHS))
    count = draw(st.one_of(st.integers(0, 40), st.integers(0, 70_000)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["constant", "few", "random", "weights"]))
    if kind == "constant":
        return width, bytes([draw(st.integers(0, 255))]) * (width * count)
    if kind == "few":
        return width, rng.integers(0, 3, width * count, np.uint8).tobytes()
    if kind == "random":
        return width, rng.integers(0, 256, width * count, np.uint8).tobytes()
    return width, weights(-(-width * count // 4)).tobytes()[: width * count]


@given(contents(), st.sampled_from([None, 1]))
@example((8, b""), None)
@example((4, b"\0\0\0\0"), None)
def test_what_is_packed_comes_back_bit_for_bit_and_is_never_longer(given: tuple[int, bytes], level: int | None) -> None:
    width, data = given
    stored = packed(data, width, level)
    assert len(stored) <= len(data)
    assert unpacked(stored, width, len(data)) == data


@pytest.mark.parametrize(
    ("dtype", "at_most"),
    [
        (torch.bfloat16, 0.70),
        (torch.float16, 0.86),
        (torch.float32, 0.86),
        (torch.float64, 0.70),
        (torch.complex64, 0.86),
    ],
)
def test_weights_shrink(dtype: torch.dtype, at_most: float) -> None:
    value = torch.from_numpy(weights(1 << 20))
    value = torch.complex(*value.chunk(2)) if dtype.is_complex else value.to(dtype)
    data = value.view(torch.uint8).numpy().tobytes()
    width = width_of("C64" if dtype.is_complex else "any", dtype.itemsize)
    assert len(packed(data, width)) < at_most * len(data)
    plain = zstandard.ZstdCompressor(level=3).compress(data)
    assert len(packed(data, width)) < len(plain), "bytes that follow one another shrink less"


def test_every_nan_payload_of_two_bytes() -> None:
    data = np.arange(2**16, dtype=np.uint16).tobytes()
    assert unpacked(packed(data, 2), 2, len(data)) == data


def test_a_level_never_makes_it_longer() -> None:
    data = weights(1 << 16).tobytes()
    assert len(packed(data, 4, 19)) <= len(packed(data, 4))


@pytest.mark.parametrize(
    ("dtype", "item", "width"),
    [
        *(("F32", 4, 4), ("BF16", 2, 2), ("F8_E4M3", 1, 1), ("C64", 8, 4), ("C128", 16, 8), ("I64", 8, 8)),
        *(("numpy:|S10", 10, 1), ("numpy:<U3", 12, 1), ("numpy:>f8", 8, 8)),
    ],
)
def test_as_many_planes_as_a_number_has_bytes(dtype: str, item: int, width: int) -> None:
    assert width_of(dtype, item) == width


# ---- what is damaged, or lies ----------------------------------------------------------------------------------------


def test_torn_and_changed_pieces_are_refused_or_have_their_length() -> None:
    """The checksum of what is stored finds damage; the codec itself must only never do harm."""
    data = weights(5000).tobytes()
    stored = packed(data, 4)
    for at in range(0, len(stored), 97):
        broken = bytearray(stored)
        broken[at] ^= 0x10
        try:
            assert len(unpacked(bytes(broken), 4, len(data))) == len(data)
        except CorruptError:
            continue
    for length in (0, 3, 15, 16, 17, len(stored) - 1):
        with pytest.raises(CorruptError):
            unpacked(stored[:length], 4, len(data))
    with pytest.raises(CorruptError):
        unpacked(stored + b"x", 4, len(data))
    with pytest.raises(CorruptError):
        unpacked(stored, 4, len(data) - 4)


def bomb(claimed: bool) -> bytes:
    """A frame of 1 GiB of zeros in 32 KiB, which says so or does not."""
    maker = zstandard.ZstdCompressor(level=1, write_content_size=claimed).compressobj(size=1 << 30 if claimed else -1)
    block = bytes(1 << 20)
    return b"".join([*(maker.compress(block) for _ in range(1024)), maker.flush()])


@pytest.mark.parametrize("claimed", [True, False])
def test_a_frame_takes_no_more_memory_than_its_plane(claimed: bool) -> None:
    frame = bomb(claimed)
    size = PIECE_BYTES
    stored = struct.pack("<2I", len(frame), size // 2) + frame + bytes(size // 2)
    target = bytearray(size)
    unpacker = Unpacker()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match="another length"):
            unpacker.unpack(memoryview(stored), 2, memoryview(target))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


def test_a_frame_that_says_less_than_it_has_is_refused() -> None:
    """The size in its header is that of its plane, and its blocks hold more."""
    frame = bytearray(zstandard.ZstdCompressor(level=1).compress(bytes(100_000)))
    parameters = zstandard.get_frame_parameters(bytes(frame))
    at = frame.index(struct.pack("<I", parameters.content_size))
    frame[at : at + 4] = struct.pack("<I", 70_000)
    stored = struct.pack("<I", len(frame)) + bytes(frame)
    with pytest.raises(CorruptError, match="decompressed"):
        unpacked(stored, 1, 70_000)


# ---- what is worth it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("auto", Compression(always=False)),
        ("zstd", Compression(always=True)),
        ("zstd:1", Compression(always=True, level=1)),
        ("zstd:19", Compression(always=True, level=19)),
    ],
)
def test_ways_to_ask(text: str, expected: Compression | None) -> None:
    assert parse_compression(text) == expected


@pytest.mark.parametrize("text", ["", "ZSTD", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:99999", "lz4", "auto:3"])
def test_other_ways_to_ask(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="zstd:19"):
        parse_compression(text)


ALWAYS, AUTO = Compression(always=True), Compression(always=False)
THIRD_LESS = Sample(plain_bytes=300_000, stored_bytes=200_000, seconds=1e-3)
"""Spares 100 MB/s on one thread."""


def test_asked_for_is_packed_where_it_shrinks() -> None:
    assert is_worth(ALWAYS, THIRD_LESS, 1, None)
    assert is_worth(ALWAYS, THIRD_LESS, 1, Pace(1e12))
    assert not is_worth(ALWAYS, Sample(100, 96, 1e-9), 1, None), "a twentieth at least"


def test_auto_packs_only_what_makes_the_save_faster() -> None:
    assert not is_worth(AUTO, THIRD_LESS, 64, None), "not before the pace is known"
    assert is_worth(AUTO, THIRD_LESS, 1, Pace(99e6))
    assert not is_worth(AUTO, THIRD_LESS, 1, Pace(101e6))
    assert is_worth(AUTO, THIRD_LESS, 2, Pace(199e6)), "of all threads together"
    assert not is_worth(AUTO, Sample(100, 99, 0.0), 64, Pace(1.0))


def test_the_pace_is_the_best_that_was_seen_of_what_says_anything() -> None:
    assert faster(None, OBSERVED_BYTES_MIN - 1, 1e-9) is None
    first = faster(None, OBSERVED_BYTES_MIN, 0.5)
    assert first == OBSERVED_BYTES_MIN / 0.5
    assert faster(first, OBSERVED_BYTES_MIN, 5.0) == first
    assert faster(first, OBSERVED_BYTES_MIN, 0.0) == first
    assert faster(first, OBSERVED_BYTES_MIN, 0.25) == OBSERVED_BYTES_MIN / 0.25


@given(st.integers(0, 1 << 32), st.sampled_from([1, 2, 4, 8, 10, 16, 9000, 100_000]))
def test_samples_are_whole_elements_inside_the_tensor(count: int, item: int) -> None:
    size = count * item
    ranges = sample_ranges(size, item)
    assert all(start % item == 0 and start >= 0 and start + length <= size for start, length in ranges)
    assert all(length % item == 0 for _, length in ranges)
    sampled = sum(length for _, length in ranges)
    assert sampled <= max(SAMPLE_BYTES_MIN, size // SAMPLE_SHARE, SAMPLE_COUNT * item)
    assert sampled > 0 or not size
    if size >= SAMPLE_BYTES * SAMPLE_COUNT * SAMPLE_SHARE:
        assert (ranges[0][0], len(ranges)) == (0, SAMPLE_COUNT)
        assert size - sum(ranges[-1]) < 2 * item
