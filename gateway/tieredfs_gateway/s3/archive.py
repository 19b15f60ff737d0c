"""The shelves of old versions (`versions`), carried out on a `FileSystem`. Blocking; safe from any thread.

A version goes onto its shelf as a second name of its file, before its key shows another one: there is no moment at which it
has no name. It comes back by renaming. Nothing here decides what is current: `store` does, under the lock of the key.
"""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    DirectoryNotEmptyError,
    NotDirectoryError,
    NotFoundError,
    StaleError,
)
from tieredfs.host import Clock
from tieredfs.model import Attributes, FileKind, InodeId
from tieredfs.volume.contract import FileSystemContract, Seen
from tieredfs_gateway.s3 import record, versions
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.versions import NULL, Object

_EMPTY_MD5: Final = "d41d8cd98f00b204e9800998ecf8427e"
LOOKED_AT: Final = (record.ATTRIBUTE, record.TAGS_ATTRIBUTE)
"""What is read together with a file's attributes."""
_BATCH_FIRST: Final = 8
_BATCH_MAX: Final = 1000


def shown(path: bytes, seen: Seen) -> Object:
    """What a look with `LOOKED_AT` (and perhaps more) at a file found."""
    attributes, (raw, tags, *_) = seen
    return Object(path, attributes, record.describe(attributes, raw), tags)


class Archive:
    """The old versions of one volume's objects."""

    def __init__(self, volume: FileSystemContract, clock: Clock) -> None:
        self._volume = volume
        self._clock = clock

    # ---- looking ----------------------------------------------------------------------------------------------------

    def get(self, bucket: bytes, key: bytes, version_id: str) -> Object | None:
        path = _path(bucket, key, version_id)
        seen = self._volume.look([path], LOOKED_AT)[0]
        return None if seen is None else shown(path, seen)

    def shelved(self, bucket: bytes, key: bytes, after: tuple[str, int] | None = None) -> Iterator[Object]:
        """All that is on the shelf, newest first, in force or not; older than the version with `after`'s id and order."""
        null = self.get(bucket, key, NULL)
        if after is None:
            return versions.merged(self._named(bucket, key, b""), null)
        version_id, order_ns = after
        if null is not None and (version_id == NULL or null.order_ns > order_ns):
            null = None
        start = versions.name_before(order_ns) if version_id == NULL else version_id.encode()
        return versions.merged(self._named(bucket, key, start), null)

    def _named(self, bucket: bytes, key: bytes, after: bytes) -> Iterator[Object]:
        shelf, limit = bucket + b"/" + versions.shelf(key), _BATCH_FIRST
        while True:
            try:
                page = self._volume.entries(shelf, after, limit)
            except (NotFoundError, NotDirectoryError, StaleError):
                return
            wanted = [(entry.name, attributes) for entry, attributes in page if _is_version(entry.name, attributes)]
            records = self.records_of([attributes for _, attributes in wanted])
            for (name, attributes), described in zip(wanted, records, strict=True):
                yield Object(shelf + b"/" + name, attributes, described)
            if len(page) < limit:
                return
            after, limit = page[-1][0].name, _BATCH_MAX

    def newest(self, bucket: bytes, key: bytes, current: Object | None) -> Object | None:
        """The newest beside the current version."""
        return next(versions.in_force(self.shelved(bucket, key), current), None)

    def records_of(self, several: Sequence[Attributes]) -> list[Record]:
        found = self._volume.xattrs_of([attributes.inode for attributes in several], record.ATTRIBUTE)
        return [record.describe(attributes, found.get(attributes.inode)) for attributes in several]

    def is_empty(self, bucket: bytes) -> bool:
        below = self._volume.walk(bucket + b"/" + versions.DIRECTORY)
        return all(attributes.kind is FileKind.DIRECTORY for _, attributes in below)

    # ---- changing ---------------------------------------------------------------------------------------------------

    def new_id(self, bucket: bytes, key: bytes, current: Object | None) -> str:
        newest = next(self.shelved(bucket, key), None)
        newest_ns = max((found.order_ns for found in (current, newest) if found is not None), default=0)
        return versions.make_id(self._clock.wall_ns(), newest_ns, secrets.token_hex(8))

    def keep(self, bucket: bytes, key: bytes, current: Object) -> None:
        """Give the file a second name on the shelf. Raises NotFoundError, AlreadyExistsError: something changed meanwhile."""
        path = _path(bucket, key, current.version_id)
        try:
            self._volume.link(current.attributes.inode, path)
        except AlreadyExistsError:
            shelved = self.get(bucket, key, current.version_id)
            if shelved is not None and shelved.attributes.inode != current.attributes.inode:
                # Two are called `null`: the current one is the one that counts.
                self._volume.remove(path)
                self._volume.link(current.attributes.inode, path)

    def put_marker(self, bucket: bytes, key: bytes, version_id: str, over: InodeId | None) -> None:
        named = "" if version_id == NULL else version_id
        described = Record(_EMPTY_MD5, record.SPLICED_VERSION, version_id=named, marker=True, over=over or 0)
        with self._volume.splice([]) as writing:
            xattrs = {record.ATTRIBUTE: record.encode(described)}
            writing.commit(_path(bucket, key, version_id), xattrs=xattrs)

    def drop(self, bucket: bytes, key: bytes, version_id: str) -> None:
        """What is not there is dropped already. A shelf that becomes empty goes."""
        path = _path(bucket, key, version_id)
        with contextlib.suppress(NotFoundError, NotDirectoryError):
            self._volume.remove(path)
        self.tidy(bucket, key)

    def tidy(self, bucket: bytes, key: bytes) -> None:
        """Remove the key's shelf, and what is above it, as far as it is empty."""
        names = versions.shelf(key).split(b"/")
        while names:
            try:
                self._volume.remove(bucket + b"/" + b"/".join(names), _is_directory)
            except (DirectoryNotEmptyError, NotFoundError, NotDirectoryError, BusyError, ConflictError):
                return
            names.pop()


def _is_version(name: bytes, attributes: Attributes) -> bool:
    text = name.decode("ascii", "replace")
    return attributes.kind is FileKind.REGULAR and text != NULL and versions.is_id(text)


def _is_directory(found: Attributes | None) -> None:
    if found is None or found.kind is not FileKind.DIRECTORY:
        raise NotDirectoryError("no shelf any more")


def _path(bucket: bytes, key: bytes, version_id: str) -> bytes:
    return bucket + b"/" + versions.shelf(key) + b"/" + version_id.encode()
