"""What the model test does not say of contents: times, ages, refusals, sizes of files and of commits."""

from collections.abc import Callable

import pytest

from tests.meta.conftest import CODE, Volume
from tieredfs import errors
from tieredfs.limits import PACK_FILES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from tieredfs.meta.metadata import Creation, Metadata
from tieredfs.model import (
    NOBODY,
    ROOT,
    AttributeChange,
    Block,
    BlockId,
    CacheId,
    ChunkLocation,
    DiskId,
    DiskState,
    Extent,
    FileKind,
    InodeId,
    StoredContent,
)

REGULAR = Creation(FileKind.REGULAR, 0o644, 1, 2)


def block(number: BlockId, size: int = 1 << 20) -> Block:
    chunks = tuple(ChunkLocation(index, DiskId(index + 1), 7) for index in range(CODE.width))
    return Block(number, CODE, size, size // 2, chunks)


def stage(volume: Volume, name: bytes) -> InodeId:
    creation = Creation(FileKind.REGULAR, 0o644, 1, 2, staged_in=volume.cache)
    return volume.metadata.create(ROOT, name, creation).inode


def reserve(metadata: Metadata) -> BlockId:
    return metadata.reserve_block(metadata.open_session("host", 1, "test").session)


def whole(inode: InodeId, stored: BlockId, *, version: int = 1, mtime_ns: int = 0) -> StoredContent:
    return StoredContent(inode, version, 10, mtime_ns, (Extent(0, 10, stored, 0),), True)


# ---- staging ---------------------------------------------------------------------------------------------------------


def test_life_of_a_fresh_file(volume: Volume) -> None:
    metadata = volume.metadata
    inode = stage(volume, b"f")
    made = metadata.attributes(inode)
    assert (made.version, made.stored_version, made.staged_in) == (1, 0, volume.cache)
    metadata.publish(inode, 1, 10, made.ctime_ns + 100)
    shown = metadata.attributes(inode)
    assert (shown.size_bytes, shown.mtime_ns, shown.ctime_ns) == (10, made.ctime_ns + 100, made.ctime_ns + 100)
    number = reserve(metadata)
    assert metadata.reserved(number)
    assert metadata.commit_stored([whole(inode, number)], [block(number)]) == {inode}
    assert not metadata.reserved(number)
    stored = metadata.attributes(inode)
    assert (stored.version, stored.stored_version, stored.staged_in, stored.size_bytes) == (1, 1, 0, 10)
    assert (stored.mtime_ns, stored.ctime_ns) == (shown.mtime_ns, shown.ctime_ns)
    assert metadata.staged() == []
    metadata.unlink(ROOT, b"f", NOBODY)
    assert [dead.block for dead in metadata.dead_blocks(1 << 62, 10)] == [number]
    assert metadata.dead_blocks(volume.clock.now_ns - 100, 10) == [], "not before its time"


def test_age_of_what_is_staged_counts_from_the_first_unsafe_write(volume: Volume) -> None:
    metadata = volume.metadata
    old = stage(volume, b"old")
    young = stage(volume, b"young")
    since = {record.inode: record.since_ns for record in metadata.staged()}
    metadata.begin_write(old, volume.cache, truncate=False)
    assert [(record.inode, record.version) for record in metadata.staged()] == [(old, 2), (young, 1)]
    assert {record.inode: record.since_ns for record in metadata.staged()} == since
    part = reserve(metadata)
    extents = (Extent(0, 10, part, 0),)
    metadata.commit_stored([StoredContent(old, 2, 10, 0, extents, False)], [block(part)])
    assert [record.inode for record in metadata.staged(volume.cache)] == [young, old], (
        "its last safe content is newer now"
    )
    metadata.abandon_write(old, 2)
    assert metadata.attributes(old).size_bytes == 10


def test_one_cache_at_a_time(volume: Volume) -> None:
    metadata = volume.metadata
    other = metadata.register_cache("other", "host-2", "/cache").cache
    inode = stage(volume, b"f")
    with pytest.raises(errors.BusyError):
        metadata.begin_write(inode, other, truncate=True)
    with pytest.raises(errors.BusyError):
        metadata.forget_cache(volume.cache)
    with pytest.raises(errors.NotFoundError):
        metadata.begin_write(inode, CacheId(99), truncate=True)
    assert metadata.staged(other) == []
    metadata.abandon_write(inode, 1)
    assert metadata.begin_write(inode, other, truncate=True).staged_in == other
    metadata.unlink(ROOT, b"f", NOBODY)
    metadata.forget_cache(other)
    assert [cache.uuid for cache in metadata.caches()] == ["cache"]
    moved = metadata.register_cache("cache", "host-3", "/elsewhere")
    assert (moved.cache, metadata.caches()) == (volume.cache, [moved])


def test_truncating_sets_times_and_writing_does_not(volume: Volume) -> None:
    metadata = volume.metadata
    inode = stage(volume, b"f")
    metadata.publish(inode, 1, 10, 5)
    before = metadata.attributes(inode)
    kept = metadata.begin_write(inode, volume.cache, truncate=False)
    assert (kept.size_bytes, kept.mtime_ns, kept.ctime_ns) == (10, 5, before.ctime_ns)
    cut = metadata.begin_write(inode, volume.cache, truncate=True)
    assert cut.size_bytes == 0
    assert cut.mtime_ns == cut.ctime_ns > before.ctime_ns


@pytest.mark.parametrize("published_since", [False, True])
def test_an_mtime_that_was_set_survives_the_drain(volume: Volume, published_since: bool) -> None:
    """As `cp -p` and rsync do: write, close, set the time; then the drain comes, which saw the time of the write."""
    metadata = volume.metadata
    inode = stage(volume, b"f")
    written = volume.clock.wall_ns() + (0 if published_since else 1 << 40)
    metadata.set_attributes(inode, AttributeChange(mtime_ns=777))
    number = reserve(metadata)
    metadata.commit_stored([whole(inode, number, mtime_ns=written)], [block(number)])
    assert metadata.attributes(inode).mtime_ns == (777 if published_since else written)


# ---- storing ---------------------------------------------------------------------------------------------------------


def test_commit_without_a_reservation_changes_nothing(volume: Volume) -> None:
    metadata = volume.metadata
    inode = stage(volume, b"f")
    session = metadata.open_session("host", 1, "test").session
    number = metadata.reserve_block(session)
    metadata.end_session(session)
    assert not metadata.reserved(number)
    with pytest.raises(errors.ConflictError):
        metadata.commit_stored([whole(inode, number)], [block(number)])
    assert metadata.attributes(inode).staged_in == volume.cache
    assert metadata.extents(inode) == []
    assert metadata.list_blocks(BlockId(0), 10) == []
    with pytest.raises(errors.ConflictError):
        metadata.reserve_block(session)
    given_up = reserve(metadata)
    metadata.release_reservation(given_up)
    assert not metadata.reserved(given_up)


def test_extent_into_a_forgotten_block_is_refused(volume: Volume) -> None:
    metadata = volume.metadata
    number = reserve(metadata)
    metadata.commit_stored([], [block(number)])
    assert [dead.block for dead in metadata.dead_blocks(1 << 62, 10)] == [number], "nobody took it"
    metadata.forget_blocks([number])
    with pytest.raises(errors.NotFoundError):
        metadata.block(number)
    inode = stage(volume, b"f")
    with pytest.raises(errors.ConflictError):
        metadata.commit_stored([whole(inode, number)], [])


def test_many_small_files_in_one_block_die_with_the_last(volume: Volume) -> None:
    metadata = volume.metadata
    inodes = [stage(volume, b"%d" % number) for number in range(PACK_FILES_MAX)]
    number = reserve(metadata)
    contents = [
        StoredContent(inode, 1, 10, 0, (Extent(0, 10, number, 10 * place),), True) for place, inode in enumerate(inodes)
    ]
    assert metadata.commit_stored(contents, [block(number)]) == set(inodes)
    assert metadata.block_users(number) == inodes
    for place in range(PACK_FILES_MAX):
        assert metadata.dead_blocks(1 << 62, 1) == []
        metadata.unlink(ROOT, b"%d" % place, NOBODY)
    assert [dead.block for dead in metadata.dead_blocks(1 << 62, 1)] == [number]


def test_a_file_of_many_extents_comes_and_goes(volume: Volume) -> None:
    """As many as a file of 1 TiB has."""
    metadata = volume.metadata
    inode = stage(volume, b"huge")
    session = metadata.open_session("host", 1, "test").session
    size = 64 << 20
    numbers = [metadata.reserve_block(session) for _ in range(2048)]
    extents = tuple(Extent(place * size, size, numbers[place % 2048], 0) for place in range(16_384))
    content = StoredContent(inode, 1, 1 << 40, 0, extents, True)
    assert metadata.commit_stored([content], [block(number, size) for number in numbers]) == {inode}
    assert metadata.extents(inode) == list(extents)
    assert metadata.attributes(inode).size_bytes == 1 << 40
    metadata.unlink(ROOT, b"huge", NOBODY)
    assert len(metadata.dead_blocks(1 << 62, 5000)) == 2048


# ---- blocks on disks -------------------------------------------------------------------------------------------------


def test_chunks_move_only_from_where_they_are(volume: Volume) -> None:
    metadata = volume.metadata
    number = reserve(metadata)
    metadata.commit_stored([whole(stage(volume, b"f"), number)], [block(number)])
    disk = metadata.add_disk("uuid-4", "disk:///d4", "domain-4").disk
    here, there = ChunkLocation(1, DiskId(2), 7), ChunkLocation(1, disk, 8)
    assert not metadata.replace_chunk(number, ChunkLocation(1, DiskId(2), 6), there)
    assert not metadata.replace_chunk(number, None, there)
    assert not metadata.replace_chunk(BlockId(999), here, there)
    assert metadata.replace_chunk(number, here, there)
    assert metadata.blocks_on_disk(DiskId(2), BlockId(0), 10) == []
    assert metadata.blocks_on_disk(disk, BlockId(0), 10) == [number]
    assert metadata.replace_chunk(number, there, None)
    assert [chunk.index for chunk in metadata.block(number).chunks] == [0, 2]
    assert metadata.replace_chunk(number, None, here)
    assert metadata.block(number) == block(number)
    assert metadata.blocks([number, BlockId(999)]) == {number: block(number)}


def test_blocks_are_listed_in_steps(volume: Volume) -> None:
    metadata = volume.metadata
    numbers = [reserve(metadata) for _ in range(25)]
    metadata.commit_stored([], [block(number) for number in numbers])
    listings: list[Callable[[BlockId], list[BlockId]]] = [
        lambda after: [found.block for found in metadata.list_blocks(after, 7)],
        lambda after: metadata.blocks_on_disk(DiskId(1), after, 7),
    ]
    for listed in listings:
        seen: list[BlockId] = []
        while step := listed(seen[-1] if seen else BlockId(0)):
            seen += step
        assert seen == numbers


def test_a_disk_leaves_only_when_it_is_empty(volume: Volume) -> None:
    metadata = volume.metadata
    number = reserve(metadata)
    metadata.commit_stored([], [block(number)])
    with pytest.raises(errors.InvalidRequestError):
        metadata.set_disk_state(DiskId(1), DiskState.REMOVED)
    metadata.set_disk_state(DiskId(1), DiskState.DRAINING)
    with pytest.raises(errors.BusyError):
        metadata.set_disk_state(DiskId(1), DiskState.REMOVED)
    metadata.replace_chunk(number, ChunkLocation(0, DiskId(1), 7), None)
    assert metadata.set_disk_state(DiskId(1), DiskState.REMOVED).state is DiskState.REMOVED
    with pytest.raises(errors.InvalidRequestError):
        metadata.set_disk_state(DiskId(1), DiskState.ACTIVE)
    with pytest.raises(errors.NotFoundError):
        metadata.set_disk_state(DiskId(9), DiskState.LOST)


# ---- extended attributes ---------------------------------------------------------------------------------------------


def test_limits_of_extended_attributes(metadata: Metadata) -> None:
    inode = metadata.create(ROOT, b"f", REGULAR).inode
    name, value = b"n" * XATTR_NAME_BYTES_MAX, bytes(range(256)) * (XATTR_VALUE_BYTES_MAX // 256)
    metadata.set_xattr(inode, name, value)
    metadata.set_xattr(inode, b"empty", b"")
    assert (metadata.get_xattr(inode, name), metadata.get_xattr(inode, b"empty")) == (value, b"")
    with pytest.raises(errors.NameTooLongError):
        metadata.set_xattr(inode, name + b"x", b"")
    with pytest.raises(errors.TooLargeError):
        metadata.set_xattr(inode, b"n", value + b"x")
    for impossible in (b"", b"a\0"):
        with pytest.raises(errors.InvalidRequestError):
            metadata.set_xattr(inode, impossible, b"")
    with pytest.raises(errors.NoAttributeError):
        metadata.get_xattr(inode, b"none")
    with pytest.raises(errors.NotFoundError):
        metadata.get_xattr(InodeId(999), b"none")
