"""Buckets and objects, carried out on a `FileSystem`. Blocking; safe from any thread.

An object is at one of its two places (`keys.places`). Commits and moves of one key are one at a time in this process, so
that writers of one key do not repeat their work; what decides is the volume's transaction, between processes too: it is
refused when the name shows something else than was seen, and when the object is at its other place meanwhile.
Conditions are judged on what was seen, and hold because the commit is refused when the name shows something else.

In a bucket with versions (`versions`) what was current goes onto its shelf before anything else is done, so a crash
between any two steps leaves the old state or the new one. What has two steps, and when it has taken place:
putting (shelve, place): placed. Deleting (shelve, make the marker, remove): removed; until then the marker is not in force.
Deleting the current version: in the one step that removes it, or that renames the one before it into its place.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    DirectoryNotEmptyError,
    InvalidRequestError,
    IsDirectoryError,
    NoAttributeError,
    NotDirectoryError,
    NotFoundError,
    StaleError,
    UnavailableError,
)
from tieredfs.host import Clock
from tieredfs.model import Attributes, FileKind, InodeId
from tieredfs.volume.contract import FileSystemContract, Naming, Part, Reading, Seen, Writing
from tieredfs_gateway.s3 import archive, checksums, conditions, keys, listing, record
from tieredfs_gateway.s3.archive import LOOKED_AT, Archive
from tieredfs_gateway.s3.bucket_names import check_bucket_name, is_bucket_name, no_such_bucket
from tieredfs_gateway.s3.bucket_rules import VERSIONING, parse_state
from tieredfs_gateway.s3.conditions import Conditions
from tieredfs_gateway.s3.epoch import Epoch
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.settings import Settings
from tieredfs_gateway.s3.versions import NULL, Object, Versioning

_RACES_MAX: Final = 100
_LOCKS: Final = 4096
"""A lock is held while the disk syncs, so two keys should rarely share one."""
_LIST_BATCH: Final = 1000
_Check = Callable[[Object | None], None]
"""Looks at what would be deleted, and raises to leave it."""
_RACED: Final = (ConflictError, IsDirectoryError, NotFoundError, StaleError, AlreadyExistsError)
"""Somebody else was faster: look again."""
HIDDEN: Final = b".tieredfs/s3"
"""Keys, uploads: no bucket has such a name."""


@dataclass(frozen=True, slots=True)
class Committed:
    """`version_id` None: the bucket has no versions."""

    attributes: Attributes
    version_id: str | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """`marker`: a delete marker was made, or is what was deleted."""

    version_id: str | None = None
    marker: bool = False


class Store:
    """The objects of one volume."""

    def __init__(self, volume: FileSystemContract, clock: Clock, epoch: Epoch | None = None) -> None:
        self.volume = volume
        self.settings = Settings(volume, clock, epoch)
        self.archive = Archive(volume, clock)
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
        check_bucket_name(bucket)
        kind = self._kind(bucket)
        if kind is not FileKind.DIRECTORY:
            raise no_such_bucket(bucket)

    def create_bucket(self, bucket: bytes) -> None:
        """Raises S3Error BucketAlreadyOwnedByYou, BucketAlreadyExists (a file of that name), InvalidBucketName."""
        check_bucket_name(bucket)
        kind = self._kind(bucket)
        if kind is FileKind.DIRECTORY:
            raise S3Error("BucketAlreadyOwnedByYou", fields={"BucketName": bucket.decode()})
        if kind is not None:
            raise S3Error("BucketAlreadyExists", fields={"BucketName": bucket.decode()})
        self.volume.make_directories(bucket)

    def delete_bucket(self, bucket: bytes) -> None:
        """Directories without an object go with it. Raises S3Error BucketNotEmpty."""
        self.check_bucket(bucket)
        if next(iter(listing.Walk(self.source(bucket))), None) is not None or not self.archive.is_empty(bucket):
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
        """What is current. Raises S3Error NoSuchBucket."""
        return self._look(bucket, key, LOOKED_AT)[0]

    def _look(
        self, bucket: bytes, key: bytes, xattrs: Sequence[bytes]
    ) -> tuple[Object | None, Sequence[Seen | None], Seen]:
        """The object, what its two places show, and the bucket, all at one moment. Raises S3Error NoSuchBucket."""
        places = _places(bucket, key)
        *shown, looked = self.volume.look([*places, bucket], xattrs)
        found_bucket = _a_bucket(bucket, looked)
        for path, seen in zip(places, shown, strict=True):
            if seen is not None and seen[0].kind is FileKind.REGULAR:
                return archive.shown(path, seen), shown, found_bucket
        return None, shown, found_bucket

    def head(self, bucket: bytes, key: bytes, version_id: str | None = None) -> Object:
        """Raises S3Error NoSuchKey, NoSuchVersion, NoSuchBucket, MethodNotAllowed (a delete marker)."""
        if version_id is not None:
            return self._version(bucket, key, version_id)
        found = self.find(bucket, key)
        if found is None:
            raise self._no_such_key(bucket, key)
        return found

    def _version(self, bucket: bytes, key: bytes, version_id: str) -> Object:
        for _ in range(2):  # what is not on the shelf after all may have come back from there meanwhile
            current = self.find(bucket, key)
            if current is not None and current.version_id == version_id:
                return current
            found = self.archive.get(bucket, key, version_id)
            if found is not None and found.record.marker:
                raise marked(found, "MethodNotAllowed")
            if found is not None:
                return found
        raise no_such_version(key, version_id)

    def _no_such_key(self, bucket: bytes, key: bytes) -> S3Error:
        newest = self.archive.newest(bucket, key, None)
        if newest is not None and newest.record.marker:
            return marked(newest, "NoSuchKey", key)
        return no_such_key(key)

    def open(self, bucket: bytes, key: bytes, version_id: str | None = None) -> tuple[Reading, Object]:
        """Raises as `head` does."""
        for _ in range(_RACES_MAX):
            found = self.head(bucket, key, version_id)
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

    def open_here(self, bucket: bytes, key: bytes, version_id: str | None = None) -> tuple[Reading | None, Object]:
        """`open` without waiting; no reading when the bytes would have to be fetched."""
        found = self.head(bucket, key, version_id)
        try:
            return self.volume.open_here(found.attributes), found
        except (NotFoundError, UnavailableError):
            return None, found

    def record_of(self, attributes: Attributes) -> Record:
        return self.records_of([attributes])[0]

    def records_of(self, several: Sequence[Attributes]) -> list[Record]:
        return self.archive.records_of(several)

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
        acl: bytes | None = None,
        more: Mapping[bytes, bytes] | None = None,
    ) -> Committed:
        """Give the file its key, whole and durable, or raise and change nothing. `more`: attributes that it gets besides.

        Raises S3Error PreconditionFailed."""
        xattrs = _attributes(tags, acl, more or {})
        for _ in range(_RACES_MAX):
            try:
                with self._locked(bucket, key):
                    return self._commit_here(bucket, key, writing, described, xattrs, asked)
            except NotDirectoryError:
                self._make_way(_places(bucket, key)[0])
            except _RACED:
                continue
        raise S3Error("ConditionalRequestConflict")

    def plan(
        self,
        bucket: bytes,
        key: bytes,
        described: Record,
        *,
        asked: Conditions = conditions.NONE,
        tags: bytes | None = None,
        acl: bytes | None = None,
    ) -> Naming | None:
        """What `commit` would ask of the volume, for a commit among others; None: it takes more steps than one.

        Raises S3Error PreconditionFailed, NoSuchBucket, InvalidBucketName. The volume refuses it when something else is there by
        then; `commit` looks again. Without a condition nobody looks before (8 records for each upload): it is to have its own
        place, and where it cannot have that (a directory is there, or the object is beside one) the volume refuses."""
        seen: Object | None = None
        shown: Sequence[Seen | None] = (None, None)
        if asked.any():
            seen, shown, found_bucket = self._look(bucket, key, (*LOOKED_AT, VERSIONING))
            conditions.check_write(asked, seen.record.etag if seen else None)
        else:
            check_bucket_name(bucket)
            found_bucket = _a_bucket(bucket, self.volume.look([bucket], (VERSIONING,))[0])
        if parse_state(found_bucket[1][-1]) is not Versioning.NEVER:
            return None
        xattrs = _attributes(tags, acl, {record.ATTRIBUTE: record.encode(described)})
        return _naming(bucket, key, seen, shown, xattrs, strict=asked.any())

    def _commit_here(
        self,
        bucket: bytes,
        key: bytes,
        writing: Writing,
        described: Record,
        xattrs: Mapping[bytes, bytes],
        asked: Conditions,
    ) -> Committed:
        seen, shown, found_bucket = self._look(bucket, key, (*LOOKED_AT, VERSIONING))
        conditions.check_write(asked, seen.record.etag if seen else None)
        state = parse_state(found_bucket[1][-1])
        if state is Versioning.ENABLED:
            described = replace(described, version_id=self.archive.new_id(bucket, key, seen))
        self._shelve(bucket, key, seen, state)
        strict = asked.any() or state is not Versioning.NEVER
        to = _naming(bucket, key, seen, shown, {record.ATTRIBUTE: record.encode(described), **xattrs}, strict=strict)
        attributes = writing.commit(to.path, condition=to.condition, xattrs=dict(to.xattrs), absent=to.absent)
        if state is Versioning.SUSPENDED:
            with contextlib.suppress(*_RACED):  # it is not in force any more, whether it goes or not
                self.archive.drop(bucket, key, NULL)
        return Committed(attributes, None if state is Versioning.NEVER else described.version_id or NULL)

    def _shelve(self, bucket: bytes, key: bytes, current: Object | None, state: Versioning) -> None:
        """Before something else becomes current. While versioning is suspended, one `null` replaces the other."""
        if current is None or state is Versioning.NEVER:
            return
        if state is Versioning.ENABLED or current.version_id != NULL:
            self.archive.keep(bucket, key, current)

    def delete(
        self, bucket: bytes, key: bytes, asked: Conditions = conditions.NONE, version_id: str | None = None
    ) -> Deleted:
        """What is not there is deleted already. Directories that were made for the key go when they are empty. Durable after
        `sync`.

        Raises S3Error PreconditionFailed."""

        def check(seen: Object | None) -> None:
            if seen is not None:
                now = seen.attributes
                conditions.check_delete(asked, seen.record.etag, now.size_bytes, now.mtime_ns)

        return self._delete(bucket, key, check, version_id)

    def expire(self, bucket: bytes, key: bytes, found: Object) -> bool:
        """Delete what is current, if that is still `found`."""

        def check(seen: Object | None) -> None:
            now = None if seen is None else (seen.attributes.inode, seen.attributes.version)
            if now != (found.attributes.inode, found.attributes.version):
                raise S3Error("PreconditionFailed")

        try:
            self._delete(bucket, key, check, None)
        except S3Error as error:
            if error.code != "PreconditionFailed":
                raise
            return False
        return True

    def _delete(self, bucket: bytes, key: bytes, check: _Check, version_id: str | None) -> Deleted:
        for _ in range(_RACES_MAX):
            try:
                with self._locked(bucket, key):
                    if version_id is not None:
                        return self._delete_version(bucket, key, version_id, check)
                    state = self.settings.versioning(bucket)
                    if state is Versioning.NEVER:
                        return self._delete_file(bucket, key, check)
                    return self._mark_deleted(bucket, key, check, state)
            except NotDirectoryError:
                self._make_way(_places(bucket, key)[0])
            except _RACED:
                continue
        raise S3Error("ConditionalRequestConflict")

    def _delete_file(self, bucket: bytes, key: bytes, check: _Check) -> Deleted:
        seen = self.find(bucket, key)
        check(seen)
        if seen is not None:
            self._remove(seen)
        return Deleted()

    def _remove(self, seen: Object) -> None:
        self.volume.remove(seen.path, _Unchanged(seen.attributes, strict=True))
        self._prune(seen.path)

    def _mark_deleted(self, bucket: bytes, key: bytes, check: _Check, state: Versioning) -> Deleted:
        seen = self.find(bucket, key)
        check(seen)
        marker_id = self.archive.new_id(bucket, key, seen) if state is Versioning.ENABLED else NULL
        self._shelve(bucket, key, seen, state)
        self.archive.put_marker(bucket, key, marker_id, seen.attributes.inode if seen else None)
        if seen is not None:
            try:
                self._remove(seen)
            except _RACED:
                self.archive.drop(bucket, key, marker_id)
                raise
        return Deleted(marker_id, marker=True)

    def _delete_version(self, bucket: bytes, key: bytes, version_id: str, check: _Check) -> Deleted:
        current = self.find(bucket, key)
        if current is not None and current.version_id == version_id:
            check(current)
            self.archive.drop(bucket, key, version_id)
            before = next(self.archive.shelved(bucket, key), None)
            if before is None or before.record.marker:
                self._remove(current)
            else:
                self.volume.rename(before.path, current.path, expected_target=current.attributes.inode)
                self.archive.tidy(bucket, key)
            return Deleted(version_id)
        found = self.archive.get(bucket, key, version_id)
        check(found)
        if found is not None:
            if found.record.marker and current is None:
                self._restore_below(bucket, key, found)
            self.archive.drop(bucket, key, version_id)
        self._check_gone(bucket, key, version_id)
        return Deleted(version_id, found is not None and found.record.marker)

    def _check_gone(self, bucket: bytes, key: bytes, version_id: str) -> None:
        """Another process that deletes what is current moves the next version there: past one that looks for it on the shelf.

        Raises ConflictError."""
        before, shelved = self.find(bucket, key), self.archive.get(bucket, key, version_id)
        now = self.find(bucket, key)
        if shelved is not None or before != now or (now is not None and now.version_id == version_id):
            raise ConflictError("the version moved meanwhile")

    def _restore_below(self, bucket: bytes, key: bytes, marker: Object) -> None:
        """The marker in force is about to go: what it hides becomes current."""
        shelved = self.archive.shelved(bucket, key)
        if (newest := next(shelved, None)) is None or newest.version_id != marker.version_id:
            return
        below = next(shelved, None)
        if below is not None and not below.record.marker:
            self.volume.rename(below.path, self._free_place(bucket, key), expected_target=InodeId(0))

    def sync(self) -> None:
        """What was deleted or tagged stays so, whatever happens."""
        self.volume.sync_names()

    def splice(self, parts: Sequence[Part]) -> Writing:
        """By reference; nothing at all is an empty file."""
        return self.volume.splice([part for part in parts if part.length])

    def part_attributes(self, found: Object) -> dict[bytes, bytes]:
        """Those that keep the checksums of the object's parts, as they are."""
        if not found.record.parts or found.record.checksum is None:
            return {}
        inode = found.attributes.inode
        names = record.PARTS_ATTRIBUTES[: -(-found.record.part_count() // record.PART_DIGESTS_MAX)]
        kept = {name: self.volume.xattrs_of([inode], name).get(inode) for name in names}
        return {name: value for name, value in kept.items() if value is not None}

    def part_digests(self, found: Object) -> list[bytes]:
        """The checksum of each part, by the object's algorithm; empty: they are not kept."""
        if found.record.checksum is None:
            return []
        algorithm = checksums.algorithm_of(found.record.checksum[0])
        kept = self.part_attributes(found)
        raw = [kept.get(name) for name in record.PARTS_ATTRIBUTES]
        return record.decode_parts(found.record, raw, algorithm.digest_bytes)

    def get_tags(self, found: Object) -> bytes | None:
        """For what a listing found."""
        with contextlib.suppress(NoAttributeError, NotFoundError):
            return self.volume.get_xattr(found.path, record.TAGS_ATTRIBUTE)
        return None

    def set_tags(self, found: Object, tags: bytes) -> None:
        self.volume.set_xattr(found.path, record.TAGS_ATTRIBUTE, tags)

    def get_acl(self, found: Object) -> str:
        """One of `public_access.GRANTS`; empty: private."""
        with contextlib.suppress(NoAttributeError, NotFoundError):
            return self.volume.get_xattr(found.path, record.ACL_ATTRIBUTE).decode("ascii", "replace")
        return ""

    def set_acl(self, found: Object, acl: str) -> None:
        self.volume.set_xattr(found.path, record.ACL_ATTRIBUTE, acl.encode())

    # ---- places -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, bucket: bytes, key: bytes) -> Iterator[None]:
        with self._lock_of(_places(bucket, key)[0]):
            yield

    def _lock_of(self, path: bytes) -> threading.Lock:
        return self._locks[hash(path) % _LOCKS]

    def _free_place(self, bucket: bytes, key: bytes) -> bytes:
        own, beside = _places(bucket, key)
        return beside if self._kind(own) is FileKind.DIRECTORY else own

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
                self._remove_directory(b"/".join(names), spare_limited=True)
            except (S3Error, NotFoundError, NotDirectoryError, BusyError, ConflictError):
                return
            names.pop()

    def _remove_directory(self, path: bytes, *, spare_limited: bool = False) -> None:
        def is_directory(found: Attributes | None) -> None:
            if found is None or found.kind is not FileKind.DIRECTORY:
                raise NotDirectoryError(f"{path!r} is no directory any more")

        try:
            self.volume.remove(path, is_directory, spare_limited=spare_limited)
        except DirectoryNotEmptyError as error:
            raise S3Error("BucketNotEmpty") from error


def _a_bucket(bucket: bytes, looked: Seen | None) -> Seen:
    """Raises S3Error NoSuchBucket."""
    if looked is None or looked[0].kind is not FileKind.DIRECTORY:
        raise no_such_bucket(bucket)
    return looked


def _attributes(tags: bytes | None, acl: bytes | None, more: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Of the file of an object."""
    given = {record.TAGS_ATTRIBUTE: tags, record.ACL_ATTRIBUTE: acl}
    return {name: value for name, value in given.items() if value is not None} | dict(more)


def _naming(
    bucket: bytes,
    key: bytes,
    seen: Object | None,
    shown: Sequence[Seen | None],
    xattrs: Mapping[bytes, bytes],
    *,
    strict: bool,
) -> Naming:
    """Where the object goes: where it is, or its own place unless that is a directory."""
    guard = _Unchanged(seen.attributes if seen else None, strict=strict)
    own, beside = _places(bucket, key)
    is_free = shown[0] is None or shown[0][0].kind is not FileKind.DIRECTORY
    path = seen.path if seen else own if is_free else beside
    absent = beside if path == own else own
    return Naming(path, condition=guard, xattrs=tuple(xattrs.items()), absent=absent)


class _Unchanged:
    """A condition of the volume: the name shows what was seen. Not `strict`: anything but a directory will do."""

    def __init__(self, seen: Attributes | None, *, strict: bool) -> None:
        self._seen = None if seen is None else (seen.inode, seen.version)
        self._strict = strict

    def __call__(self, found: Attributes | None) -> None:
        if found is not None and found.kind is FileKind.DIRECTORY:
            raise IsDirectoryError("a directory is in the way")
        if self._strict and (None if found is None else (found.inode, found.version)) != self._seen:
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
    check_bucket_name(bucket)
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


def no_such_key(key: bytes) -> S3Error:
    return S3Error("NoSuchKey", fields={"Key": key.decode("utf-8", "replace")})


def no_such_version(key: bytes, version_id: str) -> S3Error:
    return S3Error("NoSuchVersion", fields={"Key": key.decode("utf-8", "replace"), "VersionId": version_id})


def marked(marker: Object, code: str, key: bytes | None = None) -> S3Error:
    """A delete marker is there: asked for by its id, or in force."""
    headers = {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version_id}
    if code == "MethodNotAllowed":
        headers |= {"allow": "DELETE", "last-modified": conditions.http_date(marker.attributes.mtime_ns)}
    fields = {} if key is None else {"Key": key.decode("utf-8", "replace")}
    return S3Error(code, fields=fields, headers=headers)
