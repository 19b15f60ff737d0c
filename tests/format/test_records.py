"""Keys and records at rest: golden files, round trips, and what is refused."""

import contextlib
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.format import keys, records
from tieredfs.format.keys import Counter, Tag
from tieredfs.format.records import InodeRecord
from tieredfs.model import (
    Block,
    BlockId,
    CacheId,
    CacheRecord,
    ChunkLocation,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    Entry,
    Extent,
    FileKind,
    InodeId,
    Place,
    Quota,
    Session,
    SessionId,
    ShortBlock,
    StagedRecord,
    VolumeConfig,
)

GOLDEN = Path(__file__).parent / "golden"

INODE = InodeId(0x0123456789ABCDEF)
BLOCK = BlockId(0x1122334455667788)
RS42 = Code(CodeKind.REED_SOLOMON, 4, 2)

INODE_RECORD = InodeRecord(INODE, FileKind.REGULAR, 0o4755, 1000, 100, 3, 1 << 40, -5, 1_700_000_000_123_456_789, 7,
                           0x0801, 1, 9, 8, 2, 1 << 20, 77, 3)  # fmt: skip
BLOCK_RECORD = Block(BLOCK, RS42, 1000, 4096, (ChunkLocation(0, DiskId(3), 0xDEADBEEF), ChunkLocation(5, DiskId(9), 1)))
DISK = Disk(DiskId(7), "d-uuid", "disk:///data/d7", "rack-1", DiskState.DRAINING)
VOLUME = VolumeConfig("v-uuid", "Gewölbe", 1, 1_700_000_000_000_000_000, RS42, 64 << 20, Durability.STORE)
SESSION = Session(SessionId(4), "host-1", 4321, "mount /mnt", 5, 6)
QUOTA = Quota(INODE, b"/team/\xff", 100 << 30, 1_000_000, 5 << 30, 77)
CACHE = CacheRecord(CacheId(2), "c-uuid", "host-1", "/var/cache/tieredfs")

KEYS: dict[str, bytes] = {
    "volume": keys.VOLUME,
    "counter": keys.counter(Counter.BLOCK),
    "inode": keys.inode(INODE),
    "name": keys.name(INODE, b"caf\xc3\xa9"),
    "symlink": keys.symlink(INODE),
    "xattr": keys.xattr(INODE, b"user.a"),
    "extent": keys.extent(INODE, 1 << 33),
    "staged": keys.staged(CacheId(2), INODE),
    "orphan": keys.orphan(SessionId(4), INODE),
    "receipt": keys.receipt(0xFFEEDDCC, 3),
    "session": keys.session(SessionId(4)),
    "peer": keys.peer(SessionId(4)),
    "cache": keys.cache(CacheId(2)),
    "disk": keys.disk(DiskId(0x0102)),
    "block": keys.block(BLOCK),
    "block_user": keys.block_user(BLOCK, INODE),
    "block_on_disk": keys.block_on_disk(DiskId(0x0102), BLOCK),
    "dead_block": keys.dead_block(BLOCK),
    "short_block": keys.short_block(1, BLOCK),
    "intent": keys.intent(BLOCK),
    "quota": keys.quota(INODE),
    "follower": keys.follower(SessionId(4)),
    "change": keys.change(5),
}

RECORDS: dict[str, tuple[bytes, Callable[[bytes], object], object]] = {
    "volume": (records.encode_volume(VOLUME), records.decode_volume, VOLUME),
    "inode": (records.encode_inode(INODE_RECORD), lambda v: records.decode_inode(INODE, v), INODE_RECORD),
    "entry": (
        records.encode_entry(INODE, FileKind.FIFO),
        lambda v: records.decode_entry(b"n", v),
        Entry(b"n", INODE, FileKind.FIFO),
    ),
    "bytes": (records.encode_bytes(b"../target\xff"), records.decode_bytes, b"../target\xff"),
    "extent": (
        records.encode_extent(Extent(9, 4096, BLOCK, 123)),
        lambda v: records.decode_extent(9, v),
        Extent(9, 4096, BLOCK, 123),
    ),
    "staged": (
        records.encode_staged(6, 99),
        lambda v: records.decode_staged(CacheId(2), INODE, v),
        StagedRecord(CacheId(2), INODE, 6, 99),
    ),
    "staged_with_a_place": (
        records.encode_staged(6, 99, Place(7, 4160)),
        lambda v: records.decode_staged(CacheId(2), INODE, v),
        StagedRecord(CacheId(2), INODE, 6, 99, Place(7, 4160)),
    ),
    "number": (records.encode_number(1 << 60), records.decode_number, 1 << 60),
    "session": (records.encode_session(SESSION), lambda v: records.decode_session(SessionId(4), v), SESSION),
    "cache": (records.encode_cache(CACHE), lambda v: records.decode_cache(CacheId(2), v), CACHE),
    "block": (records.encode_block(BLOCK_RECORD), lambda v: records.decode_block(BLOCK, v), BLOCK_RECORD),
    "short": (
        records.encode_short(ShortBlock(BLOCK, 1, -7, 1000, 8192)),
        lambda v: records.decode_short(BLOCK, 1, v),
        ShortBlock(BLOCK, 1, -7, 1000, 8192),
    ),
    "disk": (records.encode_disk(DISK), lambda v: records.decode_disk(DiskId(7), v), DISK),
    "quota": (records.encode_quota(QUOTA), lambda v: records.decode_quota(INODE, v), QUOTA),
    "change": (
        records.encode_change(SessionId(4), [keys.inode(INODE), keys.name(INODE, b"n")]),
        records.decode_change,
        (SessionId(4), [keys.inode(INODE), keys.name(INODE, b"n")]),
    ),
}


def golden(name: str) -> dict[str, str]:
    """`name: hex` lines. Never regenerate these to make a test pass: a difference is a new format version."""
    lines = (GOLDEN / name).read_text().splitlines()
    return dict(line.split(": ") for line in lines if line and not line.startswith("#"))


def test_keys_are_the_golden_ones() -> None:
    assert {name: key.hex() for name, key in KEYS.items()} == golden("keys.hex")


def test_records_are_the_golden_ones() -> None:
    assert {name: encoded.hex() for name, (encoded, _, _) in RECORDS.items()} == golden("records.hex")


@pytest.mark.parametrize("name", RECORDS)
def test_golden_records_decode(name: str) -> None:
    _, decode, expected = RECORDS[name]
    assert decode(bytes.fromhex(golden("records.hex")[name])) == expected


def test_every_table_has_a_golden_key() -> None:
    assert {keys.tag_of(key) for key in KEYS.values()} == set(Tag)


@pytest.mark.parametrize("key", [b"", b"\0", b"\0\0", b"\0\0?"])
def test_unknown_table(key: bytes) -> None:
    with pytest.raises(CorruptError):
        keys.tag_of(key)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_any_flipped_bit_or_cut_is_noticed(name: str) -> None:
    encoded, decode, _ = RECORDS[name]
    for position, bit in itertools.product(range(len(encoded)), range(8)):
        damaged = bytearray(encoded)
        damaged[position] ^= 1 << bit
        with pytest.raises(CorruptError):
            decode(bytes(damaged))
    for length in range(len(encoded)):
        with pytest.raises(CorruptError):
            decode(encoded[:length])
    with pytest.raises(CorruptError):
        decode(encoded + b"\0")


def resealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("name", RECORDS)
def test_newer_version(name: str) -> None:
    encoded, decode, _ = RECORDS[name]
    with pytest.raises(NewerFormatError):
        decode(resealed(b"\x03" + encoded[1:-4]))
    with pytest.raises(CorruptError):
        decode(resealed(b"\x00" + encoded[1:-4]))


@pytest.mark.parametrize("name", sorted(set(RECORDS) - {"bytes"}))
@given(tail=st.binary(max_size=120))
def test_garbage_with_a_good_checksum_is_corrupt_or_decodes(name: str, tail: bytes) -> None:
    """Never a struct.error, a ValueError or an unknown enum."""
    _, decode, _ = RECORDS[name]
    with contextlib.suppress(CorruptError):
        decode(resealed(b"\x01" + tail))


@pytest.mark.parametrize(
    ("name", "offset", "value"),
    [
        ("inode", 1, 0),
        ("inode", 1, 8),
        ("entry", 9, 99),
        ("block", 1, 3),
        ("block", 2, 0),
        ("disk", 1, 5),
        ("volume", 11, 9),
    ],
)
def test_numbers_that_no_enum_has(name: str, offset: int, value: int) -> None:
    encoded, decode, _ = RECORDS[name]
    body = bytearray(encoded[:-4])
    body[offset] = value
    with pytest.raises(CorruptError):
        decode(resealed(bytes(body)))


def test_chunks_out_of_order_or_beyond_the_code() -> None:
    for chunks in [(5, 0), (0, 0), (0, 6)]:
        block = Block(BLOCK, RS42, 1, 1, tuple(ChunkLocation(index, DiskId(1), 0) for index in chunks))
        with pytest.raises(CorruptError):
            records.decode_block(BLOCK, records.encode_block(block))


# ---- order and spread ----------------------------------------------------------------------------------------------

u64 = st.integers(0, (1 << 64) - 1)


@given(inode=u64, offsets=st.lists(u64, min_size=2, max_size=2))
def test_extents_sort_by_offset(inode: int, offsets: list[int]) -> None:
    first, second = (keys.extent(InodeId(inode), offset) for offset in offsets)
    assert (first < second) == (offsets[0] < offsets[1])
    assert all(
        keys.extents(InodeId(inode)) < key < keys.end_of(keys.extents(InodeId(inode))) for key in (first, second)
    )
    assert keys.last_u64(first) == offsets[0]
    assert keys.first_u64(first) == inode


@given(directory=u64, other=u64, name=st.binary(max_size=255))
def test_a_directory_range_holds_its_names_only(directory: int, other: int, name: bytes) -> None:
    prefix = keys.names(InodeId(directory))
    inside = prefix <= keys.name(InodeId(other), name) < keys.end_of(prefix)
    assert inside == (directory == other)
    assert keys.text_after_u64(keys.name(InodeId(directory), name)) == name


@given(prefix=st.binary(min_size=1, max_size=8).filter(lambda p: p.strip(b"\xff")), rest=st.binary(max_size=8))
def test_end_of_a_prefix(prefix: bytes, rest: bytes) -> None:
    assert prefix + rest < keys.end_of(prefix)


@given(inode=u64, text=st.text(max_size=50))
def test_round_trips(inode: int, text: str) -> None:
    cache = CacheRecord(CacheId(1), text, text[::-1], text * 2)
    assert records.decode_cache(CacheId(1), records.encode_cache(cache)) == cache
    record = INODE_RECORD._replace(inode=inode, parent=inode, size_bytes=inode >> 1)
    assert records.decode_inode(InodeId(inode), records.encode_inode(record)) == record
    assert record.attributes().parent == inode


def test_shards_spread_and_neighbours_share() -> None:
    group = keys.INODES_PER_SHARD_GROUP
    shards = [keys.inode(InodeId(number))[:2] for number in range(group * 1000)]
    assert all(len(set(shards[start : start + group])) == 1 for start in range(0, len(shards), group))
    assert len(set(shards)) > 980, "1000 groups in 65536 shards collide about 8 times"
    octants = [shard[0] >> 5 for shard in set(shards)]
    assert min(octants.count(octant) for octant in range(8)) > 80
