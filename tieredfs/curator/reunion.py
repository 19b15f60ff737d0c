"""Blocks and their chunks, after metadata of an earlier time were loaded: chunks that have moved since are found again.

A chunk says which it is. So every chunk on every disk is held against the records, and where a record names a disk that does not
have the chunk, while another disk does, the record is changed. Nothing is deleted, and nothing is read but names and headers
of chunks that moved. Garbage collection must not run before this is done: to it, a chunk that moved is nobody's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.errors import CorruptError, NotFoundError, UnavailableError
from tieredfs.kv.engine import Engine
from tieredfs.limits import SWEEP_BATCH
from tieredfs.meta import blocks as block_layer
from tieredfs.model import Block, ChunkLocation, DiskId, Progress

_UNITS: Final = "chunks"


@dataclass(frozen=True, slots=True)
class Reunion:
    """`newer`: chunks of blocks that the metadata do not know: written later, or garbage."""

    chunks: int
    moved: int
    newer: int


def reunite(engine: Engine, stores: Mapping[DiskId, ChunkStore], now_ns: int, progress: Progress) -> Reunion:
    """Look at every chunk of these disks. A disk that stops answering is left where it was. Raises what metadata raise."""
    chunks = moved = newer = 0
    for disk, store in stores.items():
        for batch in _batches(store):
            known = engine.read(partial(block_layer.read_blocks, wanted={name.block for name in batch}))
            for name in batch:
                record = known.get(name.block)
                if record is None:
                    newer += 1
                elif _adopt(engine, record, name, disk, stores, now_ns):
                    moved += 1
            chunks += len(batch)
            progress(chunks, 0, _UNITS)
    return Reunion(chunks, moved, newer)


def _batches(store: ChunkStore) -> Iterator[list[ChunkName]]:
    names = store.names()
    while True:
        try:
            batch = list(islice(names, SWEEP_BATCH))
        except UnavailableError:
            return
        if not batch:
            return
        yield batch


def _adopt(
    engine: Engine, record: Block, name: ChunkName, disk: DiskId, stores: Mapping[DiskId, ChunkStore], now_ns: int
) -> bool:
    """Let the record name this chunk, if the one that it names is not there. Whether it was changed."""
    named = next((chunk for chunk in record.chunks if chunk.index == name.index), None)
    if name.index >= record.code.width or (named is not None and (named.disk == disk or _has(stores, named, name))):
        return False
    try:
        info = stores[disk].info(name)
    except (NotFoundError, CorruptError, UnavailableError):
        return False
    if (info.code, info.block_bytes, info.payload_bytes) != (record.code, record.size_bytes, record.chunk_bytes):
        return False
    if named is not None and named.crc32c != info.crc32c:
        return False
    found = ChunkLocation(name.index, disk, info.crc32c)
    return engine.write(partial(block_layer.replace_chunk, block=record.block, old=named, new=found, now_ns=now_ns))


def _has(stores: Mapping[DiskId, ChunkStore], named: ChunkLocation, name: ChunkName) -> bool:
    """Whether the chunk can be had where the record says. One that is here is better than one on a disk that is away."""
    store = stores.get(named.disk)
    if store is None:
        return False
    try:
        return store.info(name).crc32c == named.crc32c
    except (NotFoundError, CorruptError, UnavailableError):
        return False
