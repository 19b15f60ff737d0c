"""Where a block's bytes lie in its chunks: sizes, and the pieces that a read is made of. Pure.

Data chunk i of an `rs:k+m` block holds the block's bytes [i * chunk_bytes, (i + 1) * chunk_bytes), the last ones padded
with zeros; parity chunks have the same size. Every chunk of a `replica:n` block holds all of it. A small block is not
padded to a large one: its chunks are as small as `CHUNK_ALIGNMENT_BYTES` allows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tieredfs.limits import CELL_BYTES, CHUNK_ALIGNMENT_BYTES
from tieredfs.model import Code, CodeKind


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes at `chunk_offset` of data chunk `index` are those at `target_offset` of what is read."""

    index: int
    chunk_offset: int
    length: int
    target_offset: int

    @property
    def chunk_end(self) -> int:
        return self.chunk_offset + self.length

    def covers(self, start: int, end: int) -> bool:
        return self.chunk_offset <= start and end <= self.chunk_end


def chunk_bytes(code: Code, size_bytes: int) -> int:
    """Payload of each chunk of a block of `size_bytes`."""
    assert size_bytes > 0
    share = -(-size_bytes // code.data_count)
    return -(-share // CHUNK_ALIGNMENT_BYTES) * CHUNK_ALIGNMENT_BYTES


def encoded_bytes(code: Code, size_bytes: int) -> int:
    """Memory that a block and its parity need; replicas are written from one copy."""
    count = code.data_count if code.kind is CodeKind.REPLICA else code.width
    return count * chunk_bytes(code, size_bytes)


def chunks_needed(code: Code, *, some_are_away: bool) -> int:
    """The fewest chunks with which a new block is called stored: one more than reading takes, where there is parity.

    As many as reading takes when disks are away that would have taken others: any parity's worth of disks may be. Not so where
    only room is lacking: that does not come back by itself.
    """
    return code.data_count if some_are_away else min(code.data_count + 1, code.width)


def pieces(chunk_size_bytes: int, offset: int, length: int) -> list[Piece]:
    """The pieces of the block's bytes [offset, offset + length), in order: one per chunk that has some of them."""
    found: list[Piece] = []
    position, end = offset, offset + length
    while position < end:
        index, chunk_offset = divmod(position, chunk_size_bytes)
        piece_end = min((index + 1) * chunk_size_bytes, end)
        found.append(Piece(index, chunk_offset, piece_end - position, position - offset))
        position = piece_end
    return found


def choose_sources(
    code: Code, lost: Collection[int], preferred: Collection[int], present: Collection[int]
) -> list[int] | None:
    """k chunks to decode from: those already in memory first, then data before parity. None: too few are left."""
    left = [index for index in range(code.width) if index in present and index not in lost]
    left.sort(key=lambda index: (index not in preferred, index))
    return sorted(left[: code.data_count]) if len(left) >= code.data_count else None


def windows(start: int, end: int, rows: int, room_bytes: int) -> Sequence[tuple[int, int]]:
    """Cut [start, end) so that `rows` buffers of one window fit into `room_bytes`; cuts lie between cells."""
    step = room_bytes // rows // CELL_BYTES * CELL_BYTES
    assert step > 0
    cuts = [start, *range((start // step + 1) * step, end, step), end]
    return list(pairwise(cuts)) if end > start else []
