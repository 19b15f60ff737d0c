"""rename(2) and its two variants, as one change of one or two directories.

The order of checks is Linux's: source, `replace`, cycles, kinds, emptiness. Cycles are found by walking from the
directory that something is moved into up to the root; the walk, and so the depth of what can be moved, is bounded.
"""

from dataclasses import dataclass

from tieredfs.errors import (
    AlreadyExistsError,
    ConflictError,
    DirectoryNotEmptyError,
    InvalidRequestError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
)
from tieredfs.format import keys
from tieredfs.format.records import InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import DIRECTORY_DEPTH_MAX
from tieredfs.meta import inodes, names, quota_walks, quotas
from tieredfs.meta.changes import Removed
from tieredfs.model import ROOT, Entry, InodeId, SessionId


@dataclass(frozen=True, slots=True)
class Rename:
    """What is asked: `Metadata.rename` explains the fields."""

    parent: InodeId
    name: bytes
    new_parent: InodeId
    new_name: bytes
    replace: bool
    exchange: bool
    holder: SessionId
    expected_target: InodeId | None
    beside: bytes


def rename(writer: Writer, asked: Rename, now_ns: int) -> Removed | None:
    into = inodes.read_directory(writer, asked.new_parent)
    source = names.read_entry(writer, asked.parent, asked.name)
    if asked.beside and names.find_entry(writer, asked.parent, asked.beside) is None:
        raise ConflictError(f"there is no {asked.beside!r} beside {asked.name!r} any more")
    target = names.find_entry(writer, asked.new_parent, asked.new_name)
    if asked.exchange:
        return _exchange(writer, asked, source, target, into, now_ns)
    names.check_expected(asked.expected_target, target)
    if target is not None and not asked.replace:
        raise AlreadyExistsError(f"directory {asked.new_parent} has an entry {asked.new_name!r}")
    if target is not None and target.inode == source.inode:
        return None
    _refuse_cycle(writer, source, asked.parent, asked.new_parent)
    removed = None if target is None else _remove_target(writer, asked, source, target, now_ns)
    writer.delete(keys.name(asked.parent, asked.name))
    _place(writer, source, asked.parent, into, asked.new_name, now_ns)
    moved = int(names.is_directory(source))
    replaced = int(removed is not None and names.is_directory(target))
    _change_parents(writer, asked, -moved, moved - replaced, now_ns)
    return removed


def _remove_target(writer: Writer, asked: Rename, source: Entry, target: Entry, now_ns: int) -> Removed:
    """Take the inode away that `new_name` shows; the entry itself is written over by the caller."""
    if names.is_directory(source) and not names.is_directory(target):
        raise NotDirectoryError(f"{asked.new_name!r} is not a directory, and {asked.name!r} is")
    if names.is_directory(target) and not names.is_directory(source):
        raise IsDirectoryError(f"{asked.new_name!r} is a directory, and {asked.name!r} is not")
    record = names.target_of(writer, asked.new_parent, target)
    if names.is_directory(target):
        if not names.is_empty(writer, target.inode):
            raise DirectoryNotEmptyError(f"directory {asked.new_name!r} has entries")
        inodes.delete(writer, record, now_ns)
        return Removed(target.inode, target.kind, gone=True, deleted=True)
    gone = inodes.drop_link(writer, record, asked.new_parent, asked.holder, now_ns)
    return Removed(target.inode, target.kind, gone, deleted=gone and not asked.holder)


def _exchange(
    writer: Writer, asked: Rename, source: Entry, target: Entry | None, into: InodeRecord, now_ns: int
) -> Removed | None:
    if target is None:
        raise NotFoundError(f"no entry {asked.new_name!r} in directory {asked.new_parent}")
    if target.inode == source.inode:
        return None
    _refuse_cycle(writer, source, asked.parent, asked.new_parent)
    _refuse_cycle(writer, target, asked.new_parent, asked.parent)
    back = inodes.read_directory(writer, asked.parent)
    before = [quota for there in (into, back) for quota in quotas.read(writer, quotas.above(writer, there))]
    _place(writer, source, asked.parent, into, asked.new_name, now_ns, enforce=False)
    _place(writer, target, asked.new_parent, back, asked.name, now_ns, enforce=False)
    quotas.check_grown(writer, before)
    moved = int(names.is_directory(source)) - int(names.is_directory(target))
    _change_parents(writer, asked, -moved, moved, now_ns)
    return Removed(target.inode, target.kind, gone=False, deleted=False)


def _refuse_cycle(reader: Reader, moved: Entry, parent: InodeId, new_parent: InodeId) -> None:
    """Raises InvalidRequestError when `new_parent` is `moved` itself or lies below it."""
    if parent == new_parent or not names.is_directory(moved):
        return
    directory = new_parent
    for _ in range(DIRECTORY_DEPTH_MAX):
        if directory == moved.inode:
            raise InvalidRequestError(f"directory {moved.name!r} cannot be moved below itself")
        if directory == ROOT:
            return
        directory = InodeId(inodes.read(reader, directory).parent)
    raise InvalidRequestError(f"directory {new_parent} is deeper than {DIRECTORY_DEPTH_MAX}; nothing is moved there")


def _place(
    writer: Writer,
    entry: Entry,
    old: InodeId,
    new: InodeRecord,
    name: bytes,
    now_ns: int,
    *,
    enforce: bool = True,
) -> None:
    """Point `name` in `new` to what `entry` shows. Only a directory's parent is exact; a file's stays where it was created, where
    no quota has to know."""
    directory = InodeId(new.inode)
    record = names.target_of(writer, directory, entry)
    inodes.refuse_frozen(record)
    record = quota_walks.moved(writer, record, old, new, enforce=enforce)
    names.put_entry(writer, directory, name, entry.inode, entry.kind)
    inodes.save(writer, record._replace(ctime_ns=now_ns))


def _change_parents(writer: Writer, asked: Rename, in_old: int, in_new: int, now_ns: int) -> None:
    """Times and link counts; read here, because the inodes above may have been one of them (`mv a/b a`)."""
    if asked.parent == asked.new_parent:
        directory = inodes.read_directory(writer, asked.parent)
        inodes.save_changed_directory(writer, directory, now_ns, in_old + in_new)
        return
    for inode, subdirectories in ((asked.parent, in_old), (asked.new_parent, in_new)):
        inodes.save_changed_directory(writer, inodes.read_directory(writer, inode), now_ns, subdirectories)
