"""Every key of the metadata store, and the shard prefix that each begins with.

A key is `shard (2) | tag (1) | fields`, big-endian, so that the order of keys is the order of fields. The shard is a
hash of what the key hangs on, so that an engine that splits the key space by ranges spreads the load; the tag says
which table the key belongs to, and hence how its value reads (`tieredfs.format.records`). FORMAT.md has the same list
for readers of the bytes.

Two choices matter for speed, and are part of the format:

- Inodes hash in groups of `INODES_PER_SHARD_GROUP` neighbours: files made one after another, which are mostly those
  of one directory, lie on a few pages of a B-tree instead of a page each, for the writer's commit and for a listing
  with attributes.
- A directory's names hash apart from its inode, so that a hot directory and hot files are not one shard.

What is few, or must be found without knowing an id (disks, sessions, caches, orphans, dead blocks, intents,
counters), has shard 0: these are the tables with a `_PREFIX` below.
"""

import enum
import struct
from functools import lru_cache
from typing import Final

from tieredfs.errors import CorruptError
from tieredfs.limits import DISKS_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX, SHARD_COUNT, XATTR_NAME_BYTES_MAX
from tieredfs.model import BlockId, CacheId, DiskId, InodeId, SessionId

SHARD_BYTES: Final = 2
assert 1 << (8 * SHARD_BYTES) == SHARD_COUNT

INODES_PER_SHARD_GROUP: Final = 64
"""64 records of about 100 bytes: two pages."""
SHARDS_REMEMBERED: Final = 8192
"""Of groups of inodes, and of directories: 1 MiB each."""


class Tag(enum.IntEnum):
    """The tables. At rest in every key: never renumber. The letters are for people who read dumps."""

    VOLUME = ord("V")
    COUNTER = ord("#")
    INODE = ord("I")
    NAME = ord("N")
    SYMLINK = ord("L")
    XATTR = ord("X")
    EXTENT = ord("E")
    STAGED = ord("T")
    ORPHAN = ord("O")
    RECEIPT = ord("R")
    SESSION = ord("S")
    CACHE = ord("C")
    DISK = ord("D")
    BLOCK = ord("B")
    BLOCK_USER = ord("U")
    BLOCK_ON_DISK = ord("K")
    DEAD_BLOCK = ord("Z")
    INTENT = ord("W")
    FOLLOWER = ord("F")
    CHANGE = ord("H")
    SHORT_BLOCK = ord("M")
    """M: missing chunks."""
    PEER = ord("P")
    QUOTA = ord("Q")


class Counter(enum.IntEnum):
    """What ids are handed out from. At rest: never renumber."""

    INODE = 1
    BLOCK = 2
    SESSION = 3
    CACHE = 4
    DISK = 5
    INODES_DELETED = 6
    """Not an id: how many inodes were deleted, for the estimate of how many there are."""
    CHANGE = 7
    """Numbers of the change feed's records."""


ALL_DISKS: Final = DiskId(0)
"""Disk ids begin with 1; under 0, `BLOCK_ON_DISK` lists every block of the volume, those without a chunk too."""

_NAME_SALT: Final = 0x6E616D6573000000
_STAGED_SALT: Final = 0x7374616765640000
_DISK_SALT: Final = 0x6469736B73000000
_RECEIPT_SALT: Final = 0x7265636569707400
_MASK: Final = (1 << 64) - 1

_INODE: Final = int(Tag.INODE)
_NAME: Final = int(Tag.NAME)
_head = struct.Struct(">HBQ").pack
_head_and_u64 = struct.Struct(">HBQQ").pack
_U64: Final = struct.Struct(">Q")
_COUNTER = struct.Struct(">HBB").pack
_DISK: Final = struct.Struct(">HBH")
_SHORT: Final = struct.Struct(">HBBQ")


END_OF_KEYS: Final = b"\xff" * KEY_BYTES_MAX
"""Greater than every key."""


def mixed(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out, one to one."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def shard_of(value: int) -> int:
    """The top 16 bits of the mix."""
    return mixed(value) >> 48


_shard_of_group = lru_cache(SHARDS_REMEMBERED)(shard_of)
_shard_of_names = lru_cache(SHARDS_REMEMBERED)(lambda directory: shard_of(directory ^ _NAME_SALT))
"""Remembered, as who asks for one file of a directory asks for its neighbours: a key costs 0.5 us less."""


def _inode_shard(inode: int) -> int:
    return _shard_of_group(inode // INODES_PER_SHARD_GROUP)


def end_of(prefix: bytes) -> bytes:
    """The least key that is greater than every key that begins with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    assert stripped
    return stripped[:-1] + bytes([stripped[-1] + 1])


# ---- the volume and its counters: shard 0 ----------------------------------------------------------------------------

VOLUME: Final = struct.pack(">HB", 0, Tag.VOLUME)
"""The volume record. Its presence is what makes a database a volume; `format` writes it once."""


def counter(which: Counter) -> bytes:
    """-> the next id to hand out (u64). Ranges of `INODE_BATCH` are taken by a transaction; what a process does not
    use is lost.
    """
    return _COUNTER(0, Tag.COUNTER, which)


# ---- inodes and names ------------------------------------------------------------------------------------------------


def inode(number: InodeId) -> bytes:
    """-> attributes. Exists from creation to deletion, which for an orphan is later than its last name."""
    return _head(_shard_of_group(number // INODES_PER_SHARD_GROUP), _INODE, number)


def name(directory: InodeId, entry: bytes) -> bytes:
    """-> inode and kind. Exactly as many of these point to an inode as its link count says (directories: to each,
    one).
    """
    return _head(_shard_of_names(directory), _NAME, directory) + entry


def names(directory: InodeId) -> bytes:
    """Prefix of a directory's names."""
    return name(directory, b"")


QUOTAS_PREFIX: Final = struct.pack(">HB", 0, Tag.QUOTA)


def quota(directory: InodeId) -> bytes:
    """-> limits, what is used, and the directory's path. Exists exactly while its record has the HAS_QUOTA bit."""
    return _head(0, Tag.QUOTA, directory)


def symlink(number: InodeId) -> bytes:
    """-> target, of symlinks only."""
    return _head(_inode_shard(number), Tag.SYMLINK, number)


def xattr(number: InodeId, attribute: bytes) -> bytes:
    """-> value. The inode's record has its MAY_HAVE_XATTRS bit."""
    return _head(_inode_shard(number), Tag.XATTR, number) + attribute


def xattrs(number: InodeId) -> bytes:
    """Prefix of an inode's extended attributes."""
    return xattr(number, b"")


def extent(number: InodeId, offset: int) -> bytes:
    """-> length, block, offset in block. Extents of a file do not overlap. The record has its MAY_HAVE_EXTENTS bit."""
    return _head_and_u64(_inode_shard(number), Tag.EXTENT, number, offset)


def extents(number: InodeId) -> bytes:
    """Prefix of a file's extents."""
    return _head(_inode_shard(number), Tag.EXTENT, number)


def staged(cache: CacheId, number: InodeId) -> bytes:
    """-> version and since when. Exists exactly while the inode's record says that `cache` holds its content."""
    return _head_and_u64(shard_of(cache ^ _STAGED_SALT), Tag.STAGED, cache, number)


def staged_in(cache: CacheId) -> bytes:
    """Prefix of what is staged in a cache."""
    return _head(shard_of(cache ^ _STAGED_SALT), Tag.STAGED, cache)


# ---- sessions and what belongs to them -------------------------------------------------------------------------------

ORPHANS_PREFIX: Final = struct.pack(">HB", 0, Tag.ORPHAN)
SESSIONS_PREFIX: Final = struct.pack(">HB", 0, Tag.SESSION)
CACHES_PREFIX: Final = struct.pack(">HB", 0, Tag.CACHE)
PEERS_PREFIX: Final = struct.pack(">HB", 0, Tag.PEER)
INTENTS_PREFIX: Final = struct.pack(">HB", 0, Tag.INTENT)


def orphan(session: SessionId, number: InodeId) -> bytes:
    """-> nothing. An inode without a name that somebody in `session` has open."""
    return _head_and_u64(0, Tag.ORPHAN, session, number)


def orphans_of(session: SessionId) -> bytes:
    """Prefix of a session's orphans."""
    return _head(0, Tag.ORPHAN, session)


def receipt(mount: int, slot: int) -> bytes:
    """-> number of the newest request that was carried out in this slot of the mount."""
    return _head_and_u64(shard_of(mount ^ _RECEIPT_SALT), Tag.RECEIPT, mount, slot)


def receipts(mount: int) -> bytes:
    """Prefix of a mount's receipts."""
    return _head(shard_of(mount ^ _RECEIPT_SALT), Tag.RECEIPT, mount)


def session(number: SessionId) -> bytes:
    """-> host, process, purpose, times."""
    return _head(0, Tag.SESSION, number)


def cache(number: CacheId) -> bytes:
    """-> uuid, host, path."""
    return _head(0, Tag.CACHE, number)


def peer(number: SessionId) -> bytes:
    """-> address at which the session's process serves what is staged on its host; goes with the session."""
    return _head(0, Tag.PEER, number)


def intent(block_id: BlockId) -> bytes:
    """-> session that writes the block. Removed by the transaction that commits the block, or with the session."""
    return _head(0, Tag.INTENT, block_id)


# ---- blocks and disks ------------------------------------------------------------------------------------------------

DISKS_PREFIX: Final = struct.pack(">HB", 0, Tag.DISK)
DEAD_BLOCKS_PREFIX: Final = struct.pack(">HB", 0, Tag.DEAD_BLOCK)


def disk(number: DiskId) -> bytes:
    """-> uuid, url, failure domain, state. Kept after the disk is removed: its id is never used again."""
    assert 0 < number <= DISKS_MAX
    return _DISK.pack(0, Tag.DISK, number)


FOLLOWERS_PREFIX: Final = struct.pack(">HB", 0, Tag.FOLLOWER)
CHANGES_PREFIX: Final = struct.pack(">HB", 0, Tag.CHANGE)


def follower(session_id: SessionId) -> bytes:
    """-> nothing. Exists while the session follows the change feed; goes with the session."""
    return _head(0, Tag.FOLLOWER, session_id)


def change(number: int) -> bytes:
    """-> who changed which inodes and names, in one transaction. The last `CHANGES_KEPT` exist."""
    return _head(0, Tag.CHANGE, number)


def block(block_id: BlockId) -> bytes:
    """-> code, sizes, where the chunks are."""
    return _head(shard_of(block_id), Tag.BLOCK, block_id)


def block_user(block_id: BlockId, number: InodeId) -> bytes:
    """-> nothing. Exists exactly while the inode has an extent in the block; without any, the block is dead."""
    return _head_and_u64(shard_of(block_id), Tag.BLOCK_USER, block_id, number)


def block_users(block_id: BlockId) -> bytes:
    """Prefix of a block's users."""
    return _head(shard_of(block_id), Tag.BLOCK_USER, block_id)


def block_on_disk(number: DiskId, block_id: BlockId) -> bytes:
    """-> nothing. Exists exactly while the block's record has a chunk on the disk; with `ALL_DISKS`, while the record
    exists.
    """
    return _head_and_u64(shard_of(number ^ _DISK_SALT), Tag.BLOCK_ON_DISK, number, block_id)


def blocks_on_disk(number: DiskId) -> bytes:
    """Prefix of a disk's blocks."""
    return _head(shard_of(number ^ _DISK_SALT), Tag.BLOCK_ON_DISK, number)


def dead_block(block_id: BlockId) -> bytes:
    """-> since when (ns) the block has had no user; 0: its chunks are being deleted, and it gets none again."""
    return _head(0, Tag.DEAD_BLOCK, block_id)


SHORT_BLOCKS_PREFIX: Final = struct.pack(">HB", 0, Tag.SHORT_BLOCK)


def short_block(spare: int, block_id: BlockId) -> bytes:
    """-> since when, and how many bytes. Exists exactly while the block has a user and its record lacks chunks; `spare` is how
    many more it can lose, so those come first that cannot lose any.
    """
    return _SHORT.pack(0, Tag.SHORT_BLOCK, spare, block_id)


def short_blocks(spare: int) -> bytes:
    """Prefix of the short blocks with so many chunks to spare."""
    return struct.pack(">HBB", 0, Tag.SHORT_BLOCK, spare)


# ---- reading keys back -----------------------------------------------------------------------------------------------


def tag_of(key: bytes) -> Tag:
    """Raises CorruptError for a key that no version of this page makes."""
    try:
        return Tag(key[SHARD_BYTES])
    except (IndexError, ValueError) as error:
        raise CorruptError(f"metadata key {key.hex()} is of no known table") from error


def last_u64(key: bytes) -> int:
    """The last field, of keys that end in a number: an inode of ORPHAN, a block of BLOCK_ON_DISK, ..."""
    number: int = _U64.unpack_from(key, len(key) - 8)[0]
    return number


def first_u64(key: bytes) -> int:
    """The field after the tag: the id that the key hangs on."""
    if len(key) < SHARD_BYTES + 1 + 8:
        raise CorruptError(f"metadata key {key.hex()} is too short")
    number: int = _U64.unpack_from(key, SHARD_BYTES + 1)[0]
    return number


def disk_of(key: bytes) -> DiskId:
    """The disk of a DISK key."""
    return DiskId(_DISK.unpack(key)[2])


def spare_of(key: bytes) -> int:
    """Of a SHORT_BLOCK key."""
    if len(key) != _SHORT.size:
        raise CorruptError(f"metadata key {key.hex()} is no short block's")
    spare: int = _SHORT.unpack(key)[2]
    return spare


def text_after_u64(key: bytes) -> bytes:
    """What follows the id: the name of an entry or attribute."""
    return key[SHARD_BYTES + 1 + 8 :]


assert SHARD_BYTES + 1 + 8 + max(NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX) <= KEY_BYTES_MAX
