"""The block layer: block records, who uses a block, where its chunks are, and how blocks die.

Invariants, each kept inside one transaction:

- `BLOCK_USER (block, inode)` exists exactly while the inode has an extent in the block.
- A block record without a user has a `DEAD_BLOCK` record with the time at which it lost the last one, and no other has.
- A dead block whose time of death is `CONDEMNED` never gets a user again: its chunks are being deleted. (A time of death
  alone would leave a gap: chunks deleted, record not yet, and a content that comes to refer to it.)
- `BLOCK_ON_DISK (disk, block)` exists exactly while the block record has a chunk on that disk; under `ALL_DISKS`,
  always.
- `SHORT_BLOCK (spare, block)` exists exactly while the record lacks chunks and the block has a user (`tieredfs.meta.shortage`).
- An id that is reserved and not committed has an `INTENT`; with the record comes the end of the intent.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from tieredfs.errors import ConflictError, NotFoundError
from tieredfs.format import keys, records
from tieredfs.kv.engine import Reader, Writer
from tieredfs.meta import shortage
from tieredfs.meta.changes import DeadBlocks
from tieredfs.model import Block, BlockId, ChunkLocation, DiskId, DiskState, InodeId, SessionId


def read_block(reader: Reader, block: BlockId) -> Block:
    """Raises NotFoundError."""
    value = reader.get(keys.block(block))
    if value is None:
        raise NotFoundError(f"no block {block}")
    return records.decode_block(block, value)


def read_blocks(reader: Reader, wanted: Iterable[BlockId]) -> dict[BlockId, Block]:
    """Those that exist, in the order of `wanted`."""
    distinct = list(dict.fromkeys(wanted))
    values = reader.get_many([keys.block(block) for block in distinct])
    return {
        block: records.decode_block(block, value)
        for block, value in zip(distinct, values, strict=True)
        if value is not None
    }


def record_block(writer: Writer, block: Block, now_ns: int) -> None:
    """Add a block that was reserved and written; its users are added by `change_users`.

    Raises ConflictError when the reservation is gone: its session was taken for dead, and garbage collection may have
    deleted the chunks, so nothing may come to depend on them. Likewise when a disk has been removed meanwhile.
    """
    _check_disks(writer, block.chunks)
    intent = keys.intent(block.block)
    if writer.get(intent) is None:
        raise ConflictError(f"block {block.block} is not reserved (any more); its chunks may be gone")
    writer.delete(intent)
    writer.put(keys.block(block.block), records.encode_block(block))
    writer.put(keys.block_on_disk(keys.ALL_DISKS, block.block), records.EMPTY)
    for chunk in block.chunks:
        writer.put(keys.block_on_disk(chunk.disk, block.block), records.EMPTY)
    shortage.enter(writer, block, now_ns)


def _check_disks(writer: Writer, chunks: Sequence[ChunkLocation]) -> None:
    """Who wrote the chunks may not have heard yet that a disk was emptied and removed; nobody would move them any more."""
    for disk, value in zip(chunks, writer.get_many([keys.disk(chunk.disk) for chunk in chunks]), strict=True):
        if value is not None and records.decode_disk(disk.disk, value).state is DiskState.REMOVED:
            raise ConflictError(f"disk {disk.disk} was removed while chunks were being written to it")


CONDEMNED: Final = 0
"""At rest, in place of a time of death. Before every grace period's end, so whoever looks for dead blocks finds it."""


# ---- users and death -------------------------------------------------------------------------------------------------


def change_users(writer: Writer, inode: InodeId, before: set[BlockId], after: set[BlockId]) -> None:
    """The inode's extents were in the blocks `before` and are now in `after`. Call `bury` when all are changed."""
    for block in before - after:
        writer.delete(keys.block_user(block, inode))
    for block in after - before:
        writer.put(keys.block_user(block, inode), records.EMPTY)


def bury(writer: Writer, suspects: Iterable[BlockId], now_ns: int) -> None:
    """Mark those of `suspects` dead that have no user."""
    some_are_short = shortage.exists(writer)
    for block in suspects:
        if not is_used(writer, block):
            writer.put(keys.dead_block(block), records.encode_number(now_ns))
            if some_are_short:
                shortage.leave(writer, read_block(writer, block))


def revive(writer: Writer, blocks: Iterable[BlockId]) -> None:
    """Blocks that get a user again are not dead. Raises ConflictError for one that is condemned or forgotten."""
    for block in blocks:
        value = writer.get(keys.block(block))
        if value is None:
            raise ConflictError(f"an extent points to block {block}, which does not exist (any more)")
        death = writer.get(keys.dead_block(block))
        if death is None:
            continue
        died_ns = records.decode_number(death)
        if died_ns == CONDEMNED:
            raise ConflictError(f"an extent points to block {block}, whose chunks are being deleted")
        writer.delete(keys.dead_block(block))
        shortage.enter(writer, records.decode_block(block, value), died_ns)


def is_used(reader: Reader, block: BlockId) -> bool:
    prefix = keys.block_users(block)
    return next(reader.scan(prefix, keys.end_of(prefix), limit=1), None) is not None


def users(reader: Reader, block: BlockId) -> list[InodeId]:
    prefix = keys.block_users(block)
    return [InodeId(keys.last_u64(key)) for key, _ in reader.scan(prefix, keys.end_of(prefix))]


def dead(reader: Reader, before_ns: int, limit: int) -> list[Block]:
    """Blocks dead since before `before_ns`. Scans every dead block: there are as many as one grace period makes."""
    prefix = keys.DEAD_BLOCKS_PREFIX
    found: list[BlockId] = []
    for key, value in reader.scan(prefix, keys.end_of(prefix)):
        if len(found) == limit:
            break
        if records.decode_number(value) < before_ns:
            found.append(BlockId(keys.last_u64(key)))
    return list(read_blocks(reader, found).values())


def not_condemned(reader: Reader) -> DeadBlocks:
    """Those that wait out their grace. Scans as `dead` does."""
    prefix = keys.DEAD_BLOCKS_PREFIX
    marks = reader.scan(prefix, keys.end_of(prefix))
    deaths = {BlockId(keys.last_u64(key)): records.decode_number(value) for key, value in marks}
    waiting = [block for block, death_ns in deaths.items() if death_ns != CONDEMNED]
    chunk_bytes = sum(one.chunk_bytes * len(one.chunks) for one in read_blocks(reader, waiting).values())
    return DeadBlocks(len(waiting), chunk_bytes, max(deaths.values(), default=0))


def condemn(writer: Writer, before_ns: int, limit: int) -> list[Block]:
    """Those that `dead` finds, marked so that `revive` refuses them.

    A block with a user is not dead, whatever its mark says: the mark goes. Nothing is deleted on the word of one index.
    """
    condemned: list[Block] = []
    for block in dead(writer, before_ns, limit):
        if is_used(writer, block.block):
            writer.delete(keys.dead_block(block.block))
            shortage.enter(writer, block, before_ns)
        else:
            writer.put(keys.dead_block(block.block), records.encode_number(CONDEMNED))
            condemned.append(block)
    return condemned


def forget(writer: Writer, blocks: Sequence[BlockId]) -> None:
    """Delete the records of dead blocks. One that has come alive again, or is gone, is left alone."""
    for block in blocks:
        if writer.get(keys.dead_block(block)) is None:
            continue
        record = read_block(writer, block)
        for disk in {chunk.disk for chunk in record.chunks} | {keys.ALL_DISKS}:
            writer.delete(keys.block_on_disk(disk, block))
        writer.delete(keys.block(block))
        writer.delete(keys.dead_block(block))


# ---- where blocks are ------------------------------------------------------------------------------------------------


def on_disk(reader: Reader, disk: DiskId, after: BlockId, limit: int) -> list[BlockId]:
    """Ascending ids greater than `after` of the blocks with a chunk on `disk`; of all blocks for `keys.ALL_DISKS`."""
    start = keys.block_on_disk(disk, BlockId(after + 1))
    end = keys.end_of(keys.blocks_on_disk(disk))
    return [BlockId(keys.last_u64(key)) for key, _ in reader.scan(start, end, limit=limit)]


def listed(reader: Reader, after: BlockId, limit: int) -> list[Block]:
    """Blocks in the order of their ids."""
    return list(read_blocks(reader, on_disk(reader, keys.ALL_DISKS, after, limit)).values())


def replace_chunk(
    writer: Writer, block: BlockId, old: ChunkLocation | None, new: ChunkLocation | None, now_ns: int
) -> bool:
    """Move, add or drop one chunk's location; False, and nothing, when the record does not have `old` (any more).

    Raises ConflictError when the disk of `new` has been removed.
    """
    assert old is not None or new is not None
    assert old is None or new is None or old.index == new.index
    value = writer.get(keys.block(block))
    if value is None:
        return False
    record = records.decode_block(block, value)
    index = old.index if old is not None else new.index if new is not None else 0
    if next((chunk for chunk in record.chunks if chunk.index == index), None) != old:
        return False
    assert new is None or new.index < record.code.width
    _check_disks(writer, [] if new is None else [new])
    kept = [chunk for chunk in record.chunks if chunk.index != index]
    chunks = tuple(sorted(kept + ([new] if new is not None else []), key=lambda chunk: chunk.index))
    changed = Block(block, record.code, record.size_bytes, record.chunk_bytes, chunks)
    writer.put(keys.block(block), records.encode_block(changed))
    if old is not None and all(chunk.disk != old.disk for chunk in chunks):
        writer.delete(keys.block_on_disk(old.disk, block))
    if new is not None:
        writer.put(keys.block_on_disk(new.disk, block), records.EMPTY)
    if writer.get(keys.dead_block(block)) is None:
        shortage.follow(writer, record, changed, now_ns)
    return True


# ---- reservations ----------------------------------------------------------------------------------------------------


def reserve(writer: Writer, block: BlockId, session: SessionId) -> None:
    """Raises ConflictError when the session was ended: nobody would ever take the intent away."""
    if writer.get(keys.session(session)) is None:
        raise ConflictError(f"session {session} was ended; it can reserve no block")
    writer.put(keys.intent(block), records.encode_number(session))


def reserved(reader: Reader, block: BlockId) -> bool:
    """Whether there is an intent whose session exists. A session that is late with its heartbeat counts until it is
    ended.
    """
    value = reader.get(keys.intent(block))
    return value is not None and reader.get(keys.session(SessionId(records.decode_number(value)))) is not None


def intents_of(reader: Reader, session: SessionId) -> list[BlockId]:
    """Scans every intent: there are as many as blocks are being written in the whole volume."""
    prefix = keys.INTENTS_PREFIX
    return [
        BlockId(keys.last_u64(key))
        for key, value in reader.scan(prefix, keys.end_of(prefix))
        if records.decode_number(value) == session
    ]
