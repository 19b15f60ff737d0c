"""Repairs of metadata: each derives a record anew from those that it follows from, in one transaction, and writes it.

The audit looked at a snapshot; since then the volume moved on. So an amendment trusts nothing that the audit saw: it looks again,
and where all is well by now it changes nothing. Repeating one is harmless. Records that follow from no others
(inodes, names, extents, blocks) are never made up and never deleted.
"""

from collections.abc import Collection

from tieredfs.errors import CorruptError
from tieredfs.format import keys, records
from tieredfs.format.keys import END_OF_KEYS, Counter, Tag
from tieredfs.kv.engine import Writer
from tieredfs.meta import blocks as block_layer
from tieredfs.meta import inodes, names, quota_walks, quotas, sessions, shortage
from tieredfs.model import PLACE_UNKNOWN, BlockId, CacheId, DiskId, FileKind, InodeId, SessionId

LOST_AND_FOUND = b"lost+found"


# ---- inodes and names ------------------------------------------------------------------------------------------------


def link_counts(writer: Writer, wanted: Collection[InodeId]) -> None:
    """One scan of all names for all of `wanted`, at about a microsecond a record; writers wait meanwhile."""
    counts = dict.fromkeys(wanted, 0)
    subdirectories = dict.fromkeys(wanted, 0)
    for key, value in writer.scan(b"", END_OF_KEYS):
        if key[keys.SHARD_BYTES] != Tag.NAME:
            continue
        entry = records.decode_entry(b"", value)
        directory = InodeId(keys.first_u64(key))
        if entry.inode in counts:
            counts[entry.inode] += 1
        if directory in subdirectories and entry.kind is FileKind.DIRECTORY:
            subdirectories[directory] += 1
    for inode in wanted:
        record = inodes.find(writer, inode)
        if record is not None:
            directory_links = 2 + subdirectories[inode]
            right = directory_links if record.kind is FileKind.DIRECTORY else counts[inode]
            if right != record.link_count:
                inodes.save(writer, record._replace(link_count=right))


def entry_kind(writer: Writer, directory: InodeId, name: bytes) -> None:
    entry = names.find_entry(writer, directory, name)
    record = None if entry is None else inodes.find(writer, entry.inode)
    if entry is not None and record is not None and record.kind is not entry.kind:
        names.put_entry(writer, directory, name, entry.inode, record.kind)


def parent(writer: Writer, directory: InodeId, name: bytes) -> None:
    """The directory that `name` shows gets to know where it is."""
    entry = names.find_entry(writer, directory, name)
    record = None if entry is None else inodes.find(writer, entry.inode)
    if record is not None and record.kind is FileKind.DIRECTORY and record.parent != directory:
        inodes.save(writer, record._replace(parent=directory))


def hint(writer: Writer, inode: InodeId, bit: int) -> None:
    """A hint too many costs a scan; one too few would leave records behind."""
    record = inodes.find(writer, inode)
    if record is not None and not record.hints & bit:
        inodes.save(writer, record._replace(hints=record.hints | bit))


def find_place(writer: Writer, inode: InodeId, home: InodeId, now_ns: int) -> None:
    """Name an inode that no path leads to in the directory `home`."""
    record = inodes.find(writer, inode)
    if record is None:
        return
    name = b"inode-%d" % inode
    if names.find_entry(writer, home, name) is not None:
        return
    names.put_entry(writer, home, name, inode, record.kind)
    is_directory = record.kind is FileKind.DIRECTORY
    links = record.link_count if is_directory else 1
    directory = inodes.read_directory(writer, home)
    hints = record.hints & ~records.MAY_BE_COUNTED  # `every_quota` comes after
    inodes.save(writer, record._replace(link_count=links, parent=home, hints=hints))
    inodes.save_changed_directory(writer, directory, now_ns, subdirectories=int(is_directory))


def quota(writer: Writer, directory: InodeId) -> None:
    """Recount what lies below, if there is a quota; a directory without one has not the bit. One that is of nothing goes."""
    record = inodes.find(writer, directory)
    is_directory = record is not None and record.kind is FileKind.DIRECTORY
    known = next(quotas.read(writer, (directory,)), None) if is_directory else None
    if not is_directory:
        writer.delete(keys.quota(directory))
    if record is not None and known is None:
        inodes.save(writer, record._replace(hints=record.hints & ~records.HAS_QUOTA))
    if known is not None:
        quota_walks.put(writer, directory, known.path, None, None, recount=True)


def every_quota(writer: Writer) -> None:
    """Names were found or changed, so what lies below quotas is another sum than was checked."""
    for known in quotas.listed(writer):
        quota(writer, known.directory)


def staged(writer: Writer, cache: CacheId, inode: InodeId, now_ns: int) -> None:
    """Where the content lies in that cache's directory follows from no record: who opens the cache next looks for it
    (`tieredfs.cache.unlisted`)."""
    record = inodes.find(writer, inode)
    key = keys.staged(cache, inode)
    if record is None or record.staged_in != cache:
        writer.delete(key)
        return
    if _listed_version(writer.get(key), cache, inode) != record.version:
        writer.put(key, records.encode_staged(record.version, now_ns, PLACE_UNKNOWN))


def _listed_version(value: bytes | None, cache: CacheId, inode: InodeId) -> int | None:
    """None: there is no staged record, or one that cannot be read. Raises NewerFormatError."""
    try:
        return None if value is None else records.decode_staged(cache, inode, value).version
    except CorruptError:
        return None


# ---- blocks ----------------------------------------------------------------------------------------------------------


def block_user(writer: Writer, block: BlockId, inode: InodeId) -> None:
    key = keys.block_user(block, inode)
    if any(extent.block == block for extent in inodes.extents(writer, inode)):
        writer.put(key, records.EMPTY)
    else:
        writer.delete(key)


def death(writer: Writer, block: BlockId, now_ns: int) -> None:
    exists = writer.get(keys.block(block)) is not None
    key = keys.dead_block(block)
    if not exists or block_layer.is_used(writer, block):
        writer.delete(key)
    elif writer.get(key) is None:
        writer.put(key, records.encode_number(now_ns))


def on_disk(writer: Writer, disk: DiskId, block: BlockId) -> None:
    record = block_layer.read_blocks(writer, [block]).get(block)
    key = keys.block_on_disk(disk, block)
    if record is not None and (disk == keys.ALL_DISKS or any(chunk.disk == disk for chunk in record.chunks)):
        writer.put(key, records.EMPTY)
    else:
        writer.delete(key)


def short(writer: Writer, block: BlockId, now_ns: int) -> None:
    """List it for healing if it lacks chunks and is in use, and not otherwise."""
    record = block_layer.read_blocks(writer, [block]).get(block)
    in_use = record if writer.get(keys.dead_block(block)) is None else None
    shortage.settle(writer, block, in_use, now_ns)


# ---- sessions and counters -------------------------------------------------------------------------------------------


def orphan(writer: Writer, session: SessionId, inode: InodeId, now_ns: int) -> None:
    """One that has a name, or does not exist, is none; one that nobody can have open is deleted, as its last user asked."""
    record = inodes.find(writer, inode)
    if record is None or record.link_count > 0:
        writer.delete(keys.orphan(session, inode))
    elif writer.get(keys.session(session)) is None:
        sessions.reclaim_orphan(writer, inode, session, now_ns)


def intent(writer: Writer, block: BlockId) -> None:
    if not block_layer.reserved(writer, block) or writer.get(keys.block(block)) is not None:
        writer.delete(keys.intent(block))


def counter(writer: Writer, which: Counter, at_least: int) -> None:
    """An id that is given out twice is the end of a file, so the counter is never below what is in use."""
    value = writer.get(keys.counter(which))
    if value is None or records.decode_number(value) < at_least:
        writer.put(keys.counter(which), records.encode_number(at_least))
