"""What is written down of a pinned version, so that another process can go on with it: as JSON (`FORMAT.md`). Pure.

A pin says which files a dataset was, and where their contents are held: file `hold` of the pin's directory has them one after
another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tieredfs.errors import CorruptError, NewerFormatError
from tieredfs.model import NO_CACHE, Attributes, FileKind, InodeId

RECORD_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of the dataset: `hold`, `offset` say where its bytes are held."""

    path: bytes
    attributes: Attributes
    hold: int
    offset: int

    @property
    def name(self) -> str:
        """For people."""
        return shown(self.path)

    @property
    def size_bytes(self) -> int:
        return self.attributes.size_bytes


def shown(path: bytes) -> str:
    """A path for people: what is not UTF-8 is escaped."""
    return path.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Pin:
    """A version of a dataset. `source`, `asked`: its name, and the format that was asked for; `base`, `format`: what they meant.
    `files`: the dataset's, and then the `more` that those name."""

    version: str
    source: str
    asked: str | None
    base: bytes
    format: str
    files: tuple[PinnedFile, ...]
    more: int

    @property
    def hold_count(self) -> int:
        return max((file.hold for file in self.files), default=-1) + 1

    def hold_bytes(self, number: int) -> int:
        return sum(file.size_bytes for file in self.files if file.hold == number)


def encode(pin: Pin) -> bytes:
    files = [
        [_text(file.path), file.attributes.inode, file.attributes.version, file.size_bytes, file.hold, file.offset]
        for file in pin.files
    ]
    document = {
        "v": RECORD_VERSION,
        "version": pin.version,
        "source": pin.source,
        "asked": pin.asked,
        "base": _text(pin.base),
        "format": pin.format,
        "files": files,
        "more": pin.more,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode(data: bytes) -> Pin:
    """Raises CorruptError, NewerFormatError."""
    try:
        found: dict[str, Any] = json.loads(data)
        if found["v"] > RECORD_VERSION:
            raise NewerFormatError(f"a pin of version {found['v']}; {RECORD_VERSION} is the newest that is known")
        return Pin(
            str(found["version"]),
            str(found["source"]),
            found["asked"],
            _path(found["base"]),
            str(found["format"]),
            tuple(_file(each) for each in found["files"]),
            int(found["more"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"a pin cannot be read: {error}") from error


def _file(record: Sequence[Any]) -> PinnedFile:
    path, inode, version, size, hold, offset = record
    if min(inode, version, size, hold, offset) < 0:
        raise ValueError("a number below 0")
    attributes = Attributes(
        InodeId(inode), FileKind.REGULAR, 0o644, 0, 0, 1, size, 0, 0, 0, 0, InodeId(0), version, version, NO_CACHE, size
    )
    return PinnedFile(_path(path), attributes, hold, offset)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _path(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
