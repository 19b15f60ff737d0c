"""The sweep: every chunk on every disk that answers, held against the metadata.

Chunks are listed first and looked up afterwards, `SWEEP_BATCH` at a time, each batch in one snapshot
(`tieredfs.core.care.chunk_fate` says why that order is safe). Memory is one batch.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.core.care import ChunkFate, chunk_fate
from tieredfs.curator.holdings import Holdings
from tieredfs.errors import UnavailableError
from tieredfs.kv.engine import Reader
from tieredfs.limits import SWEEP_BATCH
from tieredfs.meta import blocks as block_layer
from tieredfs.model import Block, BlockId, DiskId, DiskState


@dataclass(frozen=True, slots=True)
class SeenChunk:
    """A chunk on a disk, and what the metadata made of it."""

    disk: DiskId
    store: ChunkStore
    name: ChunkName
    fate: ChunkFate


@dataclass(frozen=True, slots=True)
class Sweep:
    """`unreachable` is complete when `chunks` has run out."""

    chunks: Iterator[SeenChunk]
    unreachable: dict[DiskId, str]


def sweep(holdings: Holdings) -> Sweep:
    """Chunks of disks in use. Those of a disk that was declared lost are left for whoever wants to save them."""
    unreachable: dict[DiskId, str] = {}
    return Sweep(_all_chunks(holdings, unreachable), unreachable)


def _all_chunks(holdings: Holdings, unreachable: dict[DiskId, str]) -> Iterator[SeenChunk]:
    unreachable.update(holdings.unreachable_disks())
    working = holdings.working_disks()
    for disk, store in holdings.disks():
        if store is None or disk.state is DiskState.LOST or disk.disk in unreachable:
            continue
        try:
            yield from chunks_of(holdings, disk.disk, store, working)
        except UnavailableError as error:
            unreachable[disk.disk] = str(error)


def chunks_of(holdings: Holdings, disk: DiskId, store: ChunkStore, working: Collection[DiskId]) -> Iterator[SeenChunk]:
    """Raises UnavailableError."""
    names = iter(store.names())
    while batch := list(islice(names, SWEEP_BATCH)):
        known, reserved = _look_up(holdings, {name.block for name in batch})
        for name in batch:
            fate = chunk_fate(name.index, disk, known.get(name.block), name.block in reserved, working)
            yield SeenChunk(disk, store, name, fate)


def _look_up(holdings: Holdings, wanted: Collection[BlockId]) -> tuple[dict[BlockId, Block], set[BlockId]]:
    """Records and reservations in one snapshot."""

    def read(reader: Reader) -> tuple[dict[BlockId, Block], set[BlockId]]:
        known = block_layer.read_blocks(reader, wanted)
        reserved = {block for block in wanted if block not in known and block_layer.reserved(reader, block)}
        return known, reserved

    return holdings.metadata.inspect(read)
