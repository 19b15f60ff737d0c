"""What a DCP checkpoint on a volume consists of: data files, and one JSON manifest that makes them a checkpoint. Pure.

    PATH/checkpoint.json                     the manifest; replacing it is the commit
    PATH/00002-<token>-00000.safetensors     what rank 2 wrote: its chunks of tensors, and objects as bytes

A chunk is found by the name of its tensor and its offsets in it. Each 4 MiB of a chunk or object has a CRC32C, and the manifest has
one of itself. Nothing is pickled; objects are the bytes that DCP handed over (it makes them with `torch.save`).
`FORMAT.md`, "DCP checkpoints".
"""

import base64
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c

from tieredfs.errors import CorruptError, NewerFormatError, UnstorableError
from tieredfs_client.checkpoint.layout import PIECE_BYTES, read_checked
from tieredfs_client.checkpoint.plan import volume

VERSION: Final = 1
MANIFEST_NAME: Final = "checkpoint.json"
_DATA_FILE: Final = re.compile(r"[0-9]{5,}-[0-9a-f]{16}-[0-9]{5,}\.safetensors", re.ASCII)
_PREFIX: Final = re.compile(
    rb'\{"format":"tieredfs-dcp","version":([1-9][0-9]{0,8}),"crc32c":"([0-9a-f]{8})","body":', re.ASCII
)
_SUFFIX: Final = b"}\n"

ChunkKey = tuple[str, tuple[int, ...] | None]
"""Name and offsets of a chunk; None: an object."""
ObjectPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the bytes of one chunk or object are. `crcs`: CRC32C of each `PIECE_BYTES`; the last may be short."""

    file: str
    offset: int
    size_bytes: int
    crcs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredChunk:
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    stored: Stored


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`dtype`: a code of `checkpoint.dtypes`."""

    dtype: str
    item_bytes: int
    shape: tuple[int, ...]
    requires_grad: bool
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`save`: differs between any two saves. `paths`: where each flattened key was in the nested state (DCP's planner data)."""

    save: str
    files: Mapping[str, int]
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, Stored]
    paths: Mapping[str, ObjectPath] | None

    def chunk_index(self) -> dict[tuple[str, tuple[int, ...]], StoredChunk]:
        """Chunks by the name of their tensor and their offsets."""
        return {(key, one.offsets): one for key, tensor in self.tensors.items() for one in tensor.chunks}


def data_file_name(rank: int, token: str, number: int) -> str:
    """`token`: 16 hex digits, another for every save of every rank, so that nothing is ever written over."""
    name = f"{rank:05d}-{token}-{number:05d}.safetensors"
    assert is_data_file(name)
    return name


def is_data_file(name: str) -> bool:
    return _DATA_FILE.fullmatch(name) is not None


def paths_of(planner_data: object) -> dict[str, ObjectPath] | None:
    """DCP's own planners leave a map from flattened keys to paths. Raises UnstorableError for what others may leave."""
    if planner_data is None:
        return None
    if not isinstance(planner_data, dict):
        raise UnstorableError(f"planner data of type {type(planner_data).__name__} cannot be stored without pickle")
    for key, path in planner_data.items():
        if not (isinstance(path, tuple) and all(type(part) in (str, int) for part in path)):
            raise UnstorableError(f"{key}: planner data {path!r} cannot be stored without pickle")
    return planner_data


# ---- bytes -----------------------------------------------------------------------------------------------------------


def encode(manifest: Manifest) -> bytes:
    numbers = {name: number for number, name in enumerate(manifest.files)}
    tree = {
        "save": manifest.save,
        "files": [[name, size] for name, size in manifest.files.items()],
        "tensors": {
            key: {
                "dtype": tensor.dtype,
                "item_bytes": tensor.item_bytes,
                "shape": tensor.shape,
                "requires_grad": tensor.requires_grad,
                "chunks": [[one.offsets, one.shape, _encode(one.stored, numbers)] for one in tensor.chunks],
            }
            for key, tensor in manifest.tensors.items()
        },
        "objects": {key: _encode(stored, numbers) for key, stored in manifest.objects.items()},
        "paths": None if manifest.paths is None else {key: list(path) for key, path in manifest.paths.items()},
    }
    body = json.dumps(tree, separators=(",", ":")).encode()
    crc = int(google_crc32c.value(body))
    return b'{"format":"tieredfs-dcp","version":%d,"crc32c":"%08x","body":' % (VERSION, crc) + body + _SUFFIX


def _encode(stored: Stored, numbers: Mapping[str, int]) -> list[object]:
    packed = base64.b64encode(struct.pack(f"<{len(stored.crcs)}I", *stored.crcs)).decode()
    return [numbers[stored.file], stored.offset, stored.size_bytes, packed]


def decode(data: bytes, name: str) -> Manifest:
    """`name`: for messages. Raises CorruptError, NewerFormatError."""
    prefix = _PREFIX.match(data)
    if prefix is None:
        raise CorruptError(f"{name} is no manifest of a DCP checkpoint")
    if int(prefix[1]) > VERSION:
        raise NewerFormatError(
            f"{name} was written by a newer TieredFS (format {int(prefix[1])}; this one reads {VERSION})"
        )
    body = data[prefix.end() : -len(_SUFFIX)]
    if not data.endswith(_SUFFIX) or int(google_crc32c.value(body)) != int(prefix[2], 16):
        raise CorruptError(f"{name} is damaged: its checksum is wrong")
    return read_checked(lambda: _manifest(json.loads(body)), name)


def _manifest(tree: Any) -> Manifest:
    files = {_checked_name(name): int(size) for name, size in tree["files"]}
    names = list(files)
    tensors = {key: _tensor(one, names, files) for key, one in tree["tensors"].items()}
    objects = {key: _decode(one, names, files) for key, one in tree["objects"].items()}
    paths = None if tree["paths"] is None else {key: tuple(path) for key, path in tree["paths"].items()}
    return Manifest(str(tree["save"]), files, tensors, objects, paths)


def _checked_name(name: str) -> str:
    if not is_data_file(name):
        raise CorruptError(f"{name!r} is no name of a data file")
    return name


def _tensor(tree: Any, names: list[str], files: Mapping[str, int]) -> StoredTensor:
    shape, item_bytes = tuple(tree["shape"]), int(tree["item_bytes"])
    chunks = []
    for offsets, lengths, stored in tree["chunks"]:
        chunk = StoredChunk(tuple(offsets), tuple(lengths), _decode(stored, names, files))
        for offset, length, whole in zip(chunk.offsets, chunk.shape, shape, strict=True):
            if length and not 0 <= offset <= whole - length:
                raise CorruptError("a chunk outside its tensor")
        if chunk.stored.size_bytes != volume(chunk.shape) * item_bytes:
            raise CorruptError("a chunk of another size than its bytes")
        chunks.append(chunk)
    return StoredTensor(str(tree["dtype"]), item_bytes, shape, bool(tree["requires_grad"]), tuple(chunks))


def _decode(tree: Any, names: list[str], files: Mapping[str, int]) -> Stored:
    number, offset, size, packed = tree
    data = base64.b64decode(packed)
    crcs = struct.unpack(f"<{len(data) // 4}I", data)
    file = names[number] if number >= 0 else ""
    if not 0 <= offset <= files[file] - size or size < 0 or len(crcs) != -(-size // PIECE_BYTES):
        raise CorruptError("a range outside its file")
    return Stored(file, offset, size, crcs)
