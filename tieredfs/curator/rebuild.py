"""Taking a disk out of a volume: one that is lost, by making its chunks anew on others; one that is to go, by moving them.

Both are one loop over the disk's list of blocks, which is also the record of how far they came: a chunk that has moved is
no longer listed. So either may be interrupted anywhere and run again, and finishes what is left. `CARE_THREADS` blocks
at a time.

A block that cannot be rebuilt is told with the files it hits, and the others go on. One that cannot be rebuilt *now* (no
disk has room, too few disks answer) does not stop the others either, unless a whole page of blocks fails; what was moved
until then stays moved.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tieredfs.core.care import ChunkFate, Health, health
from tieredfs.curator.holdings import Holdings
from tieredfs.curator.report import DataLoss, RebuildReport
from tieredfs.curator.scrub import files_of
from tieredfs.curator.sweep import chunks_of
from tieredfs.errors import (
    BusyError,
    ConditionError,
    DataLossError,
    NotFoundError,
    TieredError,
    UnavailableError,
)
from tieredfs.limits import CARE_BATCH, CARE_THREADS, SWEEP_BATCH
from tieredfs.model import Block, BlockId, Disk, DiskId, DiskState, Progress

_PASSES_MAX: Final = 8
"""A writer that has not yet heard of the disk's state may add blocks behind the scan; it hears within seconds."""


@dataclass(frozen=True, slots=True)
class _Moved:
    """What became of one block."""

    chunks: int = 0
    chunk_bytes: int = 0
    dropped: int = 0
    loss: DataLoss | None = None
    failure: TieredError | None = None


@dataclass(slots=True)
class _Tally:
    chunks: int = 0
    chunk_bytes: int = 0
    dropped: int = 0
    blocks: int = 0
    losses: dict[BlockId, DataLoss] = field(default_factory=dict)
    failures: dict[BlockId, TieredError] = field(default_factory=dict)

    def add(self, block: BlockId, moved: _Moved) -> None:
        self.blocks += 1
        self.chunks += moved.chunks
        self.chunk_bytes += moved.chunk_bytes
        self.dropped += moved.dropped
        self.failures.pop(block, None)
        if moved.loss is not None:
            self.losses[block] = moved.loss
        if moved.failure is not None:
            self.failures[block] = moved.failure


def rebuild_disk(holdings: Holdings, number: DiskId, progress: Progress) -> RebuildReport:
    """Raises NotFoundError, InvalidRequestError (the disk was removed), NoSpaceError, UnavailableError."""
    return _empty(holdings, holdings.set_disk_state(number, DiskState.LOST), progress)


def drain_disk(holdings: Holdings, number: DiskId, progress: Progress) -> RebuildReport:
    """Raises NotFoundError, InvalidRequestError (the disk is lost or removed), NoSpaceError, UnavailableError."""
    return _empty(holdings, holdings.set_disk_state(number, DiskState.DRAINING), progress)


def _empty(holdings: Holdings, disk: Disk, progress: Progress) -> RebuildReport:
    tally = _Tally()
    total = _count(holdings, disk.disk)
    with ThreadPoolExecutor(CARE_THREADS, thread_name_prefix="rebuild") as threads:
        for _ in range(_PASSES_MAX):
            _one_pass(holdings, disk.disk, tally, threads, lambda: progress(tally.blocks, total, "blocks"))
            if tally.failures:
                raise _failure(disk.disk, tally)
            state = _finished_state(holdings, disk, tally)
            if state is not None:
                return RebuildReport(
                    disk.disk, state, tally.chunks, tally.chunk_bytes, tally.dropped, tuple(tally.losses.values())
                )
    raise BusyError(f"disk {disk.disk} still gets new chunks after {_PASSES_MAX} passes; {_so_far(tally)}")


def _count(holdings: Holdings, disk: DiskId) -> int:
    count, after = 0, BlockId(0)
    while page := holdings.metadata.blocks_on_disk(disk, after, SWEEP_BATCH):
        count, after = count + len(page), page[-1]
    return count


def _one_pass(
    holdings: Holdings,
    disk: DiskId,
    tally: _Tally,
    threads: ThreadPoolExecutor,
    tell: Callable[[], None],
) -> None:
    """Every block that the disk lists now, but those that are lost. Stops at a page of which nothing could be moved."""
    after = BlockId(0)
    while page := holdings.metadata.blocks_on_disk(disk, after, CARE_BATCH):
        after = page[-1]
        todo = [block for block in page if block not in tally.losses]
        outcomes = list(threads.map(partial(_move, holdings, disk), todo))
        for block, moved in zip(todo, outcomes, strict=True):
            tally.add(block, moved)
        tell()
        if todo and all(moved.failure is not None for moved in outcomes):
            return


def _move(holdings: Holdings, disk: DiskId, number: BlockId) -> _Moved:
    """Take a block's chunks off the disk."""
    block = holdings.find_block(number)
    if block is None:
        return _Moved()
    indexes = [chunk.index for chunk in block.chunks if chunk.disk == disk]
    try:
        holdings.renew(block, indexes)
    except NotFoundError:
        return _Moved()
    except (DataLossError, UnavailableError) as error:
        return _give_up(holdings, disk, block, error) if _is_lost(holdings, block, error) else _Moved(failure=error)
    except ConditionError as error:
        return _Moved(failure=error)
    return _Moved(len(indexes), len(indexes) * block.chunk_bytes)


def _is_lost(holdings: Holdings, block: Block, error: TieredError) -> bool:
    """To a reader a disk that was declared lost is one that does not answer; here it will not."""
    if isinstance(error, DataLossError):
        return True
    try:
        block, ailments = holdings.examine(block)
    except NotFoundError:
        return False
    return health(block.code, ailments.values()) is Health.LOST


def _give_up(holdings: Holdings, disk: DiskId, block: Block, error: TieredError) -> _Moved:
    """A lost block that nobody refers to is no loss: the record forgets its chunk."""
    if holdings.metadata.block_users(block.block):
        paths, count = files_of(holdings, block)
        return _Moved(loss=DataLoss(block.block, block.size_bytes, str(error), paths, count))
    places = [chunk for chunk in block.chunks if chunk.disk == disk]
    return _Moved(dropped=sum(holdings.metadata.replace_chunk(block.block, place, None) for place in places))


def _finished_state(holdings: Holdings, disk: Disk, tally: _Tally) -> DiskState | None:
    """None: blocks came meanwhile, and another pass is needed."""
    left = holdings.metadata.blocks_on_disk(disk.disk, BlockId(0), len(tally.losses) + 1)
    if any(block not in tally.losses for block in left):
        return None
    if left:
        return disk.state
    _clear(holdings, disk.disk)
    try:
        return holdings.set_disk_state(disk.disk, DiskState.REMOVED).state
    except BusyError:
        return None


def _clear(holdings: Holdings, number: DiskId) -> None:
    """Best effort: delete what an interrupted move left on a disk that can still be written."""
    working = holdings.working_disks()
    for disk, store in holdings.disks():
        if disk.disk != number or store is None:
            continue
        try:
            for chunk in chunks_of(holdings, number, store, working):
                if chunk.fate in {ChunkFate.STRAY, ChunkFate.UNKNOWN}:
                    store.delete(chunk.name)
        except UnavailableError:
            return


def _failure(disk: DiskId, tally: _Tally) -> TieredError:
    """Of the kind that the first failed block met, so that a caller knows whether room or disks are missing."""
    block, first = next(iter(tally.failures.items()))
    kind = type(first) if isinstance(first, ConditionError) else UnavailableError
    return kind(
        f"disk {disk} is not empty yet: {len(tally.failures)} blocks could not be moved, block {block:x} because: "
        f"{first}; {_so_far(tally)}"
    )


def _so_far(tally: _Tally) -> str:
    lost = f", {len(tally.losses)} blocks are lost" if tally.losses else ""
    return f"{tally.chunks} chunks ({tally.chunk_bytes} bytes) were moved and stay so{lost}; run it again to go on"
