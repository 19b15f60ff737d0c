"""`BlockStore`: blocks in and out of chunk stores, by code, placement and checksum.

The front of the package, and the one place where its parts are put together:

    access.py   disks, their health, chunk I/O by disk id
    loans.py    block buffers
    write.py    pad, encode, place, put, place anew
    read.py     read in parallel, decode around losses
    repair.py   check, remake, delete

Decisions are in `tieredfs.core.placement` and `tieredfs.core.layout`.
"""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tieredfs.block.access import ChunkAccess, Disks
from tieredfs.block.loans import BlockLoans
from tieredfs.block.read import BlockReader
from tieredfs.block.repair import BlockRepairer
from tieredfs.block.write import BlockWriter
from tieredfs.core.activity import DiskCounts
from tieredfs.core.layout import chunk_bytes, encoded_bytes
from tieredfs.core.patience import Patience
from tieredfs.errors import TieredError, UnavailableError
from tieredfs.host import Host, crash
from tieredfs.host.buffers import BufferPool
from tieredfs.limits import CHUNK_STALL_S, SCRATCH_BYTES, SCRATCH_COUNT
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Block, Code, DiskId, SessionId

_THREADS_MAX: Final = 32
_THREADS_PER_DISK: Final = 3
"""One chunk being written, one read ahead, one to spare: a local SSD is busy with that."""


@dataclass(frozen=True, slots=True)
class BlockBuffer:
    """A lent buffer for one block: the caller fills `data[:size]`, then calls `BlockStore.write`.

    `data` starts page-aligned. Room for parity follows it in `whole`.
    """

    data: memoryview
    whole: memoryview


def _ignore_damage(block: Block, index: int) -> None:
    del block, index


class BlockStore:
    """Safe from any thread. Memory: `buffer_count` encoded blocks at most, lent by `lend`, and the scratch of
    `SCRATCH_COUNT` decoders."""

    def __init__(
        self,
        metadata: Metadata,
        session: SessionId,
        disks: Disks,
        host: Host,
        *,
        buffer_count: int,
        on_damage: Callable[[Block, int], None] | None = None,
        stall_s: float = CHUNK_STALL_S,
        patience: Patience | None = None,
    ) -> None:
        """`disks`: every disk that is not REMOVED; its store is None while it cannot be opened.

        `on_damage(block, index)` is told of each chunk found missing or rotten, from any thread, and must return at
        once. The stores stay the caller's to close.
        """
        config = metadata.config()
        self._metadata = metadata
        self._session = session
        self._block_bytes = config.block_bytes
        self._code = config.code
        buffer_bytes = max(encoded_bytes(config.code, config.block_bytes), config.block_bytes)
        self._loans = BlockLoans(BufferPool(buffer_bytes, buffer_count))
        scratch = BlockLoans(BufferPool(SCRATCH_BYTES, SCRATCH_COUNT))
        threads = min(_THREADS_MAX, max(_THREADS_PER_DISK * len(disks), config.code.width))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="chunk")
        self._access = ChunkAccess(disks, host, on_damage or _ignore_damage)
        self._reader = BlockReader(self._access, self._executor, host, scratch, patience or Patience())
        self._writer = BlockWriter(self._access, self._executor, host, stall_s, self._loans.stalled)
        self._repairer = BlockRepairer(
            metadata, self._access, self._reader, self._writer, lend=self._loans.lend, draw=host.random.random
        )

    def replace_disks(self, disks: Disks) -> None:
        """The disks as they are now: after one was added, drained, lost, removed, or could be opened at last."""
        self._access.replace_disks(disks)

    @contextmanager
    def lend(self, timeout_s: float) -> Iterator[BlockBuffer]:
        """A buffer for a block of the volume's block size. Raises DeadlineError."""
        with self._loans.lend(timeout_s) as whole:
            yield BlockBuffer(whole[: self._block_bytes], whole)

    def write(self, buffer: BlockBuffer, size_bytes: int) -> Block:
        """Encode and store `buffer.data[:size_bytes]`: durable on return, but not referenced.

        `Metadata.commit_stored` does that. A chunk whose disk fails goes to another disk; with too few disks that take one
        for all k + m (or n replicas), the block is written short: with at least k chunks when disks are away, k + 1 where
        only room is lacking (k when the code has no parity). It is healed later. Raises NoSpaceError, UnavailableError;
        then nothing is left but chunks that garbage collection finds.
        """
        assert 0 < size_bytes <= len(buffer.data)
        block = self._metadata.reserve_block(self._session)
        try:
            written = self._writer.write(block, self._fitting_code(buffer, size_bytes), buffer.whole, size_bytes)
        except TieredError:
            self._metadata.release_reservation(block)
            raise
        crash.here("block.chunks-written")
        return written

    def _fitting_code(self, buffer: BlockBuffer, size_bytes: int) -> Code:
        """The volume's code now; the one it had when we started while the new one needs larger buffers than ours."""
        code = self._metadata.code()
        return code if encoded_bytes(code, size_bytes) <= len(buffer.whole) else self._code

    @contextmanager
    def reading(
        self, block: Block, offset: int, length: int, loans: BlockLoans, timeout_s: float
    ) -> Iterator[memoryview]:
        """`length` bytes of the block's content from `offset`, verified, in memory that `loans` lends; decodes around lost chunks.

        Chunks are read in parallel, straight into that memory: the larger the range, the better, and a whole block best (a
        degraded range within one chunk reads k chunks for it). A disk that does not answer while others do keeps the buffer
        that it writes to, and another is filled without it. Raises DataLossError, UnavailableError (enough chunks exist, but
        their disks don't answer), InvalidRequestError (beyond the end), DeadlineError (no buffer within `timeout_s`).
        """
        for _ in range(block.code.width):  # each time at least one disk more is left out
            with loans.lend(timeout_s) as whole:
                target = whole[:length]
                if self._reader.read_into(block, offset, target, partial(loans.stalled, whole)):
                    yield target
                    return
        raise UnavailableError(f"block {block.block:x} cannot be read: its disks do not answer")

    def repair(self, block: Block) -> Block:
        """Make every chunk of the block whole again, in place where its disk works, else on another.

        Chunks on disks that are draining or lost move to others. Returns the new record. Raises DataLossError,
        NoSpaceError, UnavailableError; NotFoundError when the block is gone meanwhile.
        """
        damaged = {*self._reader.check(block), *self._repairer.misplaced(block)}
        return self._repairer.restore(block, damaged)

    def restore(self, block: Block, indexes: Collection[int]) -> Block:
        """Make those chunks anew without checking the others first: what emptying or rebuilding a disk needs.

        A chunk on a draining disk is copied, any other is decoded from its siblings. Returns and raises as `repair`.
        """
        return self._repairer.restore(block, indexes)

    def disk_counts(self) -> dict[DiskId, DiskCounts]:
        """Chunk I/O of this process, by disk, since it began."""
        return self._access.times.counts()

    def takers(self) -> frozenset[DiskId]:
        """Disks that take chunks now, if they are of a full block."""
        options = self._access.options(chunk_bytes(self._code, self._block_bytes))
        return frozenset(option.disk for option in options if option.usable)

    def placeable(self, block: Block) -> list[int]:
        """Those of the block's missing chunks for which there is a disk now: what `restore` would not refuse."""
        return self._repairer.placeable(block)

    def check(self, block: Block) -> list[int]:
        """Indexes of chunks that are missing, unreadable or rotten: reads every byte of every chunk."""
        return self._reader.check(block)

    def delete(self, block: Block) -> None:
        """Delete the chunks of a dead block. A disk that is away keeps its chunk; garbage collection finds it later."""
        self._repairer.delete(block)

    def close(self) -> None:
        """Nothing new is started; calls under way end by themselves, each bounded by its store, which stays open."""
        self._executor.shutdown(wait=False, cancel_futures=True)
