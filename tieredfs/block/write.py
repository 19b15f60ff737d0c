"""Writing a block: pad, encode, place, put in parallel, and place anew what failed.

The block's bytes and its parity lie in one lent buffer, chunk after chunk, so a chunk's payload is a slice and nothing
is copied between the caller's bytes and the disk. Checksums are made from that memory before the first put.

Safe from any thread, with a buffer of its own each.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass

from tieredfs.block.access import ChunkAccess
from tieredfs.chunk.store import ChunkInfo, ChunkName
from tieredfs.core.crc import join_cells
from tieredfs.core.layout import chunk_bytes, chunks_needed
from tieredfs.core.placement import place, stand_in
from tieredfs.errors import NoSpaceError, TieredError, UnavailableError
from tieredfs.host import Host, isal
from tieredfs.limits import CELL_BYTES
from tieredfs.model import Block, BlockId, ChunkLocation, Code, CodeKind, DiskId


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """A chunk ready to be put: payload, and the checksums that it had when it was the writer's."""

    info: ChunkInfo
    payload: memoryview
    cell_crcs: bytes

    @property
    def index(self) -> int:
        return self.info.name.index


def seal(block: BlockId, index: int, code: Code, size_bytes: int, payload: memoryview) -> SealedChunk:
    crcs = isal.cell_crcs(payload, CELL_BYTES)
    whole = join_cells(crcs, CELL_BYTES, len(payload))
    return SealedChunk(ChunkInfo(ChunkName(block, index), code, size_bytes, len(payload), whole), payload, crcs)


def encode(whole: memoryview, code: Code, size_bytes: int) -> list[memoryview]:
    """The payloads of all chunks of `whole[:size_bytes]`; parity is made in `whole`, after the data."""
    length = chunk_bytes(code, size_bytes)
    data_end = code.data_count * length
    whole[size_bytes:data_end] = bytes(data_end - size_bytes)
    if code.kind is CodeKind.REPLICA:
        return [whole[:length]] * code.width
    payloads = [whole[at * length : (at + 1) * length] for at in range(code.width)]
    if code.parity_count:
        with isal.pinned(whole) as start:
            pointers = [start + at * length for at in range(code.width)]
            encoder = isal.encoder(code.data_count, code.parity_count)
            encoder.encode(pointers[: code.data_count], pointers[code.data_count :], length)
    return payloads


class BlockWriter:
    """`stall_s`: how long a put may take before its chunk goes elsewhere. `on_stall(whole, call)`: that put was left
    behind, and still reads the memory."""

    def __init__(
        self,
        access: ChunkAccess,
        executor: Executor,
        host: Host,
        stall_s: float,
        on_stall: Callable[[memoryview, "Future[None]"], None],
    ) -> None:
        self._access = access
        self._executor = executor
        self._host = host
        self._stall_s = stall_s
        self._on_stall = on_stall

    def write(self, block: BlockId, code: Code, whole: memoryview, size_bytes: int) -> Block:
        """Durable on return. Raises NoSpaceError, UnavailableError."""
        payloads = encode(whole, code, size_bytes)
        chunks = self._sealed(block, code, size_bytes, payloads)
        disks, some_are_away = self._place(code, len(payloads[0]))
        attempt = _Attempt(whole, dict(zip(range(code.width), disks, strict=False)), some_are_away)
        pending = [(chunks[index], disk) for index, disk in attempt.disk_of.items()]
        while pending:
            self._put_all(attempt, pending)
            pending = self._elsewhere(attempt, chunks, [chunk for chunk, _ in pending])
        if len(attempt.stored) < chunks_needed(code, some_are_away=attempt.some_are_away):
            self._take_back(block, attempt)
            raise attempt.failure()
        locations = [attempt.stored[index] for index in sorted(attempt.stored)]
        return Block(block, code, size_bytes, len(payloads[0]), tuple(locations))

    def put_one(self, chunk: SealedChunk, disk: DiskId) -> ChunkLocation:
        """One chunk on one disk, for repair."""
        self._access.put(disk, chunk.info, chunk.payload, chunk.cell_crcs)
        return ChunkLocation(chunk.index, disk, chunk.info.crc32c)

    def _sealed(self, block: BlockId, code: Code, size_bytes: int, payloads: list[memoryview]) -> list[SealedChunk]:
        if code.kind is CodeKind.REPLICA:
            one = seal(block, 0, code, size_bytes, payloads[0])
            infos = [
                ChunkInfo(ChunkName(block, index), code, size_bytes, one.info.payload_bytes, one.info.crc32c)
                for index in range(code.width)
            ]
            return [SealedChunk(info, one.payload, one.cell_crcs) for info in infos]
        return [seal(block, index, code, size_bytes, payload) for index, payload in enumerate(payloads)]

    def _place(self, code: Code, payload_bytes: int) -> tuple[list[DiskId], bool]:
        """As many disks as chunks, or as there are: then the block is written short and healed later. Whether some are away.

        A volume made with fewer disks than chunks has several chunks on a disk.
        """
        options = self._access.options(payload_bytes)
        if sum(option.usable for option in options) < chunks_needed(code, some_are_away=False):
            options = self._access.options(payload_bytes, wake=True)  # a block with nothing to spare is the last resort
        usable = sum(option.usable for option in options)
        away = sum(option.away for option in options)
        draw = self._host.random.random
        if self._access.disk_count() < code.width and usable:
            return place(options, code.width, draw, may_share=True), away > 0
        needed = chunks_needed(code, some_are_away=away > 0)
        if usable < needed:
            error = NoSpaceError if len(options) - away >= needed else UnavailableError
            raise error(f"{code} needs {needed} disks at least; {usable} of {len(options)} can take a chunk")
        return place(options, min(code.width, usable), draw), away > 0

    def _put_all(self, attempt: "_Attempt", pending: list[tuple[SealedChunk, DiskId]]) -> None:
        calls = {
            self._executor.submit(self._access.put, disk, chunk.info, chunk.payload, chunk.cell_crcs): (chunk, disk)
            for chunk, disk in pending
        }
        done, stalled = wait(calls, self._stall_s)
        for call in done:
            chunk, disk = calls[call]
            error = call.exception()
            if error is None:
                attempt.stored[chunk.index] = ChunkLocation(chunk.index, disk, chunk.info.crc32c)
            elif isinstance(error, TieredError):
                attempt.failed(chunk.index, disk, error)
            else:
                raise error
        for call in stalled:
            chunk, disk = calls[call]
            if not call.cancel():
                self._access.stalled(disk, call)
                self._on_stall(attempt.whole, call)
            attempt.failed(chunk.index, disk, UnavailableError(f"disk {disk} took over {self._stall_s} s for a chunk"))

    def _elsewhere(
        self, attempt: "_Attempt", chunks: list[SealedChunk], tried: list[SealedChunk]
    ) -> list[tuple[SealedChunk, DiskId]]:
        """Another disk for each of the chunks that failed just now; none left: the chunk waits for repair."""
        pending = []
        for index in [chunk.index for chunk in tried if chunk.index not in attempt.stored]:
            options = self._access.options(chunks[index].info.payload_bytes)
            disk = stand_in(options, list(attempt.disk_of.values()), attempt.failed_disks, self._host.random.random)
            if disk is not None:
                attempt.disk_of[index] = disk
                pending.append((chunks[index], disk))
        return pending

    def _take_back(self, block: BlockId, attempt: "_Attempt") -> None:
        """Best effort: what stays is found by garbage collection, for no record names it."""
        for location in attempt.stored.values():
            try:
                self._access.delete(location.disk, ChunkName(block, location.index))
            except TieredError:
                continue


class _Attempt:
    """What became of one block's chunks so far."""

    def __init__(self, whole: memoryview, disk_of: dict[int, DiskId], some_are_away: bool) -> None:
        self.whole = whole
        self.disk_of = disk_of
        self.some_are_away = some_are_away
        self.stored: dict[int, ChunkLocation] = {}
        self.failed_disks: set[DiskId] = set()
        self._errors: list[TieredError] = []

    def failed(self, index: int, disk: DiskId, error: TieredError) -> None:
        self.disk_of.pop(index)
        self.failed_disks.add(disk)
        self.some_are_away |= not isinstance(error, NoSpaceError)
        self._errors.append(error)

    def failure(self) -> TieredError:
        """Full disks only: the store is full. Otherwise it is not there."""
        full = all(isinstance(error, NoSpaceError) for error in self._errors)
        kind = NoSpaceError if full else UnavailableError
        return kind(f"only {len(self.stored)} chunks could be stored: {self._errors[-1]}")
