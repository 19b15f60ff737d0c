"""Checkpoint directories that DCP's own file-system storage wrote, read without running what is in them.

`.metadata` there is a pickle. It is read by an unpickler that admits DCP's metadata classes and the torch values in them, by
name, and refuses everything else with its name. Tensors and objects are `torch.save` files inside the data files, read with
`weights_only`. The state comes back whole and nested as it was saved; sharded tensors are put together.
"""

import io
import itertools
import os
import pickle
from collections.abc import Mapping
from typing import IO, Any, Final

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from tieredfs.errors import ConfigurationError, CorruptError, UnstorableError

METADATA_NAME: Final = ".metadata"
_METADATA_MODULE: Final = "torch.distributed.checkpoint.metadata"
_ADMITTED: Final = {
    _METADATA_MODULE: {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype | torch.layout))},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}


class _Unpickler(pickle.Unpickler):
    """`find_class` is the only way by which a pickle gets at code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ADMITTED.get(module, ()):
            raise UnstorableError(
                f"{METADATA_NAME} asks for {module}.{name}, which is no part of DCP's metadata: refused"
            )
        return super().find_class(module, name)


def is_dcp_directory(directory: str) -> bool:
    return os.path.isfile(os.path.join(directory, METADATA_NAME))


def read_dcp_directory(directory: str) -> dict[Any, Any]:
    """Raises UnstorableError for what is not safe to read, CorruptError for damage, ConfigurationError for other formats."""
    metadata = read_metadata(os.path.join(directory, METADATA_NAME))
    flat: dict[str, Any] = {}
    with _DataFiles(directory, metadata) as files:
        for key, about in metadata.state_dict_metadata.items():
            flat[key] = files.object(key) if isinstance(about, BytesStorageMetadata) else files.tensor(key, about)
    return _nested(flat, metadata.planner_data)


def read_metadata(path: str) -> Metadata:
    try:
        with open(path, "rb") as file:
            metadata = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise CorruptError(f"{path} cannot be read: {type(error).__name__} {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CorruptError(f"{path} holds no metadata of DCP's file-system storage")
    return metadata


class _DataFiles:
    """The `.distcp` files of a directory. A context manager."""

    def __init__(self, directory: str, metadata: Metadata) -> None:
        self._directory = directory
        self._places: Mapping[MetadataIndex, Any] = metadata.storage_data
        self._open: dict[str, IO[bytes]] = {}

    def __enter__(self) -> "_DataFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def tensor(self, key: str, about: TensorStorageMetadata) -> torch.Tensor:
        """The whole tensor, from its chunks."""
        whole = torch.empty(about.size, dtype=about.properties.dtype)
        missing = whole.numel()
        for chunk in about.chunks:
            part = self._loaded(key, MetadataIndex(key, chunk.offsets))
            if not isinstance(part, torch.Tensor) or part.shape != chunk.sizes or part.dtype != whole.dtype:
                raise CorruptError(f"{key}: its chunk at {list(chunk.offsets)} is not what {METADATA_NAME} says")
            target = whole
            for axis, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                target = target.narrow(axis, start, length)
            target.copy_(part.detach())
            missing -= part.numel()
        if missing > 0:
            raise CorruptError(f"{key}: {missing} elements of it are in no chunk")
        return whole

    def object(self, key: str) -> Any:
        return self._loaded(key, MetadataIndex(key))

    def _loaded(self, key: str, index: MetadataIndex) -> Any:
        place = self._places.get(index)
        if place is None:
            raise CorruptError(f"{key}: {METADATA_NAME} does not say where it is")
        if getattr(place, "transform_descriptors", None):
            raise ConfigurationError(f"{key} was saved through {list(place.transform_descriptors)}: load it with DCP")
        file = self._file(key, place.relative_path)
        file.seek(place.offset)
        data = file.read(place.length)
        if len(data) != place.length:
            raise CorruptError(f"{key}: {place.relative_path} is shorter than {METADATA_NAME} says")
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnstorableError(f"{key}: cannot be read without running code that comes with it: {error}") from error
        except (RuntimeError, EOFError, ValueError) as error:
            raise CorruptError(f"{key}: {place.relative_path} is damaged at {place.offset}: {error}") from error

    def _file(self, key: str, name: str) -> IO[bytes]:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise CorruptError(f"{key}: {name!r} is no name of a data file")
        if name not in self._open:
            try:
                self._open[name] = open(os.path.join(self._directory, name), "rb")  # noqa: SIM115
            except FileNotFoundError as error:
                raise CorruptError(f"{key}: the file {name} is missing") from error
        return self._open[name]


def _nested(flat: Mapping[str, Any], paths: Any) -> dict[Any, Any]:
    """As the planner found it: `a.b.0` at ("a", "b", 0). Numbers index lists."""
    if paths is not None and not isinstance(paths, dict):
        raise UnstorableError(f"planner data of type {type(paths).__name__} is not DCP's own")
    root: dict[Any, Any] = {}
    for key, value in flat.items():
        path = tuple(paths.get(key, (key,))) if paths else (key,)
        if not path:
            raise CorruptError(f"{key}: an empty path")
        node: Any = root
        for part, following in itertools.pairwise(path):
            node = _step(node, part, [] if isinstance(following, int) else {}, key)
        _step(node, path[-1], value, key)
    return root


_UNSET: Final = object()
_LIST_MAX: Final = 1 << 20


def _step(node: Any, part: Any, default: Any, key: str) -> Any:
    """What is at `part` of a dict or list, or `default`, which is put there."""
    if isinstance(node, list):
        if not isinstance(part, int) or not 0 <= part < _LIST_MAX:
            raise CorruptError(f"{key}: {part!r} is no position in a list")
        node.extend([_UNSET] * (part + 1 - len(node)))
        if node[part] is _UNSET:
            node[part] = default
        return node[part]
    if not isinstance(node, dict):
        raise CorruptError(f"{key}: {part!r} is below a value")
    return node.setdefault(part, default)
