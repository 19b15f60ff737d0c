"""Reading a block: pieces straight into the caller's memory in parallel, and decoding around what fails.

Healthy, a read is one `ChunkStore.read_into` per chunk that has some of the bytes, into the target itself. Pieces that
failed are decoded, window by window in lent scratch (the next window is read meanwhile), from any k chunks of the same
range; data chunks that this very read has already brought into the target are taken from there, so that a whole block
with two lost data chunks of 4+2 costs four chunks of reading, as a healthy one does. Each source that fails on the way
is one more loss, and the decoding starts again with others until too few are left.

A disk that does not answer while its siblings do is left behind (`core.patience`): the call goes on, but nobody waits for it,
and the disk rests until it has ended. What it still writes to is lost for this read, so scratch stays out of its pool, and
a target is given up: the caller reads again into another one, around the disk that now rests.

Safe from any thread. Decoding runs in the caller's thread, chunk reads in the executor's; those never wait for others.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from typing import Final

from tieredfs.block.access import ChunkAccess, location_of
from tieredfs.block.loans import BlockLoans
from tieredfs.core.layout import Piece, choose_sources, pieces, windows
from tieredfs.core.patience import Patience
from tieredfs.errors import DataLossError, InvalidRequestError, TieredError, UnavailableError
from tieredfs.host import Host, isal
from tieredfs.limits import CELL_BYTES, SCRATCH_WAIT_S
from tieredfs.model import Block, CodeKind

_SPLIT_CELLS_MIN: Final = 4
"""Of a replicated block, less than 1 MiB is read from one disk."""

Calls = dict["Future[bool]", "ChunkPart"]
OnStall = Callable[["Future[bool]"], None]
"""Told of a call that was left behind and still writes into the memory of its part."""


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

    def __init__(
        self, access: ChunkAccess, executor: Executor, host: Host, scratch: BlockLoans, patience: Patience
    ) -> None:
        self._access = access
        self._executor = executor
        self._host = host
        self._scratch = scratch
        self._patience = patience

    def read_into(self, block: Block, offset: int, target: memoryview, on_stall: OnStall | None = None) -> bool:
        """False: the target is given up, as calls that were left behind (`on_stall`) still write to it; read again into another.

        Without `on_stall` every disk is waited for, and the target is always filled.
        """
        if offset < 0 or offset + len(target) > block.size_bytes:
            raise InvalidRequestError(f"block {block.block:x} has {block.size_bytes} bytes, not {offset + len(target)}")
        losses = _Losses(block, set(), self._access.unreachable(block), on_stall)
        if block.code.kind is CodeKind.REPLICA:
            self._read_replica(block, _split(offset, target, len(block.chunks)), losses)
        else:
            self._read_data(
                block, [_part(piece, target) for piece in pieces(block.chunk_bytes, offset, len(target))], losses
            )
        if losses.given_up and losses.spare() < 0:
            raise losses.failure()
        return not losses.given_up

    def _read_data(self, block: Block, wanted: Sequence[ChunkPart], losses: "_Losses") -> None:
        at_hand = [part for part in wanted if part.index not in losses.indexes]
        while True:
            failed = self._read_parts(block, at_hand, losses)
            missing = [part for part in wanted if part.index in losses.indexes or part.index in failed]
            there = [part for part in wanted if part not in missing]
            if losses.given_up or not missing or self._decode(block, missing, there, losses):
                return
            at_hand = [part for part in missing if part.index not in losses.certain()]
            if not at_hand:
                raise losses.failure()
            losses.ask_again(part.index for part in at_hand)  # their disks rest, but the others do not suffice

    def rebuild(self, block: Block, index: int, memory: memoryview, lost: set[int]) -> None:
        """Fill `memory` with the payload of chunk `index`, from chunks that are neither that nor `lost`.

        Raises DataLossError, UnavailableError.
        """
        losses = _Losses(block, {index, *lost}, self._access.unreachable(block))
        if block.code.kind is CodeKind.REPLICA:
            self._read_replica(block, [ChunkPart(index, 0, memory)], losses)
        elif not self._decode(block, [ChunkPart(index, 0, memory)], [], losses):
            raise losses.failure()

    def _decode(
        self, block: Block, wanted: Sequence[ChunkPart], at_hand: Sequence[ChunkPart], losses: "_Losses"
    ) -> bool:
        """Fill `wanted` from k other chunks; `at_hand` are parts that need not be read again. False: too few are left."""
        start, end = min(part.offset for part in wanted), max(part.end for part in wanted)
        ready = {part.index: part for part in at_hand if part.covers(start, end)}
        while sources := _choose_sources(block, losses, set(ready), {part.index for part in wanted}):
            if self._decode_from(block, sources, wanted, ready, losses):
                return True
        return False

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
            keep_out = partial(self._scratch.stalled, scratch)
            ahead = self._submit(block, steps[0].to_read, losses)
            try:
                for step, following in zip_longest(steps, steps[1:]):
                    calls, ahead = ahead, self._submit(block, following.to_read if following else [], losses)
                    if self._gather(block, calls, losses, keep_out):
                        return False
                    _decode_window(block, step, wanted)
            finally:
                self._gather(block, ahead, losses, keep_out)
        return True

    def _read_parts(self, block: Block, parts: Sequence[ChunkPart], losses: "_Losses") -> set[int]:
        """Read parts in parallel; the indexes of those that failed."""
        on_stall = losses.give_up if losses.on_stall else None
        return self._gather(block, self._submit(block, parts, losses), losses, on_stall)

    def _submit(self, block: Block, parts: Sequence[ChunkPart], losses: "_Losses") -> Calls:
        return {self._executor.submit(self._read_part, block, part, losses): part for part in parts}

    def _gather(self, block: Block, calls: Calls, losses: "_Losses", on_stall: OnStall | None) -> set[int]:
        """Wait for the calls; the indexes of those that failed. With `on_stall`, those that try the patience are left behind."""
        awaited, look_s, quiet_s = set(calls), self._patience.sibling_s, 0.0
        while awaited:
            done, awaited = wait(awaited, look_s if on_stall else None)
            quiet_s = 0.0 if done else quiet_s + look_s
            answered = len(calls) - len(awaited)
            if quiet_s >= self._patience.with_(answered=answered, awaited=len(awaited), spare=losses.spare()):
                break
        for call in awaited:
            assert on_stall is not None
            self._leave(block, call, calls[call], losses, on_stall)
        return {part.index for call, part in calls.items() if call in awaited or not call.result()}

    def _leave(self, block: Block, call: "Future[bool]", part: ChunkPart, losses: "_Losses", on_stall: OnStall) -> None:
        location = location_of(block, part.index)
        assert location is not None, "a chunk without a place fails at once"
        error = UnavailableError(f"disk {location.disk} does not answer")
        if call.cancel():  # it had not begun: other disks keep the threads busy
            losses.let_rest(part.index, error)
            return
        losses.add(part.index, error)
        self._access.stalled(location.disk, call)
        on_stall(call)

    def _read_part(self, block: Block, part: ChunkPart, losses: "_Losses") -> bool:
        try:
            self._access.read_into(block, part.index, part.offset, part.memory)
        except TieredError as error:
            losses.add(part.index, error)
            return False
        return True

    def _read_replica(self, block: Block, parts: list[ChunkPart], losses: "_Losses") -> None:
        """Each part from a replica of its own, so that all disks work; what fails is asked of the next one."""
        present = {location.index for location in block.chunks} - losses.damaged
        order = sorted(present, key=lambda index: (index in losses.indexes, self._host.random.random()))
        well = [index for index in order if index not in losses.indexes]
        todo = [
            ChunkPart(well[at % len(well)] if well else -1, part.offset, part.memory) for at, part in enumerate(parts)
        ]
        failed = self._read_parts(block, [part for part in todo if part.index >= 0], losses)
        for part in [part for part in todo if part.index < 0 or part.index in failed]:
            if losses.given_up:
                return
            self._read_any(block, [index for index in order if index not in losses.certain()], part, losses)

    def _read_any(self, block: Block, order: list[int], part: ChunkPart, losses: "_Losses") -> None:
        for index in order:
            if not self._read_parts(block, [ChunkPart(index, part.offset, part.memory)], losses) or losses.given_up:
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
    """Chunks that can't be used: `damaged` ones, `errors` of those that were tried, and ones whose disk is away.

    `given_up`: a call that was left behind writes to the target, `on_stall` knows of it, and nobody else may use that memory.
    """

    def __init__(self, block: Block, damaged: set[int], unreachable: set[int], on_stall: OnStall | None = None) -> None:
        self._block = block
        self._unreachable = unreachable - damaged
        self.damaged = damaged
        self.errors: dict[int, TieredError] = {}
        self.on_stall = on_stall
        self.given_up = False
        self._rested: set[int] = set()

    def give_up(self, call: "Future[bool]") -> None:
        assert self.on_stall is not None
        self.given_up = True
        self.on_stall(call)

    def spare(self) -> int:
        """How many more chunks the read can do without; negative when it can't be carried out."""
        present = {location.index for location in self._block.chunks}
        return len(present - self.indexes) - self._block.code.data_count

    @property
    def indexes(self) -> set[int]:
        """Not to be read if it can be helped."""
        return {*self.damaged, *self._unreachable, *self.errors}

    def certain(self) -> set[int]:
        """Not to be read at all: the disks of the others may answer if asked."""
        return {*self.damaged, *self.errors}

    def ask_again(self, indexes: Iterable[int]) -> None:
        """Those on disks that rest are to be read all the same."""
        self._unreachable.difference_update(indexes)

    def let_rest(self, index: int, error: TieredError) -> None:
        """Do without it if it can be helped; the second time it is a loss."""
        if index in self._rested:
            self.add(index, error)
        self._rested.add(index)
        self._unreachable.add(index)

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


def _choose_sources(block: Block, losses: _Losses, ready: set[int], wanted: set[int]) -> list[int] | None:
    """Disks that rest are asked after all when the others do not suffice. None: too few are left."""
    present = {location.index for location in block.chunks} - wanted
    sources = choose_sources(block.code, losses.indexes, ready, present)
    return sources or choose_sources(block.code, losses.certain(), ready, present)


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
