"""The name layer: directories, entries, link counts. Functions over a transaction, so that several make one change.

Invariants, each kept inside one transaction:

- The link count of an inode that is no directory is the number of entries that point to it; 0 is an orphan.
- A directory has one entry (the root none), `parent` is where that entry is, and its link count is 2 plus its
  subdirectories.
- Directories form a tree: `renames` refuses a move below itself.
"""

from collections.abc import Iterator, Sequence
from typing import NoReturn

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    CorruptError,
    DirectoryNotEmptyError,
    InvalidRequestError,
    IsDirectoryError,
    NameTooLongError,
    NotDirectoryError,
    NotFoundError,
    NotPermittedError,
    TooManyLinksError,
)
from tieredfs.format import keys, records
from tieredfs.format.records import InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import DIRECTORY_DEPTH_MAX, LINK_COUNT_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, SYMLINK_BYTES_MAX
from tieredfs.meta import inodes, quotas
from tieredfs.meta.changes import Creation, Removed
from tieredfs.model import ROOT, Attributes, Entry, FileKind, InodeId, SessionId

SET_GID = 0o2000
SNAPSHOTS = b".snapshots"
"""In the root. No listing shows it while it is the one that snapshots are in."""


def check_name(name: bytes) -> None:
    """Raises NameTooLongError, InvalidRequestError."""
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLongError(f"a name of {len(name)} bytes; {NAME_BYTES_MAX} are allowed")
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise InvalidRequestError(f"{name!r} cannot be the name of an entry")


# ---- looking ---------------------------------------------------------------------------------------------------------


def find_entry(reader: Reader, directory: InodeId, name: bytes) -> Entry | None:
    value = reader.get(keys.name(directory, name))
    return None if value is None else records.decode_entry(name, value)


def read_entry(reader: Reader, directory: InodeId, name: bytes) -> Entry:
    """Raises NotFoundError; NotDirectoryError when `directory` is none."""
    entry = find_entry(reader, directory, name)
    if entry is None:
        raise_missing(reader, directory, name)
    return entry


def raise_missing(reader: Reader, directory: InodeId, name: bytes) -> NoReturn:
    """Raises NotDirectoryError or NotFoundError: the better error is looked for only after a miss."""
    inodes.read_directory(reader, directory)
    raise NotFoundError(f"no entry {name!r} in directory {directory}")


def target_of(reader: Reader, directory: InodeId, entry: Entry) -> InodeRecord:
    """The inode an entry points to. Raises CorruptError when it does not exist."""
    record = inodes.find(reader, entry.inode)
    if record is None:
        raise CorruptError(f"entry {entry.name!r} of directory {directory} points to inode {entry.inode}: none such")
    return record


def lookup(reader: Reader, parent: InodeId, name: bytes) -> InodeRecord:
    return target_of(reader, parent, read_entry(reader, parent, name))


def ahead(reader: Reader, parent: InodeId, name: bytes, count: int) -> tuple[list[tuple[bytes, Attributes]], bytes]:
    """Attributes of `name` and of the names after it, `count` at most in all, and the name after those (empty: none).

    Raises NotFoundError, NotDirectoryError.
    """
    first, prefix = keys.name(parent, name), keys.names(parent)
    rows = list(reader.scan(first, keys.end_of(prefix), limit=count + 1))
    if not rows or rows[0][0] != first:
        raise_missing(reader, parent, name)
    successor = rows[count][0][len(prefix) :] if len(rows) > count else b""
    entries = [records.decode_entry(key[len(prefix) :], value) for key, value in rows[:count]]
    values = reader.get_many([keys.inode(entry.inode) for entry in entries])
    found = []
    for entry, value in zip(entries, values, strict=True):
        if value is None:
            raise CorruptError(f"entry {entry.name!r} of directory {parent} points to no inode ({entry.inode})")
        found.append((entry.name, records.decode_attributes(entry.inode, value)))
    return found, successor


def resolve(reader: Reader, path: bytes) -> InodeRecord:
    """Empty parts and `.` are passed over, so that `/a//b/` is `/a/b`. Raises NotFoundError with the whole path."""
    if len(path) > PATH_BYTES_MAX:
        raise NameTooLongError(f"a path of {len(path)} bytes; {PATH_BYTES_MAX} are allowed")
    record = inodes.read(reader, ROOT)
    for part in path.split(b"/"):
        if part in {b"", b"."}:
            continue
        check_name(part)
        try:
            record = lookup(reader, InodeId(record.inode), part)
        except NotFoundError as error:  # for people: they named a path
            raise NotFoundError(f"there is no {path.decode('utf-8', 'backslashreplace')}") from error
    return record


Shown = tuple[Attributes, tuple[bytes | None, ...]]
"""What a path shows, and the values of the extended attributes that were asked for."""


def look(reader: Reader, paths: Sequence[bytes], xattrs: Sequence[bytes]) -> list[Shown | None]:
    """What each path shows, symlinks not followed; None: nothing. Directories that they share are walked once, and of those on the
    way only the entries are read: of three paths of an object 9 records, where resolving each reads 19."""
    walked = begin_walk()
    return [_shown(reader, _walk(reader, path, walked), xattrs) for path in paths]


Walked = dict[bytes, Entry | None]
"""Entries that were found in one transaction, by path."""


def begin_walk() -> Walked:
    return {b"": Entry(b"", ROOT, FileKind.DIRECTORY)}


def is_file(reader: Reader, path: bytes, walked: Walked) -> bool:
    """Whether the path shows something that is no directory. Only what is above it is remembered in `walked`, so files may come
    and go between two calls of one transaction, and directories may not."""
    above, _, name = path.rstrip(b"/").rpartition(b"/")
    entry = _entry_in(reader, _walk(reader, above, walked), name)
    return entry is not None and entry.kind is not FileKind.DIRECTORY


def _walk(reader: Reader, path: bytes, walked: Walked) -> Entry | None:
    """The entry at `path`, whose empty parts count as `resolve` counts them; `walked`: what was found before, and the root."""
    if len(path) > PATH_BYTES_MAX:
        raise NameTooLongError(f"a path of {len(path)} bytes; {PATH_BYTES_MAX} are allowed")
    left = []
    while path not in walked:
        left.append(path)
        path = path.rpartition(b"/")[0]
    found = walked[path]
    for below in reversed(left):
        name = below.rpartition(b"/")[2]
        if name not in {b"", b"."}:
            found = _entry_in(reader, found, name)
        walked[below] = found
    return found


def _entry_in(reader: Reader, directory: Entry | None, name: bytes) -> Entry | None:
    if directory is None or directory.kind is not FileKind.DIRECTORY:
        return None
    check_name(name)
    return find_entry(reader, directory.inode, name)


def _shown(reader: Reader, entry: Entry | None, xattrs: Sequence[bytes]) -> Shown | None:
    if entry is None:
        return None
    record = inodes.find(reader, entry.inode)
    if record is None:
        raise CorruptError(f"entry {entry.name!r} points to inode {entry.inode}: none such")
    if not record.hints & records.MAY_HAVE_XATTRS:
        return record.attributes(), (None,) * len(xattrs)
    raw = [reader.get(keys.xattr(entry.inode, name)) for name in xattrs]
    return record.attributes(), tuple(None if value is None else records.decode_bytes(value) for value in raw)


def listed(reader: Reader, directory: InodeId, after: bytes, limit: int) -> list[Entry]:
    inodes.read_directory(reader, directory)
    prefix = keys.names(directory)
    start = keys.name(directory, after + b"\0") if after else prefix
    count = limit + int(directory == ROOT)
    entries = [
        records.decode_entry(keys.text_after_u64(key), value)
        for key, value in reader.scan(start, keys.end_of(prefix), limit=count)
    ]
    return entries if directory != ROOT else [entry for entry in entries if not _is_unlisted(reader, entry)][:limit]


def _is_unlisted(reader: Reader, entry: Entry) -> bool:
    """Of the root's entries: where snapshots are, which is there for who names it (`meta.snapshots`). A directory of a user's with
    that name is like any other."""
    if entry.name != SNAPSHOTS:
        return False
    record = inodes.find(reader, entry.inode)
    return record is not None and bool(record.hints & records.FROZEN)


def listed_with_attributes(
    reader: Reader, directory: InodeId, after: bytes, limit: int
) -> list[tuple[Entry, Attributes]]:
    entries = listed(reader, directory, after, limit)
    values = reader.get_many([keys.inode(entry.inode) for entry in entries])
    found: list[tuple[Entry, Attributes]] = []
    for entry, value in zip(entries, values, strict=True):
        if value is None:
            raise CorruptError(f"entry {entry.name!r} of directory {directory} points to no inode ({entry.inode})")
        found.append((entry, records.decode_attributes(entry.inode, value)))
    return found


def is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.kind is FileKind.DIRECTORY


def is_empty(reader: Reader, directory: InodeId) -> bool:
    prefix = keys.names(directory)
    return next(reader.scan(prefix, keys.end_of(prefix), limit=1), None) is None


def ancestry(reader: Reader, directory: InodeId) -> Iterator[InodeId]:
    """The directory and those above it, up to the root; it ends early where one is missing."""
    for _ in range(DIRECTORY_DEPTH_MAX):
        yield directory
        record = inodes.find(reader, directory)
        if directory == ROOT or record is None:
            return
        directory = InodeId(record.parent)


# ---- changing --------------------------------------------------------------------------------------------------------


def put_entry(writer: Writer, directory: InodeId, name: bytes, inode: InodeId, kind: FileKind) -> None:
    writer.put(keys.name(directory, name), records.encode_entry(inode, kind))


def new_inode(inode: InodeId, parent: InodeRecord, creation: Creation, now_ns: int) -> InodeRecord:
    """What a new inode starts as; pure."""
    is_directory = creation.kind is FileKind.DIRECTORY
    inherits = bool(parent.mode & SET_GID)
    return InodeRecord(
        inode=inode,
        kind=creation.kind,
        mode=(creation.mode & 0o7777) | (SET_GID if inherits and is_directory else 0),
        uid=creation.uid,
        gid=parent.gid if inherits else creation.gid,
        link_count=2 if is_directory else 1,
        size_bytes=len(creation.target),
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        device=creation.device,
        parent=parent.inode,
        version=1 if creation.staged_in else 0,
        stored_version=0,
        staged_in=creation.staged_in,
        allocated_bytes=0,
        stored_size_bytes=0,
        hints=quotas.inherited(parent),
    )


def check_creation(creation: Creation) -> None:
    """Raises NameTooLongError, InvalidRequestError for a symlink's target; the rest is the programmer's promise."""
    assert not creation.staged_in or creation.kind is FileKind.REGULAR
    assert not creation.target or creation.kind is FileKind.SYMLINK
    if creation.kind is FileKind.SYMLINK and not creation.target:
        raise InvalidRequestError("a symlink needs a target")
    if len(creation.target) > SYMLINK_BYTES_MAX:
        raise NameTooLongError(f"a symlink target of {len(creation.target)} bytes; {SYMLINK_BYTES_MAX} are allowed")


def create(
    writer: Writer, parent: InodeId, name: bytes, inode: InodeId, creation: Creation, *, now_ns: int
) -> InodeRecord:
    directory = inodes.read_directory(writer, parent)
    if find_entry(writer, parent, name) is not None:
        raise AlreadyExistsError(f"directory {parent} has an entry {name!r}")
    record = new_inode(inode, directory, creation, now_ns)
    is_directory = creation.kind is FileKind.DIRECTORY
    quotas.entered(writer, directory, record, enforce=not creation.beyond_quotas)
    put_entry(writer, parent, name, inode, creation.kind)
    inodes.save(writer, record)
    inodes.save_changed_directory(writer, directory, now_ns, subdirectories=int(is_directory))
    if creation.target:
        writer.put(keys.symlink(inode), records.encode_bytes(creation.target))
    if creation.staged_in:
        writer.put(keys.staged(creation.staged_in, inode), records.encode_staged(record.version, now_ns))
    return record


def link(
    writer: Writer, inode: InodeId, parent: InodeId, name: bytes, now_ns: int, *, across: bool = False
) -> InodeRecord:
    """`across`: quotas, too (`quotas.linked`)."""
    directory = inodes.read_directory(writer, parent)
    record = inodes.read(writer, inode)
    if record.kind is FileKind.DIRECTORY:
        raise NotPermittedError("a directory has one name")
    inodes.refuse_frozen(record)
    if record.link_count == 0:
        raise NotFoundError(f"inode {inode} has no name any more; it cannot get another")
    if find_entry(writer, parent, name) is not None:
        raise AlreadyExistsError(f"directory {parent} has an entry {name!r}")
    if record.link_count >= LINK_COUNT_MAX:
        raise TooManyLinksError(f"inode {inode} has {record.link_count} names")
    record = quotas.linked(writer, record, directory, across=across)
    record = record._replace(link_count=record.link_count + 1, ctime_ns=now_ns)
    put_entry(writer, parent, name, inode, record.kind)
    inodes.save(writer, record)
    inodes.save_changed_directory(writer, directory, now_ns)
    return record


def check_expected(expected: InodeId | None, entry: Entry | None) -> None:
    """Raises ConflictError when an entry shows another inode than the caller chose what to do for (0: none at all)."""
    if expected is not None and expected != (entry.inode if entry else 0):
        raise ConflictError(f"not inode {expected} but {entry.inode if entry else 'nothing'} has that name now")


def unlink(
    writer: Writer, parent: InodeId, name: bytes, holder: SessionId, expected: InodeId | None, *, now_ns: int
) -> Removed:
    directory = inodes.read_directory(writer, parent)
    entry = read_entry(writer, parent, name)
    check_expected(expected, entry)
    if entry.kind is FileKind.DIRECTORY:
        raise IsDirectoryError(f"{name!r} is a directory")
    writer.delete(keys.name(parent, name))
    gone = inodes.drop_link(writer, target_of(writer, parent, entry), parent, holder, now_ns)
    inodes.save_changed_directory(writer, directory, now_ns)
    return Removed(entry.inode, entry.kind, gone, deleted=gone and not holder)


def remove_directory(
    writer: Writer, parent: InodeId, name: bytes, now_ns: int, *, spare_limited: bool = False
) -> Removed:
    directory = inodes.read_directory(writer, parent)
    entry = read_entry(writer, parent, name)
    if entry.kind is not FileKind.DIRECTORY:
        raise NotDirectoryError(f"{name!r} is not a directory")
    if not is_empty(writer, entry.inode):
        raise DirectoryNotEmptyError(f"directory {name!r} has entries")
    record = target_of(writer, parent, entry)
    if spare_limited and record.hints & records.HAS_QUOTA:
        raise BusyError(f"directory {name!r} has a quota")
    writer.delete(keys.name(parent, name))
    inodes.delete(writer, record, now_ns)
    inodes.save_changed_directory(writer, directory, now_ns, subdirectories=-1)
    return Removed(entry.inode, entry.kind, gone=True, deleted=True)
