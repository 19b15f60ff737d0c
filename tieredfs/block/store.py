"""`BlockStore`: blocks in and out of chunk stores, by code, placement and checksum."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tieredfs.chunk.store import ChunkStore
from tieredfs.host import Host
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Block, Disk, DiskId, SessionId


@dataclass(frozen=True, slots=True)
class BlockBuffer:
    """A lent buffer for one block: the caller fills `data[:size]`, then calls `BlockStore.write`. Room for parity follows it in memory."""

    data: memoryview
    whole: memoryview


class BlockStore:
    """Safe from any thread. Memory: `buffer_count` encoded blocks at most, lent by `lend`."""

    def __init__(
        self,
        metadata: Metadata,
        session: SessionId,
        disks: Mapping[DiskId, tuple[Disk, ChunkStore | None]],
        host: Host,
        *,
        buffer_count: int,
        on_damage: Callable[[Block, int], None] | None = None,
    ) -> None:
        """`disks`: every disk that is not REMOVED; its store is None while it cannot be opened. `on_damage(block, index)` is told
        of each chunk found missing or rotten, from any thread, and must return at once."""
        raise NotImplementedError

    @contextmanager
    def lend(self, timeout_s: float) -> Iterator[BlockBuffer]:
        """A buffer for a block of the volume's block size. Raises DeadlineError."""
        raise NotImplementedError

    def write(self, buffer: BlockBuffer, size_bytes: int) -> Block:
        """Encode and store `buffer.data[:size_bytes]`: durable on return, but not referenced: `Metadata.commit_stored` does that.

        A chunk whose disk fails goes to another disk; with too few healthy disks for all k + m (or n replicas), the
        block is written with at least k + 1 chunks (k when the code has no parity) and repaired later. Raises NoSpaceError,
        UnavailableError; then nothing is left but chunks that garbage collection finds.
        """
        raise NotImplementedError

    def read_into(self, block: Block, offset: int, target: memoryview) -> None:
        """Fill `target` with the block's content from `offset`, verified; decodes around lost chunks. Chunks are read in
        parallel. Raises DataLossError, InvalidRequestError (beyond the end)."""
        raise NotImplementedError

    def repair(self, block: Block) -> Block:
        """Make every chunk of the block whole again, in place where its disk works, else on another; returns the new record.

        Raises DataLossError, NoSpaceError, UnavailableError.
        """
        raise NotImplementedError

    def check(self, block: Block) -> list[int]:
        """Indexes of chunks that are missing, unreadable or rotten: reads every byte of every chunk."""
        raise NotImplementedError

    def delete(self, block: Block) -> None:
        """Delete the chunks of a dead block. A disk that is away keeps its chunk; garbage collection finds it later."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
