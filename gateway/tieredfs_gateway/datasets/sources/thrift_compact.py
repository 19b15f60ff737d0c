"""Thrift's compact protocol, as far as Parquet's footers and page indexes need it. Pure: bytes in, plain values out, and back.

A struct is a dict from field number to value: booleans, integers, floats, bytes, lists and structs are Python's own. What is
written is said with its type (`i32`, `i64`, `binary`, `listed`), which a dict does not know.

Source of the format: Apache Thrift, "Thrift Compact protocol encoding" (thrift-compact-protocol.md).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

_TRUE: Final = 1
_FALSE: Final = 2
_BYTE: Final = 3
_I64: Final = 6
_DOUBLE: Final = 7
_BINARY: Final = 8
_LISTS: Final = (9, 10)
_MAP: Final = 11
_STRUCT: Final = 12
_DEPTH_MAX: Final = 32


class BadThriftError(Exception):
    """What is wrong with the bytes."""


@contextmanager
def expected() -> Iterator[None]:
    """Around what takes fields for granted that the format requires."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadThriftError(f"a field is missing, or of another type: {error}") from error


def decode(data: bytes) -> dict[int, Any]:
    """The struct that the bytes begin with. Raises BadThriftError."""
    return decode_from(data, 0, 0)


def decode_from(data: bytes, at: int, number: int) -> dict[int, Any]:
    """What follows field `number` of a struct, from `at` on. Raises BadThriftError."""
    try:
        return _struct(data, at, 0, number)[0]
    except (IndexError, struct.error) as error:
        raise BadThriftError("it ends within a value") from error


def _struct(data: bytes, at: int, depth: int, number: int = 0) -> tuple[dict[int, Any], int]:
    if depth > _DEPTH_MAX:
        raise BadThriftError("structs are nested too deeply")
    found: dict[int, Any] = {}
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            raw, at = _varint(data, at)
            number = _signed(raw)
        kind = head & 15
        if kind in (_TRUE, _FALSE):
            found[number] = kind == _TRUE
        else:
            found[number], at = _value(data, at, kind, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if _BYTE < kind <= _I64:
        raw, at = _varint(data, at)
        return _signed(raw), at
    if kind == _BINARY:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise BadThriftError("it ends within a value")
        return data[at : at + length], at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind in _LISTS:
        return _list(data, at, depth)
    if kind == _DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind <= _BYTE and kind:
        return data[at] == _TRUE if kind != _BYTE else data[at], at + 1
    raise BadThriftError(f"no value has the type {kind}" if kind != _MAP else "Parquet has no maps")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head, at = data[at], at + 1
    count = head >> 4
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data) - at:
        raise BadThriftError(f"a list of {count} values has no room in {len(data) - at} bytes")
    found = []
    for _ in range(count):
        value, at = _value(data, at, head & 15, depth)
        found.append(value)
    return found, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise BadThriftError("a number has more than 64 bits")


def _signed(raw: int) -> int:
    return (raw >> 1) ^ -(raw & 1)


# ---- writing ---------------------------------------------------------------------------------------------------------

Typed = tuple[int, bytes]
"""A value with its type."""


def i32(value: int) -> Typed:
    return 5, _written(value)


def i64(value: int) -> Typed:
    return _I64, _written(value)


def binary(value: bytes) -> Typed:
    return _BINARY, _unsigned(len(value)) + value


def listed(values: Sequence[Typed]) -> Typed:
    """Not empty; all of one type."""
    head = values[0][0]
    sizes = bytes([len(values) << 4 | head]) if len(values) < 15 else bytes([0xF0 | head]) + _unsigned(len(values))
    return _LISTS[0], sizes + b"".join(value for _, value in values)


def encoded(fields: Mapping[int, Typed]) -> Typed:
    """A struct. Numbers rise."""
    parts, before = [], 0
    for number, (kind, value) in fields.items():
        assert 0 < number - before <= 15, "fields in order, with small gaps"
        parts.append(bytes([(number - before) << 4 | kind]) + value)
        before = number
    return _STRUCT, b"".join(parts) + b"\0"


def _written(value: int) -> bytes:
    return _unsigned((value << 1) ^ (value >> 63))


def _unsigned(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
