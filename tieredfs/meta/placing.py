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
    NotFoundError,
    TieredError,
)
from tieredfs.format import keys, records
from tieredfs.format.records import MAY_BE_COUNTED, MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Writer
from tieredfs.meta import files, inodes, names, quotas
from tieredfs.meta.changes import Content, Creation, Placement, Removed
from tieredfs.model import NOBODY, ROOT, Attributes, Extent, InodeId, SessionId

Condition = Callable[[Attributes | None], None]
InUse = Callable[[InodeId], bool]
"""Whether somebody who is told of a file's end has it open."""


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
    hints = MAY_HAVE_EXTENTS if extents else 0  # and no bit of a quota's: it counts once it has a name
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
    _check_placement(placement)
    directory = inodes.read_directory(writer, placement.parent)
    before = _check(writer, placement, condition, names.begin_walk())
    orphan = keys.orphan(holder, placement.inode)
    if writer.get(orphan) is None:
        raise NotFoundError(f"inode {placement.inode} is not an unnamed file of session {holder}")
    record = inodes.read(writer, placement.inode)
    _check_quotas(writer, directory, before, record.size_bytes)
    removed = _take_name(writer, placement, before, holder, now_ns)
    writer.delete(orphan)
    record = _name(writer, placement, directory, record, now_ns)
    inodes.save_changed_directory(writer, directory, now_ns)
    return record, removed


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file whose content is staged and whole, and the name that it is to have."""

    placement: Placement
    content: Content
    condition: Condition | None = None


Placed = tuple[InodeRecord, Removed | None]


def create_placed(
    writer: Writer, several: Sequence[Wanted], creation: Creation, holder: SessionId, in_use: InUse, now_ns: int
) -> list[Placed | TieredError]:
    """Several in one transaction, one after another. What is refused was refused before it changed anything, so it is out of it
    by itself; any other error ends the transaction. `Metadata.create_placed` explains the rest.

    Directories are read once for all, and those that got names are written once."""
    group = _Group(writer, creation, holder, in_use, now_ns)
    outcomes: list[Placed | TieredError] = []
    for wanted in several:
        try:
            before = group.check(wanted)
        except TieredError as error:
            outcomes.append(error)
            continue
        outcomes.append(group.create(wanted, before))
    group.end()
    return outcomes


class _Group:
    """What files that are made in one transaction share."""

    def __init__(self, writer: Writer, creation: Creation, holder: SessionId, in_use: InUse, now_ns: int) -> None:
        self._writer = writer
        self._creation = creation
        self._holder = holder
        self._in_use = in_use
        self._now_ns = now_ns
        self._root = inodes.read(writer, ROOT)
        self._directories: dict[InodeId, InodeRecord] = {}
        self._changed: set[InodeId] = set()
        self._walked = names.begin_walk()

    def check(self, wanted: Wanted) -> InodeRecord | None:
        """What has the name. Raises what `place` does, and changes nothing."""
        parent = wanted.placement.parent
        _check_placement(wanted.placement)
        if parent not in self._directories:
            self._directories[parent] = inodes.read_directory(self._writer, parent)
        before = _check(self._writer, wanted.placement, wanted.condition, self._walked)
        _check_quotas(self._writer, self._directories[parent], before, wanted.content.size_bytes)
        return before

    def create(self, wanted: Wanted, before: InodeRecord | None) -> Placed:
        writer, placement, content = self._writer, wanted.placement, wanted.content
        removed = _take_name(writer, placement, before, self._holder_of(before), self._now_ns)
        record = names.new_inode(placement.inode, self._root, self._creation, self._now_ns)._replace(
            size_bytes=content.size_bytes, mtime_ns=content.mtime_ns, allocated_bytes=content.allocated_bytes
        )
        staged = keys.staged(self._creation.staged_in, placement.inode)
        writer.put(staged, records.encode_staged(record.version, self._now_ns, content.place))
        self._changed.add(placement.parent)
        return _name(writer, placement, self._directories[placement.parent], record, self._now_ns), removed

    def _holder_of(self, before: InodeRecord | None) -> SessionId:
        """Whose orphan it becomes. What nobody has in use is deleted at once, unless it has extents: others would wait for that."""
        if before is None or before.hints & MAY_HAVE_EXTENTS or self._in_use(InodeId(before.inode)):
            return self._holder
        return NOBODY

    def end(self) -> None:
        for parent in sorted(self._changed):
            inodes.save_changed_directory(self._writer, self._directories[parent], self._now_ns)


def _check_placement(placement: Placement) -> None:
    """What needs no look at anything. Raises NameTooLongError, InvalidRequestError."""
    names.check_name(placement.name)
    for name, value in placement.xattrs:
        files.check_xattr_name(name)
        files.check_xattr_value(value)


def _check(
    writer: Writer, placement: Placement, condition: Condition | None, walked: names.Walked
) -> InodeRecord | None:
    """Ask the condition, and see what has the name. Raises AlreadyExistsError, IsDirectoryError, ConflictError. Changes nothing."""
    entry = names.find_entry(writer, placement.parent, placement.name)
    before = None if entry is None else names.target_of(writer, placement.parent, entry)
    if condition is not None:
        condition(None if before is None else before.attributes())
    if entry is not None and not placement.replace:
        raise AlreadyExistsError(f"directory {placement.parent} has an entry {placement.name!r}")
    if entry is not None and names.is_directory(entry):
        raise IsDirectoryError(f"{placement.name!r} is a directory")
    if placement.absent and names.is_file(writer, placement.absent, walked):
        raise ConflictError(f"{placement.absent!r} is there meanwhile")
    return before


def _check_quotas(writer: Writer, directory: InodeRecord, before: InodeRecord | None, size_bytes: int) -> None:
    """Raises QuotaExceededError when a file of that size has no room in place of `before`."""
    if not directory.hints & quotas.QUOTA_BITS:
        return
    freed = quotas.NOTHING
    if before is not None and before.link_count == 1 and before.hints & MAY_BE_COUNTED:
        freed = quotas.usage_of(before)
    more = quotas.Usage(quotas.rounded(size_bytes), 1).minus(freed)
    quotas.check(writer, quotas.above(writer, directory), more)


def _take_name(
    writer: Writer, placement: Placement, before: InodeRecord | None, holder: SessionId, now_ns: int
) -> Removed | None:
    """From what has it."""
    if before is None:
        return None
    gone = inodes.drop_link(writer, before, placement.parent, holder, now_ns)
    return Removed(InodeId(before.inode), before.kind, gone, deleted=gone and not holder)


def _name(
    writer: Writer, placement: Placement, directory: InodeRecord, record: InodeRecord, now_ns: int
) -> InodeRecord:
    """The entry, and what comes with it; the directory's own record is the caller's to write."""
    hints = record.hints & ~MAY_BE_COUNTED | quotas.inherited(directory)
    for name, value in placement.xattrs:
        writer.put(keys.xattr(placement.inode, name), records.encode_bytes(value))
    record = record._replace(
        link_count=1,
        parent=placement.parent,
        mode=placement.mode & 0o7777,
        ctime_ns=now_ns,
        hints=hints | (MAY_HAVE_XATTRS if placement.xattrs else 0),
    )
    if hints & MAY_BE_COUNTED:
        quotas.charge(writer, quotas.above(writer, directory), quotas.usage_of(record))
    names.put_entry(writer, placement.parent, placement.name, placement.inode, record.kind)
    inodes.save(writer, record)
    return record
