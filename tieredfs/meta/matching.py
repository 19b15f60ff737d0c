"""Holding a tree against its frozen copy: where they differ, in one snapshot of the metadata, and mending the copy.

A copy of many names takes many transactions, and others go on meanwhile. When a comparison in one snapshot finds no difference,
the copy is the tree as it was at the moment of that snapshot. Every change of an inode or a name changes a record that is compared:
each change has its time of change, its version or its name.

Contents of which the newest version is only staged are *late*: their copies are brought up to date when they are stored.
"""

import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from tieredfs.errors import CorruptError, NotFoundError, TooLargeError
from tieredfs.format import keys, records
from tieredfs.format.records import InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.meta import cloning, inodes, names
from tieredfs.meta.cloning import Cloned, Copying, Late
from tieredfs.meta.workplaces import HIDDEN, count_directories
from tieredfs.model import NO_CACHE, NOBODY, ROOT, Entry, FileKind, InodeId

_LIST_BATCH: Final = 1024
_NOTHING: Final = Copying(iter(()), 0, frozen=True)


class Difference(NamedTuple):
    """An entry of a directory and of its copy that are not the same; or, without a name, the two directories themselves."""

    source: InodeId
    copy: InodeId
    name: bytes = b""


@dataclass(slots=True)
class Compared:
    """`linked`: copies of what has several names in the tree, by original."""

    differences: list[Difference] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)
    linked: dict[InodeId, InodeId] = field(default_factory=dict)
    entry_count: int = 0


class _Place(NamedTuple):
    entry: Entry
    record: InodeRecord


def compare(reader: Reader, source: InodeId, copy: InodeId, settled: Mapping[InodeId, int]) -> Compared:
    """`settled`: files that were still staged when their copies were last brought up to date, with the version that they had then.
    Such a copy will do while it is of that version and staged, whatever its size and times are by now. Raises NotFoundError when
    the tree itself is gone."""
    return _Comparison(reader, settled).run(source, copy)


class _Comparison:
    def __init__(self, reader: Reader, settled: Mapping[InodeId, int]) -> None:
        self._reader = reader
        self._settled = settled
        self._found = Compared()
        self._originals: dict[InodeId, InodeId] = {}
        self._waiting: list[tuple[InodeId, InodeId]] = []

    def run(self, source: InodeId, copy: InodeId) -> Compared:
        self._compare_directories(
            inodes.read_directory(self._reader, source), inodes.read_directory(self._reader, copy)
        )
        while self._waiting:
            self._compare_entries(*self._waiting.pop())
        return self._found

    def _compare_directories(self, source: InodeRecord, copy: InodeRecord) -> None:
        pair = InodeId(source.inode), InodeId(copy.inode)
        if not _is_copy(source, copy):
            self._found.differences.append(Difference(*pair))
        self._waiting.append(pair)

    def _compare_entries(self, source: InodeId, copy: InodeId) -> None:
        ours, copies = _listing(self._reader, source), _listing(self._reader, copy)
        left, right = next(ours, None), next(copies, None)
        while left is not None or right is not None:
            self._found.entry_count += 1
            if right is None or (left is not None and left.entry.name < right.entry.name):
                assert left is not None
                self._found.differences.append(Difference(source, copy, left.entry.name))
                left = next(ours, None)
            elif left is None or right.entry.name < left.entry.name:
                self._found.differences.append(Difference(source, copy, right.entry.name))
                right = next(copies, None)
            else:
                self._compare_both(source, copy, left, right.record)
                left, right = next(ours, None), next(copies, None)

    def _compare_both(self, source: InodeId, copy: InodeId, left: _Place, right: InodeRecord) -> None:
        record = left.record
        if record.kind is not right.kind or not self._is_pair(record, right):
            self._found.differences.append(Difference(source, copy, left.entry.name))
            return
        if record.kind is FileKind.DIRECTORY:
            self._compare_directories(record, right)
            return
        settled = self._settled.get(InodeId(record.inode))
        if record.staged_in != NO_CACHE or settled is not None:
            if record.staged_in == NO_CACHE or not settled == record.version == right.version:
                self._found.late.append(Late(InodeId(record.inode), InodeId(right.inode)))
        elif not _is_copy(record, right):
            self._found.differences.append(Difference(source, copy, left.entry.name))

    def _is_pair(self, record: InodeRecord, copy: InodeRecord) -> bool:
        """Names of one inode show one copy, and names of two show two."""
        source, inode = InodeId(record.inode), InodeId(copy.inode)
        if (record.link_count == 1 and copy.link_count == 1) or record.kind is FileKind.DIRECTORY:
            return True
        known, original = self._found.linked.get(source, inode), self._originals.get(inode, source)
        if known != inode or original != source:
            return False
        self._found.linked[source], self._originals[inode] = inode, source
        return True


def _is_copy(record: InodeRecord, copy: InodeRecord) -> bool:
    wanted = cloning.copy_of(record, InodeId(copy.inode), InodeId(copy.parent), _NOTHING)
    return wanted._replace(link_count=copy.link_count, hints=copy.hints) == copy


def _listing(reader: Reader, directory: InodeId) -> Iterator[_Place]:
    """In the order of the names, without what front ends keep for themselves."""
    after: bytes | None = b""
    while after is not None:
        entries = names.listed(reader, directory, after, _LIST_BATCH)
        after = entries[-1].name if len(entries) == _LIST_BATCH else None
        for entry, record in _inodes_of(reader, directory, entries):
            if directory != ROOT or entry.name != HIDDEN:
                yield _Place(entry, record)


def _inodes_of(reader: Reader, directory: InodeId, entries: list[Entry]) -> Iterator[tuple[Entry, InodeRecord]]:
    """Entries with the records of what they show. Raises CorruptError."""
    values = reader.get_many([keys.inode(entry.inode) for entry in entries])
    for entry, value in zip(entries, values, strict=True):
        if value is None:
            raise CorruptError(f"entry {entry.name!r} of directory {directory} points to no inode ({entry.inode})")
        yield entry, records.decode_inode(entry.inode, value)


# ---- mending ---------------------------------------------------------------------------------------------------------


def mend(writer: Writer, difference: Difference, place: InodeId, cloned: Cloned, copying: Copying) -> None:
    """Make the copy's side like the tree's, as that is now, or was in `copying.source`. What is in the way goes to `place`;
    directories that are new are in `cloned`, empty, and its `linked` is kept up to date. Of directories that are gone nothing: they
    are differences themselves."""
    originals = copying.source or writer
    if not difference.name:
        cloning.refresh(writer, difference.source, difference.copy, copying)
        return
    try:
        inodes.read_directory(originals, difference.source)
        inodes.read_directory(writer, difference.copy)
    except NotFoundError:
        return
    ours = names.find_entry(originals, difference.source, difference.name)
    copy = names.find_entry(writer, difference.copy, difference.name)
    if ours is not None and copy is not None and _is_alike(writer, ours, copy, cloned.linked):
        record = cloning.refresh(writer, ours.inode, copy.inode, copying)
        if record is not None and record.staged_in != NO_CACHE:
            cloned.late.append(Late(ours.inode, copy.inode))
        return
    if copy is not None:
        _set_aside(writer, difference.copy, copy, place, copying.now_ns)
    if ours is not None:
        record = names.target_of(originals, difference.source, ours)
        cloning.copy_entry(writer, record, difference.copy, difference.name, copying, cloned)


def _is_alike(reader: Reader, ours: Entry, copy: Entry, linked: Mapping[InodeId, InodeId]) -> bool:
    """Whether a copy can stay where it is: of one kind, and the copy of that inode alone."""
    if ours.kind is not copy.kind:
        return False
    if ours.kind is FileKind.DIRECTORY:
        return True
    known = linked.get(ours.inode)
    return known == copy.inode or (known is None and inodes.read(reader, copy.inode).link_count == 1)


def _set_aside(writer: Writer, directory: InodeId, entry: Entry, place: InodeId, now_ns: int) -> None:
    """In one step, however large a tree it is."""
    writer.delete(keys.name(directory, entry.name))
    record = names.target_of(writer, directory, entry)
    if entry.kind is not FileKind.DIRECTORY:
        inodes.drop_link(writer, record, directory, NOBODY, now_ns)
        return
    names.put_entry(writer, place, b"aside-%x" % entry.inode, entry.inode, entry.kind)
    inodes.save(writer, record._replace(parent=place))
    count_directories(writer, directory, -1)
    count_directories(writer, place, 1)


def hold(writer: Writer, late: Late, place: InodeId) -> bool:
    """Give a late file a name in `place`, so that it is not deleted before it is stored and copied. False: it is already."""
    record = inodes.find(writer, late.source)
    name = b"held-%x" % late.source
    if record is None or record.link_count == 0:
        return False
    if names.find_entry(writer, place, name) is None:
        names.put_entry(writer, place, name, late.source, record.kind)
        inodes.save(writer, record._replace(link_count=record.link_count + 1))
    return True


class Captured:
    """A `Reader` of a part of a tree, as it was in one snapshot. What is copied from it is written by transactions that read
    nothing that others may be changing all the time: where transactions are refused for that, such ones go through."""

    def __init__(self, reader: Reader, limit: int = sys.maxsize) -> None:
        """`add_` what is wanted, and `close`, in the transaction of `reader`. Raise TooLargeError: over `limit` inodes."""
        self._reader = reader
        self._limit = limit
        self._inodes: set[InodeId] = set()
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def close(self) -> Self:
        self._keys = sorted(self._values)
        del self._reader
        return self

    def add_difference(self, difference: Difference, *, deep: bool) -> None:
        """`deep`: with all that is below a directory of which there is no copy."""
        self.add_inode(difference.source)
        entry = names.find_entry(self._reader, difference.source, difference.name) if difference.name else None
        if entry is None:
            return
        copy = names.find_entry(self._reader, difference.copy, difference.name)
        self._capture_key(keys.name(difference.source, difference.name))
        self.add_inode(entry.inode)
        is_new = names.is_directory(entry) and not names.is_directory(copy)
        waiting = [entry.inode] if deep and is_new else []
        while waiting:
            below = self.add_entries(waiting.pop(), b"", self._limit + 1)
            waiting += [entry.inode for entry in below if entry.kind is FileKind.DIRECTORY]

    def add_entries(self, directory: InodeId, after: bytes, limit: int) -> list[Entry]:
        """And what they show. Raises NotFoundError, NotDirectoryError."""
        self.add_inode(directory)
        entries = names.listed(self._reader, directory, after, limit)
        for entry in entries:
            self._values[keys.name(directory, entry.name)] = records.encode_entry(entry.inode, entry.kind)
            self.add_inode(entry.inode)
        return entries

    def add_inode(self, inode: InodeId) -> None:
        """With its attributes, its extents and its target."""
        self._inodes.add(inode)
        if len(self._inodes) > self._limit:
            raise TooLargeError(f"more than {self._limit} inodes differ")
        for key in (keys.inode(inode), keys.symlink(inode)):
            self._capture_key(key)
        for prefix in (keys.xattrs(inode), keys.extents(inode)):
            self._values.update(self._reader.scan(prefix, keys.end_of(prefix)))

    def _capture_key(self, key: bytes) -> None:
        value = self._reader.get(key)
        if value is not None:
            self._values[key] = value

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        found = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        for key in (found[::-1] if reverse else found)[:limit]:
            yield key, self._values[key]


def fill(writer: Writer, copying: Copying, cloned: Cloned, limit: int) -> None:
    """Copy all that is below `cloned.directories`, of which none has more than `limit` entries, in this transaction."""
    originals = copying.source or writer
    while cloned.directories:
        source, copy = cloned.directories.pop()
        for entry in names.listed(originals, source, b"", limit):
            record = names.target_of(originals, source, entry)
            cloning.copy_entry(writer, record, copy, entry.name, copying, cloned)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is in a tree, its root counted."""

    file_count: int
    directory_count: int
    size_bytes: int


def measure(reader: Reader, root: InodeId) -> Measured:
    """Files with several names count once for each name, and their bytes, too."""
    files, directories, size, waiting = 0, 0, 0, [root]
    while waiting:
        directories += 1
        for entry, record in _listing(reader, waiting.pop()):
            if entry.kind is FileKind.DIRECTORY:
                waiting.append(entry.inode)
            else:
                files += 1
                size += record.size_bytes if entry.kind is FileKind.REGULAR else 0
    return Measured(files, directories, size)
