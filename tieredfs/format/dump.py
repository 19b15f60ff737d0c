"""A dump: all metadata of a volume at one moment, in one file that says by itself whether it is whole. Pure.

    magic (8) | version (u32) | length of the header (u32) | header: JSON | CRC-32 of all that (u32) | body

The body is a zlib stream of pairs, `key length (u16) | value length (u32) | key | value`, in key order, and after the last
one an end: `0 (u16) | 0 (u32) | pairs (u64) | CRC-32 of all pairs (u32)`. A file that was cut short has no end; one that was
damaged fails zlib's own checksum or this one.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.limits import KEY_BYTES_MAX

MAGIC: Final = b"\x89TFSmeta"
FORMAT_VERSION: Final = 1
_ZLIB_LEVEL: Final = 1
_PIECE_BYTES: Final = 1 << 16
_HEADER_BYTES_MAX: Final = 1 << 16
_VALUE_BYTES_MAX: Final = 1 << 24

_START: Final = struct.Struct("<8sII")
_CRC: Final = struct.Struct("<I")
_PAIR: Final = struct.Struct("<HI")
_END: Final = struct.Struct("<QI")

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class DumpHeader:
    """Of which volume, and of which moment (nanoseconds since 1970)."""

    volume_uuid: str
    volume_name: str
    taken_ns: int


def encode(header: DumpHeader, pairs: Iterable[Pair]) -> Iterator[bytes]:
    """The file, piece by piece."""
    text = json.dumps(asdict(header)).encode()
    start = _START.pack(MAGIC, FORMAT_VERSION, len(text)) + text
    yield start + _CRC.pack(zlib.crc32(start))
    packer = zlib.compressobj(_ZLIB_LEVEL)
    count = crc = 0
    gathered = bytearray()
    for key, value in pairs:
        gathered += _PAIR.pack(len(key), len(value))
        gathered += key
        gathered += value
        count += 1
        if len(gathered) >= _PIECE_BYTES:
            crc = zlib.crc32(gathered, crc)
            yield packer.compress(gathered)
            gathered.clear()
    crc = zlib.crc32(gathered, crc)
    gathered += _PAIR.pack(0, 0) + _END.pack(count, crc)
    yield packer.compress(gathered) + packer.flush()


def decode_header(pieces: Iterator[bytes]) -> tuple[DumpHeader, bytes]:
    """What it is a dump of, and what was read of the body. Raises CorruptError, NewerFormatError."""
    gathered = _at_least(pieces, b"", _START.size)
    magic, version, length = _START.unpack_from(gathered)
    if magic != MAGIC:
        raise CorruptError("this is no dump of a volume's metadata")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the dump has format {version}; this program knows {FORMAT_VERSION}")
    if length > _HEADER_BYTES_MAX:
        raise CorruptError(f"the dump says that its header has {length} bytes")
    end = _START.size + length
    gathered = _at_least(pieces, gathered, end + _CRC.size)
    if _CRC.unpack_from(gathered, end)[0] != zlib.crc32(gathered[:end]):
        raise CorruptError("the header of the dump is damaged")
    try:
        fields = json.loads(gathered[_START.size : end])
        header = DumpHeader(str(fields["volume_uuid"]), str(fields["volume_name"]), int(fields["taken_ns"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the header of the dump makes no sense: {error}") from error
    return header, gathered[end + _CRC.size :]


def decode_body(first: bytes, pieces: Iterator[bytes]) -> Iterator[Pair]:
    """The pairs. Raises CorruptError, at the latest after the last one: until then they are not to be relied upon."""
    unpacker = zlib.decompressobj()
    unread = bytearray()
    count = crc = 0
    for piece in _unpacked(unpacker, first, pieces):
        unread += piece
        position = 0
        while position + _PAIR.size <= len(unread):
            key_bytes, value_bytes = _PAIR.unpack_from(unread, position)
            end = position + _PAIR.size + key_bytes + value_bytes
            if key_bytes == 0:
                break
            if key_bytes > KEY_BYTES_MAX or value_bytes > _VALUE_BYTES_MAX:
                raise CorruptError(
                    f"pair {count} of the dump has a key of {key_bytes} and a value of {value_bytes} bytes"
                )
            if end > len(unread):
                break
            key_at = position + _PAIR.size
            yield bytes(unread[key_at : key_at + key_bytes]), bytes(unread[key_at + key_bytes : end])
            count += 1
            crc = zlib.crc32(unread[position:end], crc)
            position = end
        del unread[:position]
    if not unpacker.eof or bytes(unread) != _PAIR.pack(0, 0) + _END.pack(count, crc):
        raise CorruptError(f"the dump was cut short or damaged after {count} records")


def _unpacked(unpacker: "zlib._Decompress", first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """In pieces of bounded size, however well they were packed."""
    packed = first
    while True:
        try:
            unpacked = unpacker.decompress(packed, _PIECE_BYTES)
        except zlib.error as error:
            raise CorruptError(f"the dump is damaged: {error}") from error
        yield unpacked
        packed = unpacker.unconsumed_tail
        if unpacker.unused_data:
            raise CorruptError("something follows the end of the dump")
        if not packed and len(unpacked) < _PIECE_BYTES:  # else there may be more of what was given before
            following = next(pieces, None)
            if following is None:
                return
            packed = following


def _at_least(pieces: Iterator[bytes], gathered: bytes, size_bytes: int) -> bytes:
    while len(gathered) < size_bytes:
        piece = next(pieces, None)
        if piece is None:
            raise CorruptError("this is no dump of a volume's metadata: it is too short")
        gathered += piece
    return gathered
