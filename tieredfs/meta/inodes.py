"""Inode records: read, written, and deleted with all that hangs on them. Below the name and file layers."""

from collections.abc import Sequence

from tieredfs.errors import NotDirectoryError, NotFoundError, ReadOnlyError
from tieredfs.format import keys, records
from tieredfs.format.records import FROZEN, MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.meta import blocks, quotas
from tieredfs.model import CacheId, Extent, FileKind, InodeId, SessionId


def find(reader: Reader, inode: InodeId) -> InodeRecord | None:
    value = reader.get(keys.inode(inode))
    return None if value is None else records.decode_inode(inode, value)


def read(reader: Reader, inode: InodeId) -> InodeRecord:
    """Raises NotFoundError."""
    record = find(reader, inode)
    if record is None:
        raise NotFoundError(f"no inode {inode}")
    return record


def read_directory(reader: Reader, inode: InodeId) -> InodeRecord:
    """Raises NotFoundError, NotDirectoryError."""
    record = read(reader, inode)
    if record.kind is not FileKind.DIRECTORY:
        raise NotDirectoryError(f"inode {inode} is not a directory")
    return record


def refuse_frozen(record: InodeRecord) -> None:
    """Raises ReadOnlyError for what belongs to a snapshot. Every change of a name comes by here (`save_changed_directory`), and
    every change of an inode in `files`, `names.link` and `renames`."""
    if record.hints & FROZEN:
        raise ReadOnlyError("a snapshot does not change; `tieredfs clone` or `tieredfs restore` makes a copy that does")


def save(writer: Writer, record: InodeRecord) -> None:
    writer.put(keys.inode(InodeId(record.inode)), records.encode_inode(record))


def save_changed_directory(writer: Writer, record: InodeRecord, now_ns: int, subdirectories: int = 0) -> None:
    """A name came, went or changed; `subdirectories`: how many more of them there are now. Raises ReadOnlyError."""
    refuse_frozen(record)
    save(
        writer,
        record._replace(mtime_ns=now_ns, ctime_ns=now_ns, link_count=record.link_count + subdirectories),
    )


def versions(reader: Reader, wanted: Sequence[InodeId]) -> dict[InodeId, int]:
    """Of those that exist."""
    values = reader.get_many([keys.inode(inode) for inode in wanted])
    return {
        inode: records.decode_inode(inode, value).version
        for inode, value in zip(wanted, values, strict=True)
        if value is not None
    }


def extents(reader: Reader, inode: InodeId) -> list[Extent]:
    """In order of offset."""
    prefix = keys.extents(inode)
    return [records.decode_extent(keys.last_u64(key), value) for key, value in reader.scan(prefix, keys.end_of(prefix))]


def clear_staged(writer: Writer, record: InodeRecord) -> None:
    """Take the staged record away, if there is one; the inode's own record is the caller's to write."""
    if record.staged_in:
        writer.delete(keys.staged(CacheId(record.staged_in), InodeId(record.inode)))


def drop_link(writer: Writer, record: InodeRecord, directory: InodeId, holder: SessionId, now_ns: int) -> bool:
    """One name less, in `directory`; True when it was the last. Then the inode is deleted, or, with a `holder`, its orphan."""
    left = record.link_count - 1
    record = quotas.left(writer, record, directory, last=left == 0)
    if left > 0 or holder:
        save(writer, record._replace(link_count=left, ctime_ns=now_ns))
        if left == 0:
            writer.put(keys.orphan(holder, InodeId(record.inode)), records.EMPTY)
    else:
        delete(writer, record, now_ns)
    return left == 0


def delete(writer: Writer, record: InodeRecord, now_ns: int) -> None:
    """Delete an inode whose names are gone, with its contents and attributes. Blocks that nobody else uses become dead.

    One transaction however many extents there are, at about 10 us each: a file of 1 TiB has 16,384.
    """
    inode = InodeId(record.inode)
    quotas.deleted(writer, record)
    writer.delete(keys.inode(inode))
    clear_staged(writer, record)
    if record.kind is FileKind.SYMLINK:
        writer.delete(keys.symlink(inode))
    if record.hints & MAY_HAVE_XATTRS:
        _delete_all(writer, keys.xattrs(inode))
    if record.hints & MAY_HAVE_EXTENTS:
        used = {extent.block for extent in extents(writer, inode)}
        _delete_all(writer, keys.extents(inode))
        blocks.change_users(writer, inode, used, set())
        blocks.bury(writer, used, now_ns)


def _delete_all(writer: Writer, prefix: bytes) -> None:
    for key, _ in writer.scan(prefix, keys.end_of(prefix)):
        writer.delete(key)
