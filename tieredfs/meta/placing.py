"""Files that are made without a name and get one when they are whole.

An unnamed inode is an orphan of the session that makes it: if that dies, the file goes with it. Placing it takes the
orphan record away and makes the entry, with whatever the name showed before replaced, in one transaction.

A file that was written whole in a moment needs no record before that: `create_placed` makes inode and name together. If
its process dies before, the local file is one that no metadata names, and recovery deletes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tieredfs.errors import (
    AlreadyExistsError,
    ConflictError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
    TieredError,
)
from tieredfs.format import keys, records
from tieredfs.format.records import MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Writer
from tieredfs.meta import files, inodes, names
from tieredfs.meta.changes import Content, Creation, Placement, Removed
from tieredfs.model import ROOT, Attributes, CacheId, Extent, FileKind, InodeId, SessionId

Condition = Callable[[Attributes | None], None]


def create_unnamed(
    writer: Writer,
    inode: InodeId,
    creation: Creation,
    holder: SessionId,
    extents: Sequence[Extent],
    size_bytes: int,
    now_ns: int,
) -> InodeRecord:
    """A regular file without a name: staged and empty, or stored with content that other files have too."""
    assert holder
    assert not (creation.staged_in and extents)
    record = names.new_inode(inode, inodes.read(writer, ROOT), creation, now_ns)
    hints = MAY_HAVE_EXTENTS if extents else 0
    record = record._replace(
        link_count=0,
        size_bytes=size_bytes,
        stored_size_bytes=size_bytes,
        allocated_bytes=sum(extent.length for extent in extents),
        hints=hints,
    )
    inodes.save(writer, record)
    writer.put(keys.orphan(holder, inode), records.EMPTY)
    if creation.staged_in:
        writer.put(keys.staged(creation.staged_in, inode), records.encode_staged(record.version, now_ns))
    files.replace_extents(writer, record, extents, set())
    return record


def place(
    writer: Writer, placement: Placement, holder: SessionId, condition: Condition | None, now_ns: int
) -> tuple[InodeRecord, Removed | None]:
    """Give an unnamed inode of `holder` its name. `Metadata.place` explains the rest."""
    directory = _directory(writer, placement)
    removed = _take_name(writer, _check(writer, placement, condition), holder, now_ns)
    orphan = keys.orphan(holder, placement.inode)
    if writer.get(orphan) is None:
        raise NotFoundError(f"inode {placement.inode} is not an unnamed file of session {holder}")
    writer.delete(orphan)
    return _name(writer, placement, directory, inodes.read(writer, placement.inode), now_ns), removed


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file whose content is staged and whole, and the name that it is to have."""

    placement: Placement
    content: Content
    condition: Condition | None = None


Placed = tuple[InodeRecord, Removed | None]


def create_placed(
    writer: Writer, several: Sequence[Wanted], creation: Creation, holder: SessionId, now_ns: int
) -> list[Placed | TieredError]:
    """Several in one transaction, one after another. What is refused was refused before it changed anything, so it is out of it
    by itself; any other error ends the transaction. `Metadata.create_placed` explains the rest."""
    outcomes: list[Placed | TieredError] = []
    for wanted in several:
        try:
            directory, root = _directory(writer, wanted.placement), inodes.read(writer, ROOT)
            before = _check(writer, wanted.placement, wanted.condition)
        except TieredError as error:
            outcomes.append(error)
            continue
        outcomes.append(
            _create(
                writer,
                wanted,
                directory,
                names.new_inode(wanted.placement.inode, root, creation, now_ns),
                before,
                creation.staged_in,
                holder,
                now_ns,
            )
        )
    return outcomes


def _create(
    writer: Writer,
    wanted: Wanted,
    directory: InodeRecord,
    record: InodeRecord,
    before: InodeRecord | None,
    staged_in: CacheId,
    holder: SessionId,
    now_ns: int,
) -> Placed:
    removed = _take_name(writer, before, holder, now_ns)
    content, inode = wanted.content, wanted.placement.inode
    record = record._replace(
        size_bytes=content.size_bytes, mtime_ns=content.mtime_ns, allocated_bytes=content.allocated_bytes
    )
    writer.put(keys.staged(staged_in, inode), records.encode_staged(record.version, now_ns))
    return _name(writer, wanted.placement, directory, record, now_ns), removed


def _directory(writer: Writer, placement: Placement) -> InodeRecord:
    """Where it goes, once the rest of it is found to be in order."""
    names.check_name(placement.name)
    for name, value in placement.xattrs:
        files.check_xattr_name(name)
        files.check_xattr_value(value)
    return inodes.read_directory(writer, placement.parent)


def _check(writer: Writer, placement: Placement, condition: Condition | None) -> InodeRecord | None:
    """Ask the condition, and see what has the name. Raises AlreadyExistsError, IsDirectoryError, ConflictError. Changes nothing."""
    entry = names.find_entry(writer, placement.parent, placement.name)
    before = None if entry is None else names.target_of(writer, placement.parent, entry)
    if condition is not None:
        condition(None if before is None else before.attributes())
    if entry is not None and not placement.replace:
        raise AlreadyExistsError(f"directory {placement.parent} has an entry {placement.name!r}")
    if entry is not None and names.is_directory(entry):
        raise IsDirectoryError(f"{placement.name!r} is a directory")
    if placement.absent and _is_file(writer, placement.absent):
        raise ConflictError(f"{placement.absent!r} is there meanwhile")
    return before


def _take_name(writer: Writer, before: InodeRecord | None, holder: SessionId, now_ns: int) -> Removed | None:
    """From what has it."""
    if before is None:
        return None
    return Removed(InodeId(before.inode), before.kind, inodes.drop_link(writer, before, holder, now_ns))


def _is_file(writer: Writer, path: bytes) -> bool:
    try:
        return names.resolve(writer, path).kind is not FileKind.DIRECTORY
    except (NotFoundError, NotDirectoryError):
        return False


def _name(
    writer: Writer, placement: Placement, directory: InodeRecord, record: InodeRecord, now_ns: int
) -> InodeRecord:
    """The entry, and what comes with it."""
    for name, value in placement.xattrs:
        writer.put(keys.xattr(placement.inode, name), records.encode_bytes(value))
    record = record._replace(
        link_count=1,
        parent=placement.parent,
        mode=placement.mode & 0o7777,
        ctime_ns=now_ns,
        hints=record.hints | (MAY_HAVE_XATTRS if placement.xattrs else 0),
    )
    names.put_entry(writer, placement.parent, placement.name, placement.inode, record.kind)
    inodes.save(writer, record)
    inodes.save_changed_directory(writer, directory, now_ns)
    return record
