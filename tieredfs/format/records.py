"""Every value of the metadata store: `version (1) | fields | CRC-32 (4)`, little-endian.

The checksum is over all that precedes it, so that a rotten page of the database is an error here and not a wrong
file. A value that is too short, has a wrong checksum, or a number that no enum has, raises CorruptError; a version
above `VERSION` raises NewerFormatError. Text is UTF-8 with a u16 length. Values whose key says all are empty.

`InodeRecord` is a NamedTuple and not a frozen dataclass like the rest of the model: it is decoded, changed and
encoded on every namespace operation, and costs 0.6 us to read where the 15 fields of `Attributes` cost 2.5 us.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.limits import CODE_WIDTH_MAX
from tieredfs.model import (
    Attributes,
    Block,
    BlockId,
    CacheId,
    CacheRecord,
    ChunkLocation,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    Entry,
    Extent,
    FileKind,
    InodeId,
    Place,
    Quota,
    Session,
    SessionId,
    ShortBlock,
    StagedRecord,
    VolumeConfig,
)

VERSION: Final = 1
"""Of every record but those that have a version of their own. It rises when a field is added or changes its meaning, and then
readers know both."""
_PACKED_VERSION: Final = 2
"""Of a staged record with a place: who knows only of local files must not take the content for lost."""

EMPTY: Final = b""
"""The value of keys that say all by themselves."""

_CRC: Final = struct.Struct("<I")
_INODE: Final = struct.Struct("<BBBHIIIQqqqQQQQQQQ")
_SEALED_INODE: Final = struct.Struct(_INODE.format + "I")
"""With its checksum: in one call, as every look at a file decodes one (1.1 us; in two steps 2 us)."""
_ENTRY: Final = struct.Struct("<BQB")
_SEALED_ENTRY: Final = struct.Struct(_ENTRY.format + "I")
_EXTENT: Final = struct.Struct("<BQQQ")
_STAGED: Final = struct.Struct("<BQq")
_PACKED: Final = struct.Struct("<BQqQQ")
_NUMBER: Final = struct.Struct("<BQ")
_SESSION: Final = struct.Struct("<BQqq")
_BLOCK: Final = struct.Struct("<BBBBQQB")
_CHUNK: Final = struct.Struct("<BHI")
_SHORT: Final = struct.Struct("<BqQQ")
_QUOTA: Final = struct.Struct("<BQQQQ")
_CODE_AND_SIZES: Final = struct.Struct("<BHqBBBQB")
_TEXT: Final = struct.Struct("<H")

_KINDS: Final[dict[int, FileKind]] = {int(kind): kind for kind in FileKind}

MAY_HAVE_EXTENTS: Final = 1
"""Of `InodeRecord.hints`: without the bit there is nothing to scan for when the inode is deleted. Set, never cleared.
"""
MAY_HAVE_XATTRS: Final = 2
MAY_BE_COUNTED: Final = 4
"""There may be a quota above. With the bit, a file's parent is a directory below the same quotas as all of its names."""
HAS_QUOTA: Final = 8
"""A directory with a quota of its own."""
FROZEN: Final = 16
"""It belongs to a snapshot, from its first transaction to its last: nothing changes it but the removal of the snapshot."""


# ---- the envelope ----------------------------------------------------------------------------------------------------


def _sealed(body: bytes) -> bytes:
    return body + _CRC.pack(crc32(body))


def _opened(value: bytes, what: str, length: int | None = None, known: int = VERSION) -> bytes:
    """`value` without its checksum. `length`: of the whole body, where it is fixed. `known`: the highest version."""
    body = value[:-4]
    if len(value) < 5 or crc32(body) != _CRC.unpack_from(value, len(value) - 4)[0]:
        raise CorruptError(f"{what} record fails its checksum ({len(value)} bytes)")
    if body[0] > known:
        raise NewerFormatError(f"{what} record has version {body[0]}; this program knows {known}")
    if body[0] < 1 or (length is not None and len(body) != length):
        raise CorruptError(f"{what} record of {len(body)} bytes, version {body[0]}, makes no sense")
    return body


def _with_texts(head: bytes, *texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return _sealed(head + b"".join(_TEXT.pack(len(text)) + text for text in encoded))


def _texts(body: bytes, offset: int, count: int, what: str) -> list[str]:
    found: list[str] = []
    try:
        for _ in range(count):
            (length,) = _TEXT.unpack_from(body, offset)
            offset += _TEXT.size
            if offset + length > len(body):
                raise CorruptError(f"{what} record is cut off")
            found.append(body[offset : offset + length].decode())
            offset += length
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptError(f"{what} record: {error}") from error
    if offset != len(body):
        raise CorruptError(f"{what} record has {len(body) - offset} bytes too many")
    return found


# ---- inodes, entries, contents ---------------------------------------------------------------------------------------


class InodeRecord(NamedTuple):
    """An inode at rest: the fields of `Attributes`, the size of the stored content, and hints."""

    inode: int
    kind: FileKind
    mode: int
    uid: int
    gid: int
    link_count: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    device: int
    parent: int
    version: int
    stored_version: int
    staged_in: int
    allocated_bytes: int
    stored_size_bytes: int
    hints: int

    def attributes(self) -> Attributes:
        return _tuple(Attributes, self[:16])


def encode_inode(record: InodeRecord) -> bytes:
    (_, kind, mode, uid, gid, links, size, atime, mtime, ctime, device, parent, version, stored, staged,
     allocated, stored_size, hints) = record  # fmt: skip
    body = _INODE.pack(VERSION, kind, hints, mode, uid, gid, links, size, atime, mtime, ctime, device, parent, version,
                       stored, staged, allocated, stored_size)  # fmt: skip
    return body + _CRC.pack(crc32(body))


def decode_inode(number: InodeId, value: bytes) -> InodeRecord:
    fields = _inode_fields(number, value)
    return _tuple(InodeRecord, (number, _KINDS[fields[1]], *fields[3:18], fields[2]))


def decode_attributes(number: InodeId, value: bytes) -> Attributes:
    """`decode_inode(…).attributes()`, a fifth faster: every look at a file is one."""
    fields = _inode_fields(number, value)
    return _tuple(Attributes, (number, _KINDS[fields[1]], *fields[3:17]))


_tuple = tuple.__new__
"""What the constructor of a NamedTuple calls, without naming each field on the way."""


def _inode_fields(number: InodeId, value: bytes) -> tuple[int, ...]:
    """Version, kind, hints, then `InodeRecord` from its mode on, checksum."""
    if len(value) != _SEALED_INODE.size or value[0] != VERSION:
        _opened(value, "inode", _INODE.size)  # says what is wrong
    fields = _SEALED_INODE.unpack(value)
    if crc32(value[:-4]) != fields[18]:
        raise CorruptError(f"inode record fails its checksum ({len(value)} bytes)")
    if fields[1] not in _KINDS:
        raise CorruptError(f"inode {number} has kind {fields[1]}")
    return fields


def encode_entry(inode: InodeId, kind: FileKind) -> bytes:
    return _sealed(_ENTRY.pack(VERSION, inode, kind))


def decode_entry(name: bytes, value: bytes) -> Entry:
    if len(value) != _SEALED_ENTRY.size or value[0] != VERSION:
        _opened(value, "entry", _ENTRY.size)  # says what is wrong
    _, inode, kind, crc = _SEALED_ENTRY.unpack(value)
    if crc32(value[:-4]) != crc:
        raise CorruptError(f"entry record fails its checksum ({len(value)} bytes)")
    known = _KINDS.get(kind)
    if known is None:
        raise CorruptError(f"entry {name!r} has kind {kind}")
    return _tuple(Entry, (name, inode, known))


def encode_bytes(content: bytes) -> bytes:
    """Symlink targets and values of extended attributes."""
    return _sealed(bytes([VERSION]) + content)


def decode_bytes(value: bytes) -> bytes:
    return _opened(value, "bytes")[1:]


def encode_extent(extent: Extent) -> bytes:
    """Without its file offset, which is in the key."""
    return _sealed(_EXTENT.pack(VERSION, extent.length, extent.block, extent.block_offset))


def decode_extent(offset: int, value: bytes) -> Extent:
    _, length, block, block_offset = _EXTENT.unpack(_opened(value, "extent", _EXTENT.size))
    return Extent(offset, length, BlockId(block), block_offset)


def encode_staged(version: int, since_ns: int, place: Place | None = None) -> bytes:
    if place is not None:
        return _sealed(_PACKED.pack(_PACKED_VERSION, version, since_ns, place.segment, place.offset))
    return _sealed(_STAGED.pack(VERSION, version, since_ns))


def decode_staged(cache: CacheId, inode: InodeId, value: bytes) -> StagedRecord:
    body = _opened(value, "staged", known=_PACKED_VERSION)
    packed = body[0] == _PACKED_VERSION
    if len(body) != (_PACKED if packed else _STAGED).size:
        raise CorruptError(f"staged record of {len(body)} bytes, version {body[0]}, makes no sense")
    if packed:
        _, version, since_ns, segment, offset = _PACKED.unpack(body)
        return StagedRecord(cache, inode, version, since_ns, Place(segment, offset))
    _, version, since_ns = _STAGED.unpack(body)
    return StagedRecord(cache, inode, version, since_ns)


def encode_number(number: int) -> bytes:
    """Counters, receipts, intents, times of death."""
    return _sealed(_NUMBER.pack(VERSION, number))


def decode_number(value: bytes) -> int:
    number: int = _NUMBER.unpack(_opened(value, "number", _NUMBER.size))[1]
    return number


def encode_quota(quota: Quota) -> bytes:
    return _sealed(
        _QUOTA.pack(VERSION, quota.limit_bytes, quota.limit_inodes, quota.used_bytes, quota.used_inodes) + quota.path
    )


def decode_quota(directory: InodeId, value: bytes) -> Quota:
    body = _opened(value, "quota")
    if len(body) < _QUOTA.size:
        raise CorruptError("quota record is cut off")
    _, limit_bytes, limit_inodes, used_bytes, used_inodes = _QUOTA.unpack_from(body)
    return Quota(directory, body[_QUOTA.size :], limit_bytes, limit_inodes, used_bytes, used_inodes)


def encode_change(origin: SessionId, changed: Sequence[bytes]) -> bytes:
    """`changed`: keys of inodes and names."""
    parts = [_NUMBER.pack(VERSION, origin)]
    for key in changed:
        parts += [_TEXT.pack(len(key)), key]
    return _sealed(b"".join(parts))


def decode_change(value: bytes) -> tuple[SessionId, list[bytes]]:
    body = _opened(value, "change")
    if len(body) < _NUMBER.size:
        raise CorruptError("change record is cut off")
    origin, offset = SessionId(_NUMBER.unpack_from(body)[1]), _NUMBER.size
    changed: list[bytes] = []
    while offset < len(body):
        if offset + _TEXT.size > len(body):
            raise CorruptError("change record is cut off")
        start = offset + _TEXT.size
        offset = start + _TEXT.unpack_from(body, offset)[0]
        if offset > len(body):
            raise CorruptError("change record is cut off")
        changed.append(body[start:offset])
    return origin, changed


# ---- sessions and caches ---------------------------------------------------------------------------------------------


def encode_session(session: Session) -> bytes:
    head = _SESSION.pack(VERSION, session.process, session.started_ns, session.heartbeat_ns)
    return _with_texts(head, session.host, session.purpose)


def decode_session(number: SessionId, value: bytes) -> Session:
    body = _opened(value, "session")
    if len(body) < _SESSION.size:
        raise CorruptError("session record is cut off")
    _, process, started_ns, heartbeat_ns = _SESSION.unpack_from(body)
    host, purpose = _texts(body, _SESSION.size, 2, "session")
    return Session(number, host, process, purpose, started_ns, heartbeat_ns)


def encode_cache(cache: CacheRecord) -> bytes:
    return _with_texts(bytes([VERSION]), cache.uuid, cache.host, cache.path)


def decode_cache(number: CacheId, value: bytes) -> CacheRecord:
    uuid, host, path = _texts(_opened(value, "cache"), 1, 3, "cache")
    return CacheRecord(number, uuid, host, path)


# ---- blocks, disks, the volume ---------------------------------------------------------------------------------------


def _code(kind: int, data_count: int, parity_count: int, what: str) -> Code:
    try:
        code = Code(CodeKind(kind), data_count, parity_count)
    except ValueError as error:
        raise CorruptError(f"{what} record has code {kind}") from error
    if data_count < 1 or code.width > CODE_WIDTH_MAX:
        raise CorruptError(f"{what} record has {data_count} + {parity_count} chunks")
    return code


def encode_block(block: Block) -> bytes:
    code = block.code
    head = _BLOCK.pack(VERSION, code.kind, code.data_count, code.parity_count, block.size_bytes, block.chunk_bytes,
                       len(block.chunks))  # fmt: skip
    return _sealed(head + b"".join(_CHUNK.pack(chunk.index, chunk.disk, chunk.crc32c) for chunk in block.chunks))


def decode_block(block: BlockId, value: bytes) -> Block:
    body = _opened(value, "block")
    if len(body) < _BLOCK.size:
        raise CorruptError("block record is cut off")
    _, kind, data_count, parity_count, size_bytes, chunk_bytes, count = _BLOCK.unpack_from(body)
    if len(body) != _BLOCK.size + count * _CHUNK.size:
        raise CorruptError(f"block record of {count} chunks has {len(body)} bytes")
    code = _code(kind, data_count, parity_count, "block")
    chunks = tuple(
        ChunkLocation(index, DiskId(disk), crc) for index, disk, crc in _CHUNK.iter_unpack(body[_BLOCK.size :])
    )
    indexes = [chunk.index for chunk in chunks]
    if indexes != sorted(set(indexes)) or any(index >= code.width for index in indexes):
        raise CorruptError(f"block record has chunks {indexes} of {code}")
    return Block(block, code, size_bytes, chunk_bytes, chunks)


def encode_short(short: ShortBlock) -> bytes:
    return _sealed(_SHORT.pack(VERSION, short.since_ns, short.size_bytes, short.missing_bytes))


def decode_short(block: BlockId, spare: int, value: bytes) -> ShortBlock:
    _, since_ns, size_bytes, missing_bytes = _SHORT.unpack(_opened(value, "short block", _SHORT.size))
    return ShortBlock(block, spare, since_ns, size_bytes, missing_bytes)


def encode_disk(disk: Disk) -> bytes:
    return _with_texts(bytes([VERSION, disk.state]), disk.uuid, disk.url, disk.domain)


def decode_disk(number: DiskId, value: bytes) -> Disk:
    body = _opened(value, "disk")
    uuid, url, domain = _texts(body, 2, 3, "disk")
    try:
        return Disk(number, uuid, url, domain, DiskState(body[1]))
    except ValueError as error:
        raise CorruptError(f"disk {number} has state {body[1]}") from error


def encode_volume(config: VolumeConfig) -> bytes:
    code = config.code
    head = _CODE_AND_SIZES.pack(VERSION, config.format_version, config.created_ns, code.kind, code.data_count,
                                code.parity_count, config.block_bytes, config.durability)  # fmt: skip
    return _with_texts(head, config.uuid, config.name)


def decode_volume(value: bytes) -> VolumeConfig:
    body = _opened(value, "volume")
    if len(body) < _CODE_AND_SIZES.size:
        raise CorruptError("volume record is cut off")
    _, version, created_ns, kind, data_count, parity_count, block_bytes, durability = _CODE_AND_SIZES.unpack_from(body)
    uuid, name = _texts(body, _CODE_AND_SIZES.size, 2, "volume")
    code = _code(kind, data_count, parity_count, "volume")
    try:
        return VolumeConfig(uuid, name, version, created_ns, code, block_bytes, Durability(durability))
    except ValueError as error:
        raise CorruptError(f"volume record has durability {durability}") from error
