"""Reading a block: pieces straight into the caller's memory in parallel, and decoding around what fails.

Healthy, a read is one `ChunkStore.read_into` per chunk that has some of the bytes, into the target itself. Pieces that
failed are decoded, window by window in lent scratch (the next window is read meanwhile), from any k chunks of the same
range; data chunks that this very read has already brought into the target are taken from there, so that a whole block
with two lost data chunks of 4+2 costs four chunks of reading, as a healthy one does. Each source that fails on the way
is one more loss, and the decoding starts again with others until too few are left.

Safe from any thread. Decoding runs in the caller's thread, chunk reads in the executor's; those never wait for others.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Final

from tieredfs.block.access import ChunkAccess, location_of
from tieredfs.core.layout import Piece, choose_sources, pieces, windows
from tieredfs.errors import DataLossError, InvalidRequestError, TieredError, UnavailableError
from tieredfs.host import Host, isal
from tieredfs.host.buffers import BufferPool
from tieredfs.limits import CELL_BYTES, SCRATCH_WAIT_S
from tieredfs.model import Block, CodeKind

_SPLIT_CELLS_MIN: Final = 4
"""Of a replicated block, less than 1 MiB is read from one disk."""


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """Memory for (or with) the bytes of chunk `index` from `offset`."""

    index: int
    offset: int
    memory: memoryview

    @property
    def end(self) -> int:
        return self.offset + len(self.memory)

    def covers(self, start: int, end: int) -> bool:
        return self.offset <= start and end <= self.end

    def window(self, start: int, end: int) -> memoryview:
        return self.memory[start - self.offset : end - self.offset]


class BlockReader:
    """Chunks to bytes."""

    def __init__(self, access: ChunkAccess, executor: Executor, host: Host, scratch: BufferPool) -> None:
        self._access = access
        self._executor = executor
        self._host = host
        self._scratch = scratch

    def read_into(self, block: Block, offset: int, target: memoryview) -> None:
        if offset < 0 or offset + len(target) > block.size_bytes:
            raise InvalidRequestError(f"block {block.block:x} has {block.size_bytes} bytes, not {offset + len(target)}")
        if block.code.kind is CodeKind.REPLICA:
            self._read_replica(block, _split(offset, target, len(block.chunks)))
            return
        wanted = [_part(piece, target) for piece in pieces(block.chunk_bytes, offset, len(target))]
        losses = _Losses(block, set(), self._access.unreachable(block))
        failed = self._read_parts(block, [part for part in wanted if part.index not in losses.indexes], losses)
        missing = [part for part in wanted if part.index in losses.indexes or part.index in failed]
        if missing:
            self._decode(block, missing, [part for part in wanted if part not in missing], losses)

    def rebuild(self, block: Block, index: int, memory: memoryview, lost: set[int]) -> None:
        """Fill `memory` with the payload of chunk `index`, from chunks that are neither that nor `lost`.

        Raises DataLossError, UnavailableError.
        """
        losses = _Losses(block, {index, *lost}, self._access.unreachable(block))
        if block.code.kind is CodeKind.REPLICA:
            self._read_replica(block, [ChunkPart(index, 0, memory)], losses)
        else:
            self._decode(block, [ChunkPart(index, 0, memory)], [], losses)

    def _decode(
        self, block: Block, wanted: Sequence[ChunkPart], at_hand: Sequence[ChunkPart], losses: "_Losses"
    ) -> None:
        """Fill `wanted` from k other chunks; `at_hand` are parts that need not be read again."""
        start, end = min(part.offset for part in wanted), max(part.end for part in wanted)
        ready = {part.index: part for part in at_hand if part.covers(start, end)}
        while True:
            sources = self._choose_sources(block, losses, set(ready), {part.index for part in wanted})
            if self._decode_from(block, sources, wanted, ready, losses):
                return

    def _choose_sources(self, block: Block, losses: "_Losses", ready: set[int], wanted: set[int]) -> list[int]:
        """Disks that rest are asked after all when the others do not suffice."""
        present = {location.index for location in block.chunks} - wanted
        sources = choose_sources(block.code, losses.indexes, ready, present)
        sources = sources or choose_sources(block.code, losses.certain(), ready, present)
        if sources is None:
            raise losses.failure()
        return sources

    def _decode_from(
        self,
        block: Block,
        sources: list[int],
        wanted: Sequence[ChunkPart],
        ready: dict[int, ChunkPart],
        losses: "_Losses",
    ) -> bool:
        """False: a source failed, and is now among the losses."""
        start, end = min(part.offset for part in wanted), max(part.end for part in wanted)
        to_read = [index for index in sources if index not in ready]
        rows = len(to_read) + len([part for part in wanted if not part.covers(start, end)])
        with self._scratch.lend(SCRATCH_WAIT_S) as scratch:
            halves = scratch[: len(scratch) // 2], scratch[len(scratch) // 2 :]
            steps = [
                _Step(window, sources, ready, _Lines(halves[at % 2], window[1] - window[0], rows))
                for at, window in enumerate(windows(start, end, max(rows, 1), len(halves[0])))
            ]
            ahead = self._submit(block, steps[0].to_read, losses)
            try:
                for step, following in zip_longest(steps, steps[1:]):
                    calls, ahead = ahead, self._submit(block, following.to_read if following else [], losses)
                    _finish(calls)
                    if not losses.errors.keys().isdisjoint(to_read):
                        return False
                    _decode_window(block, step, wanted)
            finally:
                _finish(ahead)
        return True

    def _read_parts(self, block: Block, parts: Sequence[ChunkPart], losses: "_Losses") -> set[int]:
        """Read parts in parallel; the indexes of those that failed."""
        if len(parts) == 1:
            self._read_part(block, parts[0], losses)
        else:
            _finish(self._submit(block, parts, losses))
        return {part.index for part in parts if part.index in losses.errors}

    def _submit(self, block: Block, parts: Sequence[ChunkPart], losses: "_Losses") -> "list[Future[None]]":
        return [self._executor.submit(self._read_part, block, part, losses) for part in parts]

    def _read_part(self, block: Block, part: ChunkPart, losses: "_Losses") -> None:
        try:
            self._access.read_into(block, part.index, part.offset, part.memory)
        except TieredError as error:
            losses.add(part.index, error)

    def _read_replica(self, block: Block, parts: list[ChunkPart], losses: "_Losses | None" = None) -> None:
        """Each part from a replica of its own, so that all disks work; what fails is asked of the next one."""
        losses = losses or _Losses(block, set(), self._access.unreachable(block))
        present = {location.index for location in block.chunks} - losses.damaged
        order = sorted(present, key=lambda index: (index in losses.indexes, self._host.random.random()))
        well = [index for index in order if index not in losses.indexes]
        todo = [
            ChunkPart(well[at % len(well)] if well else -1, part.offset, part.memory) for at, part in enumerate(parts)
        ]
        failed = self._read_parts(block, [part for part in todo if part.index >= 0], losses)
        for part in [part for part in todo if part.index < 0 or part.index in failed]:
            self._read_any(block, [index for index in order if index not in losses.certain()], part, losses)

    def _read_any(self, block: Block, order: list[int], part: ChunkPart, losses: "_Losses") -> None:
        for index in order:
            if not self._read_parts(block, [ChunkPart(index, part.offset, part.memory)], losses):
                return
        raise losses.failure()

    def check(self, block: Block) -> list[int]:
        """Indexes of chunks that can't be read whole, or whose checksum is not the record's."""
        calls = [self._executor.submit(self._is_whole, block, index) for index in range(block.code.width)]
        return [index for index, call in enumerate(calls) if not call.result()]

    def _is_whole(self, block: Block, index: int) -> bool:
        location = location_of(block, index)
        if location is None:
            return False
        try:
            info = self._access.info(block, location)
            if (info.crc32c, info.payload_bytes) != (location.crc32c, block.chunk_bytes):
                return False
            with self._scratch.lend(SCRATCH_WAIT_S) as scratch:
                for start, end in windows(0, block.chunk_bytes, 1, len(scratch)):
                    self._access.read_into(block, index, start, scratch[: end - start])
        except TieredError:
            return False
        return True


class _Losses:
    """Chunks that can't be used: `damaged` ones, `errors` of those that were tried, and ones whose disk is away."""

    def __init__(self, block: Block, damaged: set[int], unreachable: set[int]) -> None:
        self._block = block
        self._unreachable = unreachable - damaged
        self.damaged = damaged
        self.errors: dict[int, TieredError] = {}

    @property
    def indexes(self) -> set[int]:
        """Not to be read if it can be helped."""
        return {*self.damaged, *self._unreachable, *self.errors}

    def certain(self) -> set[int]:
        """Not to be read at all: the disks of the others may answer if asked."""
        return {*self.damaged, *self.errors}

    def add(self, index: int, error: TieredError) -> None:
        self.errors[index] = error

    def failure(self) -> TieredError:
        """DataLossError when too many chunks are gone; UnavailableError when enough of them are only away."""
        block = self._block
        gone = {index for index, error in self.errors.items() if not isinstance(error, UnavailableError)}
        left = {location.index for location in block.chunks} - gone - self.damaged
        reasons = "; ".join(map(str, self.errors.values())) or f"chunks {sorted(self.damaged)} are missing or rotten"
        text = f"block {block.block:x} ({block.code}) cannot be read: {reasons}"
        return DataLossError(text) if len(left) < block.code.data_count else UnavailableError(text)


class _Step:
    """One window of a decoding: its sources, of which `to_read` are to be read into scratch first."""

    def __init__(
        self, window: tuple[int, int], sources: Sequence[int], ready: dict[int, ChunkPart], lines: "_Lines"
    ) -> None:
        self.start, self.end = window
        self.lines = lines
        self.parts = [ready.get(index) or ChunkPart(index, self.start, lines.take()) for index in sources]
        self.to_read = [part for part in self.parts if part.index not in ready]


class _Lines:
    """Scratch cut into lines of `length` bytes, each on a cell boundary."""

    def __init__(self, scratch: memoryview, length: int, count: int) -> None:
        self._scratch = scratch
        self._length = length
        self._stride = -(-length // CELL_BYTES) * CELL_BYTES
        self._next = 0
        assert self._stride * count <= len(scratch)

    def take(self) -> memoryview:
        start = self._next
        self._next += self._stride
        return self._scratch[start : start + self._length]


def _part(piece: Piece, target: memoryview) -> ChunkPart:
    return ChunkPart(piece.index, piece.chunk_offset, target[piece.target_offset : piece.target_offset + piece.length])


def _split(offset: int, target: memoryview, count: int) -> list[ChunkPart]:
    """`count` parts at most, cut between cells, none of them small."""
    if not len(target):
        return []
    cells = -(-len(target) // CELL_BYTES)
    step = max(-(-cells // max(count, 1)), _SPLIT_CELLS_MIN) * CELL_BYTES
    cuts = [
        offset,
        *range((offset // CELL_BYTES) * CELL_BYTES + step, offset + len(target), step),
        offset + len(target),
    ]
    return [ChunkPart(0, start, target[start - offset : end - offset]) for start, end in pairwise(cuts)]


def _finish(calls: "list[Future[None]]") -> None:
    wait(calls)  # bounded: each store bounds its calls
    for call in calls:
        call.result()


def _decode_window(block: Block, step: _Step, wanted: Sequence[ChunkPart]) -> None:
    """One window of every wanted part: in place where the part covers the window, else through a line of scratch."""
    start, end = step.start, step.end
    outputs = [part.window(start, end) if part.covers(start, end) else step.lines.take() for part in wanted]
    encoder = isal.encoder(block.code.data_count, block.code.parity_count)
    encoder.decode(
        [part.index for part in step.parts],
        [isal.address_of(part.window(start, end)) for part in step.parts],
        [part.index for part in wanted],
        [isal.address_of(output) for output in outputs],
        end - start,
    )
    for part, output in zip(wanted, outputs, strict=True):
        if not part.covers(start, end):
            first, last = max(part.offset, start), min(part.end, end)
            if first < last:
                part.window(first, last)[:] = output[first - start : last - start]
