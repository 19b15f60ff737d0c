"""The audit: every metadata record held against the records that it must agree with, in one snapshot.

One snapshot, because what spans two would look broken on a volume in use; SQLite gives it for a WAL that cannot shrink
while the audit runs: 9 us a record (400,000 records of 100,000 files in 3.7 s, with 28 MiB). Two passes: the first
checks each record as the scan meets it, with look-ups by key, and counts the names of each inode; the second holds
inodes against those counts. Inodes are counted in windows of `LINKS_WINDOW` ids, so memory is bounded; each further
window in which there are inodes costs two more passes.

Back references of blocks are looked up from the extents' side. That none is too many follows from their number alone; only
when that is wrong does a third pass look at each.

A `Suspicion` is a finding with the amendment that would set it right (`tieredfs.curator.amends`), if one can with certainty.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tieredfs.curator import amends
from tieredfs.curator.quota_audit import QuotaSums
from tieredfs.curator.report import FindingKind
from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.format import keys, records
from tieredfs.format.keys import END_OF_KEYS, Counter, Tag
from tieredfs.format.records import MAY_HAVE_EXTENTS, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import DIRECTORY_DEPTH_MAX, FINDINGS_MAX, LINKS_WINDOW
from tieredfs.meta import allocation, inodes, sessions, shortage, volumes
from tieredfs.meta import blocks as block_layer
from tieredfs.model import NO_CACHE, ROOT, Block, BlockId, CacheId, DiskId, Extent, FileKind, InodeId, SessionId

_PROGRESS_EVERY: Final = 8192
_CLIMBED_MAX: Final = 1 << 16

Amendment = Callable[[Writer], None]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """`inode`: whose path tells people more than `subject` does."""

    kind: FindingKind
    subject: str
    detail: str
    amendment: Amendment | None = None
    inode: InodeId | None = None


@dataclass(slots=True)
class Audited:
    """What the audit counted and suspects.

    `wrong_links`, `placeless`: inodes that are amended together. Not while `names_in_doubt`: with a name that cannot be
    read, the count of names is not what the inodes should say.
    """

    suspicions: list[Suspicion] = field(default_factory=list)
    omitted: int = 0
    records: int = 0
    inodes: int = 0
    blocks: int = 0
    wrong_links: set[InodeId] = field(default_factory=set)
    placeless: set[InodeId] = field(default_factory=set)
    names_in_doubt: bool = False

    def suspect(self, suspicion: Suspicion) -> None:
        if len(self.suspicions) < FINDINGS_MAX:
            self.suspicions.append(suspicion)
        else:
            self.omitted += 1


def audit(reader: Reader, now_ns: int, progress: Callable[[int], None]) -> Audited:
    """Look at everything; `progress` is told the number of records so far. Changes nothing."""
    first = _FirstPass(reader, now_ns)
    first.run(progress)
    _check_counters(first)
    for window in sorted(first.windows | {0}):
        names = _count_names(reader, window * LINKS_WINDOW) if window else first.names
        _check_links(reader, first.audited, names, first.orphans)
    if first.user_pairs != first.user_records:
        _check_block_users(reader, first.audited)
    for wrong in first.quotas.wrong():
        amendment = partial(amends.quota, directory=wrong.directory)
        subject = f"directory {wrong.directory}"
        first.audited.suspect(Suspicion(FindingKind.QUOTA, subject, wrong.detail, amendment, wrong.directory))
    return first.audited


class _NameCounts:
    """Names of the inodes [start, start + LINKS_WINDOW), and their subdirectories."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._names = array("H", bytes(2 * LINKS_WINDOW))
        self._subdirectories = array("I", bytes(4 * LINKS_WINDOW))

    def add(self, directory: int, inode: int, is_directory: bool) -> None:
        if self.covers(inode):
            self._names[inode - self.start] = min(self._names[inode - self.start] + 1, 0xFFFF)
        if is_directory and self.covers(directory):
            self._subdirectories[directory - self.start] += 1

    def covers(self, inode: int) -> bool:
        return 0 <= inode - self.start < LINKS_WINDOW

    def names(self, inode: int) -> int:
        return self._names[inode - self.start]

    def subdirectories(self, inode: int) -> int:
        return self._subdirectories[inode - self.start]


@dataclass(slots=True)
class _Owner:
    """The inode whose records the scan is passing: they lie together."""

    inode: InodeId
    record: InodeRecord | None
    end: int = 0
    blocks: set[BlockId] = field(default_factory=set)


class _FirstPass:
    """One scan over everything."""

    def __init__(self, reader: Reader, now_ns: int) -> None:
        self.reader = reader
        self.now_ns = now_ns
        self.audited = Audited()
        self.names = _NameCounts(0)
        self.user_pairs = 0
        self.user_records = 0
        self.last_inode = 0
        self.windows: set[int] = set()
        self.last_block = 0
        self.quotas = QuotaSums(reader)
        self.orphans = {inode for _, inode in sessions.orphans(reader)}
        self._caches = {int(cache.cache) for cache in sessions.caches(reader)}
        self._climbed: set[int] = {ROOT}
        self._owner = _Owner(InodeId(0), None)
        self._directory: tuple[int, bool] = (0, False)
        self._checks: dict[Tag, Callable[[bytes, bytes], None]] = {
            Tag.INODE: self._inode,
            Tag.NAME: self._name,
            Tag.SYMLINK: self._symlink,
            Tag.XATTR: self._xattr,
            Tag.EXTENT: self._extent,
            Tag.STAGED: self._staged,
            Tag.QUOTA: lambda key, value: _ignore(records.decode_quota(InodeId(keys.last_u64(key)), value)),
            Tag.ORPHAN: self._orphan,
            Tag.BLOCK: self._block,
            Tag.BLOCK_USER: self._block_user,
            Tag.BLOCK_ON_DISK: self._block_on_disk,
            Tag.DEAD_BLOCK: self._dead_block,
            Tag.SHORT_BLOCK: self._short_block,
            Tag.INTENT: self._intent,
            Tag.VOLUME: lambda _, value: _ignore(records.decode_volume(value)),
            Tag.COUNTER: lambda _, value: _ignore(records.decode_number(value)),
            Tag.RECEIPT: lambda _, value: _ignore(records.decode_number(value)),
            Tag.FOLLOWER: lambda _, value: _ignore(value),
            Tag.CHANGE: lambda _, value: _ignore(records.decode_change(value)),
            Tag.SESSION: lambda _, value: _ignore(records.decode_session(SessionId(0), value)),
            Tag.CACHE: lambda _, value: _ignore(records.decode_cache(CacheId(0), value)),
            Tag.DISK: lambda _, value: _ignore(records.decode_disk(DiskId(0), value)),
        }

    def run(self, progress: Callable[[int], None]) -> None:
        for key, value in self.reader.scan(b"", END_OF_KEYS):
            self.audited.records += 1
            if self.audited.records % _PROGRESS_EVERY == 0:
                progress(self.audited.records)
            try:
                self._checks[keys.tag_of(key)](key, value)
            except (CorruptError, NewerFormatError) as error:
                self._suspect(FindingKind.RECORD, f"key {key.hex()}", str(error))
                self.audited.names_in_doubt |= key[keys.SHARD_BYTES : keys.SHARD_BYTES + 1] == bytes([Tag.NAME])
        self._leave_owner()

    def _suspect(
        self,
        kind: FindingKind,
        subject: str,
        detail: str,
        amendment: Amendment | None = None,
        inode: InodeId | None = None,
    ) -> None:
        self.audited.suspect(Suspicion(kind, subject, detail, amendment, inode))

    # ---- inodes and names -------------------------------------------------------------------------------------------

    def _inode(self, key: bytes, value: bytes) -> None:
        inode = InodeId(keys.last_u64(key))
        self.audited.inodes += 1
        self.last_inode = max(self.last_inode, inode)
        self.windows.add(inode // LINKS_WINDOW)
        record = records.decode_inode(inode, value)
        self.quotas.add(record)
        if record.staged_in:
            self._staged_inode(inode, record)
        elif record.version != record.stored_version:
            detail = f"version {record.version} is nowhere; {record.stored_version} is stored"
            self._suspect(FindingKind.CONTENT, f"inode {inode}", detail, inode=inode)
        if record.kind is FileKind.SYMLINK and self.reader.get(keys.symlink(inode)) is None:
            self._suspect(FindingKind.ATTRIBUTE, f"inode {inode}", "a symlink without a target", inode=inode)
        if record.kind is FileKind.DIRECTORY and not self._leads_to_root(record):
            self._suspect(FindingKind.UNREACHABLE, f"inode {inode}", "its parents do not lead to the root")

    def _staged_inode(self, inode: InodeId, record: InodeRecord) -> None:
        cache = CacheId(record.staged_in)
        if record.staged_in not in self._caches:
            detail = f"its newest content is in cache {cache}, which nobody knows"
            self._suspect(FindingKind.CONTENT, f"inode {inode}", detail, inode=inode)
        elif self.reader.get(keys.staged(cache, inode)) is None:
            amendment = partial(amends.staged, cache=cache, inode=inode, now_ns=self.now_ns)
            detail = f"it is staged in cache {cache}, and is not in the list of what is"
            self._suspect(FindingKind.STAGED, f"inode {inode}", detail, amendment, inode)

    def _leads_to_root(self, record: InodeRecord) -> bool:
        """Climb to a directory from which somebody climbed before."""
        chain: list[int] = []
        current: InodeRecord | None = record
        while current is not None and current.inode not in self._climbed:
            chain.append(current.inode)
            if len(chain) > DIRECTORY_DEPTH_MAX or current.kind is not FileKind.DIRECTORY:
                return False
            current = inodes.find(self.reader, InodeId(current.parent))
        if len(self._climbed) > _CLIMBED_MAX:
            self._climbed = {ROOT}
        self._climbed.update(chain if current is not None else ())
        return current is not None

    def _name(self, key: bytes, value: bytes) -> None:
        directory, name = InodeId(keys.first_u64(key)), keys.text_after_u64(key)
        entry = records.decode_entry(name, value)
        self.names.add(directory, entry.inode, entry.kind is FileKind.DIRECTORY)
        subject = f"entry {name!r} of directory {directory}"
        if not self._is_directory(directory):
            self._suspect(FindingKind.ENTRY, subject, "there is no such directory")
        record = inodes.find(self.reader, entry.inode)
        if record is None:
            detail = f"it points to inode {entry.inode}, which does not exist"
            self._suspect(FindingKind.ENTRY, subject, detail, inode=directory)
            return
        if record.kind is not entry.kind:
            amendment = partial(amends.entry_kind, directory=directory, name=name)
            detail = f"it says {entry.kind.name}, its inode {record.kind.name}"
            self._suspect(FindingKind.ENTRY_KIND, subject, detail, amendment, entry.inode)
        if record.kind is FileKind.DIRECTORY and record.parent != directory:
            amendment = partial(amends.parent, directory=directory, name=name)
            detail = f"its inode {entry.inode} believes to be in directory {record.parent}"
            self._suspect(FindingKind.PARENT, subject, detail, amendment, entry.inode)

    def _is_directory(self, directory: InodeId) -> bool:
        if self._directory[0] != directory:
            record = inodes.find(self.reader, directory)
            self._directory = (directory, record is not None and record.kind is FileKind.DIRECTORY)
        return self._directory[1]

    # ---- what hangs on an inode -------------------------------------------------------------------------------------

    def _own(self, inode: InodeId) -> _Owner:
        if self._owner.inode != inode:
            self._leave_owner()
            self._owner = _Owner(inode, inodes.find(self.reader, inode))
        return self._owner

    def _leave_owner(self) -> None:
        self.user_pairs += len(self._owner.blocks)

    def _hint(self, owner: _Owner, bit: int, what: str) -> None:
        if owner.record is not None and not owner.record.hints & bit:
            owner.record = owner.record._replace(hints=owner.record.hints | bit)  # told once
            amendment = partial(amends.hint, inode=owner.inode, bit=bit)
            self._suspect(FindingKind.HINT, f"inode {owner.inode}", f"its record denies its {what}", amendment)

    def _symlink(self, key: bytes, value: bytes) -> None:
        records.decode_bytes(value)
        inode = InodeId(keys.first_u64(key))
        if self._own(inode).record is None:
            self._suspect(FindingKind.ATTRIBUTE, f"inode {inode}", "it does not exist, and has a symlink's target")

    def _xattr(self, key: bytes, value: bytes) -> None:
        records.decode_bytes(value)
        owner = self._own(InodeId(keys.first_u64(key)))
        if owner.record is None:
            self._suspect(FindingKind.ATTRIBUTE, f"inode {owner.inode}", "it does not exist, and has an attribute")
        self._hint(owner, MAY_HAVE_XATTRS, "extended attributes")

    def _extent(self, key: bytes, value: bytes) -> None:
        owner = self._own(InodeId(keys.first_u64(key)))
        extent = records.decode_extent(keys.last_u64(key), value)
        subject = f"inode {owner.inode}"
        if owner.record is None:
            self._suspect(FindingKind.EXTENTS, subject, f"it does not exist, and has content at {extent.offset}")
        elif extent.length == 0 or extent.offset < owner.end:
            self._suspect(FindingKind.EXTENTS, subject, f"its extents at {extent.offset} overlap", inode=owner.inode)
        self._hint(owner, MAY_HAVE_EXTENTS, "content")
        owner.end = max(owner.end, extent.end)
        if extent.block not in owner.blocks:
            owner.blocks.add(extent.block)
            self._first_extent_in_block(owner, extent)
        self._check_bounds(owner, extent)

    def _first_extent_in_block(self, owner: _Owner, extent: Extent) -> None:
        if self.reader.get(keys.block_user(extent.block, owner.inode)) is None:
            amendment = partial(amends.block_user, block=extent.block, inode=owner.inode)
            detail = f"inode {owner.inode} is not among its users"
            self._suspect(FindingKind.BLOCK_USER, f"block {extent.block:x}", detail, amendment, owner.inode)

    def _check_bounds(self, owner: _Owner, extent: Extent) -> None:
        value = self.reader.get(keys.block(extent.block))
        subject = f"inode {owner.inode}"
        if value is None:
            detail = f"bytes {extent.offset} to {extent.end} are in block {extent.block:x}, which does not exist"
            self._suspect(FindingKind.NO_BLOCK, subject, detail, inode=owner.inode)
        elif extent.block_offset + extent.length > records.decode_block(extent.block, value).size_bytes:
            detail = f"its extent at {extent.offset} reaches beyond block {extent.block:x}"
            self._suspect(FindingKind.EXTENTS, subject, detail, inode=owner.inode)

    def _staged(self, key: bytes, value: bytes) -> None:
        cache, inode = CacheId(keys.first_u64(key)), InodeId(keys.last_u64(key))
        amendment = partial(amends.staged, cache=cache, inode=inode, now_ns=self.now_ns)
        try:
            staged = records.decode_staged(cache, inode, value)
        except CorruptError as error:
            detail = f"how it is staged in cache {cache} cannot be read: {error}"
            self._suspect(FindingKind.STAGED, f"inode {inode}", detail, amendment, inode)
            return
        record = inodes.find(self.reader, inode)
        if record is None or record.staged_in != cache or record.version != staged.version:
            detail = f"it is listed as staged in cache {cache} at version {staged.version}, which it is not"
            self._suspect(FindingKind.STAGED, f"inode {inode}", detail, amendment, inode)

    def _orphan(self, key: bytes, value: bytes) -> None:
        del value
        session, inode = SessionId(keys.first_u64(key)), InodeId(keys.last_u64(key))
        record = inodes.find(self.reader, inode)
        known = self.reader.get(keys.session(session)) is not None
        if record is None or record.link_count > 0 or not known:
            amendment = partial(amends.orphan, session=session, inode=inode, now_ns=self.now_ns)
            detail = f"an open-but-removed file of session {session}; one of the two is not there, or it has a name"
            self._suspect(FindingKind.ORPHAN, f"inode {inode}", detail, amendment)

    # ---- blocks -----------------------------------------------------------------------------------------------------

    def _block(self, key: bytes, value: bytes) -> None:
        number = BlockId(keys.last_u64(key))
        self.audited.blocks += 1
        self.last_block = max(self.last_block, number)
        block = records.decode_block(number, value)
        disks = [keys.ALL_DISKS, *sorted({chunk.disk for chunk in block.chunks})]
        listed = self.reader.get_many([keys.block_on_disk(disk, number) for disk in disks])
        for disk, entry in zip(disks, listed, strict=True):
            if entry is None:
                amendment = partial(amends.on_disk, disk=disk, block=number)
                detail = "the disk does not list it" if disk else "the list of all blocks lacks it"
                self._suspect(FindingKind.DISK_INDEX, f"block {number:x}, disk {disk}", detail, amendment)
        self._check_death(block)
        if block.missing and self.reader.get(keys.dead_block(number)) is None:
            self._check_listed_as_short(block)

    def _check_listed_as_short(self, block: Block) -> None:
        if self.reader.get(keys.short_block(block.spare, block.block)) is None:
            detail = f"it lacks chunks {block.missing} and is not listed for healing"
            self._suspect_short(block.block, detail)

    def _suspect_short(self, number: BlockId, detail: str) -> None:
        amendment = partial(amends.short, block=number, now_ns=self.now_ns)
        self._suspect(FindingKind.SHORT_INDEX, f"block {number:x}", detail, amendment)

    def _check_death(self, block: Block) -> None:
        used = block_layer.is_used(self.reader, block.block)
        dead = self.reader.get(keys.dead_block(block.block)) is not None
        if used == dead:
            amendment = partial(amends.death, block=block.block, now_ns=self.now_ns)
            detail = "it is marked dead and has users" if dead else "it has no user and is not marked dead"
            self._suspect(FindingKind.DEATH, f"block {block.block:x}", detail, amendment)

    def _block_user(self, key: bytes, value: bytes) -> None:
        del key, value
        self.user_records += 1

    def _block_on_disk(self, key: bytes, value: bytes) -> None:
        del value
        disk, number = DiskId(keys.first_u64(key)), BlockId(keys.last_u64(key))
        record = self.reader.get(keys.block(number))
        block = None if record is None else records.decode_block(number, record)
        if block is None or (disk != keys.ALL_DISKS and all(chunk.disk != disk for chunk in block.chunks)):
            amendment = partial(amends.on_disk, disk=disk, block=number)
            detail = "the disk lists it in vain"
            self._suspect(FindingKind.DISK_INDEX, f"block {number:x}, disk {disk}", detail, amendment)

    def _dead_block(self, key: bytes, value: bytes) -> None:
        records.decode_number(value)
        number = BlockId(keys.last_u64(key))
        if self.reader.get(keys.block(number)) is None:
            amendment = partial(amends.death, block=number, now_ns=self.now_ns)
            self._suspect(FindingKind.DEATH, f"block {number:x}", "it is marked dead and does not exist", amendment)

    def _short_block(self, key: bytes, value: bytes) -> None:
        number, spare = BlockId(keys.last_u64(key)), keys.spare_of(key)
        short = records.decode_short(number, spare, value)
        record = self.reader.get(keys.block(number))
        dead = self.reader.get(keys.dead_block(number)) is not None
        block = None if record is None or dead else records.decode_block(number, record)
        if block is None or not block.missing or shortage.entry_of(block, short.since_ns) != short:
            self._suspect_short(number, "it is listed for healing and lacks nothing, something else, or is not in use")

    def _intent(self, key: bytes, value: bytes) -> None:
        session, number = SessionId(records.decode_number(value)), BlockId(keys.last_u64(key))
        self.last_block = max(self.last_block, number)
        exists = self.reader.get(keys.block(number)) is not None
        if exists or self.reader.get(keys.session(session)) is None:
            detail = f"session {session} reserves it, and {'it is written' if exists else 'does not exist'}"
            amendment = partial(amends.intent, block=number)
            self._suspect(FindingKind.INTENT, f"block {number:x}", detail, amendment)


def _ignore(_: object) -> None:
    """Decoding was the check."""


def _check_counters(first: _FirstPass) -> None:
    disks = max((disk.disk for disk in volumes.disks(first.reader)), default=0)
    last_session = max((session.session for session in sessions.listed(first.reader)), default=0)
    in_use = {
        Counter.INODE: first.last_inode,
        Counter.BLOCK: first.last_block,
        Counter.DISK: disks,
        Counter.SESSION: last_session,
    }
    for which, last in in_use.items():
        if allocation.value(first.reader, which) <= last:
            amendment = partial(amends.counter, which=which, at_least=last + 1)
            detail = f"it would give out {which.name.lower()} {last} again"
            first.audited.suspect(Suspicion(FindingKind.COUNTER, f"counter {which.name}", detail, amendment))


def _count_names(reader: Reader, start: int) -> _NameCounts:
    counts = _NameCounts(start)
    for key, value in reader.scan(b"", END_OF_KEYS):
        if key[keys.SHARD_BYTES] == Tag.NAME:
            try:
                entry = records.decode_entry(b"", value)
            except (CorruptError, NewerFormatError):
                continue  # told by the first pass
            counts.add(keys.first_u64(key), entry.inode, entry.kind is FileKind.DIRECTORY)
    return counts


def _check_links(reader: Reader, audited: Audited, counts: _NameCounts, orphans: set[InodeId]) -> None:
    for key, value in reader.scan(b"", END_OF_KEYS):
        if key[keys.SHARD_BYTES] != Tag.INODE or not counts.covers(keys.last_u64(key)):
            continue
        inode = InodeId(keys.last_u64(key))
        try:
            record = records.decode_inode(inode, value)
        except (CorruptError, NewerFormatError):
            continue
        names = counts.names(inode)
        is_directory = record.kind is FileKind.DIRECTORY
        if names == 0 and inode != ROOT and inode not in orphans:
            audited.placeless.add(inode)
            detail = f"a {record.kind.name.lower()} of {record.size_bytes} bytes without a name"
            audited.suspect(Suspicion(FindingKind.UNREACHABLE, f"inode {inode}", detail))
        elif is_directory and names > 1:
            audited.suspect(Suspicion(FindingKind.ENTRY, f"inode {inode}", f"a directory with {names} names"))
        right = 2 + counts.subdirectories(inode) if is_directory else names
        if record.link_count != right and (is_directory or names > 0 or inode in orphans):
            audited.wrong_links.add(inode)
            detail = f"its link count is {record.link_count}; {right} is right"
            audited.suspect(Suspicion(FindingKind.LINK_COUNT, f"inode {inode}", detail, inode=inode))


def _check_block_users(reader: Reader, audited: Audited) -> None:
    for key, _ in reader.scan(b"", END_OF_KEYS):
        if key[keys.SHARD_BYTES] != Tag.BLOCK_USER:
            continue
        block, inode = BlockId(keys.first_u64(key)), InodeId(keys.last_u64(key))
        try:
            uses = any(extent.block == block for extent in inodes.extents(reader, inode))
        except (CorruptError, NewerFormatError):
            continue
        if not uses:
            amendment = partial(amends.block_user, block=block, inode=inode)
            detail = f"inode {inode} is among its users and has nothing in it"
            audited.suspect(Suspicion(FindingKind.BLOCK_USER, f"block {block:x}", detail, amendment, inode))


assert NO_CACHE == 0, "`staged_in` is tested for truth"
