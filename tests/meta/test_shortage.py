"""The index of short blocks follows every way in which a block becomes short, whole, dead or alive again."""

from functools import partial

import pytest

from tests.meta.conftest import CODE, Volume
from tieredfs.meta import shortage
from tieredfs.meta.metadata import Creation, Metadata
from tieredfs.model import (
    NOBODY,
    ROOT,
    Block,
    BlockId,
    ChunkLocation,
    DiskId,
    Extent,
    FileKind,
    InodeId,
    ShortBlock,
    StoredContent,
)
from tieredfs.testing.metadata_check import broken_invariants

CHUNK_BYTES = 4096


def chunk(index: int) -> ChunkLocation:
    return ChunkLocation(index, DiskId(index + 1), 7)


def store(volume: Volume, name: bytes, *indexes: int) -> tuple[InodeId, BlockId]:
    """A file of one block of 10 bytes, with those chunks of three (2 + 1)."""
    metadata = volume.metadata
    number = metadata.reserve_block(metadata.open_session("host", 1, "test").session)
    inode = metadata.create(ROOT, name, Creation(FileKind.REGULAR, 0o644, 1, 2, staged_in=volume.cache)).inode
    block = Block(number, CODE, 10, CHUNK_BYTES, tuple(chunk(index) for index in indexes))
    content = StoredContent(inode, 1, 10, 0, (Extent(0, 10, number, 0),), True)
    assert metadata.commit_stored([content], [block]) == {inode}
    return inode, number


def listed(metadata: Metadata) -> list[ShortBlock]:
    return metadata.inspect(lambda reader: shortage.listed(reader, None, 100))


@pytest.fixture(autouse=True)
def _sound(volume: Volume) -> object:
    yield
    assert broken_invariants(volume.engine) == []


def test_a_block_is_listed_from_its_record_to_its_last_chunk(volume: Volume) -> None:
    metadata = volume.metadata
    _, whole = store(volume, b"whole", 0, 1, 2)
    assert (metadata.shortage().blocks, metadata.shortage().least_spare) == (0, None)
    _, short = store(volume, b"short", 0, 2)
    (entry,) = listed(metadata)
    assert (entry.block, entry.spare, entry.size_bytes, entry.missing_bytes) == (short, 0, 10, CHUNK_BYTES)
    assert metadata.replace_chunk(short, None, chunk(1))
    assert listed(metadata) == []
    assert metadata.replace_chunk(whole, chunk(2), None)
    assert [found.block for found in listed(metadata)] == [whole]


def test_it_is_short_since_it_became_so(volume: Volume) -> None:
    metadata = volume.metadata
    _, number = store(volume, b"short", 0, 1)
    since_ns = listed(metadata)[0].since_ns
    assert metadata.replace_chunk(number, chunk(1), None)
    assert [(found.since_ns, found.missing_bytes) for found in listed(metadata)] == [(since_ns, 2 * CHUNK_BYTES)]
    assert metadata.shortage().since_ns == since_ns
    assert metadata.replace_chunk(number, None, chunk(1))
    assert metadata.replace_chunk(number, None, chunk(2))
    assert metadata.replace_chunk(number, chunk(0), None)
    assert listed(metadata)[0].since_ns > since_ns


def test_what_is_nearest_to_being_lost_comes_first_and_all_is_summed_up(volume: Volume) -> None:
    metadata = volume.metadata
    code = type(CODE)(CODE.kind, 2, 2)
    session = metadata.open_session("host", 1, "test").session
    for name, count in ((b"a", 3), (b"b", 2), (b"c", 4), (b"d", 2)):
        number = metadata.reserve_block(session)
        inode = metadata.create(ROOT, name, Creation(FileKind.REGULAR, 0o644, 1, 2)).inode
        chunks = tuple(ChunkLocation(index, DiskId(1), 0) for index in range(count))
        content = StoredContent(inode, 0, 10, 0, (Extent(0, 10, number, 0),), True)
        metadata.commit_stored([content], [Block(number, code, 10, CHUNK_BYTES, chunks)])
    assert [entry.spare for entry in listed(metadata)] == [0, 0, 1]
    total = metadata.shortage()
    assert (total.blocks, total.bare, total.least_spare) == (3, 2, 0)
    assert (total.size_bytes, total.missing_bytes) == (30, 5 * CHUNK_BYTES)
    paged: list[ShortBlock] = []
    while page := metadata.inspect(partial(shortage.listed, after=paged[-1] if paged else None, limit=1)):
        paged += page
    assert paged == listed(metadata)


def test_a_dead_block_is_not_listed_and_comes_back_with_its_user(volume: Volume) -> None:
    metadata = volume.metadata
    inode, number = store(volume, b"f", 0, 1)
    assert metadata.is_bare(inode)
    metadata.unlink(ROOT, b"f", NOBODY)
    assert listed(metadata) == []
    holder = metadata.open_session("host", 1, "test").session
    copy = metadata.create_unnamed(
        Creation(FileKind.REGULAR, 0o644, 1, 2), holder, (Extent(0, 10, number, 0),), size_bytes=10
    )
    assert [entry.block for entry in listed(metadata)] == [number]
    assert metadata.is_bare(copy.inode)


def test_a_dead_block_that_gains_or_loses_chunks_stays_unlisted(volume: Volume) -> None:
    metadata = volume.metadata
    _, number = store(volume, b"f", 0, 1, 2)
    metadata.unlink(ROOT, b"f", NOBODY)
    assert metadata.replace_chunk(number, chunk(1), None)
    assert listed(metadata) == []
    metadata.condemn_blocks(1 << 62, 10)
    metadata.forget_blocks([number])
    assert metadata.blocks([number]) == {}


def test_blocks_that_nobody_took_are_not_listed(volume: Volume) -> None:
    metadata = volume.metadata
    number = metadata.reserve_block(metadata.open_session("host", 1, "test").session)
    metadata.commit_stored([], [Block(number, CODE, 10, CHUNK_BYTES, (chunk(0), chunk(1)))])
    assert listed(metadata) == []


def test_only_contents_with_bare_blocks_are_bare(volume: Volume) -> None:
    metadata = volume.metadata
    whole, number = store(volume, b"whole", 0, 1, 2)
    bare, _ = store(volume, b"bare", 1, 2)
    assert [metadata.is_bare(inode) for inode in (whole, bare, InodeId(999))] == [False, True, False]
    assert metadata.replace_chunk(number, chunk(0), None)
    assert metadata.is_bare(whole)
