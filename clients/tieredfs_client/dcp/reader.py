"""`TieredReader`: DCP loads from a volume.

Only the bytes that are asked for are read, in coalesced ranges, straight into the target where its memory is contiguous; with
`verify` (the default) whole checksummed pieces of 4 MiB, so a slice reads a little more. A load sees one checkpoint: files
are opened when it is planned, on every rank of the same one, and stay readable when the checkpoint is replaced meanwhile.

Objects are handed to DCP's planner as the bytes that were saved; the default planner unpickles them (`torch.load` with
`weights_only=False`). Load objects only from checkpoints that you trust, or give a planner that does otherwise.
"""

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from tieredfs.errors import ConflictError, CorruptError, NotFoundError, NotSupportedError, StateMismatchError
from tieredfs.host import local_host
from tieredfs.volume.contract import Reading
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.checksums import read_summed
from tieredfs_client.checkpoint.documents import open_steady
from tieredfs_client.checkpoint.dtypes import torch_of_code
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.checkpoint.plan import Read, copies, reads
from tieredfs_client.dcp.manifest import Manifest, Stored, StoredChunk, StoredTensor
from tieredfs_client.dcp.place import Place
from tieredfs_client.filesystem.location import PROTOCOL, parse

_THREADS: Final = max(2, min(4, os.cpu_count() or 2))


@dataclass(frozen=True, slots=True)
class _Job:
    """One read of a stored chunk into the memory that is filled."""

    key: str
    stored: Stored
    read: Read
    target: memoryview


class TieredReader(StorageReader):
    """`checkpoint_id`, `meta_url`: as for `TieredWriter`. `bytes_read`: what the load read from the volume so far."""

    def __init__(
        self, checkpoint_id: str | os.PathLike[str], *, meta_url: str | None = None, verify: bool = True
    ) -> None:
        self._meta_url = meta_url
        self._verify = verify
        self._place = Place.of(checkpoint_id, meta_url)
        self._manifest: Manifest | None = None
        self._chunks: dict[tuple[str, tuple[int, ...]], StoredChunk] = {}
        self._readings: dict[str, Reading] = {}
        self._lock = threading.Lock()
        self.bytes_read = 0

    @property
    def checkpoint_id(self) -> str:
        return self._place.path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.close()
        if checkpoint_id is not None:
            self._place = Place.of(checkpoint_id, self._meta_url or self._place.meta_url)
        self._manifest = None
        self.bytes_read = 0

    def close(self) -> None:
        """The files of a load that was planned and not carried out."""
        readings, self._readings = self._readings, {}
        for reading in readings.values():
            reading.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return (
            os.fspath(checkpoint_id).startswith(f"{PROTOCOL}://")
            and parse(os.fspath(checkpoint_id)).meta_url is not None
        )

    # ---- planning ---------------------------------------------------------------------------------------------------

    def read_metadata(self, *args: Any) -> Metadata:  # noqa: ARG002
        """Raises NotFoundError, CorruptError, NewerFormatError."""
        manifest = self._place.manifest()
        described: dict[str, STORAGE_TYPES] = {key: _described(key, one) for key, one in manifest.tensors.items()}
        described.update({key: BytesStorageMetadata() for key in manifest.objects})
        return Metadata(described, manifest.paths, manifest, StorageMeta(checkpoint_id=self.checkpoint_id))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if not isinstance(metadata.storage_data, Manifest):
            raise StateMismatchError("this metadata is not of a checkpoint of a volume")
        self._manifest = metadata.storage_data
        self._chunks = self._manifest.chunk_index()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Opens what the plan reads, so that it stays readable."""
        manifest = self._known()
        for item in plan.items:
            name = self._stored(item).file
            if name not in self._readings:
                self._readings[name] = self._opened(name)
        return replace(plan, storage_data=manifest.save)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        if len({plan.storage_data for plan in plans}) > 1:
            raise ConflictError(f"{self._place.path} was replaced while ranks began to load it: load again")
        return plans

    def _known(self) -> Manifest:
        assert self._manifest is not None, "DCP sets a reader up before it plans"
        return self._manifest

    def _opened(self, name: str) -> Reading:
        try:
            return open_steady(self._place.volume, local_host().clock, self._place.at(name))
        except NotFoundError as error:
            if self._place.manifest().save != self._known().save:
                raise ConflictError(f"{self._place.path} was replaced while it was opened: load again") from error
            raise CorruptError(f"{self._place.path}: its file {name} is missing") from error

    def _stored(self, item: ReadItem) -> Stored:
        if item.type is LoadItemType.BYTE_IO:
            return self._known().objects[item.storage_index.fqn]
        return self._chunk(item).stored

    def _chunk(self, item: ReadItem) -> StoredChunk:
        return self._chunks[item.storage_index.fqn, tuple(item.storage_index.offset or ())]

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Raises CorruptError, naming what is damaged; then some targets may have been filled."""
        try:
            with ThreadPoolExecutor(_THREADS, "tieredfs-dcp-read") as pool:
                self._fill_tensors([item for item in plan.items if item.type is LoadItemType.TENSOR], planner, pool)
            for item in plan.items:
                if item.type is LoadItemType.BYTE_IO:
                    planner.load_bytes(item, io.BytesIO(self._object(item)))
        finally:
            self.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _fill_tensors(self, items: list[ReadItem], planner: LoadPlanner, pool: ThreadPoolExecutor) -> None:
        targets = [planner.resolve_tensor(item).detach() for item in items]
        direct: list[_Job] = []
        indirect: list[tuple[ReadItem, torch.Tensor]] = []
        for item, target in zip(items, targets, strict=True):
            if tuple(target.shape) != tuple(item.lengths):
                raise StateMismatchError(f"{item.dest_index.fqn}: {list(item.lengths)} into {list(target.shape)}")
            view = memory.in_place(target) if target.dtype == self._dtype(item) else None
            if view is not None:
                direct += self._jobs(item, view)
            else:
                indirect.append((item, target))
        _all_of(pool, self._execute, direct)
        _all_of(pool, self._fill_indirect, indirect)
        for item, target in zip(items, targets, strict=True):
            planner.commit_tensor(item, target)

    def _fill_indirect(self, wanted: tuple[ReadItem, torch.Tensor]) -> None:
        """Through contiguous memory of the stored type: for strided targets, other devices and other types."""
        item, target = wanted
        between = torch.empty(tuple(item.lengths), dtype=self._dtype(item))
        view = memory.in_place(between)
        assert view is not None, "a new tensor is contiguous"
        for job in self._jobs(item, view):
            self._execute(job)
        with torch.no_grad():
            target.copy_(between)

    def _dtype(self, item: ReadItem) -> torch.dtype:
        return _dtype_of(item.storage_index.fqn, self._known().tensors[item.storage_index.fqn])

    def _jobs(self, item: ReadItem, view: memoryview) -> list[_Job]:
        key = item.storage_index.fqn
        chunk = self._chunk(item)
        stored = ((0,) * len(chunk.shape), chunk.shape)
        wanted = (tuple(item.storage_offsets), tuple(item.lengths))
        runs = copies(stored, wanted, self._known().tensors[key].item_bytes)
        planned = reads(runs, chunk.stored.size_bytes, verified=self._verify)
        return [_Job(key, chunk.stored, read, view) for read in planned]

    def _execute(self, job: _Job) -> None:
        read = job.read
        if read.target is not None:
            self._read(job.key, job.stored, read.offset, job.target[read.target : read.target + read.length])
            return
        scratch = memoryview(bytearray(read.length))
        self._read(job.key, job.stored, read.offset, scratch)
        for copy in read.scattered:
            job.target[copy.target : copy.target + copy.length] = scratch[copy.source : copy.source + copy.length]

    def _read(self, key: str, stored: Stored, offset: int, target: memoryview) -> None:
        """`offset` counts in the chunk; verified piece by piece, while the cache has it."""
        step = PIECE_BYTES if self._verify else max(len(target), 1)
        for at in range(0, len(target), step):
            piece = target[at : at + step]
            start = stored.offset + offset + at
            crc = None
            if not self._verify:
                whole = self._readings[stored.file].read_into(start, piece) == len(piece)
            else:
                crc = read_summed(self._readings[stored.file], start, piece)
                whole = crc is not None
            if not whole:
                raise CorruptError(f"{key}: {stored.file} is shorter than its manifest says")
            with self._lock:
                self.bytes_read += len(piece)
            if self._verify and crc != stored.crcs[(offset + at) // PIECE_BYTES]:
                raise CorruptError(f"{key}: its checksum is wrong at byte {start} of {stored.file}")

    def _object(self, item: ReadItem) -> bytes:
        stored = self._stored(item)
        data = bytearray(stored.size_bytes)
        self._read(item.storage_index.fqn, stored, 0, memoryview(data))
        return bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        """Open files and locks stay behind."""
        return {**self.__dict__, "_readings": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _all_of(pool: ThreadPoolExecutor, call: Any, arguments: list[Any]) -> None:
    """The first failure is raised, and what has not begun is not begun."""
    jobs = [pool.submit(call, one) for one in arguments]
    try:
        for job in jobs:
            job.result()
    finally:
        for job in jobs:
            job.cancel()


def _dtype_of(key: str, stored: StoredTensor) -> torch.dtype:
    found = getattr(torch, torch_of_code(stored.dtype) or "", None)
    if not isinstance(found, torch.dtype):
        raise NotSupportedError(f"{key}: this torch has no {stored.dtype}")
    return found


def _described(key: str, stored: StoredTensor) -> TensorStorageMetadata:
    properties = TensorProperties(dtype=_dtype_of(key, stored), requires_grad=stored.requires_grad)
    chunks = [ChunkStorageMetadata(torch.Size(one.offsets), torch.Size(one.shape)) for one in stored.chunks]
    return TensorStorageMetadata(properties, torch.Size(stored.shape), chunks)
