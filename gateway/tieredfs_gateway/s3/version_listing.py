"""`ListObjectVersions`: keys in byte order, the versions of each from the newest to the oldest, with flat memory.

Two walks (`listing`) in step: one over the bucket, which finds what is current, and one over the shelves, which shows a
key's shelf as if it were the key's file. What a key has is read from its shelf page by page. Blocking, like its sources.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import InvalidRequestError, NotDirectoryError, NotFoundError, StaleError
from tieredfs.model import Attributes, FileKind
from tieredfs.volume.contract import FileSystemContract
from tieredfs_gateway.s3 import keys, listing, versions
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.versions import NULL, Object

_NO_ORDER: Final = 0


@dataclass(frozen=True, slots=True)
class Request:
    """`version_marker`: the last version of `key_marker` that was shown; None: all of it was."""

    prefix: bytes
    delimiter: bytes
    key_marker: bytes
    version_marker: str | None
    max_keys: int


@dataclass(frozen=True, slots=True)
class Row:
    key: bytes
    version: Object
    latest: bool


@dataclass(frozen=True, slots=True)
class Page:
    """`next_version` None: the next page goes on after all of `next_key`, or after that common prefix."""

    rows: tuple[Row, ...]
    common_prefixes: tuple[bytes, ...]
    truncated: bool
    next_key: bytes
    next_version: str | None


class ShelfSource:
    """The shelves of a bucket, for `listing`: a key's shelf is shown as the key's file."""

    def __init__(self, volume: FileSystemContract, bucket: bytes) -> None:
        self._volume = volume
        self._root = bucket + b"/" + versions.DIRECTORY

    def entries(self, path: bytes, after: bytes, limit: int) -> list[listing.Named]:
        try:
            found = self._volume.entries(self._root + b"/" + path if path else self._root, after, limit)
        except (NotFoundError, NotDirectoryError, StaleError):
            return []
        return [(entry.name, _shown(entry.name, attributes)) for entry, attributes in found]

    def find(self, path: bytes) -> Attributes | None:
        try:
            attributes = self._volume.stat(self._root + b"/" + path)
        except (NotFoundError, NotDirectoryError, InvalidRequestError):
            return None
        return _shown(path.rpartition(b"/")[2], attributes)


def _shown(name: bytes, attributes: Attributes) -> Attributes:
    is_shelf = name.startswith(keys.BESIDE) and attributes.kind is FileKind.DIRECTORY
    return attributes._replace(kind=FileKind.REGULAR) if is_shelf else attributes


class _Steps:
    """Two walks, key by key."""

    def __init__(self, walks: list[listing.Walk]) -> None:
        self._walks = walks
        self._iterators = [iter(walk) for walk in walks]
        self._heads: list[listing.Found | None] = [next(found, None) for found in self._iterators]
        self._skipped: bytes | None = None

    def skip(self, prefix: bytes) -> None:
        self._skipped = prefix
        for walk in self._walks:
            walk.skip(prefix)

    def _is_skipped(self, head: listing.Found | None) -> bool:
        return head is not None and self._skipped is not None and head.key.startswith(self._skipped)

    def __iter__(self) -> Iterator[tuple[bytes, bool]]:
        """Keys, each with whether it has a shelf."""
        while True:
            for at in range(len(self._walks)):
                while self._is_skipped(self._heads[at]):
                    self._heads[at] = next(self._iterators[at], None)
            waiting = [head.key for head in self._heads if head is not None]
            if not waiting:
                return
            key = min(waiting)
            holders = [at for at, head in enumerate(self._heads) if head is not None and head.key == key]
            for at in holders:
                self._heads[at] = next(self._iterators[at], None)
            yield key, 1 in holders


def page(store: Store, bucket: bytes, asked: Request) -> Page:
    """One page. A common prefix counts as one row, and never shows again on the next page."""
    rows: list[Row] = []
    prefixes: list[bytes] = []
    last: tuple[bytes, str | None] = (asked.key_marker, asked.version_marker)
    if asked.max_keys == 0:
        return Page((), (), False, b"", None)
    for key, row in _walk(store, bucket, asked):
        if len(rows) + len(prefixes) >= asked.max_keys:
            return Page(tuple(rows), tuple(prefixes), True, *last)
        if row is None:
            prefixes.append(key)
        else:
            rows.append(row)
        last = (key, None if row is None else row.version.version_id)
    return Page(tuple(rows), tuple(prefixes), False, b"", None)


def every(store: Store, bucket: bytes) -> Iterator[Row]:
    """All versions of all keys, in order."""
    asked = Request(b"", b"", b"", None, 0)
    return (row for _, row in _walk(store, bucket, asked) if row is not None)


def _walk(store: Store, bucket: bytes, asked: Request) -> Iterator[tuple[bytes, Row | None]]:
    """Keys and rows in order; a common prefix comes without a row."""
    exclusive = bool(asked.key_marker) and asked.version_marker is None
    sources: list[listing.Source] = [store.source(bucket), ShelfSource(store.volume, bucket)]
    steps = _Steps([listing.Walk(source, asked.prefix, asked.key_marker, after_start=exclusive) for source in sources])
    if exclusive and listing.common_prefix(asked.prefix, asked.delimiter, asked.key_marker) == asked.key_marker:
        steps.skip(asked.key_marker)
    for key, has_shelf in steps:
        common = listing.common_prefix(asked.prefix, asked.delimiter, key)
        if common is not None:
            steps.skip(common)
            yield common, None
            continue
        marker = asked.version_marker if key == asked.key_marker else None
        for row in _versions_of(store, bucket, key, has_shelf=has_shelf, after=marker):
            yield key, row


def _versions_of(store: Store, bucket: bytes, key: bytes, *, has_shelf: bool, after: str | None) -> Iterator[Row]:
    current = store.find(bucket, key)
    if current is not None and after is None:
        yield Row(key, current, latest=True)
    if not has_shelf:
        return
    start = None
    if after is not None and (current is None or current.version_id != after):
        start = _order_of(store, bucket, key, after)
    first = start is None
    for found in versions.in_force(store.archive.shelved(bucket, key, start), current):
        yield Row(key, found, latest=first and current is None and found.record.marker)
        first = False


def _order_of(store: Store, bucket: bytes, key: bytes, after: str) -> tuple[str, int] | None:
    """Where to go on. None when the `null` version has gone meanwhile: from the beginning, rather than leave any out."""
    if after != NULL:
        return after, versions.order_ns(after, _NO_ORDER)
    found = store.archive.get(bucket, key, NULL)
    return None if found is None else (NULL, found.order_ns)


def parse_markers(key_marker: str, version_marker: str | None) -> str | None:
    """Raises S3Error InvalidArgument."""
    if not version_marker:
        return None
    if not key_marker:
        raise S3Error("InvalidArgument", "A version-id marker cannot be specified without a key marker.")
    return versions.check_id(version_marker)
