"""Which files a source names: a file, a directory (everything below it), or a glob; in the order of their paths.

In a directory what begins with `.` or `_` is not data (`_SUCCESS`, `.crc`), and a directory `key=value` adds a column: such a
*hive* directory's values are integers when all of them look so, else text; `__HIVE_DEFAULT_PARTITION__` is null. Globs know
`*`, `?`, `[…]` within a name and `**` for any directories; they see what a directory would hide if they say so.

`.tieredfs` in the root is no data, whoever asks and however: front ends keep there what is nobody else's, S3's keys among it.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from tieredfs.errors import InvalidRequestError, NotDirectoryError, NotFoundError
from tieredfs.model import Attributes, FileKind
from tieredfs.volume.contract import FileSystemContract

_MAGIC: Final = re.compile(rb"[*?\[]")
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})\Z")
_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_LIST_BATCH: Final = 1024
_FRONT_ENDS: Final = b".tieredfs"

Found = tuple[bytes, Attributes]


@dataclass(frozen=True, slots=True)
class Listing:
    """Regular files below `base`, by path."""

    base: bytes
    files: tuple[Found, ...]


def list_source(volume: FileSystemContract, source: str) -> Listing:
    """Raises NotFoundError when nothing matches, InvalidRequestError for paths that cannot be."""
    parts = [part for part in source.encode("utf-8", "surrogateescape").split(b"/") if part]
    if b"." in parts or b".." in parts:
        raise InvalidRequestError(f"{source!r}: no `.` or `..` in the path of a dataset")
    if is_front_ends(b"/".join(parts)):
        raise InvalidRequestError(f"{source!r}: what is below `.tieredfs` is no dataset")
    plain = next((at for at, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    base = b"/".join(parts[:plain])
    if plain < len(parts):
        found = sorted(dict(_globbed(volume, base, parts[plain:])).items())
    else:
        base, found = _named(volume, base)
    if not found:
        raise NotFoundError(f"{source!r}: no file of the volume is named by it")
    return Listing(base, tuple(found))


def is_front_ends(path: bytes) -> bool:
    """Whether it is, or lies in, what front ends keep for themselves."""
    return next((part for part in path.split(b"/") if part), b"") == _FRONT_ENDS


def _named(volume: FileSystemContract, path: bytes) -> tuple[bytes, list[Found]]:
    attributes = volume.stat(path)
    if attributes.kind is FileKind.REGULAR:
        return path.rpartition(b"/")[0], [(path, attributes)]
    return path, sorted(_below(volume, path))


def _below(volume: FileSystemContract, path: bytes) -> Iterator[Found]:
    for name, attributes in _entries(volume, path):
        if name.startswith((b".", b"_")):
            continue
        child = _join(path, name)
        if attributes.kind is FileKind.DIRECTORY:
            yield from _below(volume, child)
        elif attributes.kind is FileKind.REGULAR:
            yield child, attributes


def _globbed(volume: FileSystemContract, path: bytes, patterns: Sequence[bytes]) -> Iterator[Found]:
    pattern, rest = patterns[0], patterns[1:]
    if pattern == b"**":
        if not rest:
            yield from _below(volume, path)
            return
        yield from _globbed(volume, path, rest)
    for name, attributes in _entries(volume, path):
        child = _join(path, name)
        if name.startswith(b".") and (is_front_ends(child) or not pattern.startswith(b".")):
            continue
        if pattern == b"**":
            if attributes.kind is FileKind.DIRECTORY:
                yield from _globbed(volume, child, patterns)
        elif fnmatch.fnmatchcase(name, pattern):
            if rest and attributes.kind is FileKind.DIRECTORY:
                yield from _globbed(volume, child, rest)
            elif not rest and attributes.kind is FileKind.REGULAR:
                yield child, attributes
            elif not rest and attributes.kind is FileKind.DIRECTORY:
                yield from _below(volume, child)


def _entries(volume: FileSystemContract, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
    """What vanishes meanwhile is left out."""
    after = b""
    while True:
        try:
            page = volume.entries(path, after, _LIST_BATCH)
        except (NotFoundError, NotDirectoryError):
            return
        for entry, attributes in page:
            yield entry.name, attributes
        if len(page) < _LIST_BATCH:
            return
        after = page[-1][0].name


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


# ---- hive directories ------------------------------------------------------------------------------------------------

PartitionValue = int | str | None


def partitions(base: bytes, paths: Sequence[bytes]) -> list[dict[str, PartitionValue]]:
    """The values that `key=value` directories below `base` give each file. A key has one type for all files."""
    texts = [_texts(base, path) for path in paths]
    keys = {key for values in texts for key in values}
    integers = {key for key in keys if all(_is_integer(values.get(key)) for values in texts)}
    return [{key: _value(text, key in integers) for key, text in values.items()} for values in texts]


def _texts(base: bytes, path: bytes) -> dict[str, str | None]:
    below = path[len(base) :].lstrip(b"/") if base else path
    found: dict[str, str | None] = {}
    for part in below.split(b"/")[:-1]:
        key, equals, value = part.decode("utf-8", "surrogateescape").partition("=")
        if key and equals:
            found[unquote(key)] = None if value == _NULL else unquote(value)
    return found


def _is_integer(text: str | None) -> bool:
    return text is None or bool(_INTEGER.match(text))


def _value(text: str | None, integer: bool) -> PartitionValue:
    return int(text) if integer and text is not None else text


def partition_names(values: Sequence[Mapping[str, PartitionValue]]) -> list[str]:
    """Every key, in the order of its first appearance."""
    return list(dict.fromkeys(key for each in values for key in each))
