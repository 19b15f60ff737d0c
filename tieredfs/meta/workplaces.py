"""Workplaces: directories out of sight in which a session builds trees, and puts trees that are to go.

`/.tieredfs/clones/SESSION-RANDOM`, of one session each. What is in there when the session is gone is a leftover of a process that
died: garbage collection, and whoever clones next, removes it. Trees go by a bounded number of entries to a transaction, whatever
is in them: parts of snapshots, too, which nobody else may touch.
"""

from collections.abc import Callable
from typing import Final

from tieredfs.format import keys, records
from tieredfs.format.keys import Counter
from tieredfs.kv.engine import Reader, Writer
from tieredfs.meta import allocation, inodes, names, sessions
from tieredfs.meta.metadata import Metadata
from tieredfs.model import NOBODY, ROOT, Entry, FileKind, InodeId, Progress

HIDDEN: Final = b".tieredfs"
"""Of the root: what front ends keep for themselves, and no part of the tree."""
PLACES: Final = b".tieredfs/clones"
_BATCH: Final = 256
"""Entries of one transaction: about 20 ms, in which others wait to write."""


def remove_abandoned(metadata: Metadata, now_ns: Callable[[], int]) -> int:
    """Remove the workplaces of sessions that are gone; the number of entries that were in them."""
    removed = 0
    directory, left = metadata.inspect(_abandoned)
    for name in left:
        removed += remove_tree(metadata, directory, name, now_ns)
    return removed


def _abandoned(reader: Reader) -> tuple[InodeId, list[bytes]]:
    directory = ROOT
    for part in PLACES.split(b"/"):
        entry = names.find_entry(reader, directory, part)
        if entry is None or entry.kind is not FileKind.DIRECTORY:
            return ROOT, []
        directory = entry.inode
    alive = {b"%d" % session.session for session in sessions.listed(reader)}
    found = _children(reader, directory, None)
    return directory, [entry.name for entry in found if entry.name.partition(b"-")[0] not in alive]


def remove_tree(
    metadata: Metadata, parent: InodeId, name: bytes, now_ns: Callable[[], int], progress: Progress | None = None
) -> int:
    """Remove what `name` shows and all below; the number of entries. Nothing if it is not there."""
    total = 0
    while removed := metadata.amend(lambda writer: remove_some(writer, parent, name, _BATCH, now_ns())):
        total += removed
        if progress is not None:
            progress(total, 0, "entries")
    return total


def remove_some(writer: Writer, parent: InodeId, name: bytes, limit: int, now_ns: int) -> int:
    """Remove up to `limit` entries of the tree that `name` shows, what is below others first; 0 when nothing is left of it."""
    entry = names.find_entry(writer, parent, name)
    removed = 0
    trail = [] if entry is None else [(parent, entry)]
    while trail and removed < limit:
        directory, entry = trail[-1]
        below = _children(writer, entry.inode, limit) if entry.kind is FileKind.DIRECTORY else []
        if not below:
            _remove(writer, directory, entry, now_ns)
            removed += 1
            trail.pop()
            continue
        for child in below:
            if child.kind is FileKind.DIRECTORY:
                trail.append((entry.inode, child))
                break
            _remove(writer, entry.inode, child, now_ns)
            removed += 1
            if removed == limit:
                break
    allocation.take(writer, Counter.INODES_DELETED, removed)
    return removed


def _children(reader: Reader, directory: InodeId, limit: int | None) -> list[Entry]:
    prefix = keys.names(directory)
    return [
        records.decode_entry(keys.text_after_u64(key), value)
        for key, value in reader.scan(prefix, keys.end_of(prefix), limit=limit)
    ]


def _remove(writer: Writer, directory: InodeId, entry: Entry, now_ns: int) -> None:
    """A file, or a directory that is empty."""
    writer.delete(keys.name(directory, entry.name))
    record = names.target_of(writer, directory, entry)
    if entry.kind is FileKind.DIRECTORY:
        inodes.delete(writer, record, now_ns)
        count_directories(writer, directory, -1)
    else:
        inodes.drop_link(writer, record, directory, NOBODY, now_ns)


def count_directories(writer: Writer, directory: InodeId, more: int) -> None:
    """`more` subdirectories than there were, and no other change: its times stay."""
    record = inodes.read_directory(writer, directory)
    inodes.save(writer, record._replace(link_count=record.link_count + more))
