"""Which blocks lack chunks: an index, so that what is to be healed is known without a look at every block.

A block is *short* when its record has fewer chunks than its code says: some disks were away when it was written, or a chunk was
given up. It is *bare* when it can lose none of those it has. `SHORT_BLOCK (spare, block)` exists exactly while a block is short and
has a user, and changes in the transaction that changes the block: with its record, with a chunk's place, with its death.
The key begins with the spare chunks, so whoever reads the index in order meets what is nearest to being lost first.

A volume that was written by an earlier version has short blocks that are not listed; a check finds them, and its repair lists them.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from tieredfs.format import keys, records
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import CODE_WIDTH_MAX, SHORT_COUNTED_MAX
from tieredfs.model import Block, BlockId, Shortage, ShortBlock

BARE: Final = 0
"""Nothing to spare."""


def entry_of(block: Block, since_ns: int) -> ShortBlock:
    missing_bytes = len(block.missing) * block.chunk_bytes
    return ShortBlock(block.block, block.spare, since_ns, block.size_bytes, missing_bytes)


# ---- kept with the block ---------------------------------------------------------------------------------------------


def enter(writer: Writer, block: Block, since_ns: int) -> None:
    """The block is in use from now on; nothing if it is whole."""
    if block.missing:
        _put(writer, entry_of(block, since_ns))


def leave(writer: Writer, block: Block) -> None:
    """The block is not in use any more."""
    if block.missing:
        writer.delete(keys.short_block(block.spare, block.block))


def follow(writer: Writer, before: Block, after: Block, now_ns: int) -> None:
    """A chunk of a block in use got a place, another one, or none. It is short since it became so."""
    listed = writer.get(keys.short_block(before.spare, before.block)) if before.missing else None
    since_ns = now_ns if listed is None else records.decode_short(before.block, before.spare, listed).since_ns
    leave(writer, before)
    enter(writer, after, since_ns)


def settle(writer: Writer, number: BlockId, block: Block | None, now_ns: int) -> None:
    """Whatever the index says, let it say what is: `block`, or None when there is no such block in use."""
    since_ns = now_ns
    for spare in range(CODE_WIDTH_MAX):
        key = keys.short_block(spare, number)
        value = writer.get(key)
        if value is not None:
            since_ns = min(since_ns, records.decode_short(number, spare, value).since_ns)
            writer.delete(key)
    if block is not None:
        enter(writer, block, since_ns)


def _put(writer: Writer, short: ShortBlock) -> None:
    writer.put(keys.short_block(short.spare, short.block), records.encode_short(short))


# ---- looked at -------------------------------------------------------------------------------------------------------


def exists(reader: Reader) -> bool:
    prefix = keys.SHORT_BLOCKS_PREFIX
    return next(reader.scan(prefix, keys.end_of(prefix), limit=1), None) is not None


def listed(reader: Reader, after: ShortBlock | None, limit: int) -> list[ShortBlock]:
    """Those after `after` in the order of the index: nearest to being lost first."""
    prefix = keys.SHORT_BLOCKS_PREFIX
    start = prefix if after is None else keys.short_block(after.spare, BlockId(after.block + 1))
    return list(_scan(reader, start, keys.end_of(prefix), limit))


def summary(reader: Reader) -> Shortage:
    prefix = keys.SHORT_BLOCKS_PREFIX
    blocks = bare = size_bytes = missing_bytes = 0
    since_ns: int | None = None
    least_spare: int | None = None
    for short in _scan(reader, prefix, keys.end_of(prefix), SHORT_COUNTED_MAX):
        blocks += 1
        bare += short.spare == BARE
        size_bytes += short.size_bytes
        missing_bytes += short.missing_bytes
        since_ns = short.since_ns if since_ns is None else min(since_ns, short.since_ns)
        least_spare = short.spare if least_spare is None else least_spare  # the first one's
    return Shortage(blocks, bare, size_bytes, missing_bytes, since_ns, least_spare)


def _scan(reader: Reader, start: bytes, end: bytes, limit: int) -> Iterator[ShortBlock]:
    for key, value in reader.scan(start, end, limit=limit):
        yield records.decode_short(BlockId(keys.last_u64(key)), keys.spare_of(key), value)


def some_are_bare(reader: Reader) -> bool:
    prefix = keys.short_blocks(BARE)
    return next(reader.scan(prefix, keys.end_of(prefix), limit=1), None) is not None


def any_bare(reader: Reader, blocks: Iterable[BlockId]) -> bool:
    values = reader.get_many([keys.short_block(BARE, block) for block in blocks])
    return any(value is not None for value in values)
