"""What a host that serves its staged contents and those who ask have agreed on. `FORMAT.md`, "Staged contents", is the document.

A cache is named by the uuid of its directory and a content by inode and version, so a host that has another directory there by now,
or another version, answers that it does not have it. Tokens are those of storage nodes (`tieredfs.core.capability`).
"""

import json
import urllib.parse
from dataclasses import dataclass
from typing import Final, Self

from tieredfs.config import NodeUrl
from tieredfs.core.spans import Span
from tieredfs.errors import UnavailableError
from tieredfs.model import InodeId

STAGED_PATH: Final = "/v1/staged"
CHECKSUM_HEADER: Final = "X-Crc32c"
"""Of the bytes of an answer, in hex."""
_SCHEMES: Final = {"http": False, "https": True}


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged content at one moment. `closed`: nobody can write to it, it is durable on its host, and as long as it has this
    version it stays as it is. `data`: what is not a hole, in order.
    """

    size_bytes: int
    closed: bool
    data: tuple[Span, ...]

    def encode(self) -> bytes:
        return json.dumps({"size_bytes": self.size_bytes, "closed": self.closed, "data": self.data}).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises UnavailableError."""
        try:
            found = json.loads(raw)
            data = tuple(Span(int(offset), int(length)) for offset, length in found["data"])
            return cls(int(found["size_bytes"]), bool(found["closed"]), data)
        except (ValueError, KeyError, TypeError) as error:
            raise UnavailableError("that is no host that serves what is staged there") from error


def content_name(inode: InodeId, version: int) -> str:
    """As the cache directory has it."""
    return f"{inode:016x}.{version:x}"


def content_url(volume_uuid: str, cache_uuid: str, inode: InodeId, version: int) -> str:
    return f"{_cache_url(volume_uuid, cache_uuid)}/{content_name(inode, version)}"


def bell_url(volume_uuid: str, cache_uuid: str) -> str:
    return f"{_cache_url(volume_uuid, cache_uuid)}/bell"


def _cache_url(volume_uuid: str, cache_uuid: str) -> str:
    return f"{STAGED_PATH}/{urllib.parse.quote(volume_uuid, safe='')}/{urllib.parse.quote(cache_uuid, safe='')}"


def address_of(host: str, port: int, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def parse_address(text: str) -> NodeUrl:
    """What `address_of` made, as the client of nodes wants it. Raises UnavailableError."""
    found = urllib.parse.urlsplit(text)
    try:
        tls, port = _SCHEMES[found.scheme], found.port
    except (KeyError, ValueError) as error:
        raise UnavailableError(f"{text!r} is no address of a host") from error
    if not found.hostname or port is None:
        raise UnavailableError(f"{text!r} is no address of a host")
    return NodeUrl(found.hostname, port, "", tls)
