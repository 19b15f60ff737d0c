"""Reading a directory that `torch.distributed.checkpoint` wrote, without running what is in it.

Its `.metadata` is a pickle: it is read by an unpickler that knows the few classes of such a file and refuses everything else. What
lies in the data files are `torch.save` streams, one per piece of a tensor and one per other value; they are loaded with
`weights_only`. Sharded tensors are put together; the tree is that which was saved, lists and dicts.
"""

import importlib
import io
import os
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from tieredfs.errors import ConfigurationError, CorruptError
from tieredfs_client.checkpoint.layout import read_checked

METADATA: Final = ".metadata"
_DCP: Final = "torch.distributed.checkpoint"
_KNOWN: Final = frozenset(
    {
        (f"{_DCP}.metadata", "Metadata"),
        (f"{_DCP}.metadata", "MetadataIndex"),
        (f"{_DCP}.metadata", "TensorStorageMetadata"),
        (f"{_DCP}.metadata", "BytesStorageMetadata"),
        (f"{_DCP}.metadata", "ChunkStorageMetadata"),
        (f"{_DCP}.metadata", "TensorProperties"),
        (f"{_DCP}.metadata", "StorageMeta"),
        (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
        (f"{_DCP}.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
    }
)


class _Unpickler(pickle.Unpickler):
    """Knows what such a file is made of. Types of elements (`torch.float32`) are no classes, but come by name, too."""

    def find_class(self, module: str, name: str) -> Any:
        torch = importlib.import_module("torch")
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _KNOWN:
            raise CorruptError(f"a DCP directory's metadata asks for {module}.{name}, which no such file needs")
        return getattr(importlib.import_module(module), name)


def is_dcp_directory(path: str) -> bool:
    return os.path.isfile(os.path.join(path, METADATA))


def read_dcp(path: str) -> dict[str, Any]:
    """The tree. Raises CorruptError, ConfigurationError (pieces that are missing), ImportError (no torch)."""
    importlib.import_module(f"{_DCP}.filesystem")
    with open(os.path.join(path, METADATA), "rb") as file:
        metadata = _unpickled(file)
    places: dict[str, dict[Any, Any]] = {}
    for index, place in metadata.storage_data.items():
        places.setdefault(index.fqn, {})[index.offset] = place
    described = metadata.state_dict_metadata.items()
    values = {key: _value(path, key, about, places.get(key, {})) for key, about in described}
    paths = metadata.planner_data or {key: (key,) for key in values}
    tree: dict[str, Any] = {}
    for key, value in values.items():
        _put(tree, tuple(paths[key]), value)
    return tree


def _unpickled(file: BinaryIO) -> Any:
    try:
        return read_checked(_Unpickler(file).load, METADATA)
    except (pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise CorruptError(f"{METADATA} makes no sense: {error}") from error


def _value(path: str, key: str, about: Any, places: Mapping[Any, Any]) -> Any:
    """`places`: of the pieces of a tensor by their offsets; of another value under None."""
    if not hasattr(about, "chunks"):
        if None not in places:
            raise CorruptError(f"{key} is nowhere")
        return _loaded(path, places[None])
    torch = importlib.import_module("torch")
    whole = torch.empty(about.size, dtype=about.properties.dtype)
    for chunk in about.chunks:
        place = places.get(chunk.offsets, places.get(None))
        if place is None:
            raise CorruptError(f"{key}: its piece at {list(chunk.offsets)} is nowhere")
        target = whole
        for axis, (offset, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            target = target.narrow(axis, offset, length)
        target.copy_(_loaded(path, place))
    return whole


def _loaded(path: str, place: Any) -> Any:
    if os.path.basename(place.relative_path) != place.relative_path:
        raise CorruptError(f"{place.relative_path!r} is no file of a DCP directory")
    if getattr(place, "transform_descriptors", None):
        raise ConfigurationError(
            "the DCP directory is compressed or encrypted; save it without, or load it with its program"
        )
    with open(os.path.join(path, place.relative_path), "rb") as file:
        file.seek(place.offset)
        data = file.read(place.length)
    return importlib.import_module("torch").load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _put(tree: Any, path: tuple[str | int, ...], value: Any) -> None:
    """Strings are keys of dicts, numbers places in lists."""
    at: Any = tree
    for step, following in zip(path, (*path[1:], None), strict=True):
        if isinstance(step, int):
            at.extend([None] * (step + 1 - len(at)))
        if following is None:
            at[step] = value
        elif isinstance(step, int):
            at[step] = [] if at[step] is None and isinstance(following, int) else at[step] or {}
            at = at[step]
        else:
            at = at.setdefault(step, [] if isinstance(following, int) else {})
