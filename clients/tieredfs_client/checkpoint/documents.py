"""Small files of a run: written whole, read whole. JSON for messages between ranks, text for `latest` and tags."""

import json
from collections.abc import Mapping
from typing import Any, Final

from tieredfs.errors import CorruptError, UnavailableError
from tieredfs.host import Clock, Files
from tieredfs.model import Attributes, Durability
from tieredfs.volume.contract import FileSystemContract, Reading
from tieredfs.volume.open_files import Condition
from tieredfs_client.checkpoint.layout import read_checked

DOCUMENT_BYTES_MAX: Final = 1 << 30
_PAUSES_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def write_document(
    files_of: Files,
    volume: FileSystemContract,
    path: bytes,
    data: bytes,
    *,
    replace: bool = True,
    condition: Condition | None = None,
    durability: Durability | None = None,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> Attributes:
    """Durable and whole on return, or not there."""
    with volume.create() as writing:
        files_of.write(writing.descriptor, [data], 0)
        return writing.commit(path, replace=replace, condition=condition, durability=durability, xattrs=xattrs)


def open_steady(volume: FileSystemContract, clock: Clock, path: bytes) -> Reading:
    """Open a file that may just be moving from another process's SSD to the store: for a moment it is in neither.

    Raises what `open` raises; UnavailableError only when the moment has passed.
    """
    for pause_s in _PAUSES_S:
        try:
            return volume.open(path)
        except UnavailableError:
            clock.sleep(pause_s)
    return volume.open(path)


def read_document(volume: FileSystemContract, clock: Clock, path: bytes) -> bytes:
    """Raises NotFoundError."""
    with open_steady(volume, clock, path) as reading:
        size = reading.attributes.size_bytes
        if size > DOCUMENT_BYTES_MAX:
            raise CorruptError(f"{shown(path)} is {size} bytes long, which no document is")
        data = bytearray(size)
        if reading.read_into(0, memoryview(data)) != size:
            raise CorruptError(f"{shown(path)} is shorter than it says")
        return bytes(data)


def read_json(volume: FileSystemContract, clock: Clock, path: bytes) -> Any:
    """Raises NotFoundError, CorruptError."""
    data = read_document(volume, clock, path)
    return read_checked(lambda: json.loads(data), shown(path))


def shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
