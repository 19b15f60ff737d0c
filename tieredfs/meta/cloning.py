"""Copies of files and directories by reference: new inodes with the extents of old ones. No byte is read.

A copy is as `cp -a` would make it: kind, mode, owner, times, target of a symlink, extended attributes, holes. It has the version
of its original, for it is that content (what S3 remembers of it stays true). Its change time is now.

Content that is only staged has no extents yet. Such a file is left out and named, for the caller to wait until it is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tieredfs.errors import NotFoundError
from tieredfs.format import keys
from tieredfs.format.records import InodeRecord
from tieredfs.kv.engine import Writer
from tieredfs.meta import files, inodes, names, quotas
from tieredfs.model import NO_CACHE, FileKind, InodeId


@dataclass(slots=True)
class Cloned:
    """What one transaction copied of a directory's entries. `directories`: originals and their copies, empty so far. `linked`:
    copies of what has several names, by original. `staged`: what was left out. `last`: the name to go on after; None: that was
    all."""

    directories: list[tuple[InodeId, InodeId]] = field(default_factory=list)
    linked: dict[InodeId, InodeId] = field(default_factory=dict)
    staged: list[tuple[bytes, InodeId]] = field(default_factory=list)
    file_count: int = 0
    size_bytes: int = 0
    last: bytes | None = None


def clone_entries(
    writer: Writer,
    source: InodeId,
    after: bytes,
    target: InodeId,
    new: Sequence[InodeId],
    linked: Mapping[InodeId, InodeId],
    left_out: bytes,
    now_ns: int,
) -> Cloned:
    """Copy the entries of `source` with names greater than `after`, but the one named `left_out`, into the directory `target`, as
    many as there are `new` ids. `linked`: as earlier calls said. Raises NotFoundError, NotDirectoryError."""
    cloned = Cloned(linked=dict(linked))
    place = _Place(inodes.read_directory(writer, target))
    entries = names.listed(writer, source, after, len(new))
    ids = iter(new)
    for entry in entries:
        if entry.name == left_out:
            continue
        record = names.target_of(writer, source, entry)
        _clone(writer, record, place, entry.name, ids, cloned, now_ns)
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
) -> Cloned:
    """Copy an inode into the directory `target`, under a name that is free there. Raises NotFoundError."""
    cloned = Cloned(linked=dict(linked))
    record = inodes.find(writer, source)
    if record is None:
        raise NotFoundError(f"no inode {source}")
    place = _Place(inodes.read_directory(writer, target))
    _clone(writer, record, place, name, iter([new]), cloned, now_ns)
    place.end(writer)
    return cloned


class _Place:
    """The directory that copies are made in, and what they count there."""

    def __init__(self, directory: InodeRecord) -> None:
        self.inode = InodeId(directory.inode)
        self.hints = quotas.inherited(directory)
        self._directory = directory
        self._usage = quotas.NOTHING

    def add(self, copy: InodeRecord) -> None:
        if self.hints:
            self._usage = self._usage.plus(quotas.usage_of(copy))

    def end(self, writer: Writer) -> None:
        """Raises QuotaExceededError."""
        if self._usage != quotas.NOTHING:
            quotas.charge(writer, quotas.above(writer, self._directory), self._usage, enforce=True)


def _clone(
    writer: Writer,
    record: InodeRecord,
    place: _Place,
    name: bytes,
    ids: Iterator[InodeId],
    cloned: Cloned,
    now_ns: int,
) -> None:
    source = InodeId(record.inode)
    if record.kind is FileKind.REGULAR and record.staged_in != NO_CACHE:
        cloned.staged.append((name, source))
        return
    known = cloned.linked.get(source)
    inode = next(ids) if known is None else known
    target = place.inode
    names.put_entry(writer, target, name, inode, record.kind)
    if known is not None:
        copy = inodes.read(writer, known)
        inodes.save(writer, copy._replace(link_count=copy.link_count + 1))
        return
    is_directory = record.kind is FileKind.DIRECTORY
    hints = record.hints & ~quotas.QUOTA_BITS | place.hints
    copy = record._replace(
        inode=inode, parent=target, link_count=2 if is_directory else 1, ctime_ns=now_ns, hints=hints
    )
    place.add(copy)
    inodes.save(writer, copy)
    _clone_content(writer, record, copy)
    if is_directory:
        parent = inodes.read(writer, target)
        inodes.save(writer, parent._replace(link_count=parent.link_count + 1))
        cloned.directories.append((source, inode))
        return
    cloned.file_count += 1
    cloned.size_bytes += record.size_bytes if record.kind is FileKind.REGULAR else 0
    if record.link_count > 1:
        cloned.linked[source] = inode


def _clone_content(writer: Writer, record: InodeRecord, copy: InodeRecord) -> None:
    source, inode = InodeId(record.inode), InodeId(copy.inode)
    prefix = keys.xattrs(source)
    for key, value in writer.scan(prefix, keys.end_of(prefix)):
        writer.put(keys.xattr(inode, keys.text_after_u64(key)), value)
    target = writer.get(keys.symlink(source)) if record.kind is FileKind.SYMLINK else None
    if target is not None:
        writer.put(keys.symlink(inode), target)
    if record.kind is FileKind.REGULAR:
        files.replace_extents(writer, copy._replace(hints=0), inodes.extents(writer, source), set())
