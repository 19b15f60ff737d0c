"""A segment of an SSD directory: small contents one after another in one file, each behind a header of 64 bytes.

    0   8  magic: `89 54 46 53 73 67 6d 74` (`\\x89TFSsgmt`)
    8   4  format version: 1
    12  4  CRC32C of the 64 bytes of the header, with this field taken as zero
    16  8  inode
    24  8  version of its content
    32  8  length of the content in bytes
    40  4  CRC32C of the content
    44 20  zero
    64     the content, then zeros up to a multiple of 64

Where a content is (number of the segment, offset of its header) says the staged record of the inode. What is at a place proves by
itself that it is that content, so whoever reads a place that was given to another content meanwhile notices.
"""

import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.model import InodeId

MAGIC: Final = b"\x89TFSsgmt"
FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 64
_FIELDS: Final = struct.Struct("<8sIIQQQI20x")
_CRC_OFFSET: Final = 12
_CRC: Final = struct.Struct("<I")

assert _FIELDS.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class PackedHeader:
    """What a header says of the content behind it."""

    inode: InodeId
    version: int
    size_bytes: int
    crc32c: int


def record_bytes(size_bytes: int) -> int:
    """What a content takes in a segment, with its header."""
    return HEADER_BYTES + -(-size_bytes // HEADER_BYTES) * HEADER_BYTES


def encode_header(header: PackedHeader) -> bytes:
    fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, 0, header.inode, header.version, header.size_bytes, header.crc32c)
    return fields[:_CRC_OFFSET] + _CRC.pack(google_crc32c.value(fields)) + fields[_CRC_OFFSET + _CRC.size :]


def decode_header(raw: bytes) -> PackedHeader:
    """Raises CorruptError (nothing begins here, or not any more), NewerFormatError."""
    if len(raw) != HEADER_BYTES:
        raise CorruptError(f"the header of a content is cut off after {len(raw)} bytes")
    magic, format_version, crc, inode, version, size_bytes, content_crc = _FIELDS.unpack(raw)
    if magic != MAGIC:
        raise CorruptError("no content of a segment begins here")
    fields = raw[:_CRC_OFFSET] + bytes(_CRC.size) + raw[_CRC_OFFSET + _CRC.size :]
    if google_crc32c.value(fields) != crc:
        raise CorruptError("the header of a content in a segment fails its checksum")
    if format_version > FORMAT_VERSION:
        raise NewerFormatError(
            f"a content of a segment has format {format_version}; this version reads up to {FORMAT_VERSION}"
        )
    return PackedHeader(InodeId(inode), version, size_bytes, content_crc)
