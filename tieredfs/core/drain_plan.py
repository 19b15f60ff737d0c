"""Which bytes of which files go into which block: the plan of one drain.

Files are laid one after another, holes left out, and the stream is cut into blocks. So a large file fills blocks of its
own, and many small files, drained together, share one. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tieredfs.limits import CHUNK_ALIGNMENT_BYTES
from tieredfs.model import BlockId, Extent


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes of file number `file` at `offset`, which go to `block_offset` of a block."""

    file: int
    offset: int
    length: int
    block_offset: int


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The pieces of one block, in order, without gaps: `size_bytes` in all."""

    pieces: tuple[Piece, ...]
    size_bytes: int


def plan_blocks(files: Sequence[Iterable[tuple[int, int]]], block_bytes: int) -> list[BlockPlan]:
    """Blocks for the data segments (offset, length) of each file, each block full but the last."""
    plans: list[BlockPlan] = []
    pieces: list[Piece] = []
    used = 0
    for number, segments in enumerate(files):
        for start, length in segments:
            offset, remaining = start, length
            while remaining:
                take = min(remaining, block_bytes - used)
                pieces.append(Piece(number, offset, take, used))
                used += take
                offset += take
                remaining -= take
                if used == block_bytes:
                    plans.append(BlockPlan(tuple(pieces), used))
                    pieces, used = [], 0
    if pieces:
        plans.append(BlockPlan(tuple(pieces), used))
    return plans


def widen_segments(segments: Iterable[tuple[int, int]], size_bytes: int) -> list[tuple[int, int]]:
    """Merge segments that are nearer than an alignment unit: a hole that small is cheaper as zeros."""
    merged: list[tuple[int, int]] = []
    for offset, length in segments:
        if merged and offset - (merged[-1][0] + merged[-1][1]) < CHUNK_ALIGNMENT_BYTES:
            merged[-1] = (merged[-1][0], offset + length - merged[-1][0])
        else:
            merged.append((offset, length))
    return [(offset, min(length, size_bytes - offset)) for offset, length in merged if offset < size_bytes]


def extents_of(plans: Sequence[BlockPlan], blocks: Sequence[BlockId], file_count: int) -> list[tuple[Extent, ...]]:
    """The extents of each file, by offset, once plan i is stored as block i."""
    found: list[list[Extent]] = [[] for _ in range(file_count)]
    for plan, block in zip(plans, blocks, strict=True):
        for piece in plan.pieces:
            found[piece.file].append(Extent(piece.offset, piece.length, block, piece.block_offset))
    return [tuple(sorted(extents)) for extents in found]
