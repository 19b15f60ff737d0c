"""The invariants of FORMAT.md, checked by one scan of every key: for tests, which call it after whatever they did.

Reads keys and records only, none of the code that keeps the invariants. All in memory: not for volumes of users.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from tieredfs.format import keys, records
from tieredfs.format.keys import Tag
from tieredfs.format.records import FROZEN, HAS_QUOTA, MAY_BE_COUNTED, MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Engine
from tieredfs.model import (
    ROOT,
    Block,
    BlockId,
    CacheId,
    DiskId,
    Entry,
    Extent,
    FileKind,
    InodeId,
    Quota,
    SessionId,
    ShortBlock,
    StagedRecord,
)


class Tables:
    """Every record of a volume that invariants speak of, by table."""

    def __init__(self, engine: Engine) -> None:
        self.inodes: dict[int, InodeRecord] = {}
        self.entries: dict[int, list[Entry]] = defaultdict(list)
        self.extents: dict[int, list[Extent]] = defaultdict(list)
        self.symlinks: set[int] = set()
        self.with_xattrs: set[int] = set()
        self.staged: list[StagedRecord] = []
        self.orphans: list[tuple[SessionId, int]] = []
        self.blocks: dict[int, Block] = {}
        self.users: dict[int, set[int]] = defaultdict(set)
        self.on_disk: dict[int, set[int]] = defaultdict(set)
        self.dead: set[int] = set()
        self.short: dict[int, ShortBlock] = {}
        self.listed_twice: set[int] = set()
        self.intents: set[int] = set()
        self.quotas: dict[int, Quota] = {}
        for key, value in engine.read(lambda reader: list(reader.scan(b"\0", b"\xff" * 16))):
            self._add(key, value)

    def _add(self, key: bytes, value: bytes) -> None:
        tag = keys.tag_of(key)
        if tag in _NOT_CHECKED:
            return
        if tag in _OF_BLOCKS:
            spare = keys.spare_of(key) if tag is Tag.SHORT_BLOCK else 0
            self._add_of_block(tag, keys.first_u64(key), keys.last_u64(key), value, spare)
        else:
            self._add_of_inode(tag, key, value)

    def _add_of_inode(self, tag: Tag, key: bytes, value: bytes) -> None:
        first, last = keys.first_u64(key), keys.last_u64(key)
        match tag:
            case Tag.INODE:
                self.inodes[first] = records.decode_inode(InodeId(first), value)
            case Tag.NAME:
                self.entries[first].append(records.decode_entry(keys.text_after_u64(key), value))
            case Tag.SYMLINK:
                self.symlinks.add(first)
            case Tag.XATTR:
                self.with_xattrs.add(first)
            case Tag.EXTENT:
                self.extents[first].append(records.decode_extent(last, value))
            case Tag.STAGED:
                self.staged.append(records.decode_staged(CacheId(first), InodeId(last), value))
            case Tag.QUOTA:
                self.quotas[first] = records.decode_quota(InodeId(first), value)
            case Tag.ORPHAN:
                self.orphans.append((SessionId(first), last))
            case _:
                raise AssertionError(f"table {tag.name} is not checked")

    def _add_of_block(self, tag: Tag, first: int, last: int, value: bytes, spare: int) -> None:
        match tag:
            case Tag.BLOCK:
                self.blocks[first] = records.decode_block(BlockId(first), value)
            case Tag.BLOCK_USER:
                self.users[first].add(last)
            case Tag.BLOCK_ON_DISK:
                self.on_disk[first].add(last)
            case Tag.DEAD_BLOCK:
                self.dead.add(first)
            case Tag.SHORT_BLOCK:
                self.listed_twice |= {last} & self.short.keys()
                self.short[last] = records.decode_short(BlockId(last), spare, value)
            case _:
                self.intents.add(first)


_NOT_CHECKED = {Tag.FOLLOWER, Tag.CHANGE, Tag.VOLUME, Tag.COUNTER, Tag.RECEIPT, Tag.SESSION, Tag.CACHE, Tag.DISK}
_OF_BLOCKS = {Tag.BLOCK, Tag.BLOCK_USER, Tag.BLOCK_ON_DISK, Tag.DEAD_BLOCK, Tag.SHORT_BLOCK, Tag.INTENT}


def broken_invariants(engine: Engine) -> list[str]:
    """One sentence for each violation; empty when all is well."""
    tables = Tables(engine)
    return [
        *_names(tables),
        *_directories(tables),
        *_belongings(tables),
        *_contents(tables),
        *_blocks(tables),
        *_quotas(tables),
    ]


def _names(tables: Tables) -> Iterator[str]:
    links = Counter[int](entry.inode for entries in tables.entries.values() for entry in entries)
    orphans = Counter(inode for _, inode in tables.orphans)
    for directory, entries in tables.entries.items():
        if directory not in tables.inodes:
            yield f"directory {directory} has entries and no inode"
        for entry in entries:
            record = tables.inodes.get(entry.inode)
            if record is None or record.kind is not entry.kind:
                yield f"entry {entry} points to {record}"
    for inode, record in tables.inodes.items():
        if record.kind is FileKind.DIRECTORY:
            continue
        if links[inode] != record.link_count:
            yield f"inode {inode} has {links[inode]} entries and link count {record.link_count}"
        if orphans[inode] != (record.link_count == 0):
            yield f"inode {inode} with link count {record.link_count} is {orphans[inode]} times an orphan"
    for inode in orphans.keys() - tables.inodes.keys():
        yield f"orphan {inode} has no inode"


def _directories(tables: Tables) -> Iterator[str]:
    holders: dict[int, list[int]] = defaultdict(list)
    for directory, entries in tables.entries.items():
        for entry in entries:
            holders[entry.inode].append(directory)
    for inode, record in tables.inodes.items():
        if record.kind is not FileKind.DIRECTORY:
            continue
        subdirectories = sum(entry.kind is FileKind.DIRECTORY for entry in tables.entries[inode])
        if record.link_count != 2 + subdirectories:
            yield f"directory {inode} has {subdirectories} subdirectories and link count {record.link_count}"
        if inode != ROOT and holders[inode] != [record.parent]:
            yield f"directory {inode} with parent {record.parent} is in {holders[inode]}"
        if not _reaches_root(tables, inode):
            yield f"directory {inode} is cut off from the root"


def _reaches_root(tables: Tables, inode: int) -> bool:
    for _ in range(len(tables.inodes) + 1):
        if inode == ROOT:
            return True
        if inode not in tables.inodes:
            return False
        inode = tables.inodes[inode].parent
    return False


def _belongings(tables: Tables) -> Iterator[str]:
    known = tables.inodes
    for inode in (tables.symlinks | tables.with_xattrs | tables.extents.keys()) - known.keys():
        yield f"inode {inode} is gone and something of it is left"
    for inode, record in known.items():
        if (inode in tables.symlinks) != (record.kind is FileKind.SYMLINK):
            yield f"{record.kind.name} {inode} has a symlink's target or lacks it"
        if inode in tables.with_xattrs and not record.hints & MAY_HAVE_XATTRS:
            yield f"inode {inode} has attributes and not the hint"
        if tables.extents.get(inode) and not record.hints & MAY_HAVE_EXTENTS:
            yield f"inode {inode} has extents and not the hint"


def _contents(tables: Tables) -> Iterator[str]:
    marks = {(record.cache, record.inode): record.version for record in tables.staged}
    said = {(r.staged_in, inode): r.version for inode, r in tables.inodes.items() if r.staged_in}
    if marks != said:
        yield f"staged records {marks} and inodes {said} differ"
    for inode, extents in tables.extents.items():
        end = 0
        for extent in sorted(extents):
            block = tables.blocks.get(extent.block)
            if extent.offset < end or extent.length < 1:
                yield f"inode {inode}: {extent} overlaps another"
            if block is None or extent.block_offset + extent.length > block.size_bytes:
                yield f"inode {inode}: {extent} is not inside {block}"
            end = extent.end
    for inode, record in tables.inodes.items():
        if not record.staged_in and record.version != record.stored_version:
            yield f"inode {inode}: version {record.version} is neither staged nor stored ({record.stored_version})"


def _blocks(tables: Tables) -> Iterator[str]:
    users: dict[int, set[int]] = defaultdict(set)
    for inode, extents in tables.extents.items():
        for extent in extents:
            users[extent.block].add(inode)
    if users != {block: found for block, found in tables.users.items() if found}:
        yield f"extents use {dict(users)} and the records of users say {dict(tables.users)}"
    if tables.dead != {block for block in tables.blocks if not users.get(block)}:
        yield f"dead are {tables.dead}, users are {dict(users)}, blocks {set(tables.blocks)}"
    on_disk: dict[int, set[int]] = defaultdict(set)
    for number, block in tables.blocks.items():
        on_disk[keys.ALL_DISKS].add(number)
        for chunk in block.chunks:
            on_disk[DiskId(chunk.disk)].add(number)
    if on_disk != {disk: found for disk, found in tables.on_disk.items() if found}:
        yield f"blocks are on {dict(on_disk)} and the index says {dict(tables.on_disk)}"
    short = {
        number: (
            max(0, len(block.chunks) - block.code.data_count),
            (block.code.width - len(block.chunks)) * block.chunk_bytes,
        )
        for number, block in tables.blocks.items()
        if len(block.chunks) < block.code.width and number not in tables.dead
    }
    listed = {number: (entry.spare, entry.missing_bytes) for number, entry in tables.short.items()}
    if listed != short or tables.listed_twice:
        yield f"short are {short}, listed {listed}, twice {tables.listed_twice}"
    if tables.intents & tables.blocks.keys():
        yield f"committed and still reserved: {tables.intents & tables.blocks.keys()}"


def _quotas(tables: Tables) -> Iterator[str]:
    """Each counts what has all of its names below it."""
    limited = {inode for inode, record in tables.inodes.items() if record.hints & HAS_QUOTA}
    if limited != tables.quotas.keys():
        yield f"directories {limited} say that they have quotas, and {set(tables.quotas)} have"
    over = {inode: _quotas_over(tables, inode) for inode, record in tables.inodes.items() if _is_directory(record)}
    held: dict[int, list[set[int]]] = defaultdict(list)
    for directory, entries in tables.entries.items():
        for entry in entries:
            held[entry.inode].append(over.get(directory, set()))
    used: dict[int, list[int]] = {directory: [0, 0] for directory in tables.quotas}
    for inode, places in held.items():
        record = tables.inodes[inode]
        if record.hints & FROZEN:  # a part of a snapshot
            continue
        for directory in set.intersection(*places) & used.keys():
            used[directory][0] += -(-record.size_bytes // 4096) * 4096 if record.kind is FileKind.REGULAR else 0
            used[directory][1] += 1
        if set.intersection(*places) and not record.hints & MAY_BE_COUNTED:
            yield f"inode {inode} lies below a quota and its record denies it"
    said = {directory: [quota.used_bytes, quota.used_inodes] for directory, quota in tables.quotas.items()}
    if said != used:
        yield f"quotas say that {said} are used, and {used} are"
    for inode, record in tables.inodes.items():
        if record.link_count == 0 and record.hints & MAY_BE_COUNTED:
            yield f"inode {inode} has no name and may be counted"


def _is_directory(record: InodeRecord) -> bool:
    return record.kind is FileKind.DIRECTORY


def _quotas_over(tables: Tables, inode: int) -> set[int]:
    found: set[int] = set()
    for _ in range(len(tables.inodes)):
        if inode in tables.quotas:
            found.add(inode)
        if inode == ROOT or inode not in tables.inodes:
            break
        inode = tables.inodes[inode].parent
    return found
