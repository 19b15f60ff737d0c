"""What every chunk store does with a chunk's header: recognise the chunk by it, and read verified ranges under it.

A store brings the bytes, by `fill`; whether they are the right ones is judged here, so a directory, a bucket and a node
tell the same damage in the same way. Safe from any thread: nothing is kept.
"""

from collections.abc import Callable

from tieredfs.chunk.store import ChunkInfo, ChunkName
from tieredfs.core.crc import join_cells
from tieredfs.errors import CorruptError, TieredError
from tieredfs.format.chunk import ChunkHeader, decode_header
from tieredfs.host import isal
from tieredfs.limits import CELL_BYTES, CHUNK_HEADER_BYTES

Fill = Callable[[int, memoryview], None]
"""Fill the memory with payload bytes from there on, all of it. Raises what `ChunkStore.read_into` raises."""


def label(name: ChunkName) -> str:
    return f"chunk {name.block:x}.{name.index}"


def header_of(info: ChunkInfo, cell_crcs: bytes) -> ChunkHeader:
    """The header under which a chunk is stored."""
    name = info.name
    header = ChunkHeader(
        name.block, name.index, info.code, info.block_bytes, info.payload_bytes, info.crc32c, cell_crcs
    )
    assert join_cells(cell_crcs, CELL_BYTES, info.payload_bytes) == info.crc32c
    return header


def info_of(name: ChunkName, header: ChunkHeader) -> ChunkInfo:
    return ChunkInfo(name, header.code, header.block_bytes, header.payload_bytes, header.crc32c)


def recognise(raw: bytes, name: ChunkName, where: str) -> ChunkHeader:
    """The header of the chunk that is asked for, out of the first bytes of what is stored. Raises CorruptError."""
    try:
        header = decode_header(raw)
    except TieredError as error:
        raise CorruptError(f"{label(name)} on {where}: {error}") from error
    if (header.block, header.index) != (name.block, name.index):
        raise CorruptError(f"{label(name)} on {where} is really chunk {header.block:x}.{header.index}")
    return header


def check_length(header: ChunkHeader, stored_bytes: int, where: str) -> None:
    """What is stored ends where its header says. Raises CorruptError."""
    if stored_bytes != CHUNK_HEADER_BYTES + header.payload_bytes:
        name = label(ChunkName(header.block, header.index))
        raise CorruptError(f"{name} on {where} is {stored_bytes} bytes long, not as its header says")


def check_range(header: ChunkHeader, end: int, where: str) -> None:
    """Who asks knows the chunk's size from its block: a smaller one is not the one that was written. Raises CorruptError."""
    if end > header.payload_bytes:
        name = label(ChunkName(header.block, header.index))
        raise CorruptError(f"{name} on {where} has {header.payload_bytes} bytes, not {end}")


def read_cells(header: ChunkHeader, where: str, offset: int, target: memoryview, fill: Fill) -> None:
    """Whole cells straight into the target; the partial ones at either end through one cell of scratch.

    Raises CorruptError, and what `fill` raises.
    """
    end = offset + len(target)
    check_range(header, end, where)
    position = offset
    while position < end:
        cell_start = position - position % CELL_BYTES
        cell_end = min(cell_start + CELL_BYTES, header.payload_bytes)
        if position == cell_start and cell_end <= end:
            run_end = end if end == header.payload_bytes else end - end % CELL_BYTES
            run = target[position - offset : run_end - offset]
            fill(position, run)
            check_cells(header, where, position, run)
            position = run_end
            continue
        scratch = memoryview(bytearray(cell_end - cell_start))
        fill(cell_start, scratch)
        check_cells(header, where, cell_start, scratch)
        part_end = min(cell_end, end)
        target[position - offset : part_end - offset] = scratch[position - cell_start : part_end - cell_start]
        position = part_end


def check_cells(header: ChunkHeader, where: str, start: int, view: memoryview) -> None:
    """Whole cells from `start`, checked with one checksum over all, joined from the table's. Raises CorruptError."""
    first = start // CELL_BYTES
    count = -(-len(view) // CELL_BYTES)
    expected = header.cell_crcs[4 * first : 4 * (first + count)]
    if isal.crc32c(view) == join_cells(expected, CELL_BYTES, len(view)):
        return
    found = isal.cell_crcs(view, CELL_BYTES)
    wrong = [first + at for at in range(count) if found[4 * at : 4 * at + 4] != expected[4 * at : 4 * at + 4]]
    name = label(ChunkName(header.block, header.index))
    raise CorruptError(f"{name} on {where}: wrong bytes in cells {wrong[:8]}")
