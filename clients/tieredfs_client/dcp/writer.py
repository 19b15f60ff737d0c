"""`TieredWriter`: DCP saves onto a volume.

Every rank writes files of its own, durable, under names that no save has used; the coordinator replaces the manifest, which is
the commit. So until `finish` the old checkpoint is there, and from then on the new one; readers of the old keep it as long as
they have it open. What a failed or killed save left is swept by the next that succeeds. One save at a time into one checkpoint:
of two, the one that finishes second finds its files swept, and fails.

Any failure is raised in the rank that has it, and by DCP on all. May be pickled (process-based `async_save`): the volume is
opened where it is written. One save at a time per instance.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from tieredfs.config import parse_durability
from tieredfs.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    NotFoundError,
    NotSupportedError,
    TieredError,
    UnstorableError,
)
from tieredfs.host import local_host
from tieredfs.model import Durability, FileKind
from tieredfs_client.checkpoint.documents import write_document
from tieredfs_client.checkpoint.dtypes import code_of_torch
from tieredfs_client.checkpoint.layout import Item
from tieredfs_client.checkpoint.plan import flaw
from tieredfs_client.dcp.items import ItemWriter, Piece
from tieredfs_client.dcp.manifest import (
    MANIFEST_NAME,
    ChunkKey,
    Manifest,
    Stored,
    StoredChunk,
    StoredTensor,
    data_file_name,
    encode,
    is_data_file,
    paths_of,
)
from tieredfs_client.dcp.place import Place
from tieredfs_client.filesystem.location import PROTOCOL, parse

_LIST_BATCH: Final = 1024


class TieredWriter(StorageWriter):
    """`checkpoint_id`: a directory of a volume, `tieredfs:///data/volume.db!/runs/step-1`, or a path with `meta_url`.

    `durability`: what a save waits for, `ssd` or `store` (None: as the volume says). `overwrite` False: AlreadyExistsError where
    there is a checkpoint.
    """

    def __init__(
        self,
        checkpoint_id: str | os.PathLike[str],
        *,
        meta_url: str | None = None,
        durability: Durability | str | None = None,
        overwrite: bool = True,
    ) -> None:
        self._meta_url = meta_url
        self._durability = parse_durability(durability) if isinstance(durability, str) else durability
        self._overwrite = overwrite
        self._rank = 0
        self._place = Place.of(checkpoint_id, meta_url)
        self.written_bytes = 0

    @property
    def checkpoint_id(self) -> str:
        return self._place.path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._place = Place.of(checkpoint_id, self._meta_url or self._place.meta_url)
        self.written_bytes = 0

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return (
            os.fspath(checkpoint_id).startswith(f"{PROTOCOL}://")
            and parse(os.fspath(checkpoint_id)).meta_url is not None
        )

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    # ---- planning ---------------------------------------------------------------------------------------------------

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if not kwargs.get("use_collectives", True):
            raise NotSupportedError("a checkpoint without collectives has no moment at which it is whole")
        self._rank = kwargs.get("rank") or 0

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The coordinator looks before anybody writes."""
        if not self._overwrite and self._is_there():
            raise AlreadyExistsError(f"there is a checkpoint at {self._place.path}, and overwrite is False")
        return plans

    def _is_there(self) -> bool:
        try:
            self._place.volume.stat(self._place.at(MANIFEST_NAME))
        except NotFoundError:
            return False
        return True

    # ---- every rank -------------------------------------------------------------------------------------------------

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        token = secrets.token_hex(8)
        volume = self._place.volume

        def path_of(number: int) -> tuple[str, bytes]:
            name = data_file_name(self._rank, token, number)
            return name, self._place.at(name)

        pieces = [_piece(item, planner) for item in plan.items]
        stored = ItemWriter(volume, local_host().files, self._durability).write(pieces, path_of)
        results = [WriteResult(item.index, one.size_bytes, one) for item, one in zip(plan.items, stored, strict=True)]
        self.written_bytes += sum(one.size_bytes for one in stored)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    # ---- the coordinator --------------------------------------------------------------------------------------------

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Raises ConflictError where another save has swept what this one wrote, UnstorableError where the chunks of a tensor do
        not make it up, or overlap; then the checkpoint is as it was."""
        written: dict[ChunkKey, Stored] = {
            (one.index.fqn, _offsets(one.index.offset)): one.storage_data for own in results for one in own
        }
        manifest = _manifest(metadata, written, self._sizes(written))
        path = self._place.at(MANIFEST_NAME)
        files, volume = local_host().files, self._place.volume
        write_document(files, volume, path, encode(manifest), replace=self._overwrite, durability=self._durability)
        metadata.storage_meta = self.storage_meta()
        with contextlib.suppress(TieredError):  # the checkpoint is committed; what is left, the next save sweeps
            self._sweep(manifest)

    def _sizes(self, written: Mapping[ChunkKey, Stored]) -> dict[str, int]:
        """Of the data files, which must all be there."""
        sizes = {}
        for name in sorted({one.file for one in written.values()}):
            try:
                sizes[name] = self._place.volume.stat(self._place.at(name)).size_bytes
            except NotFoundError as error:
                raise ConflictError(f"{name} is gone: another save into {self._place.path} has finished") from error
        return sizes

    def _sweep(self, manifest: Manifest) -> None:
        """Data files of earlier saves."""
        volume, after = self._place.volume, b""
        while found := volume.entries(os.fsencode(self._place.path), after, _LIST_BATCH):
            for entry, _ in found:
                name = os.fsdecode(entry.name)
                if entry.kind is FileKind.REGULAR and is_data_file(name) and name not in manifest.files:
                    volume.remove(self._place.at(name))
            after = found[-1][0].name


def _piece(item: WriteItem, planner: SavePlanner) -> Piece:
    if item.type is WriteItemType.BYTE_IO:
        data = planner.resolve_data(item)
        assert not isinstance(data, torch.Tensor), "DCP resolves objects to bytes"
        view = data.getbuffer()
        return Piece(Item(item.index.fqn, "U8", 1, (len(view),), len(view)), lambda: view)
    about = item.tensor_data
    assert about is not None, "DCP plans tensors with their shapes"
    shape = tuple(about.chunk.sizes)
    dtype = about.properties.dtype
    name = item.index.fqn
    if shape != tuple(about.size):
        name += "@" + ",".join(f"{at}+{length}" for at, length in zip(about.chunk.offsets, shape, strict=True))
    size = torch.Size(shape).numel() * dtype.itemsize
    return Piece(Item(name, _code(dtype), dtype.itemsize, shape, size), lambda: _resolved(planner, item))


def _resolved(planner: SavePlanner, item: WriteItem) -> Any:
    value = planner.resolve_data(item)
    if not isinstance(value, torch.Tensor):
        raise UnstorableError(f"{item.index.fqn}: planned a tensor, resolved a {type(value).__name__}")
    plain = value.detach()
    return plain.as_subclass(torch.Tensor) if type(plain) is not torch.Tensor else plain


def _code(dtype: torch.dtype) -> str:
    return code_of_torch(str(dtype).removeprefix("torch."))


def _offsets(offsets: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if offsets is None else tuple(offsets)


def _manifest(metadata: Metadata, written: Mapping[ChunkKey, Stored], files: Mapping[str, int]) -> Manifest:
    tensors: dict[str, StoredTensor] = {}
    objects: dict[str, Stored] = {}
    for key, about in metadata.state_dict_metadata.items():
        if isinstance(about, BytesStorageMetadata):
            objects[key] = _written(written, key, None)
        else:
            tensors[key] = _tensor(key, about, written)
    return Manifest(secrets.token_hex(8), files, tensors, objects, paths_of(metadata.planner_data))


def _tensor(key: str, about: TensorStorageMetadata, written: Mapping[ChunkKey, Stored]) -> StoredTensor:
    chunks = tuple(
        StoredChunk(tuple(one.offsets), tuple(one.sizes), _written(written, key, tuple(one.offsets)))
        for one in about.chunks
    )
    dtype = about.properties.dtype
    found = flaw(about.size, [(chunk.offsets, chunk.shape) for chunk in chunks])
    if found is not None:  # DCP's own planner looks at that, but not of one rank; others need not
        raise UnstorableError(f"{key}: {found}")
    return StoredTensor(_code(dtype), dtype.itemsize, tuple(about.size), about.properties.requires_grad, chunks)


def _written(written: Mapping[ChunkKey, Stored], key: str, offsets: tuple[int, ...] | None) -> Stored:
    found = written.get((key, offsets))
    if found is None:
        raise CorruptError(f"{key}: no rank wrote its chunk at {offsets}")
    return found
