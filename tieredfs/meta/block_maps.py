"""`BlockMaps`: the half of `Metadata` that is about blocks, chunks and disks. Each method is one transaction."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tieredfs.format import keys
from tieredfs.format.keys import Counter
from tieredfs.host import Clock
from tieredfs.kv.engine import Engine, Writer
from tieredfs.meta import allocation, files, shortage, volumes
from tieredfs.meta import blocks as block_layer
from tieredfs.meta.allocation import IdRange
from tieredfs.model import Block, BlockId, ChunkLocation, Disk, DiskId, DiskState, InodeId, SessionId, Shortage

T = TypeVar("T")


class BlockMaps:
    """Over one engine. Safe from any thread."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._block_ids = IdRange(self._take_ids, Counter.BLOCK)

    def _write(self, function: Callable[[Writer], T]) -> T:
        """`Engine.write`, and what whoever derives does with every change."""
        return self._engine.write(function)

    def _take_ids(self, counter: Counter, count: int) -> int:
        return self._write(lambda writer: allocation.take(writer, counter, count))

    # ---- blocks ------------------------------------------------------------------------------------------------------

    def reserve_block(self, session: SessionId) -> BlockId:
        """A new id with an intent record, so that garbage collection spares its chunks while the session lives."""
        block = BlockId(self._block_ids.take())
        self._write(lambda writer: block_layer.reserve(writer, block, session))
        return block

    def release_reservation(self, block: BlockId) -> None:
        """The block will not be committed."""
        self._write(lambda writer: writer.delete(keys.intent(block)))

    def reserved(self, block: BlockId) -> bool:
        """An intent of a live session exists."""
        return self._engine.read(lambda reader: block_layer.reserved(reader, block))

    def block(self, block: BlockId) -> Block:
        """Raises NotFoundError."""
        return self._engine.read(lambda reader: block_layer.read_block(reader, block))

    def blocks(self, wanted: Iterable[BlockId]) -> dict[BlockId, Block]:
        """Those of `wanted` that exist, in one snapshot."""
        listed = list(wanted)
        return self._engine.read(lambda reader: block_layer.read_blocks(reader, listed))

    def list_blocks(self, after: BlockId, limit: int) -> list[Block]:
        """Blocks in an order of the engine's choosing that `after` continues (0: from the start)."""
        return self._engine.read(lambda reader: block_layer.listed(reader, after, limit))

    def blocks_on_disk(self, disk: DiskId, after: BlockId, limit: int) -> list[BlockId]:
        """One range scan, ascending, ids greater than `after`."""
        return self._engine.read(lambda reader: block_layer.on_disk(reader, disk, after, limit))

    def block_users(self, block: BlockId) -> list[InodeId]:
        """Inodes with an extent in the block."""
        return self._engine.read(lambda reader: block_layer.users(reader, block))

    def replace_chunk(self, block: BlockId, old: ChunkLocation | None, new: ChunkLocation | None) -> bool:
        """Move, add or drop one chunk's location; False (and nothing) when `old` is not what the record says, or the
        block is gone.
        """
        now_ns = self._clock.wall_ns()
        return self._write(lambda writer: block_layer.replace_chunk(writer, block, old, new, now_ns))

    def shortage(self) -> Shortage:
        """Blocks that lack chunks."""
        return self._engine.read(shortage.summary)

    def is_bare(self, inode: InodeId) -> bool:
        """Whether the stored content has a block that can lose no chunk, and should have more."""
        return self._engine.read(lambda reader: files.is_bare(reader, inode))

    def dead_blocks(self, before_ns: int, limit: int) -> list[Block]:
        """Blocks without a reference since before that time."""
        return self._engine.read(lambda reader: block_layer.dead(reader, before_ns, limit))

    def condemn_blocks(self, before_ns: int, limit: int) -> list[Block]:
        """`dead_blocks`, and from now on no content can refer to them again: their chunks may be deleted.

        Those that were condemned before and are not yet forgotten are among them.
        """
        return self._write(lambda writer: block_layer.condemn(writer, before_ns, limit))

    def forget_blocks(self, blocks: Sequence[BlockId]) -> None:
        """Delete the records of dead blocks whose chunks are deleted."""
        self._write(lambda writer: block_layer.forget(writer, blocks))

    # ---- disks -------------------------------------------------------------------------------------------------------

    def disks(self) -> list[Disk]:
        return self._engine.read(volumes.disks)

    def add_disk(self, uuid: str, url: str, domain: str) -> Disk:
        """Raises AlreadyExistsError for a known uuid or url."""
        return self._write(lambda writer: volumes.add_disk(writer, uuid, url, domain))

    def set_disk_state(self, disk: DiskId, state: DiskState) -> Disk:
        return self._write(lambda writer: volumes.set_disk_state(writer, disk, state))
