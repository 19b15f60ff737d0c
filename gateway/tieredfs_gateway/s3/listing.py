"""Keys in the byte order of S3 from directories in the byte order of names, with flat memory.

The two orders differ (`a-b` is before `a/c`, though `a` is before `a-b`), and a segment that cannot be a name lies under
another one (`keys`). So the walk is best-first: a heap of things that are still to be opened (a directory, a page of
one) or given out (an object), each with a lower bound of the keys that it can yield. What has the least bound comes next; an
object that comes out has its turn. The heap holds the open directories and a page of each.

Pure but for `Source`, which is asked page after page. Not for several threads.
"""

import base64
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tieredfs.model import Attributes, FileKind
from tieredfs_gateway.s3 import keys
from tieredfs_gateway.s3.errors import S3Error

PAGE_FIRST: Final = 32
PAGE_MAX: Final = 1000
MAX_KEYS: Final = 1000
_SPECIALS: Final = (keys.SPLIT, keys.ESCAPED, keys.BESIDE)
_AFTER_SPECIALS: Final = keys.SPECIAL + b"\xff" * (255 - len(keys.SPECIAL))

Named = tuple[bytes, Attributes]


class Source(Protocol):
    """The directories of one bucket, by paths below it. A directory that is gone has no entries."""

    def entries(self, path: bytes, after: bytes, limit: int) -> list[Named]: ...
    def find(self, path: bytes) -> Attributes | None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its key, its path below the bucket."""

    key: bytes
    path: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class _Directory:
    path: bytes
    prefix: bytes
    """Of every key inside."""


@dataclass(frozen=True, slots=True)
class _Cursor:
    """What is left of a directory: names greater than `after` that begin with `within`."""

    directory: _Directory
    within: bytes
    after: bytes
    page: int


_Item = Found | _Directory | _Cursor


class Walk:
    """Objects with keys >= `start` (> with `after_start`) that begin with `prefix`, in byte order."""

    def __init__(self, source: Source, prefix: bytes = b"", start: bytes = b"", *, after_start: bool = False) -> None:
        self._source = source
        self._prefix = prefix
        self._start = max(prefix, start)
        self._exclusive = after_start and start >= prefix
        self._heap: list[tuple[bytes, int, int, _Item]] = []
        self._count = 0
        self._skipped: bytes | None = None
        self._push(b"", _Directory(b"", b""))

    def skip(self, prefix: bytes) -> None:
        """Give out nothing more that begins with `prefix`, and do not look there."""
        self._skipped = prefix

    def __iter__(self) -> Iterator[Found]:
        last: bytes | None = None
        while self._heap:
            _, _, _, item = heapq.heappop(self._heap)
            if isinstance(item, _Directory):
                self._open(item)
            elif isinstance(item, _Cursor):
                self._advance(item)
            elif item.key != last and not self._is_skipped(item.key):
                last = item.key
                yield item

    def _is_skipped(self, prefix: bytes) -> bool:
        return self._skipped is not None and prefix.startswith(self._skipped)

    def _push(self, bound: bytes, item: _Item) -> None:
        base = _base(item)
        if self._is_skipped(base):
            return
        if isinstance(item, Found):
            if not base.startswith(self._prefix) or base < self._start or (self._exclusive and base == self._start):
                return
        elif not (base.startswith(self._prefix) or self._prefix.startswith(base)) or self._is_before(base):
            return
        self._count += 1
        heapq.heappush(self._heap, (bound, isinstance(item, Found), self._count, item))

    def _is_before(self, base: bytes) -> bool:
        """Every key that begins with `base` comes before the start."""
        return base < self._start and not self._start.startswith(base)

    # ---- directories ------------------------------------------------------------------------------------------------

    def _open(self, directory: _Directory) -> None:
        """Seek: only names that can yield keys at or after the start are looked at."""
        if self._is_skipped(directory.prefix):
            return
        segment = b""
        if self._start.startswith(directory.prefix):
            segment = self._start[len(directory.prefix) :].split(b"/", 1)[0]
        for name in _seekable(segment):
            self._take_one(directory, name)
        complete = self._advance(_Cursor(directory, b"", segment, PAGE_FIRST))
        if complete and segment < keys.SPECIAL:
            return
        if any(name.startswith(keys.SPECIAL) for name, _ in self._page(directory, keys.SPECIAL, 1)):
            for mark in _SPECIALS:
                self._advance(_Cursor(directory, mark, mark[:-1] + bytes([mark[-1] - 1]) + b"\xff" * 252, PAGE_FIRST))

    def _page(self, directory: _Directory, after: bytes, limit: int) -> list[Named]:
        return self._source.entries(directory.path, after, limit)

    def _take_one(self, directory: _Directory, name: bytes) -> None:
        path = _joined(directory.path, name)
        attributes = None if name.startswith(keys.SPECIAL) or len(name) > 255 else self._source.find(path)
        if attributes is not None:
            self._take(directory, name, attributes)

    def _advance(self, cursor: _Cursor) -> bool:
        """Take a page; True when it was the last one and held the special names too."""
        page = self._page(cursor.directory, cursor.after, cursor.page)
        whole = len(page) < cursor.page
        for name, attributes in page:
            if not name.startswith(cursor.within):
                return False
            self._take(cursor.directory, name, attributes, special=whole or bool(cursor.within))
        if whole:
            return True
        last = page[-1][0]
        if not cursor.within and last.startswith(keys.SPECIAL):
            last = _AFTER_SPECIALS
        base = keys.shown(last)
        bound = cursor.directory.prefix + (base[0] if base else last)
        following = _Cursor(cursor.directory, cursor.within, last, min(PAGE_MAX, cursor.page * 8))
        if not self._ends_before(bound):
            self._push(bound, following)
        return False

    def _ends_before(self, bound: bytes) -> bool:
        return bound > self._prefix and not bound.startswith(self._prefix)

    def _take(self, directory: _Directory, name: bytes, attributes: Attributes, *, special: bool = True) -> None:
        """`special` False: special names have cursors of their own."""
        if name.startswith(keys.SPECIAL) and not special:
            return
        shown = keys.shown(name)
        if shown is None:
            return
        path, key = _joined(directory.path, name), directory.prefix + shown[0]
        if attributes.kind is FileKind.DIRECTORY:
            self._push(key + shown[1], _Directory(path, key + shown[1]))
        elif attributes.kind is FileKind.REGULAR and keys.readable(key) and _is_its_place(key, path):
            self._push(key, Found(key, path, attributes))


def _base(item: _Item) -> bytes:
    if isinstance(item, Found):
        return item.key
    return item.prefix if isinstance(item, _Directory) else item.directory.prefix


def _is_its_place(key: bytes, path: bytes) -> bool:
    """Not so for special names that the mount made where no special name is needed."""
    return keys.SPECIAL not in path or path in keys.places(key)


def _joined(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _seekable(segment: bytes) -> Iterator[bytes]:
    """Names not greater than `segment` that can still yield keys at or after it: itself, and a directory whose name, with
    its `/`, is greater (`a` for `a-b`)."""
    for at, byte in enumerate(segment):
        if at and byte < ord("/"):
            yield segment[:at]
    if segment:
        yield segment


# ---- pages of a listing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """What both versions of the call ask for. `after`: keys and common prefixes greater than this."""

    prefix: bytes
    delimiter: bytes
    after: bytes
    max_keys: int


@dataclass(frozen=True, slots=True)
class Page:
    """`last` is what the next page comes after, when there is one."""

    objects: tuple[Found, ...]
    common_prefixes: tuple[bytes, ...]
    truncated: bool
    last: bytes


def page(source: Source, request: Request) -> Page:
    """One page. A common prefix counts as one key, and never shows again on the next page."""
    objects: list[Found] = []
    prefixes: list[bytes] = []
    last = b""
    walk = Walk(source, request.prefix, request.after, after_start=bool(request.after))
    if request.max_keys == 0:
        return Page((), (), False, b"")
    if request.after and common_prefix(request.prefix, request.delimiter, request.after) == request.after:
        walk.skip(request.after)
    for found in walk:
        if len(objects) + len(prefixes) >= request.max_keys:
            return Page(tuple(objects), tuple(prefixes), True, last)
        common = common_prefix(request.prefix, request.delimiter, found.key)
        if common is None:
            objects.append(found)
            last = found.key
        else:
            prefixes.append(common)
            last = common
            walk.skip(common)
    return Page(tuple(objects), tuple(prefixes), False, last)


def common_prefix(prefix: bytes, delimiter: bytes, key: bytes) -> bytes | None:
    """What the key is rolled up into."""
    if not delimiter or not key.startswith(prefix):
        return None
    at = key.find(delimiter, len(prefix))
    return None if at < 0 else key[: at + len(delimiter)]


def token_of(last: bytes) -> str:
    """A continuation token: opaque to clients, nothing to remember here."""
    return base64.urlsafe_b64encode(b"1" + last).decode()


def parse_token(token: str) -> bytes:
    """Raises S3Error InvalidArgument."""
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except ValueError as error:
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect.") from error
    if not raw.startswith(b"1"):
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect.")
    return raw[1:]


def parse_max_keys(value: str | None) -> int:
    """Raises S3Error InvalidArgument."""
    if value is None or value == "":
        return MAX_KEYS
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) < 1 << 31):
        raise S3Error("InvalidArgument", "Argument max-keys must be an integer between 0 and 2147483647.")
    return min(int(value), MAX_KEYS)
