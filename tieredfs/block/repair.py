"""Remaking chunks that are missing, rotten, or on a disk that is to be emptied.

A remade chunk is written and durable before the block's record names it, and the record changes only if it still says
what was read (`Metadata.replace_chunk`); a chunk that lost that race is deleted again. Its checksum must be the one the
record has had since the block was written: what decoding gives is checked, not trusted.

Safe from any thread, for one block too: the record decides who was first.
"""

import mmap
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from tieredfs.block.access import ChunkAccess, location_of
from tieredfs.block.read import BlockReader
from tieredfs.block.write import BlockWriter, SealedChunk, seal
from tieredfs.chunk.store import ChunkName
from tieredfs.core.placement import Draw, stand_in
from tieredfs.errors import DataLossError, NoSpaceError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import crash
from tieredfs.limits import SCRATCH_WAIT_S
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Block, ChunkLocation, CodeKind, DiskId, DiskState


class BlockRepairer:
    """`lend`: memory for one chunk; the pool of block buffers, so that repair is under the same ceiling as writing."""

    def __init__(
        self,
        metadata: Metadata,
        access: ChunkAccess,
        reader: BlockReader,
        writer: BlockWriter,
        *,
        lend: Callable[[float], AbstractContextManager[memoryview]],
        draw: Draw,
    ) -> None:
        self._metadata = metadata
        self._access = access
        self._reader = reader
        self._writer = writer
        self._lend = lend
        self._draw = draw

    def misplaced(self, block: Block) -> list[int]:
        """Indexes on disks that are being emptied or are lost."""
        return [
            location.index for location in block.chunks if self._access.state(location.disk) is not DiskState.ACTIVE
        ]

    def placeable(self, block: Block) -> list[int]:
        """Missing indexes, as many as there are disks that can take one now."""
        options = self._access.options(block.chunk_bytes)
        taken = {location.disk for location in block.chunks}
        free = sum(option.usable and option.disk not in taken for option in options)
        shared = self._access.disk_count() < block.code.width and any(option.usable for option in options)
        return block.missing if shared else block.missing[:free]

    def restore(self, block: Block, indexes: Collection[int]) -> Block:
        """Make chunks `indexes` anew, one after another; the record as it then is."""
        damaged = set(indexes)
        for index in sorted(indexes):
            with self._room(block.chunk_bytes) as memory:
                self._regain(block, index, memory, damaged)
                chunk = seal(block.block, index, block.code, block.size_bytes, memory)
                self._check_against_record(block, chunk)
                block = self._commit(block, index, self._put(block, chunk))
            damaged.discard(index)
        return block

    @contextmanager
    def _room(self, length: int) -> Iterator[memoryview]:
        """A chunk of a block that was written with another code or size may be larger than any pooled buffer."""
        with self._lend(SCRATCH_WAIT_S) as whole:
            if length <= len(whole):
                yield whole[:length]
                return
        yield memory_of(length)

    def _regain(self, block: Block, index: int, memory: memoryview, damaged: set[int]) -> None:
        """The payload: as it is, if its disk is only being emptied; else decoded from others."""
        location = location_of(block, index)
        if location is not None and self._access.state(location.disk) is DiskState.DRAINING:
            try:
                self._access.read_into(block, index, 0, memory)
            except TieredError:
                pass  # decoded below, like any lost chunk
            else:
                return
        self._reader.rebuild(block, index, memory, damaged)

    def _check_against_record(self, block: Block, chunk: SealedChunk) -> None:
        known = [
            location.crc32c
            for location in block.chunks
            if location.index == chunk.index or block.code.kind is CodeKind.REPLICA
        ]
        if known and chunk.info.crc32c != known[0]:
            raise DataLossError(f"block {block.block:x}: chunk {chunk.index} decodes to other bytes than were written")

    def _put(self, block: Block, chunk: SealedChunk) -> ChunkLocation:
        """In place where its disk works, else on another. Raises NoSpaceError, UnavailableError."""
        errors: list[TieredError] = []
        tried: set[DiskId] = set()
        for disk in self._candidates(block, chunk, tried):
            try:
                return self._writer.put_one(chunk, disk)
            except (NoSpaceError, UnavailableError) as error:
                errors.append(error)
                tried.add(disk)
        if errors:
            raise errors[-1]
        raise UnavailableError(f"block {block.block:x}: no disk can take chunk {chunk.index}")

    def _candidates(self, block: Block, chunk: SealedChunk, tried: set[DiskId]) -> Iterator[DiskId]:
        """`tried` grows between one disk and the next."""
        location = location_of(block, chunk.index)
        options = self._access.options(chunk.info.payload_bytes)
        usable = {option.disk for option in options if option.usable}
        if location is not None and location.disk in usable:
            yield location.disk
        taken = {other.disk for other in block.chunks if other.index != chunk.index}
        while (disk := stand_in(options, taken, tried, self._draw)) is not None:
            yield disk
        if self._access.disk_count() < block.code.width:  # a volume with fewer disks than chunks: they share
            yield from sorted(usable - tried)

    def _commit(self, block: Block, index: int, made: ChunkLocation) -> Block:
        crash.here("rebuild.chunk-written")
        old = location_of(block, index)
        if old != made and not self._metadata.replace_chunk(block.block, old, made):
            return self._lost_race(block, made)
        crash.here("rebuild.committed")
        if old is not None and old.disk != made.disk:
            self._delete(old.disk, ChunkName(block.block, index))
        others = [location for location in block.chunks if location.index != index]
        chunks = sorted([*others, made], key=lambda location: location.index)
        return Block(block.block, block.code, block.size_bytes, block.chunk_bytes, tuple(chunks))

    def _lost_race(self, block: Block, made: ChunkLocation) -> Block:
        """Somebody else changed the record, or the block is gone: ours goes, unless the record names it."""
        try:
            current = self._metadata.block(block.block)
        except NotFoundError:
            self._delete(made.disk, ChunkName(block.block, made.index))
            raise
        if all((location.index, location.disk) != (made.index, made.disk) for location in current.chunks):
            self._delete(made.disk, ChunkName(block.block, made.index))
        return current

    def _delete(self, disk: DiskId, name: ChunkName) -> None:
        """Best effort: what stays is found by garbage collection, for no record names it."""
        try:
            self._access.delete(disk, name)
        except TieredError:
            return

    def delete(self, block: Block) -> None:
        for location in block.chunks:
            self._delete(location.disk, ChunkName(block.block, location.index))


def memory_of(length: int) -> memoryview:
    """Page-aligned, outside any pool."""
    return memoryview(mmap.mmap(-1, length))
