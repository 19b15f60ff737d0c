"""One process's tensors, packed on the way, into files of its own.

How long a packed tensor gets is known when it is packed, so these files are filled from the front, and no two processes write
into one. Pieces are packed by several threads at a time; their places in the file are given out in the order of the tensors,
so a tensor's pieces follow one another and the same state makes the same file. A thread that is done early waits for the
place of its piece: by at most what the slowest of its neighbours takes, because pieces are begun in order.

Checksums are of what is stored, content hashes of what it stands for. Memory: two pieces of 4 MiB per thread; of a tensor that is
not contiguous CPU memory a copy, one at a time.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import xxhash

from tieredfs.host import Host
from tieredfs.host.isal import crc32c
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.checksums import Digest, content_of, probe_of
from tieredfs_client.checkpoint.codec import Packer, width_of
from tieredfs_client.checkpoint.layout import PIECE_BYTES, Packed
from tieredfs_client.checkpoint.packing import Compression, Sample, sample_ranges
from tieredfs_client.checkpoint.tree import Leaf


class PackTarget(NamedTuple):
    """A leaf (its number) that goes to the end of a file, whose first tensor begins at `start`."""

    leaf: int
    descriptor: int
    start: int


@dataclass(frozen=True, slots=True)
class PackedLeaf:
    """Where a leaf was put, and what it is there; `digest.crcs` are of what is stored."""

    offset: int
    packed: Packed
    digest: Digest


class _StoppedError(Exception):
    """Another part of the file could not be written; that one's error is the one to tell."""


class Appending:
    """Places at the end of a file, given out in the order of the jobs. Safe from any thread."""

    def __init__(self, start: int) -> None:
        self._end = start
        self._turn = 0
        self._stopped = False
        self._changed = threading.Condition()

    def place(self, job: int, size: int, *, last: bool) -> int:
        """The offset of `size` bytes of that job, after all that earlier jobs had; `last`: it needs no more. Waits for earlier
        jobs. Raises _StoppedError."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._turn == job)
            if self._stopped:
                raise _StoppedError
            offset = self._end
            self._end += size
            if last:
                self._turn += 1
                self._changed.notify_all()
            return offset

    def stop(self) -> None:
        """Nobody gets a place any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Unit:
    """A piece of a leaf."""

    leaf: int
    width: int
    view: memoryview
    first: bool


@dataclass(frozen=True, slots=True)
class _Stored:
    """A piece of a leaf in its file. `content`: its hash; `probe`: of the first piece; neither where they were known before."""

    leaf: int
    offset: int
    length: int
    crc: int
    content: bytes
    probe: int


class PackThreads:
    """Threads with a packer and scratch memory each, made when the first tensor is packed. One save at a time."""

    def __init__(self, count: int) -> None:
        self.count: Final = count
        self.pool = ThreadPoolExecutor(count, "tieredfs-ckpt-pack")
        self._own = threading.local()

    def packer(self, level: int | None) -> Packer:
        """That of this thread."""
        packers: dict[int | None, Packer] = self._own.__dict__.setdefault("packers", {})
        if level not in packers:
            packers[level] = Packer(level)
        return packers[level]

    def scratch(self) -> memoryview:
        """A piece's memory, that of this thread."""
        return memoryview(self._own.__dict__.setdefault("scratch", bytearray(PIECE_BYTES)))

    def sample(self, host: Host, leaf: Leaf, compression: Compression) -> Sample:
        """Pack some of a leaf. In one of the threads."""
        packer, scratch, width = self.packer(compression.level), self.scratch(), width_of(leaf.dtype, leaf.item_bytes)
        parts = [
            memory.part_of(leaf.value, *each, leaf.item_bytes)
            for each in sample_ranges(leaf.size_bytes, leaf.item_bytes)
        ]
        started_s = host.clock.monotonic_s()
        stored = sum(sum(map(len, packer.pack(part, width, scratch[: len(part)]))) for part in parts)
        return Sample(sum(map(len, parts)), stored, host.clock.monotonic_s() - started_s)


class PackFlow:
    """Leaves on their way into files, packed."""

    def __init__(
        self,
        host: Host,
        threads: PackThreads,
        wrote: Callable[[int, int], None],
        leaves: Sequence[Leaf],
        known: Mapping[int, Digest],
        level: int | None,
    ) -> None:
        """`wrote`: told of every write, its descriptor and length. `known`: digests of leaves that were hashed before."""
        self._files = host.files
        self._clock = host.clock
        self._threads = threads
        self._wrote = wrote
        self._leaves = leaves
        self._known = known
        self._level = level
        self._appending: dict[int, Appending] = {}
        self._jobs: list[Future[list[_Stored]]] = []
        self.ended_s: dict[int, float] = {}

    def start(self, targets: Sequence[PackTarget]) -> None:
        """In the order in which they are to lie in their files."""
        for descriptor, group in itertools.groupby(targets, lambda target: target.descriptor):
            members = list(group)
            self._appending[descriptor] = Appending(members[0].start)
            for job, batches in enumerate(self._batches_of([member.leaf for member in members])):
                self._jobs.append(self._threads.pool.submit(self._run, descriptor, job, iter(batches)))

    def _batches_of(self, numbers: Sequence[int]) -> Iterator[Iterable[Sequence[_Unit]]]:
        """What each job packs: up to 4 MiB of what is in place, or a tensor that must be copied first, piece by piece."""
        batch: list[_Unit] = []
        size = 0
        for number in numbers:
            in_place = memory.in_place(self._leaves[number].value) is not None
            for unit in self._units(number) if in_place else ():
                if size + len(unit.view) > PIECE_BYTES:
                    yield [batch]
                    batch, size = [], 0
                batch.append(unit)
                size += len(unit.view)
            if not in_place:
                if batch:
                    yield [batch]
                    batch, size = [], 0
                yield map(_alone, self._units(number))
        if batch:
            yield [batch]

    def _units(self, number: int) -> Iterator[_Unit]:
        leaf = self._leaves[number]
        width = width_of(leaf.dtype, leaf.item_bytes)
        view = memory.bytes_of(leaf.value)
        for at in range(0, len(view), PIECE_BYTES):
            yield _Unit(number, width, view[at : at + PIECE_BYTES], at == 0)

    def _run(self, descriptor: int, job: int, batches: Iterator[Sequence[_Unit]]) -> list[_Stored]:
        appending = self._appending[descriptor]
        stored: list[_Stored] = []
        try:
            batch = next(batches, None)
            while batch is not None:
                buffers = self._pack(batch)
                following = next(batches, None)
                sizes = [sum(map(len, each)) for each in buffers]
                offset = appending.place(job, sum(sizes), last=following is None)
                self._files.write(descriptor, list(itertools.chain.from_iterable(buffers)), offset)
                self._wrote(descriptor, sum(sizes))
                for unit, each, size in zip(batch, buffers, sizes, strict=True):
                    stored.append(self._summed(unit, each, offset, size))
                    offset += size
                batch = following
        except BaseException:
            appending.stop()
            raise
        now_s = self._clock.monotonic_s()
        self.ended_s.update((one.leaf, now_s) for one in stored)
        return stored

    def _pack(self, batch: Sequence[_Unit]) -> list[list[Any]]:
        """What is stored of each; valid until this thread packs again."""
        packer, scratch = self._threads.packer(self._level), self._threads.scratch()
        packed, at = [], 0
        for unit in batch:
            packed.append(packer.pack(unit.view, unit.width, scratch[at : at + len(unit.view)]))
            at += len(unit.view)
        return packed

    def _summed(self, unit: _Unit, buffers: Sequence[Any], offset: int, size: int) -> _Stored:
        crc = 0
        for buffer in buffers:
            crc = crc32c(buffer, crc)
        if unit.leaf in self._known:
            return _Stored(unit.leaf, offset, size, crc, b"", 0)
        probe = probe_of(unit.view) if unit.first else 0
        return _Stored(unit.leaf, offset, size, crc, xxhash.xxh3_128_digest(unit.view), probe)

    def finish(self) -> dict[int, PackedLeaf]:
        """When all is written. Raises what a job did."""
        wait(self._jobs)
        for error in (job.exception() for job in self._jobs):
            if error is not None and not isinstance(error, _StoppedError):
                raise error
        every = itertools.chain.from_iterable(job.result() for job in self._jobs)
        return {leaf: self._made(leaf, list(pieces)) for leaf, pieces in itertools.groupby(every, lambda one: one.leaf)}

    def _made(self, number: int, pieces: Sequence[_Stored]) -> PackedLeaf:
        leaf, known = self._leaves[number], self._known.get(number)
        if known is not None:
            content, probe = known.content, known.probe
        else:
            content, probe = content_of([one.content for one in pieces], leaf.size_bytes), pieces[0].probe
        packed = Packed(
            width_of(leaf.dtype, leaf.item_bytes), tuple(itertools.accumulate(one.length for one in pieces))
        )
        return PackedLeaf(pieces[0].offset, packed, Digest(content, probe, tuple(one.crc for one in pieces)))

    def settle(self) -> None:
        """After it no thread uses a descriptor, however the writing ended."""
        for appending in self._appending.values():
            appending.stop()
        for job in self._jobs:
            job.cancel()
        wait(self._jobs)


def _alone(unit: _Unit) -> Sequence[_Unit]:
    return [unit]
