"""What a storage node and its clients have agreed on: paths, and how errors travel. `FORMAT.md`, "Storage nodes", is the document.

A disk is named by the uuids of its identity and not by where it lies, so a node that was restarted with other directories
answers for those that it has and for no other. A directory that is no disk yet is a place, named by its path.
"""

import urllib.parse
from typing import Final

from tieredfs.chunk.directory import chunk_file_name
from tieredfs.chunk.store import ChunkName
from tieredfs.errors import (
    ConfigurationError,
    CorruptError,
    ForeignDataError,
    NewerFormatError,
    NoSpaceError,
    NotFoundError,
    TieredError,
    UnavailableError,
)

SECRET_VARIABLE: Final = "TIEREDFS_NODE_SECRET"
PLACES_PATH: Final = "/v1/places"
DISKS_PATH: Final = "/v1/disks"

STATUS_OF: Final[dict[type[TieredError], tuple[int, str]]] = {
    NotFoundError: (404, "absent"),
    UnavailableError: (503, "unavailable"),
    NoSpaceError: (507, "no_space"),
    CorruptError: (409, "corrupt"),
    ForeignDataError: (409, "foreign"),
    NewerFormatError: (409, "newer_format"),
    ConfigurationError: (404, "no_such_place"),
}
"""The errors of the domain that a node tells its client, as HTTP status and code. Any other is its own failure: 500."""

ERROR_OF: Final[dict[str, type[TieredError]]] = {code: error for error, (_, code) in STATUS_OF.items()} | {
    "no_such_disk": UnavailableError,
    "torn": UnavailableError,
    "refused": UnavailableError,
    "bad_request": UnavailableError,
    "failed": UnavailableError,
}
"""What a code means to a client. `no_such_disk`: this node does not have it; `torn`: a chunk arrived damaged."""


def disk_path(volume_uuid: str, disk_uuid: str) -> str:
    return f"{DISKS_PATH}/{urllib.parse.quote(volume_uuid, safe='')}/{urllib.parse.quote(disk_uuid, safe='')}"


def chunk_path(volume_uuid: str, disk_uuid: str, name: ChunkName) -> str:
    return f"{disk_path(volume_uuid, disk_uuid)}/chunks/{chunk_file_name(name)}"


def dumps_path(volume_uuid: str, disk_uuid: str) -> str:
    return f"{disk_path(volume_uuid, disk_uuid)}/dumps"


def dump_path(volume_uuid: str, disk_uuid: str, name: str) -> str:
    return f"{dumps_path(volume_uuid, disk_uuid)}/{name}"


def dump_piece_path(volume_uuid: str, disk_uuid: str, name: str, token: str, offset: int, crc32c: int) -> str:
    """`token`: hex digits that only this upload has."""
    query = urllib.parse.urlencode({"offset": offset, "crc32c": f"{crc32c:08x}"})
    return f"{dump_path(volume_uuid, disk_uuid, name)}/{token}?{query}"


def dump_upload_path(volume_uuid: str, disk_uuid: str, name: str, token: str, size_bytes: int) -> str:
    """Of a whole upload."""
    return f"{dump_path(volume_uuid, disk_uuid, name)}/{token}?{urllib.parse.urlencode({'size': size_bytes})}"


def place_path(path: str, volume_uuid: str = "") -> str:
    query = {"path": path, "volume": volume_uuid} if volume_uuid else {"path": path}
    return f"{PLACES_PATH}?{urllib.parse.urlencode(query)}"
