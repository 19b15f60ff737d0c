"""Loading: the bytes that are needed, in coalesced ranges, straight into the memory of the targets, verified.

What is wanted of each tensor is a box of it (all of it, or what a rank holds); the plan (`plan.copies`, `plan.reads`)
says which ranges of which files go where. A target that is contiguous CPU memory is filled in place; another (strided, on an
accelerator) is filled through a new tensor of its size, one per thread. Pieces of which only a part is wanted go through
scratch memory of 4 MiB per thread, so that their checksum can be verified, too. So do packed pieces, which are read, verified
and then unpacked (`codec`), each by itself: a slice of a packed tensor takes what a verified slice of a plain one does, less
what packing spared.

The checksum verified here was computed over the writer's memory, or over what was packed of it. A mismatch is a CorruptError
that names the tensor; everything that was to be filled is then undefined.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from tieredfs.errors import CorruptError, StateMismatchError
from tieredfs.model import Progress
from tieredfs.volume.contract import Reading
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.checksums import read_summed
from tieredfs_client.checkpoint.codec import Unpacker
from tieredfs_client.checkpoint.documents import open_steady
from tieredfs_client.checkpoint.layout import PIECE_BYTES, Blob, Manifest, Packed, StoredTensor
from tieredfs_client.checkpoint.names import CheckpointName
from tieredfs_client.checkpoint.plan import Box, Copy, Read, copies, covered, intersection, reads, volume
from tieredfs_client.checkpoint.tree import Leaf, Node, fit, merge, restore, tensors_in

THREADS: Final = max(2, min(8, os.cpu_count() or 2))
"""They copy and sum, which takes a core each; the kernel's readahead keeps the disk busy."""
BATCH_BYTES: Final = PIECE_BYTES
"""What a thread takes at once: small tensors many at a time."""
PROBLEMS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """`skipped`: what did not fit and was left as it was (only with strict=False)."""

    state: Any
    step: int
    metadata: dict[str, object]
    metrics: dict[str, float]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Want:
    """A box of a stored tensor that goes into `value`."""

    tensor: StoredTensor
    box: Box
    value: Any


@dataclass(frozen=True, slots=True)
class _Job:
    """One read of one stored piece of a tensor, into `target`, the bytes of the wanted box."""

    key: str
    blob: Blob
    read: Read
    target: memoryview


def unwatched(_done: int, _total: int, _unit: str) -> None:
    """A progress that nobody looks at."""


class _Counted:
    """Bytes of a whole, told as they are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, size_bytes: int) -> None:
        self._done += size_bytes
        self._progress(self._done, self._total, "bytes")


class _Thread(threading.local):
    """What each thread has of its own, made when it is needed."""

    def __init__(self) -> None:
        self._scratch: memoryview | None = None
        self._stored: memoryview | None = None
        self._unpacker: Unpacker | None = None

    def scratch(self) -> memoryview:
        """For a piece of which only some is wanted."""
        self._scratch = self._scratch or memoryview(bytearray(PIECE_BYTES))
        return self._scratch

    def stored(self) -> memoryview:
        """For a packed piece, which is never longer than it stands for."""
        self._stored = self._stored or memoryview(bytearray(PIECE_BYTES))
        return self._stored

    def unpacker(self) -> Unpacker:
        self._unpacker = self._unpacker or Unpacker()
        return self._unpacker


class Loader:
    """Loads from one checkpoint. A context manager; one load at a time."""

    def __init__(
        self,
        catalog: Catalog,
        name: CheckpointName,
        manifest: Manifest,
        *,
        verify: bool = True,
        progress: Progress = unwatched,
    ) -> None:
        """`progress`: told by `fill_memory` and `check`, in bytes, from the thread that calls them."""
        self._catalog = catalog
        self._path = catalog.paths.checkpoint(name)
        self._manifest = manifest
        self._verify = verify
        self._progress = progress
        self._pool = ThreadPoolExecutor(THREADS, "tieredfs-ckpt-load")
        self._open_files = contextlib.ExitStack()
        self._readings: dict[int, Reading] = {}
        self._lock = threading.Lock()
        self._thread = _Thread()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._open_files.close()

    # ---- what to load -----------------------------------------------------------------------------------------------

    def new(self, rank: int, only: Sequence[str] | None = None) -> Any:
        """The tree of a rank, with new tensors, sharded ones whole. `only`: patterns of keys; what they leave out is None."""
        node = self._manifest.tree_of(rank)
        wanted = [number for number in sorted(tensors_in(node)) if _is_wanted(self._tensor(number).key, only)]
        values = self._make(wanted)
        return restore(node if only is None else _pruned(node, set(wanted)), values.__getitem__)

    def into(
        self, rank: int, target: Any, *, strict: bool, only: Sequence[str] | None = None
    ) -> tuple[Any, tuple[str, ...]]:
        """Fill `target` in place; it, and what did not fit. Raises StateMismatchError before anything is changed."""
        node = self._manifest.tree_of(rank)
        fitting = fit(node, target, lambda number: (self._tensor(number).dtype, self._tensor(number).shape))
        wants, torn = self._wants(fitting.targets, only)
        problems = [text for text in fitting.problems if only is None or _is_wanted(text.partition(": ")[0], only)]
        problems += torn
        if strict and problems:
            more = f"\n... and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
            raise StateMismatchError("the checkpoint does not fit:\n" + "\n".join(problems[:PROBLEMS_SHOWN]) + more)
        values = self._make(
            [number for number in sorted(fitting.fresh) if _is_wanted(self._tensor(number).key, only)], wants
        )
        return merge(node, target, values.get), tuple(problems)

    def _wants(
        self, targets: Mapping[int, Sequence[Leaf]], only: Sequence[str] | None
    ) -> tuple[list[_Want], list[str]]:
        """What is to be filled, tied targets once; and which targets are one in memory where different values were saved."""
        wants: list[_Want] = []
        torn: list[str] = []
        places: dict[tuple[object, ...], tuple[int, Leaf]] = {}
        for number, leaves in targets.items():
            tensor = self._tensor(number)
            for leaf in leaves if _is_wanted(tensor.key, only) else ():
                place = memory.place_of(leaf.value)
                first, tied = places.setdefault(place, (number, leaf)) if place is not None else (number, leaf)
                if tied is leaf:
                    wants.append(_Want(tensor, (leaf.offsets, leaf.shape), leaf.value))
                elif (first, tied.offsets) != (number, leaf.offsets) and not self._same_content(first, number):
                    torn.append(f"{leaf.key}: is the same memory as {tied.key}, of which another value was saved")
        return wants, torn

    def _same_content(self, one: int, other: int) -> bool:
        """By hash, and cut into the same pieces."""
        first, second = (
            sorted((shard.offsets, shard.shape, self._manifest.blobs[shard.blob].content) for shard in tensor.shards)
            for tensor in (self._tensor(one), self._tensor(other))
        )
        return first == second

    def fill_memory(self, targets: Mapping[int, memoryview]) -> None:
        """Whole tensors, by their numbers, into memory of their size."""
        wants = []
        for number, view in targets.items():
            tensor = self._tensor(number)
            wants.append(_Want(tensor, ((0,) * len(tensor.shape), tensor.shape), memory.Staged(view)))
        self._fill(wants)

    def check(self) -> Iterator[str]:
        """Read and verify every stored byte; yields what is wrong, for each damaged tensor."""
        tensors = self._manifest.tensors
        counted = _Counted(self._progress, sum(tensor.size_bytes for tensor in tensors))
        for number, tensor in enumerate(tensors):
            for shard in tensor.shards:
                try:
                    self._check_blob(tensor.key, self._manifest.blobs[shard.blob], counted)
                except CorruptError as error:
                    yield f"tensor {number} ({tensor.key}): {error}"

    def _check_blob(self, key: str, blob: Blob, counted: "_Counted") -> None:
        run = Copy(0, 0, blob.size_bytes)
        scratch = memoryview(bytearray(min(blob.size_bytes, 8 * PIECE_BYTES)))
        for read in reads(iter([run]), blob.size_bytes, verified=True):
            self._execute(_Job(key, blob, Read(read.offset, read.length, 0), scratch))
            counted.add(read.length)

    def _tensor(self, number: int) -> StoredTensor:
        if not isinstance(number, int) or not 0 <= number < len(self._manifest.tensors):
            raise CorruptError(f"a checkpoint's tree refers to tensor {number}, which it does not have")
        return self._manifest.tensors[number]

    def _make(self, numbers: Sequence[int], wants: Sequence[_Want] = ()) -> dict[int, Any]:
        """New tensors for `numbers`, filled together with `wants`."""
        values = {}
        fresh = []
        for number in numbers:
            tensor = self._tensor(number)
            values[number] = memory.make(tensor.origin, tensor.dtype, tensor.shape)
            fresh.append(_Want(tensor, ((0,) * len(tensor.shape), tensor.shape), values[number]))
        self._fill([*fresh, *wants])
        return values

    # ---- carrying it out --------------------------------------------------------------------------------------------

    def _fill(self, wants: Sequence[_Want]) -> None:
        """Every want, its reads spread over the threads in the order of the files."""
        for want in wants:
            self._check_covered(want)
        direct: list[_Job] = []
        indirect: list[_Want] = []
        for want in wants:
            view = memory.in_place(want.value)
            if view is None:
                indirect.append(want)
            else:
                direct += self._jobs(want, view)
        direct.sort(key=lambda job: (job.blob.file, job.blob.offset + job.read.offset))
        for job in direct:
            self._reading(job.blob.file)
        batches = list(_batches(direct))
        counted = _Counted(self._progress, sum(job.read.length for job in direct))
        for batch, _ in zip(batches, self._pool.map(self._execute_all, batches), strict=True):
            counted.add(sum(job.read.length for job in batch))
        for _ in self._pool.map(self._fill_indirect, indirect):
            pass

    def _fill_indirect(self, want: _Want) -> None:
        """Through a contiguous tensor of the same size."""
        between = memory.like(want.value)
        view = memory.in_place(between)
        assert view is not None, "a new tensor is contiguous"
        for job in self._jobs(want, view):
            self._execute(job)
        memory.assign(want.value, between)

    def _jobs(self, want: _Want, view: memoryview) -> list[_Job]:
        jobs = []
        for shard in want.tensor.shards:
            blob = self._manifest.blobs[shard.blob]
            runs = copies((shard.offsets, shard.shape), want.box, want.tensor.item_bytes)
            whole_pieces = self._verify or blob.packed is not None
            jobs += [
                _Job(want.tensor.key, blob, read, view) for read in reads(runs, blob.size_bytes, verified=whole_pieces)
            ]
        return jobs

    def _check_covered(self, want: _Want) -> None:
        """Every element of the box is stored somewhere: a missing shard is never zeros."""
        pieces = (intersection((shard.offsets, shard.shape), want.box) for shard in want.tensor.shards)
        missing = volume(want.box[1]) - covered([piece for piece in pieces if piece is not None])
        if missing > 0:
            raise CorruptError(f"{want.tensor.key}: {missing} elements of it are in no shard")

    def _execute_all(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self._execute(job)

    def _execute(self, job: _Job) -> None:
        """Verified bytes are read and checked piece by piece, while the cache has them."""
        read = job.read
        if read.target is not None:
            target = job.target[read.target : read.target + read.length]
        else:
            target = self._thread.scratch()[: read.length]
        step = PIECE_BYTES if self._verify or job.blob.packed is not None else max(read.length, 1)
        for at in range(0, read.length, step):
            self._read_piece(job, read.offset + at, target[at : at + step])
        if read.target is None:
            for copy in read.scattered:
                job.target[copy.target : copy.target + copy.length] = target[copy.source : copy.source + copy.length]

    def _read_piece(self, job: _Job, offset: int, target: memoryview) -> None:
        """`offset`: in the stored piece of the tensor."""
        packed = job.blob.packed
        if packed is not None:
            self._read_packed(job, packed, offset // PIECE_BYTES, target)
            return
        assert not self._verify or offset % PIECE_BYTES == 0, "verified reads begin at a piece"
        self._read_stored(job, job.blob.offset + offset, target, offset // PIECE_BYTES)

    def _read_packed(self, job: _Job, packed: Packed, piece: int, target: memoryview) -> None:
        start, end = packed.span(piece)
        whole = end - start == len(target)
        stored = target if whole else self._thread.stored()[: end - start]
        self._read_stored(job, job.blob.offset + start, stored, piece)
        if not whole:
            try:
                self._thread.unpacker().unpack(stored, packed.width, target)
            except CorruptError as error:
                place = f"byte {job.blob.offset + start} of {self._file(job.blob.file)}"
                raise CorruptError(f"{job.key}: {error}, at {place}") from error

    def _read_stored(self, job: _Job, at: int, target: memoryview, piece: int) -> None:
        """What the file has at `at`. When it is verified, it is one piece, as it is stored."""
        reading = self._reading(job.blob.file)
        if not self._verify:
            whole = reading.read_into(at, target) == len(target)
        else:
            crc = read_summed(reading, at, target)
            whole = crc is not None
            if whole and crc != job.blob.crcs[piece]:
                raise CorruptError(f"{job.key}: its checksum is wrong at byte {at} of {self._file(job.blob.file)}")
        if not whole:
            raise CorruptError(f"{job.key}: {self._file(job.blob.file)} is shorter than its manifest says")

    def _reading(self, number: int) -> Reading:
        with self._lock:
            reading = self._readings.get(number)
            if reading is None:
                path = self._path + b"/" + self._manifest.files[number].name.encode()
                reading = self._open_files.enter_context(
                    open_steady(self._catalog.volume, self._catalog.host.clock, path)
                )
                self._readings[number] = reading
            return reading

    def _file(self, number: int) -> str:
        return self._manifest.files[number].name


def _batches(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Runs of consecutive jobs that read up to `BATCH_BYTES` together; one alone may read more."""
    batch: list[_Job] = []
    size = 0
    for job in jobs:
        if batch and size + job.read.length > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += job.read.length
    if batch:
        yield batch


def _is_wanted(key: str, only: Sequence[str] | None) -> bool:
    return only is None or any(fnmatchcase(key, pattern) for pattern in only)


def _pruned(node: Node, kept: set[int]) -> Node:
    """The skeleton with `None` for tensors that are not kept."""
    if not isinstance(node, list) or not node:
        return node
    if node[0] == "x":
        return node if node[1] in kept else None
    if node[0] in ("d", "o"):
        return [node[0], *([key, _pruned(item, kept)] for key, item in node[1:])]
    if node[0] in ("l", "t"):
        return [node[0], *(_pruned(item, kept) for item in node[1:])]
    return node
