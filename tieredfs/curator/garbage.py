"""Garbage collection: what a dead process held, blocks that nobody refers to, chunks that no record names.

Each step may be interrupted anywhere and run again, and several may run at once, in any process:

1. Sessions that are certainly dead are ended; that reclaims their orphans and takes away their reservations. What they were
   building or removing out of sight goes (`tieredfs.meta.workplaces`).
2. Dead blocks past their grace are condemned (nothing can refer to them again), their chunks deleted, then their records. A
   crash between leaves condemned records, which the next run finds first.
3. Chunks that no record names and nobody reserves are deleted, as `tieredfs.core.care.chunk_fate` judges them.
"""

from dataclasses import dataclass, field

from tieredfs.core.care import ChunkFate, still_silent, timed_out
from tieredfs.curator.holdings import Holdings
from tieredfs.curator.report import GarbageReport
from tieredfs.curator.sweep import SeenChunk, sweep
from tieredfs.errors import ConflictError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import crash
from tieredfs.limits import CARE_BATCH, DEAD_BLOCK_GRACE_S, SESSION_HEARTBEAT_S
from tieredfs.meta import blocks as block_layer
from tieredfs.meta import workplaces
from tieredfs.meta.sessions import lost_holders
from tieredfs.model import DiskId, Progress, SessionId


@dataclass(slots=True)
class _Tally:
    sessions: list[SessionId] = field(default_factory=list)
    orphans: int = 0
    leftovers: int = 0
    blocks: int = 0
    block_chunk_bytes: int = 0
    seen: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    in_flight: int = 0
    unreachable: set[DiskId] = field(default_factory=set)


def collect_garbage(holdings: Holdings, progress: Progress) -> GarbageReport:
    tally = _Tally()
    _end_dead_sessions(holdings, tally)
    tally.leftovers = workplaces.remove_abandoned(holdings.metadata, holdings.host.clock.wall_ns)
    _delete_dead_blocks(holdings, tally, progress)
    _delete_unnamed_chunks(holdings, tally, progress)
    waiting = holdings.metadata.inspect(block_layer.not_condemned)
    return GarbageReport(
        tuple(tally.sessions),
        tally.orphans,
        tally.leftovers,
        tally.blocks,
        tally.block_chunk_bytes,
        waiting.count,
        waiting.chunk_bytes,
        waiting.last_death_ns + int(DEAD_BLOCK_GRACE_S * 1e9) if waiting.count else None,
        tally.seen,
        tally.deleted,
        tally.deleted_bytes,
        tally.in_flight,
        tuple(sorted(tally.unreachable)),
        _missing_caches(holdings),
    )


def _end_dead_sessions(holdings: Holdings, tally: _Tally) -> None:
    """Two looks, so far apart that whoever is alive has beaten in between."""
    first = _timed_out(holdings)
    if not first:
        return
    holdings.host.clock.sleep(1.5 * SESSION_HEARTBEAT_S)
    for session in still_silent(first, _timed_out(holdings)):
        try:
            tally.orphans += len(holdings.metadata.end_session(session, first[session]))
        except ConflictError:
            continue  # it waited for this very transaction, as we did
        tally.sessions.append(session)


def _timed_out(holdings: Holdings) -> dict[SessionId, int]:
    lost = holdings.metadata.inspect(lost_holders)
    return timed_out(holdings.metadata.sessions(), lost, holdings.host.clock.wall_ns(), holdings.session)


def _delete_dead_blocks(holdings: Holdings, tally: _Tally, progress: Progress) -> None:
    before_ns = holdings.host.clock.wall_ns() - int(DEAD_BLOCK_GRACE_S * 1e9)
    while blocks := holdings.metadata.condemn_blocks(before_ns, CARE_BATCH):
        for block in blocks:
            holdings.blocks.delete(block)
        crash.here("gc.chunks-removed")
        holdings.metadata.forget_blocks([block.block for block in blocks])
        tally.blocks += len(blocks)
        tally.block_chunk_bytes += sum(block.chunk_bytes * len(block.chunks) for block in blocks)
        progress(tally.blocks, 0, "blocks")


def _delete_unnamed_chunks(holdings: Holdings, tally: _Tally, progress: Progress) -> None:
    swept = sweep(holdings)
    for chunk in swept.chunks:
        tally.seen += 1
        if chunk.fate is ChunkFate.IN_FLIGHT or (chunk.fate is ChunkFate.STRAY and not _is_spare(holdings, chunk)):
            tally.in_flight += 1
        elif chunk.fate is not ChunkFate.NAMED:
            _delete(holdings, chunk, tally)
        if tally.seen % CARE_BATCH == 0:
            progress(tally.seen, 0, "chunks")
    tally.unreachable.update(swept.unreachable)


def _is_spare(holdings: Holdings, chunk: SeenChunk) -> bool:
    """Whether the chunk that the record names is whole, so that this one will not be missed."""
    block = holdings.find_block(chunk.name.block)
    return block is None or holdings.ailment(block, chunk.name.index) is None


def _delete(holdings: Holdings, chunk: SeenChunk, tally: _Tally) -> None:
    try:
        size_bytes = chunk.store.info(chunk.name).payload_bytes
    except NotFoundError:
        return
    except TieredError:
        size_bytes = 0
    try:
        chunk.store.delete(chunk.name)
    except UnavailableError:
        tally.unreachable.add(chunk.disk)
        return
    tally.deleted += 1
    tally.deleted_bytes += size_bytes
    if chunk.fate is ChunkFate.STRAY:
        _make_good(holdings, chunk)


def _make_good(holdings: Holdings, chunk: SeenChunk) -> None:
    """A repair may have come to name the chunk just before it was deleted: `tieredfs.curator.holdings` has the race."""
    block = holdings.find_block(chunk.name.block)
    if block is None:
        return
    if any((place.index, place.disk) == (chunk.name.index, chunk.disk) for place in block.chunks):
        holdings.renew(block, [chunk.name.index])


def _missing_caches(holdings: Holdings) -> tuple[str, ...]:
    return tuple(
        cache.path
        for cache in holdings.metadata.caches()
        if cache.host == holdings.host.name and not _exists(holdings, cache.path)
    )


def _exists(holdings: Holdings, path: str) -> bool:
    try:
        holdings.host.files.stat_path(path)
    except OSError:
        return False
    return True
