"""The file layer: attributes, extended attributes, and which bytes are a file's content.

A content has a version. It is *staged* while an SSD tier directory holds it alone (`staged_in`, and a `STAGED` record
with the same version), *stored* once the extents describe it (`stored_version == version`). The extents always
describe the newest content that is safe, so a lost SSD leaves that, and nothing of it is given up before its
successor is recorded.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    CorruptError,
    InvalidRequestError,
    IsDirectoryError,
    NameTooLongError,
    NoAttributeError,
    TooLargeError,
)
from tieredfs.format import keys, records
from tieredfs.format.records import MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from tieredfs.meta import blocks, inodes, quotas, shortage
from tieredfs.model import (
    NO_CACHE,
    AttributeChange,
    Block,
    BlockId,
    CacheId,
    Extent,
    FileKind,
    InodeId,
    Place,
    StagedRecord,
    StoredContent,
)

# ---- attributes ------------------------------------------------------------------------------------------------------


def set_attributes(writer: Writer, inode: InodeId, change: AttributeChange, now_ns: int) -> InodeRecord:
    record = inodes.read(writer, inode)
    inodes.refuse_frozen(record)
    changed = record._replace(
        mode=record.mode if change.mode is None else change.mode & 0o7777,
        uid=record.uid if change.uid is None else change.uid,
        gid=record.gid if change.gid is None else change.gid,
        atime_ns=record.atime_ns if change.atime_ns is None else change.atime_ns,
        mtime_ns=record.mtime_ns if change.mtime_ns is None else change.mtime_ns,
        ctime_ns=now_ns,
    )
    inodes.save(writer, changed)
    return changed


def read_link(reader: Reader, inode: InodeId) -> bytes:
    value = reader.get(keys.symlink(inode))
    if value is None:
        inodes.read(reader, inode)
        raise InvalidRequestError(f"inode {inode} is not a symlink")
    return records.decode_bytes(value)


def check_xattr_name(name: bytes) -> None:
    """Raises NameTooLongError, InvalidRequestError."""
    if len(name) > XATTR_NAME_BYTES_MAX:
        raise NameTooLongError(f"an attribute name of {len(name)} bytes; {XATTR_NAME_BYTES_MAX} are allowed")
    if not name or b"\0" in name:
        raise InvalidRequestError(f"{name!r} cannot be the name of an attribute")


def xattrs_of(reader: Reader, wanted: Sequence[InodeId], name: bytes) -> dict[InodeId, bytes]:
    found = {}
    for inode in wanted:
        value = reader.get(keys.xattr(inode, name))
        if value is not None:
            found[inode] = records.decode_bytes(value)
    return found


def get_xattr(reader: Reader, inode: InodeId, name: bytes) -> bytes:
    bare = not inodes.read(reader, inode).hints & MAY_HAVE_XATTRS
    value = None if bare else reader.get(keys.xattr(inode, name))
    if value is None:
        raise NoAttributeError(f"inode {inode} has no attribute {name!r}")
    return records.decode_bytes(value)


def check_xattr_value(value: bytes) -> None:
    """Raises TooLargeError."""
    if len(value) > XATTR_VALUE_BYTES_MAX:
        raise TooLargeError(f"an attribute of {len(value)} bytes; {XATTR_VALUE_BYTES_MAX} are allowed")


def set_xattr(
    writer: Writer, inode: InodeId, name: bytes, value: bytes, *, create: bool, replace: bool, now_ns: int
) -> None:
    check_xattr_value(value)
    record = inodes.read(writer, inode)
    inodes.refuse_frozen(record)
    exists = writer.get(keys.xattr(inode, name)) is not None
    if create and exists:
        raise AlreadyExistsError(f"inode {inode} has an attribute {name!r}")
    if replace and not exists:
        raise NoAttributeError(f"inode {inode} has no attribute {name!r}")
    writer.put(keys.xattr(inode, name), records.encode_bytes(value))
    inodes.save(writer, record._replace(ctime_ns=now_ns, hints=record.hints | MAY_HAVE_XATTRS))


def list_xattrs(reader: Reader, inode: InodeId) -> list[bytes]:
    if not inodes.read(reader, inode).hints & MAY_HAVE_XATTRS:
        return []
    prefix = keys.xattrs(inode)
    return [keys.text_after_u64(key) for key, _ in reader.scan(prefix, keys.end_of(prefix))]


def remove_xattr(writer: Writer, inode: InodeId, name: bytes, now_ns: int) -> None:
    record = inodes.read(writer, inode)
    inodes.refuse_frozen(record)
    if writer.get(keys.xattr(inode, name)) is None:
        raise NoAttributeError(f"inode {inode} has no attribute {name!r}")
    writer.delete(keys.xattr(inode, name))
    inodes.save(writer, record._replace(ctime_ns=now_ns))


# ---- staged contents -------------------------------------------------------------------------------------------------


def begin_write(
    writer: Writer, inode: InodeId, cache: CacheId, *, truncate: bool, now_ns: int, admitted: bool = False
) -> InodeRecord:
    """The time since when the content is on an SSD only stays that of the first write that is not yet stored."""
    record = inodes.read(writer, inode)
    if record.kind is FileKind.DIRECTORY:
        raise IsDirectoryError(f"inode {inode} is a directory")
    if record.kind is not FileKind.REGULAR:
        raise InvalidRequestError(f"inode {inode} has no content to write")
    inodes.refuse_frozen(record)
    if record.staged_in not in {NO_CACHE, cache}:
        raise BusyError(f"inode {inode} is being written through cache {record.staged_in}")
    since_ns = now_ns
    if record.staged_in:
        value = writer.get(keys.staged(cache, inode))
        since_ns = now_ns if value is None else records.decode_staged(cache, inode, value).since_ns
    record = record._replace(version=record.version + 1, staged_in=cache)
    if truncate:
        quotas.resized(writer, record, 0)
        record = record._replace(size_bytes=0, allocated_bytes=0, mtime_ns=now_ns, ctime_ns=now_ns)
    if not admitted:
        quotas.check_writable(writer, record)
    inodes.save(writer, record)
    writer.put(keys.staged(cache, inode), records.encode_staged(record.version, since_ns))
    return record


def publish(writer: Writer, inode: InodeId, version: int, size_bytes: int, mtime_ns: int, allocated_bytes: int) -> None:
    record = inodes.find(writer, inode)
    if record is None or record.version != version:
        return
    quotas.resized(writer, record, size_bytes)
    ctime_ns = max(record.ctime_ns, mtime_ns)
    inodes.save(
        writer,
        record._replace(size_bytes=size_bytes, mtime_ns=mtime_ns, ctime_ns=ctime_ns, allocated_bytes=allocated_bytes),
    )


def abandon_write(writer: Writer, inode: InodeId, version: int) -> None:
    record = inodes.find(writer, inode)
    if record is None or record.version != version or not record.staged_in:
        return
    inodes.clear_staged(writer, record)
    quotas.resized(writer, record, record.stored_size_bytes)
    inodes.save(
        writer,
        record._replace(
            staged_in=NO_CACHE,
            stored_version=version,
            size_bytes=record.stored_size_bytes,
            allocated_bytes=sum(extent.length for extent in inodes.extents(writer, inode)),
        ),
    )


def staged(reader: Reader, caches: Iterable[CacheId]) -> list[StagedRecord]:
    """Oldest first."""
    found: list[StagedRecord] = []
    for cache in caches:
        prefix = keys.staged_in(cache)
        found += [
            records.decode_staged(cache, InodeId(keys.last_u64(key)), value)
            for key, value in reader.scan(prefix, keys.end_of(prefix))
        ]
    return sorted(found, key=lambda record: (record.since_ns, record.inode))


def staged_as(reader: Reader, cache: CacheId, inode: InodeId) -> StagedRecord | None:
    value = reader.get(keys.staged(cache, inode))
    return None if value is None else records.decode_staged(cache, inode, value)


def staged_sizes(reader: Reader, cache: CacheId, wanted: Sequence[InodeId]) -> dict[InodeId, tuple[int, int]]:
    """What cannot be read is passed over: `fsck` tells of it."""
    found: dict[InodeId, tuple[int, int]] = {}
    values = reader.get_many([keys.inode(inode) for inode in wanted])
    for inode, value in zip(wanted, values, strict=True):
        with contextlib.suppress(CorruptError):
            record = None if value is None else records.decode_inode(inode, value)
            if record is not None and record.staged_in == cache:
                found[inode] = record.version, record.size_bytes
    return found


def list_staged(writer: Writer, cache: CacheId, places: Mapping[InodeId, Place | None], now_ns: int) -> None:
    """Those that are staged in another cache by now, or in none, are left alone."""
    for inode, (version, _) in staged_sizes(writer, cache, list(places)).items():
        key = keys.staged(cache, inode)
        value = writer.get(key)
        since_ns = now_ns if value is None else records.decode_staged(cache, inode, value).since_ns
        writer.put(key, records.encode_staged(version, since_ns, places[inode]))


# ---- stored contents -------------------------------------------------------------------------------------------------


def commit_stored(
    writer: Writer, contents: Sequence[StoredContent], new_blocks: Sequence[Block], now_ns: int
) -> set[InodeId]:
    """`Metadata.commit_stored`. Thousands of small files in one block cost about 25 us each, most of it their
    records.
    """
    for block in new_blocks:
        blocks.record_block(writer, block, now_ns)
    fresh = {block.block for block in new_blocks}
    values = writer.get_many([keys.inode(content.inode) for content in contents])
    taken: set[InodeId] = set()
    suspects = set(fresh)
    for content, value in zip(contents, values, strict=True):
        if value is None:
            continue
        record = records.decode_inode(content.inode, value)
        if record.version != content.version:
            continue
        assert content.inode not in taken, "one content per inode"
        suspects |= replace_extents(writer, record, content.extents, fresh)
        inodes.save(writer, _stored(writer, record, content, now_ns))
        taken.add(content.inode)
    blocks.bury(writer, suspects, now_ns)
    return taken


def replace_extents(
    writer: Writer, record: InodeRecord, extents: Sequence[Extent], fresh: set[BlockId]
) -> set[BlockId]:
    """Exchange a file's extents for `extents`; returns the blocks that lost it as a user."""
    inode = InodeId(record.inode)
    _check_extents(extents)
    before = inodes.extents(writer, inode) if record.hints & MAY_HAVE_EXTENTS else []
    offsets = {extent.offset for extent in extents}
    for extent in before:
        if extent.offset not in offsets:
            writer.delete(keys.extent(inode, extent.offset))
    kept = set(before)
    for extent in extents:
        if extent not in kept:
            writer.put(keys.extent(inode, extent.offset), records.encode_extent(extent))
    old = {extent.block for extent in before}
    new = {extent.block for extent in extents}
    blocks.revive(writer, new - old - fresh)
    blocks.change_users(writer, inode, old, new)
    return old - new


def is_bare(reader: Reader, inode: InodeId) -> bool:
    """Whether a block of the stored content is bare; one look while no block of the volume is."""
    if not shortage.some_are_bare(reader):
        return False
    return shortage.any_bare(reader, {extent.block for extent in inodes.extents(reader, inode)})


def _check_extents(extents: Sequence[Extent]) -> None:
    end = 0
    for extent in extents:
        assert extent.length > 0
        assert extent.offset >= end, "extents are in order and do not overlap"
        end = extent.end


def _stored(writer: Writer, record: InodeRecord, content: StoredContent, now_ns: int) -> InodeRecord:
    """The record once the extents are `content`, and the staged record with it.

    The content's mtime counts only when it is later than the inode's ctime, which means that nobody has published it
    yet: an mtime that was set since with utimensat(2) must stand, or a second rsync would copy everything again.
    """
    inode = InodeId(record.inode)
    hints = record.hints | (MAY_HAVE_EXTENTS if content.extents else 0)
    record = record._replace(stored_size_bytes=content.size_bytes, hints=hints)
    if not content.complete:
        if record.staged_in:
            since = records.encode_staged(record.version, now_ns)
            writer.put(keys.staged(CacheId(record.staged_in), inode), since)
        return record
    inodes.clear_staged(writer, record)
    quotas.resized(writer, record, content.size_bytes)
    record = record._replace(
        size_bytes=content.size_bytes,
        stored_version=content.version,
        staged_in=NO_CACHE,
        allocated_bytes=sum(extent.length for extent in content.extents),
    )
    if content.mtime_ns > record.ctime_ns:
        record = record._replace(mtime_ns=content.mtime_ns, ctime_ns=content.mtime_ns)
    return record
