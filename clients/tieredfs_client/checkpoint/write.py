"""One rank's part of a save: tensors from their memory into files of the volume, checksummed on the way.

Tensors go to the file straight from their memory (`pwritev`), in slices of 16 MiB from a few threads; each slice's checksums
are computed while its memory is in the cache, and what has been written is synced while more is being written, so that
the final sync finds little to do. Tensors that are as they were in the last checkpoint are not written: a file is
made of its blocks (`FileSystem.splice`). Whether one is unchanged is asked only where its first 64 KiB are: then its
content hash decides, before anything is written.

Memory: nothing for contiguous CPU tensors; for others a copy of one tensor per thread.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import NoSpaceError, NotFoundError, StaleError, UnavailableError
from tieredfs.host import Files, crash
from tieredfs.model import Durability, InodeId
from tieredfs.volume.filesystem import FileSystemContract, Part
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.checksums import Digest, PieceSums, digest_of, joined, probe_of, sums_of
from tieredfs_client.checkpoint.layout import Blob, FileLayout, Item, StoredFile, lay_out, split_into_files
from tieredfs_client.checkpoint.tree import Leaf

SLICE_BYTES: Final = 16 << 20
SYNC_EVERY_BYTES: Final = 256 << 20
REUSE_BYTES_MIN: Final = 4 << 20
"""Less than this is written again: making a file by reference has its price, too (a stored header, a transaction)."""
THREADS: Final = max(2, min(4, os.cpu_count() or 2))


@dataclass(frozen=True, slots=True)
class Earlier:
    """Tensors of an earlier checkpoint, by what they are (see `identity`): where their bytes are."""

    path: bytes
    files: tuple[StoredFile, ...]
    blobs: Mapping[tuple[object, ...], Blob]


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """What one rank stored. `blobs[i]`: of its leaf i; `Blob.file` counts in `files`."""

    files: tuple[StoredFile, ...]
    blobs: Mapping[int, Blob]
    written_bytes: int
    reused_bytes: int


def identity(leaf: Leaf) -> tuple[object, ...]:
    """Under which a tensor is looked for in an earlier checkpoint."""
    return (leaf.key, leaf.dtype, leaf.global_shape, leaf.offsets, leaf.shape)


class PartWriter:
    """Writes parts; its threads live as long as it does. One part at a time."""

    def __init__(self, volume: FileSystemContract, files: Files, durability: Durability | None = None) -> None:
        self._volume = volume
        self._files = files
        self._durability = durability
        self._pool = ThreadPoolExecutor(THREADS, "tieredfs-ckpt-write")
        self._syncs = ThreadPoolExecutor(1, "tieredfs-ckpt-sync")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._syncs.shutdown(cancel_futures=True)

    def digests(self, leaves: Sequence[Leaf], wanted: Sequence[int]) -> dict[int, Digest]:
        """Of tensors by their number, without writing them."""
        found = self._pool.map(lambda index: digest_of(memory.bytes_of(leaves[index].value)), wanted)
        return dict(zip(wanted, found, strict=True))

    def write(
        self,
        directory: bytes,
        rank: int,
        leaves: Sequence[Leaf],
        chosen: Sequence[int],
        *,
        known: Mapping[int, Digest],
        earlier: Earlier | None,
    ) -> WrittenPart:
        """Store the `chosen` leaves as files in `directory`/data. `known`: digests that were computed already."""
        digests = dict(known)
        reused = self._unchanged(leaves, chosen, digests, earlier) if earlier is not None else {}
        if sum(leaves[index].size_bytes for index in reused) < REUSE_BYTES_MIN:
            reused = {}
        files: list[StoredFile] = []
        blobs: dict[int, Blob] = {}
        reused_bytes = 0
        if reused and earlier is not None:
            try:
                file, made = self._refer(directory, rank, leaves, reused, earlier)
            except (NotFoundError, StaleError):  # deleted meanwhile: then they are written
                reused = {}
            else:
                files.append(file)
                blobs |= made
                reused_bytes = sum(blob.size_bytes for blob in made.values())
        fresh = [index for index in chosen if index not in reused]
        for number, group in enumerate(split_into_files([leaves[index].size_bytes for index in fresh])):
            members = [fresh[position] for position in group]
            name = f"data-r{rank:05d}-{number:03d}.safetensors"
            size, made = self._write_file(directory + b"/data/" + name.encode(), len(files), leaves, members, digests)
            files.append(StoredFile(name, size, reused=False))
            blobs |= made
        written_bytes = sum(leaves[index].size_bytes for index in fresh)
        return WrittenPart(tuple(files), blobs, written_bytes, reused_bytes)

    # ---- unchanged tensors ------------------------------------------------------------------------------------------

    def _unchanged(
        self, leaves: Sequence[Leaf], chosen: Sequence[int], digests: dict[int, Digest], earlier: Earlier
    ) -> dict[int, Blob]:
        """Leaves whose content the earlier checkpoint has; what is hashed on the way goes to `digests`."""

        def look(index: int) -> tuple[Blob, Digest] | None:
            leaf = leaves[index]
            blob = earlier.blobs.get(identity(leaf))
            if blob is None or leaf.size_bytes == 0 or blob.size_bytes != leaf.size_bytes:
                return None
            digest = digests.get(index)
            if digest is None:
                view = memory.bytes_of(leaf.value)
                if probe_of(view) != blob.probe:
                    return None
                digest = digest_of(view)
            return blob, digest

        same: dict[int, Blob] = {}
        for index, found in zip(chosen, self._pool.map(look, chosen), strict=True):
            if found is not None:
                blob, digests[index] = found
                if digests[index].content == blob.content:
                    same[index] = blob
        return same

    def _refer(
        self, directory: bytes, rank: int, leaves: Sequence[Leaf], reused: Mapping[int, Blob], earlier: Earlier
    ) -> tuple[StoredFile, dict[int, Blob]]:
        """One file of this checkpoint made of ranges of earlier files, in their order there."""
        members = sorted(reused, key=lambda index: (reused[index].file, reused[index].offset))
        layout = lay_out([_item(leaves[index]) for index in members])
        inodes: dict[int, InodeId] = {}
        for number in {blob.file for blob in reused.values()}:
            path = earlier.path + b"/" + earlier.files[number].name.encode()
            inodes[number] = self._volume.stat(path).inode
        header_path = directory + f"/header-r{rank:05d}".encode()
        with self._volume.create() as header:
            self._files.write(header.descriptor, [layout.header], 0)
            inode = header.commit(header_path).inode
        order = sorted(range(len(members)), key=lambda position: layout.offsets[position])
        parts = [Part(inode, 0, len(layout.header))]
        for position in order:
            blob = reused[members[position]]
            parts.append(Part(inodes[blob.file], blob.offset, blob.size_bytes))
        name = f"same-r{rank:05d}.safetensors"
        with self._volume.splice(_joined_parts(parts)) as writing:
            writing.commit(directory + b"/data/" + name.encode(), durability=self._durability)
        made = {
            index: Blob(0, layout.offsets[position], reused[index].size_bytes, *_sums(reused[index]))
            for position, index in enumerate(members)
        }
        return StoredFile(name, layout.size_bytes, reused=True), made

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _write_file(
        self, path: bytes, number: int, leaves: Sequence[Leaf], members: Sequence[int], digests: Mapping[int, Digest]
    ) -> tuple[int, dict[int, Blob]]:
        layout = lay_out([_item(leaves[index]) for index in members])
        with self._volume.create() as writing:
            finished = self._fill(writing.descriptor, layout, leaves, members, digests)
            crash.here("checkpoint.part-written")
            writing.commit(path, durability=self._durability)
        made = {}
        for position, index in enumerate(members):
            digest = finished[index]
            size = leaves[index].size_bytes
            made[index] = Blob(number, layout.offsets[position], size, digest.content, digest.probe, digest.crcs)
        return layout.size_bytes, made

    def _fill(
        self,
        descriptor: int,
        layout: FileLayout,
        leaves: Sequence[Leaf],
        members: Sequence[int],
        digests: Mapping[int, Digest],
    ) -> dict[int, Digest]:
        """Header and tensors; returns when no thread uses the descriptor any more. Raises NoSpaceError, UnavailableError."""
        with _speaking_the_domain():
            self._files.allocate(descriptor, 0, 0, layout.size_bytes)
            self._files.write(descriptor, [layout.header], 0)
            flow = _Flow(self._files, descriptor, self._pool, self._syncs)
            try:
                pending = {
                    index: self._start(flow, leaves[index], layout.offsets[position], digests.get(index))
                    for position, index in enumerate(members)
                }
                return {index: _finish(parts) for index, parts in pending.items()}
            finally:
                flow.settle()

    def _start(self, flow: "_Flow", leaf: Leaf, offset: int, known: Digest | None) -> "_Pending":
        """Hand the slices of a tensor to the threads; one whose bytes must be copied first is one job."""
        if memory.in_place(leaf.value) is None:
            return _Pending(None, [flow.copied(leaf, offset)], known)
        view = memory.bytes_of(leaf.value)
        return _Pending(view, flow.in_slices(view, offset, summed=known is None), known)


Summed = PieceSums | Digest | None
"""What a job found: of some pieces, of a whole tensor, or nothing that was not known."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A tensor under way. `view` None: its one job returns the whole digest."""

    view: memoryview | None
    jobs: Sequence[Future[Summed]]
    known: Digest | None


def _finish(pending: _Pending) -> Digest:
    results = [job.result() for job in pending.jobs]
    if pending.known is not None:
        return pending.known
    if pending.view is None:
        (digest,) = results
        assert isinstance(digest, Digest)
        return digest
    return joined(pending.view, [part for part in results if isinstance(part, PieceSums)])


class _Flow:
    """Bytes on their way into one file, synced behind the writers every `SYNC_EVERY_BYTES`."""

    def __init__(self, files: Files, descriptor: int, pool: ThreadPoolExecutor, syncs: ThreadPoolExecutor) -> None:
        self._files = files
        self._descriptor = descriptor
        self._pool = pool
        self._syncs = syncs
        self._lock = threading.Lock()
        self._unsynced = 0
        self._jobs: list[Future[Summed]] = []
        self._started: list[Future[None]] = []

    def copied(self, leaf: Leaf, offset: int) -> Future[Summed]:
        """A tensor whose bytes must be copied first."""
        self._jobs.append(self._pool.submit(self._write_copied, leaf, offset))
        return self._jobs[-1]

    def in_slices(self, view: memoryview, offset: int, *, summed: bool) -> list[Future[Summed]]:
        """Memory that is written from where it is."""
        write = self._summed if summed else self._plainly
        jobs: list[Future[Summed]] = [
            self._pool.submit(write, view[at : at + SLICE_BYTES], offset + at)
            for at in range(0, len(view), SLICE_BYTES)
        ]
        self._jobs += jobs
        return jobs

    def _write_copied(self, leaf: Leaf, offset: int) -> Digest:
        view = memory.bytes_of(leaf.value)
        sums = [self._summed(view[at : at + SLICE_BYTES], offset + at) for at in range(0, len(view), SLICE_BYTES)]
        return joined(view, sums)

    def _plainly(self, view: memoryview, offset: int) -> None:
        self._write(view, offset)

    def _summed(self, view: memoryview, offset: int) -> PieceSums:
        sums = sums_of(view)
        self._write(view, offset)
        return sums

    def _write(self, view: memoryview, offset: int) -> None:
        self._files.write(self._descriptor, [view], offset)
        with self._lock:
            self._unsynced += len(view)
            due = self._unsynced >= SYNC_EVERY_BYTES
            if due:
                self._unsynced = 0
                self._started.append(self._syncs.submit(self._files.sync, self._descriptor))

    def settle(self) -> None:
        """After it no thread uses the descriptor, however the writing ended. Raises what a sync did."""
        for job in self._jobs:
            job.cancel()
        wait(self._jobs)
        for sync in self._started:
            sync.result()


@contextlib.contextmanager
def _speaking_the_domain() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"the SSD has no room for this checkpoint: {error.strerror}") from error
        raise UnavailableError(f"the SSD fails: {error.strerror}") from error


def _item(leaf: Leaf) -> Item:
    name = leaf.key
    if leaf.sharded:
        name += "@" + ",".join(f"{at}+{length}" for at, length in zip(leaf.offsets, leaf.shape, strict=True))
    return Item(name, leaf.dtype, leaf.item_bytes, leaf.shape, leaf.size_bytes)


def _sums(blob: Blob) -> tuple[str, int, tuple[int, ...]]:
    return blob.content, blob.probe, blob.crcs


def _joined_parts(parts: Sequence[Part]) -> list[Part]:
    """Neighbours in one file become one part."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and last.inode == part.inode and last.offset + last.length == part.offset:
            merged[-1] = Part(last.inode, last.offset, last.length + part.length)
        elif part.length:
            merged.append(part)
    return merged
