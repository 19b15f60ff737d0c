"""Joining CRC32Cs: the checksum of a whole from the checksums of its parts, without touching the bytes again.

A CRC is the remainder of a polynomial over GF(2), so crc(A then B) is crc(A) times x^(8 |B|), plus crc(B); the
inversions at both ends cancel. One product in pure Python is 32 steps (3 us); for the one length that matters, a whole
cell, the product is a linear map kept as four tables of 256 (0.4 us), so that a 16 MiB chunk's 64 cells take 30 us.
"""

from functools import lru_cache
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's, bits reversed."""
_ONE: Final = 1 << 31
"""The polynomial 1 with its bits reversed."""


def _product(left: int, right: int) -> int:
    """`left` times `right` modulo the polynomial."""
    result = 0
    while left:
        if left & _ONE:
            result ^= right
        left = left << 1 & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return result


def _power_of_x(bits: int) -> int:
    result, square = _ONE, _ONE >> 1
    while bits:
        if bits & 1:
            result = _product(square, result)
        square = _product(square, square)
        bits >>= 1
    return result


Tables = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=4)
def _shift_tables(length: int) -> Tables:
    factor = _power_of_x(8 * length)
    first, second, third, fourth = (
        tuple(_product(factor, byte << shift) for byte in range(256)) for shift in (0, 8, 16, 24)
    )
    return first, second, third, fourth


def join(first: int, second: int, second_bytes: int) -> int:
    """CRC32C of A then B, from theirs and the length of B."""
    return _product(_power_of_x(8 * second_bytes), first) ^ second


def join_cells(crcs: bytes | memoryview, cell_bytes: int, total_bytes: int) -> int:
    """CRC32C of `total_bytes`, from the CRC32Cs of its cells (little-endian u32); only the last may be short."""
    assert len(crcs) == 4 * -(-total_bytes // cell_bytes)
    cells = memoryview(crcs).cast("B")
    last_bytes = total_bytes % cell_bytes
    whole_count = total_bytes // cell_bytes
    t0, t1, t2, t3 = _shift_tables(cell_bytes)
    crc = 0
    for at in range(0, 4 * whole_count, 4):
        shifted = t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]
        crc = shifted ^ int.from_bytes(cells[at : at + 4], "little")
    if last_bytes:
        crc = join(crc, int.from_bytes(cells[4 * whole_count :], "little"), last_bytes)
    return crc
