"""Copies of files and directories by reference: new inodes with the extents of old ones. No byte is read.

A copy is as `cp -a` would make it: kind, mode, owner, times, target of a symlink, extended attributes, holes. It has the version
of its original, for it is that content (what S3 remembers of it stays true). Its change time is now.

Content that is only staged has no extents yet. Such a file is left out and named, for the caller to wait until it is stored.

A *frozen* copy is a part of a snapshot: nothing changes it, and its change time is that of its original. A file that is staged is
in it as it is stored so far, and named as late, for the caller to bring it up to date (`refresh`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tieredfs.errors import NotFoundError
from tieredfs.format import keys, records
from tieredfs.format.records import FROZEN, MAY_BE_COUNTED, MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.meta import blocks, files, inodes, names, quotas
from tieredfs.model import NO_CACHE, Extent, FileKind, InodeId

SNAPSHOT_XATTR: Final = b"user.tieredfs.snapshot"
"""Of the root of a snapshot, and not of its copies."""
_LOOK_BATCH: Final = 1024


class Late(NamedTuple):
    """A file that was only staged when it was copied, and its copy."""

    source: InodeId
    copy: InodeId


@dataclass(slots=True)
class Cloned:
    """What one transaction copied of a directory's entries. `directories`: originals and their copies, empty so far. `linked`:
    copies of what has several names, by original. `staged`: what was left out. `late`: what was not, though it is staged.
    `last`: the name to go on after; None: that was all."""

    directories: list[tuple[InodeId, InodeId]] = field(default_factory=list)
    linked: dict[InodeId, InodeId] = field(default_factory=dict)
    staged: list[tuple[bytes, InodeId]] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)
    file_count: int = 0
    size_bytes: int = 0
    last: bytes | None = None


@dataclass(frozen=True, slots=True)
class Copying:
    """How one transaction copies. `new`: ids for what it makes. `source`: where originals are read, if that is another moment than
    that of the transaction."""

    new: Iterator[InodeId]
    now_ns: int
    frozen: bool = False
    source: Reader | None = None


def clone_entries(
    writer: Writer,
    source: InodeId,
    after: bytes,
    target: InodeId,
    new: Sequence[InodeId],
    linked: Mapping[InodeId, InodeId],
    left_out: bytes,
    now_ns: int,
    *,
    frozen: bool = False,
    originals: Reader | None = None,
) -> Cloned:
    """Copy the entries of `source` with names greater than `after`, but the one named `left_out`, into the directory `target`, as
    many as there are `new` ids. `linked`: as earlier calls said. `originals`: as of `Copying.source`. Raises NotFoundError,
    NotDirectoryError."""
    cloned = Cloned(linked=dict(linked))
    place = _Place(inodes.read_directory(writer, target))
    copying, reader = Copying(iter(new), now_ns, frozen, originals), originals or writer
    entries = names.listed(reader, source, after, len(new))
    for entry in entries:
        if entry.name != left_out:
            copy_entry(writer, names.target_of(reader, source, entry), target, entry.name, copying, cloned, place)
    place.end(writer)
    cloned.last = entries[-1].name if len(entries) == len(new) else None
    return cloned


def clone_one(
    writer: Writer,
    source: InodeId,
    target: InodeId,
    name: bytes,
    new: InodeId,
    linked: Mapping[InodeId, InodeId],
    now_ns: int,
    *,
    frozen: bool = False,
) -> Cloned:
    """Copy an inode into the directory `target`, under a name that is free there. Raises NotFoundError."""
    cloned = Cloned(linked=dict(linked))
    record = inodes.find(writer, source)
    if record is None:
        raise NotFoundError(f"no inode {source}")
    place = _Place(inodes.read_directory(writer, target))
    copy_entry(writer, record, target, name, Copying(iter([new]), now_ns, frozen), cloned, place)
    place.end(writer)
    return cloned


class _Place:
    """The directory that copies are made in, and what they count there; what is frozen counts nowhere."""

    def __init__(self, directory: InodeRecord) -> None:
        self.inode = InodeId(directory.inode)
        self.hints = quotas.inherited(directory)
        self._directory = directory
        self._usage = quotas.NOTHING

    def add(self, copy: InodeRecord) -> None:
        if copy.hints & MAY_BE_COUNTED:
            self._usage = self._usage.plus(quotas.usage_of(copy))

    def end(self, writer: Writer) -> None:
        """Raises QuotaExceededError."""
        if self._usage != quotas.NOTHING:
            quotas.charge(writer, quotas.above(writer, self._directory), self._usage, enforce=True)


def copy_entry(
    writer: Writer,
    record: InodeRecord,
    target: InodeId,
    name: bytes,
    copying: Copying,
    cloned: Cloned,
    place: _Place | None = None,
) -> None:
    """Copy an inode under a name, or give its copy a further name; what was done is added to `cloned`."""
    source = InodeId(record.inode)
    staged = record.kind is FileKind.REGULAR and record.staged_in != NO_CACHE
    if staged and not copying.frozen:
        cloned.staged.append((name, source))
        return
    known = cloned.linked.get(source)
    inode = next(copying.new) if known is None else known
    names.put_entry(writer, target, name, inode, record.kind)
    if known is not None:
        copy = inodes.read(writer, known)
        inodes.save(writer, copy._replace(link_count=copy.link_count + 1))
        return
    is_directory = record.kind is FileKind.DIRECTORY
    copy = copy_of(record, inode, target, copying, 0 if place is None else place.hints)
    if place is not None:
        place.add(copy)
    _write_copy(writer, record, copy, copying)
    if staged:
        cloned.late.append(Late(source, inode))
    if is_directory:
        parent = inodes.read(writer, target)
        inodes.save(writer, parent._replace(link_count=parent.link_count + 1))
        cloned.directories.append((source, inode))
        return
    cloned.file_count += 1
    cloned.size_bytes += record.size_bytes if record.kind is FileKind.REGULAR else 0
    if record.link_count > 1:
        cloned.linked[source] = inode


def copy_of(
    record: InodeRecord, inode: InodeId, parent: InodeId, copying: Copying, hints_there: int = 0
) -> InodeRecord:
    """What a copy's record is, with one name; of what is staged, as it is stored so far. `hints_there`: what is made there gets,
    unless it is frozen. Pure."""
    if record.staged_in != NO_CACHE:
        record = record._replace(staged_in=NO_CACHE, stored_version=record.version, size_bytes=record.stored_size_bytes)
    return record._replace(
        inode=inode,
        parent=parent,
        link_count=2 if record.kind is FileKind.DIRECTORY else 1,
        ctime_ns=record.ctime_ns if copying.frozen else copying.now_ns,
        hints=record.hints & ~(FROZEN | quotas.QUOTA_BITS) | (FROZEN if copying.frozen else hints_there),
    )


def refresh(writer: Writer, source: InodeId, copy: InodeId, copying: Copying) -> InodeRecord | None:
    """Make a copy again what its original is now; where it is, its names and what is below it stay. Both are of one kind. The
    original's record; None: there is none any more, or no copy."""
    record, before = inodes.find(copying.source or writer, source), inodes.find(writer, copy)
    if record is None or before is None:
        return None
    assert record.kind is before.kind
    for key, _ in _xattrs(writer, before):
        writer.delete(key)
    after = copy_of(record, copy, InodeId(before.parent), copying)
    after = after._replace(link_count=before.link_count, hints=after.hints | before.hints)
    _write_copy(writer, record, after, copying, before.hints)
    return record


def _write_copy(
    writer: Writer, record: InodeRecord, copy: InodeRecord, copying: Copying, hints_before: int = 0
) -> None:
    """The record and all that hangs on it. `hints_before`: of the copy's record as it was."""
    source, inode, originals = InodeId(record.inode), InodeId(copy.inode), copying.source or writer
    for key, value in _xattrs(originals, record):
        name = keys.text_after_u64(key)
        if name != SNAPSHOT_XATTR:
            writer.put(keys.xattr(inode, name), value)
    target = originals.get(keys.symlink(source)) if record.kind is FileKind.SYMLINK else None
    if target is not None:
        writer.put(keys.symlink(inode), target)
    if record.kind is FileKind.REGULAR:
        extents = inodes.extents(originals, source) if record.hints & MAY_HAVE_EXTENTS else list[Extent]()
        lost = files.replace_extents(writer, copy._replace(hints=hints_before), extents, set())
        blocks.bury(writer, lost, copying.now_ns)
        if record.staged_in != NO_CACHE:
            copy = copy._replace(allocated_bytes=sum(extent.length for extent in extents))
    inodes.save(writer, copy)


def _xattrs(reader: Reader, record: InodeRecord) -> list[tuple[bytes, bytes]]:
    """As they are at rest."""
    if not record.hints & MAY_HAVE_XATTRS:
        return []
    prefix = keys.xattrs(InodeId(record.inode))
    return list(reader.scan(prefix, keys.end_of(prefix)))


def staged_of(reader: Reader, wanted: Collection[InodeId]) -> set[InodeId]:
    """Those of `wanted` whose newest content is on an SSD only."""
    found = set()
    asked = list(wanted)
    for start in range(0, len(asked), _LOOK_BATCH):
        batch = asked[start : start + _LOOK_BATCH]
        values = reader.get_many([keys.inode(inode) for inode in batch])
        for inode, value in zip(batch, values, strict=True):
            if value is not None and records.decode_inode(inode, value).staged_in != NO_CACHE:
                found.add(inode)
    return found
