"""One process's tensors from their memory into files that are open, checksummed on the way.

Tensors go to the file straight from their memory (`pwritev`), in slices of 16 MiB from a few threads; each slice's checksums
are computed while its memory is in the cache, and what has been written is synced while more is being written, so that
the final sync finds little to do. Small tensors that follow one another go by the batch, one call for many. Whether a tensor
is as it was in the last checkpoint is asked only where its first 64 KiB are: then its content hash decides, before
anything is written.

Memory: nothing for contiguous CPU tensors; for others a copy of one tensor per thread.
"""

import contextlib
import errno
import itertools
import operator
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from tieredfs.errors import NoSpaceError, UnavailableError
from tieredfs.host import Host, libc
from tieredfs.model import Progress
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.checksums import Digest, PieceSums, digest_of, joined, probe_of, sums_of
from tieredfs_client.checkpoint.layout import PROBE_BYTES, Blob, StoredFile
from tieredfs_client.checkpoint.pack import PackedLeaf, PackFlow, PackTarget, PackThreads
from tieredfs_client.checkpoint.packing import PACKED_BYTES_MIN, Compression, Pace, faster, is_worth
from tieredfs_client.checkpoint.tree import Form, Leaf

SLICE_BYTES: Final = 16 << 20
SYNC_EVERY_BYTES: Final = 64 << 20
"""The disk begins when the first so many bytes are written: 768 MiB onto one of 2.9 GB/s take 0.315 s, and 0.335 s at 256 MiB."""
BATCHED_BYTES_MAX: Final = 1 << 20
"""Tensors up to this size are written by the batch: a call per tensor would cost more than its bytes."""
BATCH_COUNT: Final = 512
"""Under IOV_MAX, which is 1024."""
HEAD_BYTES: Final = 64
"""What is kept of a tensor that was written by the batch, to tell without a checksum that it has surely changed."""
THREADS: Final = max(2, min(4, os.cpu_count() or 2))
PACK_THREADS: Final = max(2, min(8, os.cpu_count() or 2))


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Earlier:
    """Tensors of an earlier checkpoint: columns, what they are (see `identity`) and where their bytes are."""

    path: bytes
    files: tuple[StoredFile, ...]
    forms: Sequence[Form]
    blobs: Sequence[Blob]
    heads: Sequence[bytes | None]
    """The first `HEAD_BYTES` of some of them."""

    def of(self, forms: Sequence[Form]) -> Sequence[tuple[Blob, bytes | None] | None]:
        """Blobs and heads of tensors. Of a program that saves the same tensors again and again: without a look at each."""
        rows = list(zip(self.blobs, self.heads, strict=True))
        if forms == self.forms:
            return rows
        known = dict(zip(map(identity, self.forms), rows, strict=True))
        return [known.get(identity(form)) for form in forms]


class Target(NamedTuple):
    """Where a leaf (its number) goes: an open file, and the offset in it. A tuple: see `layout.Item`."""

    leaf: int
    descriptor: int
    offset: int


TARGET_ORDER: Final = operator.attrgetter("descriptor", "offset")
"""In which `PartWriter.write` wants them: neighbours in a file follow one another."""


@dataclass(frozen=True, slots=True)
class Written:
    """By leaf: digests of those that are as they were in memory, those that are packed, when each was written, and the heads of
    those that were written by the batch."""

    digests: dict[int, Digest]
    packed: dict[int, PackedLeaf]
    ended_s: dict[int, float]
    heads: dict[int, bytes]


identity: Final[Callable[[Form], Hashable]] = operator.itemgetter(0, 2, 4, 6, 7)
"""Under which a tensor is looked for in an earlier checkpoint: key, type, shape of the whole, place in it."""


class PartWriter:
    """Its threads live as long as it does. One save at a time."""

    def __init__(self, host: Host, progress: Progress | None = None) -> None:
        """`progress`: told of the bytes of each write, from its threads, one at a time."""
        self._host = host
        self._progress = progress
        self._pool = ThreadPoolExecutor(THREADS, "tieredfs-ckpt-write")
        self._syncs = ThreadPoolExecutor(1, "tieredfs-ckpt-sync")
        self._packing = PackThreads(PACK_THREADS)
        self.pace: Pace | None = None
        """What saves have shown that the files of a checkpoint take in from this process."""

    def close(self) -> None:
        self._packing.pool.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._syncs.shutdown(cancel_futures=True)

    def beside(self, work: Callable[[], T]) -> "Future[T]":
        """Work of the processor's, on a thread that has nothing to write at the time."""
        return self._pool.submit(work)

    def digests(self, leaves: Sequence[Leaf], wanted: Sequence[int]) -> dict[int, Digest]:
        """Of tensors by their number, without writing them."""

        def hashed(batch: Sequence[int]) -> list[Digest]:
            return [digest_of(memory.bytes_of(leaves[index].value)) for index in batch]

        found = self._pool.map(hashed, _batches(leaves, wanted))
        return dict(zip(wanted, itertools.chain.from_iterable(found), strict=True))

    def unchanged(
        self, leaves: Sequence[Leaf], chosen: Sequence[int], digests: dict[int, Digest], earlier: Earlier | None
    ) -> dict[int, Blob]:
        """Leaves whose content the earlier checkpoint has; what is hashed on the way goes to `digests`. What the probe would
        see all of is hashed at once, which it is to be in any case."""
        if earlier is None or not earlier.blobs:
            return {}
        known = earlier.of([leaves[index][:-1] for index in chosen])
        maybe = {
            index: found[0]
            for index, found in zip(chosen, known, strict=True)
            if found is not None and _may_be(leaves[index], found[0], None if index in digests else found[1])
        }
        if not maybe:
            return {}

        def look(index: int) -> Digest | None:
            digest = digests.get(index)
            if digest is None:
                view = memory.bytes_of(leaves[index].value)
                if len(view) > PROBE_BYTES and probe_of(view) != maybe[index].probe:
                    return None
                digest = digest_of(view)
            return digest

        def looked(batch: Sequence[int]) -> list[Digest | None]:
            return [look(index) for index in batch]

        same: dict[int, Blob] = {}
        every = itertools.chain.from_iterable(self._pool.map(looked, _batches(leaves, list(maybe))))
        for (index, blob), digest in zip(maybe.items(), every, strict=True):
            if digest is not None:
                digests[index] = digest
                if digest.content == blob.content:
                    same[index] = blob
        return same

    def worth_packing(
        self, leaves: Sequence[Leaf], chosen: Sequence[int], compression: Compression, pace: Pace | None
    ) -> list[int]:
        """Those of the chosen leaves that are to be packed, after a look into each."""
        large = [index for index in chosen if leaves[index].size_bytes >= PACKED_BYTES_MIN]
        if not compression.always and pace is None:
            return []
        samples = self._packing.pool.map(
            lambda index: self._packing.sample(self._host, leaves[index], compression), large
        )
        worth = (is_worth(compression, sample, PACK_THREADS, pace) for sample in samples)
        return [index for index, yes in zip(large, worth, strict=True) if yes]

    def observe(self, size_bytes: int, seconds: float) -> None:
        """So much was stored for this process in that time."""
        self.pace = faster(self.pace, size_bytes, seconds)

    def write(
        self,
        leaves: Sequence[Leaf],
        targets: Sequence[Target],
        known: Mapping[int, Digest],
        packed: Sequence[PackTarget] = (),
        level: int | None = None,
    ) -> Written:
        """Write leaves into open files, not synced to the end, `packed` ones packed.

        Returns when no thread uses the descriptors any more. Raises NoSpaceError, UnavailableError.
        """
        total = 0 if packed else sum(leaves[target.leaf].size_bytes for target in targets)
        behind = _Behind(self._host, self._syncs, self._progress, total)
        plain = _Flow(self._host, self._pool, behind.wrote, leaves, known)
        packing = PackFlow(self._host, self._packing, behind.wrote, leaves, known, level)
        with speaking_the_domain():
            try:
                packing.start(packed)
                plain.start(targets)
                digests, ended_s = plain.finish()
                leaves_packed = packing.finish()
                ended_s |= packing.ended_s
                return Written(digests, leaves_packed, ended_s, plain.heads)
            finally:
                packing.settle()
                plain.settle()
                behind.settle()


def _may_be(leaf: Leaf, blob: Blob, head: bytes | None) -> bool:
    """Whether a tensor may be what `blob` has, so that a checksum is worth its price. Most that change do so from the start."""
    size = leaf[8]
    if size != blob[2] or not size:
        return False
    return head is None or memory.bytes_of(leaf[9])[:HEAD_BYTES] == head


def _batches(leaves: Sequence[Leaf], numbers: Sequence[int]) -> list[Sequence[int]]:
    """For one thread at a time: a large tensor, or many small ones."""
    batches: list[Sequence[int]] = []
    start = total = 0
    for at, number in enumerate(numbers):
        if at > start and (total + leaves[number].size_bytes > SLICE_BYTES or at - start >= BATCH_COUNT):
            batches.append(numbers[start:at])
            start, total = at, 0
        total += leaves[number].size_bytes
    if start < len(numbers):
        batches.append(numbers[start:])
    return batches


Summed = PieceSums | Digest | None
"""What a job found: of some pieces, of a whole tensor, or nothing that was not known."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A large tensor under way. `view` None: its one job returns the whole digest."""

    leaf: int
    view: memoryview | None
    jobs: Sequence[Future[Summed]]


class _Behind:
    """Files are synced behind those who write, every `SYNC_EVERY_BYTES`. Safe from any thread."""

    def __init__(self, host: Host, syncs: ThreadPoolExecutor, progress: Progress | None = None, total: int = 0) -> None:
        """`total`: of all that will be written (0: not known)."""
        self._files = host.files
        self._progress = progress
        self._total = total
        self._done = 0
        self._syncs = syncs
        self._lock = threading.Lock()
        self._unsynced: dict[int, int] = {}
        self._started: list[Future[None]] = []

    def wrote(self, descriptor: int, size: int) -> None:
        with self._lock:
            unsynced = self._unsynced.get(descriptor, 0) + size
            due = unsynced >= SYNC_EVERY_BYTES
            self._unsynced[descriptor] = 0 if due else unsynced
            if due:
                self._started.append(self._syncs.submit(self._files.sync, descriptor))
            if self._progress is not None:
                self._done += size
                self._progress(self._done, self._total, "bytes")

    def settle(self) -> None:
        """After it no sync uses a descriptor. Raises what a sync did."""
        for sync in self._started:
            sync.result()


class _Flow:
    """Bytes on their way into files, as they are."""

    def __init__(
        self,
        host: Host,
        pool: ThreadPoolExecutor,
        wrote: Callable[[int, int], None],
        leaves: Sequence[Leaf],
        known: Mapping[int, Digest],
    ) -> None:
        self._files = host.files
        self._clock = host.clock
        self._pool = pool
        self._wrote = wrote
        self._leaves = leaves
        self._known = known
        self._large: list[_Pending] = []
        self._small: list[Future[dict[int, Digest]]] = []
        self._ended_s: dict[int, float] = {}
        self.heads: dict[int, bytes] = {}
        """Of what was written by the batch."""

    def start(self, targets: Sequence[Target]) -> None:
        batch: list[Target] = []
        descriptor = end = last = -1
        for target in targets:
            leaf = self._leaves[target.leaf]
            size = leaf.size_bytes
            if size > BATCHED_BYTES_MAX:
                self._start_large(target, leaf)
                continue
            follows = target.offset == end and target.descriptor == descriptor
            if not follows or len(batch) == BATCH_COUNT or end >= last:
                self._start_small(batch)
                batch = []
                descriptor, last = target.descriptor, target.offset + SLICE_BYTES
            batch.append(target)
            end = target.offset + size
        self._start_small(batch)

    def _start_small(self, batch: Sequence[Target]) -> None:
        if batch:
            self._small.append(self._pool.submit(self._write_batch, batch))

    def _write_batch(self, batch: Sequence[Target]) -> dict[int, Digest]:
        """Summed while the disk takes it in, not before."""
        descriptor, offset, known = batch[0].descriptor, batch[0].offset, self._known
        numbers = [target.leaf for target in batch]
        views = [memory.bytes_of(self._leaves[number].value) for number in numbers]
        size = self._files.write(descriptor, views, offset)
        with contextlib.suppress(OSError):  # the sync at the end is what counts
            libc.begin_writing(descriptor, offset, size)
        self._wrote(descriptor, size)
        self._ended_s.update(dict.fromkeys(numbers, self._clock.monotonic_s()))
        self.heads.update(zip(numbers, [bytes(view[:HEAD_BYTES]) for view in views], strict=True))
        both = zip(numbers, views, strict=True)
        return {number: known.get(number) or digest_of(view) for number, view in both}

    def _start_large(self, target: Target, leaf: Leaf) -> None:
        """In slices; one whose bytes must be copied first is one job."""
        if memory.in_place(leaf.value) is None:
            jobs: list[Future[Summed]] = [self._pool.submit(self._write_copied, target, leaf)]
            self._large.append(_Pending(target.leaf, None, jobs))
            return
        view = memory.bytes_of(leaf.value)
        jobs = [
            self._pool.submit(self._write_slice, target, view[at : at + SLICE_BYTES], at)
            for at in range(0, len(view), SLICE_BYTES)
        ]
        self._large.append(_Pending(target.leaf, view, jobs))

    def _write_copied(self, target: Target, leaf: Leaf) -> Digest:
        view = memory.bytes_of(leaf.value)
        sums = [self._write_summed(target, view[at : at + SLICE_BYTES], at) for at in range(0, len(view), SLICE_BYTES)]
        return joined(view, sums)

    def _write_slice(self, target: Target, view: memoryview, at: int) -> Summed:
        if target.leaf not in self._known:
            return self._write_summed(target, view, at)
        self._write(target, view, at)
        return None

    def _write_summed(self, target: Target, view: memoryview, at: int) -> PieceSums:
        sums = sums_of(view)
        self._write(target, view, at)
        return sums

    def _write(self, target: Target, view: memoryview, at: int) -> None:
        self._files.write(target.descriptor, [view], target.offset + at)
        self._wrote(target.descriptor, len(view))
        self._ended_s[target.leaf] = self._clock.monotonic_s()

    def finish(self) -> tuple[dict[int, Digest], dict[int, float]]:
        digests: dict[int, Digest] = {}
        for batch in self._small:
            digests |= batch.result()
        for pending in self._large:
            results = [job.result() for job in pending.jobs]
            known = self._known.get(pending.leaf)
            if known is None:
                known = _digest_from(pending.view, results)
            digests[pending.leaf] = known
        return digests, self._ended_s

    def settle(self) -> None:
        """After it no thread uses a descriptor, however the writing ended."""
        jobs: list[Future[Any]] = [*self._small, *(job for pending in self._large for job in pending.jobs)]
        for job in jobs:
            job.cancel()
        wait(jobs)


def _digest_from(view: memoryview | None, results: Sequence[Summed]) -> Digest:
    if view is None:
        (digest,) = results
        assert isinstance(digest, Digest)
        return digest
    return joined(view, [part for part in results if isinstance(part, PieceSums)])


@contextlib.contextmanager
def speaking_the_domain() -> Iterator[None]:
    """What the local file system says, in the words of `tieredfs.errors`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"the SSD has no room for this checkpoint: {error.strerror}") from error
        raise UnavailableError(f"the SSD fails: {error.strerror}") from error
