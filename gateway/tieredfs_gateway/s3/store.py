"""Buckets and objects, carried out on a `FileSystem`. Blocking; safe from any thread.

An object is at one of its two places (`keys.places`). Commits and moves of one key are one at a time in this process, so
that writers of one key do not repeat their work; what decides is the volume's transaction, between processes too: it is
refused when the name shows something else than was seen, and when the object is at its other place meanwhile.
Conditions are judged on what was seen, and hold because the commit is refused when the name shows something else.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import (
    BusyError,
    ConflictError,
    DirectoryNotEmptyError,
    InvalidRequestError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
    StaleError,
    UnavailableError,
)
from tieredfs.model import Attributes, FileKind
from tieredfs.volume.filesystem import FileSystemContract, Part, Reading, Seen, Writing
from tieredfs_gateway.s3 import conditions, keys, listing, record
from tieredfs_gateway.s3.conditions import Conditions
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.record import Record

_RACES_MAX: Final = 20
_LOCKS: Final = 4096
"""A lock is held while the disk syncs, so two keys should rarely share one."""
_LIST_BATCH: Final = 1000
_ATTRIBUTES: Final = (record.ATTRIBUTE, record.TAGS_ATTRIBUTE)
HIDDEN: Final = b".tieredfs/s3"
"""Keys, uploads: no bucket has such a name."""


@dataclass(frozen=True, slots=True)
class Object:
    """What is at a key now."""

    path: bytes
    attributes: Attributes
    record: Record
    tags: bytes | None = None


class Store:
    """The objects of one volume."""

    def __init__(self, volume: FileSystemContract) -> None:
        self.volume = volume
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    # ---- buckets ----------------------------------------------------------------------------------------------------

    def buckets(self) -> list[tuple[bytes, int]]:
        """Names and creation times, in order."""
        found: list[tuple[bytes, int]] = []
        after = b""
        while page := self.volume.entries(b"", after, _LIST_BATCH):
            found += [
                (entry.name, attributes.ctime_ns)
                for entry, attributes in page
                if entry.kind is FileKind.DIRECTORY and is_bucket_name(entry.name)
            ]
            after = page[-1][0].name
        return found

    def check_bucket(self, bucket: bytes) -> None:
        """Raises S3Error NoSuchBucket, InvalidBucketName."""
        if not is_bucket_name(bucket):
            raise invalid_bucket_name(bucket)
        kind = self._kind(bucket)
        if kind is not FileKind.DIRECTORY:
            raise no_such_bucket(bucket)

    def create_bucket(self, bucket: bytes) -> None:
        """Raises S3Error BucketAlreadyOwnedByYou, BucketAlreadyExists (a file of that name), InvalidBucketName."""
        if not is_bucket_name(bucket):
            raise invalid_bucket_name(bucket)
        kind = self._kind(bucket)
        if kind is FileKind.DIRECTORY:
            raise S3Error("BucketAlreadyOwnedByYou", fields={"BucketName": bucket.decode()})
        if kind is not None:
            raise S3Error("BucketAlreadyExists", fields={"BucketName": bucket.decode()})
        self.volume.make_directories(bucket)

    def delete_bucket(self, bucket: bytes) -> None:
        """Directories without an object go with it. Raises S3Error BucketNotEmpty."""
        self.check_bucket(bucket)
        if next(iter(listing.Walk(self.source(bucket))), None) is not None:
            raise S3Error("BucketNotEmpty")
        directories = [path for path, found in self.volume.walk(bucket) if found.kind is FileKind.DIRECTORY]
        for path in [*reversed(directories), bucket]:
            with contextlib.suppress(NotFoundError):
                self._remove_directory(path)

    def source(self, bucket: bytes) -> "BucketSource":
        return BucketSource(self.volume, bucket)

    def _kind(self, path: bytes) -> FileKind | None:
        try:
            return self.volume.stat(path).kind
        except (NotFoundError, NotDirectoryError):
            return None

    # ---- looking ----------------------------------------------------------------------------------------------------

    def find(self, bucket: bytes, key: bytes) -> Object | None:
        """Raises S3Error NoSuchBucket."""
        return self._look(bucket, key)[0]

    def _look(self, bucket: bytes, key: bytes) -> tuple[Object | None, list[Seen | None]]:
        """The object, and what its two places show, all at one moment. Raises S3Error NoSuchBucket."""
        places = _places(bucket, key)
        *shown, found_bucket = self.volume.look([*places, bucket], _ATTRIBUTES)
        for path, seen in zip(places, shown, strict=True):
            if seen is not None and seen[0].kind is FileKind.REGULAR:
                attributes, (raw, tags) = seen
                return Object(path, attributes, record.describe(attributes, raw), tags), shown
        if found_bucket is None or found_bucket[0].kind is not FileKind.DIRECTORY:
            raise no_such_bucket(bucket)
        return None, shown

    def head(self, bucket: bytes, key: bytes) -> Object:
        """Raises S3Error NoSuchKey, NoSuchBucket."""
        found = self.find(bucket, key)
        if found is None:
            raise no_such_key(key)
        return found

    def open(self, bucket: bytes, key: bytes) -> tuple[Reading, Object]:
        """Raises S3Error NoSuchKey, NoSuchBucket."""
        for _ in range(_RACES_MAX):
            found = self.head(bucket, key)
            with contextlib.suppress(NotFoundError):  # deleted since the look
                return self._open_seen(found), found
        raise no_such_key(key)

    def _open_seen(self, found: Object) -> Reading:
        """Raises NotFoundError when it was replaced or deleted since: another process may have removed its staged bytes."""
        try:
            return self.volume.open_seen(found.attributes)
        except UnavailableError:
            shown = self.volume.look([found.path])[0]
            if shown is None or shown[0].inode != found.attributes.inode:
                raise NotFoundError("the object was replaced while it was being opened") from None
            raise

    def open_here(self, bucket: bytes, key: bytes) -> tuple[Reading | None, Object]:
        """`open` without waiting; no reading when the bytes would have to be fetched."""
        found = self.head(bucket, key)
        try:
            return self.volume.open_here(found.attributes), found
        except (NotFoundError, UnavailableError):
            return None, found

    def record_of(self, attributes: Attributes) -> Record:
        return self.records_of([attributes])[0]

    def records_of(self, several: Sequence[Attributes]) -> list[Record]:
        found = self.volume.xattrs_of([attributes.inode for attributes in several], record.ATTRIBUTE)
        return [record.describe(attributes, found.get(attributes.inode)) for attributes in several]

    # ---- changing ---------------------------------------------------------------------------------------------------

    def commit(
        self,
        bucket: bytes,
        key: bytes,
        writing: Writing,
        described: Record,
        *,
        asked: Conditions = conditions.NONE,
        tags: bytes | None = None,
    ) -> Attributes:
        """Give the file its key, whole and durable, or raise and change nothing. Raises S3Error PreconditionFailed."""
        xattrs = {record.ATTRIBUTE: record.encode(described)}
        if tags is not None:
            xattrs[record.TAGS_ATTRIBUTE] = tags
        for _ in range(_RACES_MAX):
            try:
                with self._locked(bucket, key):
                    return self._commit_here(bucket, key, writing, xattrs, asked)
            except NotDirectoryError:
                self._make_way(_places(bucket, key)[0])
            except (ConflictError, IsDirectoryError, NotFoundError, StaleError):
                continue
        raise S3Error("ConditionalRequestConflict")

    def _commit_here(
        self, bucket: bytes, key: bytes, writing: Writing, xattrs: Mapping[bytes, bytes], asked: Conditions
    ) -> Attributes:
        seen, shown = self._look(bucket, key)
        conditions.check_write(asked, seen.record.etag if seen else None)
        guard = _Unchanged(seen.attributes if seen else None, strict=asked.any())
        own, beside = _places(bucket, key)
        is_free = shown[0] is None or shown[0][0].kind is not FileKind.DIRECTORY
        path = seen.path if seen else own if is_free else beside
        return writing.commit(path, condition=guard, xattrs=xattrs, absent=beside if path == own else own)

    def delete(self, bucket: bytes, key: bytes, asked: Conditions = conditions.NONE) -> None:
        """What is not there is deleted already. Directories that were made for the key go when they are empty."""
        with self._locked(bucket, key):
            for _ in range(_RACES_MAX):
                seen = self.find(bucket, key)
                if seen is None:
                    conditions.check_write(asked, None)
                    return
                conditions.check_write(asked, seen.record.etag)
                try:
                    self.volume.remove(seen.path, _Unchanged(seen.attributes, strict=True))
                except (ConflictError, NotFoundError, StaleError):
                    continue
                self._prune(seen.path)
                return
        raise S3Error("ConditionalRequestConflict")

    def splice(self, parts: Sequence[Part]) -> Writing:
        """By reference; nothing at all is an empty file."""
        return self.volume.splice([part for part in parts if part.length])

    def set_tags(self, found: Object, tags: bytes) -> None:
        self.volume.set_xattr(found.path, record.TAGS_ATTRIBUTE, tags)

    # ---- places -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, bucket: bytes, key: bytes) -> Iterator[None]:
        with self._lock_of(_places(bucket, key)[0]):
            yield

    def _lock_of(self, path: bytes) -> threading.Lock:
        return self._locks[hash(path) % _LOCKS]

    def _make_way(self, path: bytes) -> None:
        """Objects whose names are needed as directories move aside; both of their names show the same key."""
        bucket, *names = path.split(b"/")
        for count in range(1, len(names)):
            above = b"/".join([bucket, *names[:count]])
            if self._kind(above) in (None, FileKind.DIRECTORY):
                continue
            with self._lock_of(above), contextlib.suppress(NotFoundError, NotDirectoryError):
                self.volume.rename(above, _aside(bucket, names[:count]))
            return

    def _prune(self, path: bytes) -> None:
        names = path.split(b"/")[:-1]
        while len(names) > 1:
            try:
                self._remove_directory(b"/".join(names))
            except (S3Error, NotFoundError, NotDirectoryError, BusyError, ConflictError):
                return
            names.pop()

    def _remove_directory(self, path: bytes) -> None:
        def is_directory(found: Attributes | None) -> None:
            if found is None or found.kind is not FileKind.DIRECTORY:
                raise NotDirectoryError(f"{path!r} is no directory any more")

        try:
            self.volume.remove(path, is_directory)
        except DirectoryNotEmptyError as error:
            raise S3Error("BucketNotEmpty") from error


class _Unchanged:
    """A condition of the volume: the name shows what was seen. Not `strict`: anything but a directory will do."""

    def __init__(self, seen: Attributes | None, *, strict: bool) -> None:
        self._seen = None if seen is None else (seen.inode, seen.version)
        self._strict = strict

    def __call__(self, found: Attributes | None) -> None:
        if found is not None and found.kind is FileKind.DIRECTORY:
            raise IsDirectoryError("a directory is in the way")
        now = None if found is None else (found.inode, found.version)
        if self._strict and now != self._seen:
            raise ConflictError("the object changed meanwhile")


class BucketSource:
    """The directories of one bucket, for `listing`."""

    def __init__(self, volume: FileSystemContract, bucket: bytes) -> None:
        self._volume = volume
        self._bucket = bucket

    def entries(self, path: bytes, after: bytes, limit: int) -> list[listing.Named]:
        try:
            found = self._volume.entries(self._below(path), after, limit)
        except (NotFoundError, NotDirectoryError, StaleError):
            return []
        return [(entry.name, attributes) for entry, attributes in found]

    def find(self, path: bytes) -> Attributes | None:
        try:
            return self._volume.stat(self._below(path))
        except (NotFoundError, NotDirectoryError, InvalidRequestError):
            return None

    def _below(self, path: bytes) -> bytes:
        return self._bucket + b"/" + path if path else self._bucket


def _places(bucket: bytes, key: bytes) -> tuple[bytes, bytes]:
    """Raises S3Error InvalidBucketName: what no bucket is called, our hidden directory above all, is never looked into."""
    if not is_bucket_name(bucket):
        raise invalid_bucket_name(bucket)
    own, beside = keys.places(key)
    return bucket + b"/" + own, bucket + b"/" + beside


def _aside(bucket: bytes, names: Sequence[bytes]) -> bytes:
    """Where the object goes that has the path `names` now."""
    key = b""
    for at, name in enumerate(names):
        shown = keys.shown(name)
        if shown is None:
            raise S3Error("InvalidRequest", "A file that no key can name is in the way.")
        key += shown[0] + (shown[1] if at < len(names) - 1 else b"")
    return _places(bucket, key)[1]


def no_such_bucket(bucket: bytes) -> S3Error:
    return S3Error("NoSuchBucket", fields={"BucketName": bucket.decode()})


def no_such_key(key: bytes) -> S3Error:
    return S3Error("NoSuchKey", fields={"Key": key.decode("utf-8", "replace")})


def invalid_bucket_name(bucket: bytes) -> S3Error:
    return S3Error("InvalidBucketName", fields={"BucketName": bucket.decode("utf-8", "replace")[:100]})


_BUCKET_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789.-")


def is_bucket_name(name: bytes) -> bool:
    """S3's rules: 3 to 63 of a-z 0-9 . -, a letter or digit at both ends, no `..`, not the look of an IPv4 address."""
    if not 3 <= len(name) <= 63 or not set(name) <= _BUCKET_BYTES or b".." in name:
        return False
    if name[:1] in (b".", b"-") or name[-1:] in (b".", b"-"):
        return False
    parts = name.split(b".")
    return not (len(parts) == 4 and all(part.isdigit() for part in parts))
