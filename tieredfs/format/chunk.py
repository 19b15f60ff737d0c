"""The header of a chunk: 8 KiB before the payload, enough to recognise a torn, rotten or misplaced chunk.

Little-endian; `FORMAT.md`, "Chunks", is the document. The header's own CRC32C covers all of it (with its field taken as
zero), so a wrong checksum table can't vouch for wrong bytes. Pure, and safe from any thread.
"""

import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.limits import CELL_BYTES, CHUNK_FIXED_HEADER_BYTES, CHUNK_HEADER_BYTES, CODE_WIDTH_MAX
from tieredfs.model import BlockId, Code, CodeKind

MAGIC: Final = b"\x89TFSchnk"
"""The first byte is no text in any encoding that programs guess, so nobody takes a chunk for a document."""
VERSION: Final = 1

_START = struct.Struct("<8sII")
"""magic, version, CRC32C of the header"""
_BODY = struct.Struct("<QHBBB3xQQIII")
"""block, index, code kind, k, m, block size, payload size, CRC32C of the payload, cell size, cell count"""

assert _START.size + _BODY.size <= CHUNK_FIXED_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What the header says. `cell_crcs` is the table as it lies on disk: one little-endian u32 per cell."""

    block: BlockId
    index: int
    code: Code
    block_bytes: int
    payload_bytes: int
    crc32c: int
    cell_crcs: bytes


def cell_count(payload_bytes: int) -> int:
    """Cells of a payload; the last may be short."""
    return -(-payload_bytes // CELL_BYTES)


def encode_header(header: ChunkHeader) -> bytes:
    """`CHUNK_HEADER_BYTES` bytes."""
    assert len(header.cell_crcs) == 4 * cell_count(header.payload_bytes)
    assert header.index < header.code.width <= CODE_WIDTH_MAX
    body = _BODY.pack(
        header.block,
        header.index,
        header.code.kind,
        header.code.data_count,
        header.code.parity_count,
        header.block_bytes,
        header.payload_bytes,
        header.crc32c,
        CELL_BYTES,
        cell_count(header.payload_bytes),
    )
    rest = body.ljust(CHUNK_FIXED_HEADER_BYTES - _START.size, b"\0") + header.cell_crcs
    rest = rest.ljust(CHUNK_HEADER_BYTES - _START.size, b"\0")
    assert len(rest) == CHUNK_HEADER_BYTES - _START.size, "the checksum table fits by the limits"
    return _START.pack(MAGIC, VERSION, _checksum(VERSION, rest)) + rest


def decode_header(raw: bytes) -> ChunkHeader:
    """Raises CorruptError for anything that is not a whole header, NewerFormatError for one of a later version."""
    if len(raw) != CHUNK_HEADER_BYTES:
        raise CorruptError(f"chunk header is {len(raw)} bytes long, not {CHUNK_HEADER_BYTES}")
    magic, version, crc = _START.unpack_from(raw)
    if magic != MAGIC:
        raise CorruptError("not a chunk: the magic number is missing")
    if version > VERSION:
        raise NewerFormatError(f"chunk of format version {version}; this program knows {VERSION}")
    if crc != _checksum(version, raw[_START.size :]):
        raise CorruptError("chunk header does not match its checksum")
    return _decode_body(raw)


def _decode_body(raw: bytes) -> ChunkHeader:
    """The fields of a header whose checksum is right: what is still wrong was written wrong."""
    block, index, kind, k, m, block_bytes, payload_bytes, crc, cell_bytes, cells = _BODY.unpack_from(raw, _START.size)
    table_end = CHUNK_FIXED_HEADER_BYTES + 4 * cells
    known_kind = kind in CodeKind.__members__.values()
    if not (known_kind and cell_bytes == CELL_BYTES and cells == cell_count(payload_bytes) and table_end <= len(raw)):
        raise CorruptError("chunk header contradicts itself")
    if not (k >= 1 and k + m <= CODE_WIDTH_MAX and index < k + m):
        raise CorruptError(f"chunk header names an impossible code: {k}+{m}, index {index}")
    table = bytes(raw[CHUNK_FIXED_HEADER_BYTES:table_end])
    return ChunkHeader(BlockId(block), index, Code(CodeKind(kind), k, m), block_bytes, payload_bytes, crc, table)


def _checksum(version: int, rest: bytes) -> int:
    return int(google_crc32c.value(_START.pack(MAGIC, version, 0) + rest))
