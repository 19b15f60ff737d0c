"""Multipart uploads, carried out: a hidden directory each, with a file per part; completing refers to their bytes.

`/.tieredfs/s3/uploads/ID/upload` says what is being uploaded, `ID/parts/00001` is a part, whose `user.s3` attribute has its
ETag and checksum. An upload ends by renaming its directory away, so it is there wholly or not at all. Blocking; safe
from any thread. Completing again finds the object that says which upload it came from.
"""

import contextlib
import itertools
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from tieredfs.errors import CorruptError, NotDirectoryError, NotFoundError
from tieredfs.volume.contract import Part, Writing
from tieredfs_gateway.s3 import checksums, multipart, record
from tieredfs_gateway.s3.conditions import Conditions
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.ingest import Received
from tieredfs_gateway.s3.multipart import ListedPart, StoredPart
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.store import HIDDEN, Store

_UPLOADS: Final = HIDDEN + b"/uploads"
_ENDED: Final = HIDDEN + b"/ended"
_LIST_BATCH: Final = 1000
_UPLOAD_ID_CHARS: Final = 32
_VERSIONS_LOOKED_AT: Final = 100


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in progress, as it is at rest (JSON)."""

    upload_id: str
    bucket: str
    key: str
    started_ns: int
    headers: Mapping[str, str]
    metadata: Mapping[str, str]
    algorithm: str
    kind: str
    tags: str
    acl: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    etag: str
    checksum: tuple[str, str, str] | None
    version_id: str | None


class Uploads:
    """The uploads of one volume."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._volume = store.volume

    def begin(self, upload: Upload) -> None:
        self._store.check_bucket(upload.bucket.encode())
        with self._volume.create() as writing:
            content = json.dumps({"v": 1, **asdict(upload)}).encode()
            os.pwrite(writing.descriptor, content, 0)
            writing.commit(_path(upload.upload_id) + b"/upload", replace=False, mode=0o600)

    def get(self, bucket: bytes, key: bytes, upload_id: str) -> Upload:
        """Raises S3Error NoSuchUpload."""
        upload = self._load(upload_id)
        if upload is None or (upload.bucket.encode(), upload.key.encode()) != (bucket, key):
            raise S3Error("NoSuchUpload", fields={"UploadId": upload_id[:100]})
        return upload

    def _load(self, upload_id: str) -> Upload | None:
        if len(upload_id) != _UPLOAD_ID_CHARS or not set(upload_id) <= set("0123456789abcdef"):
            return None
        try:
            with self._volume.open(_path(upload_id) + b"/upload") as reading:
                target = bytearray(reading.attributes.size_bytes)
                count = reading.read_into(0, memoryview(target))
        except (NotFoundError, NotDirectoryError):
            return None
        try:
            fields = json.loads(target[:count])
            fields.pop("v")
            return Upload(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"upload {upload_id} cannot be read") from error

    def listed(self, bucket: bytes) -> list[Upload]:
        """Of one bucket, by key and then by id."""
        found = []
        for name in self._names(_UPLOADS):
            upload = self._load(name.decode("ascii", "replace"))
            if upload is not None and upload.bucket.encode() == bucket:
                found.append(upload)
        return sorted(found, key=lambda upload: (upload.key.encode(), upload.upload_id))

    def _names(self, path: bytes) -> Iterator[bytes]:
        after = b""
        while True:
            try:
                page = self._volume.entries(path, after, _LIST_BATCH)
            except NotFoundError:
                return
            yield from (entry.name for entry, _ in page)
            if len(page) < _LIST_BATCH:
                return
            after = page[-1][0].name

    # ---- parts ------------------------------------------------------------------------------------------------------

    def put_part(
        self, upload: Upload, number: int, writing: Writing, received: Received, version: int = record.CREATED_VERSION
    ) -> None:
        checksum = None if received.checksum is None else (*received.checksum, checksums.FULL_OBJECT)
        described = Record(received.md5, version, checksum=checksum)
        if self._load(upload.upload_id) is None:
            raise S3Error("NoSuchUpload", fields={"UploadId": upload.upload_id})
        path = _path(upload.upload_id) + b"/parts/%05d" % number
        writing.commit(path, xattrs={record.ATTRIBUTE: record.encode(described)}, mode=0o600)

    def parts(self, upload: Upload) -> dict[int, tuple[StoredPart, Part]]:
        """By number, in order, with where the bytes are."""
        found: dict[int, tuple[StoredPart, Part]] = {}
        after = b""
        while True:
            try:
                page = self._volume.entries(_path(upload.upload_id) + b"/parts", after, _LIST_BATCH)
            except NotFoundError:
                return found
            records = self._store.records_of([attributes for _, attributes in page])
            for (entry, attributes), described in zip(page, records, strict=True):
                number, size = int(entry.name), attributes.size_bytes
                given = {described.checksum[0]: described.checksum[1]} if described.checksum else {}
                stored = StoredPart(number, size, described.etag, attributes.mtime_ns, given)
                found[number] = (stored, Part(attributes.inode, 0, size))
            if len(page) < _LIST_BATCH:
                return found
            after = page[-1][0].name

    # ---- ends -------------------------------------------------------------------------------------------------------

    def complete(
        self,
        bucket: bytes,
        key: bytes,
        upload_id: str,
        listed: list[ListedPart],
        asked: Conditions,
        expected: multipart.Promised,
    ) -> Completed:
        """Raises S3Error NoSuchUpload, InvalidPart, EntityTooSmall, InvalidRequest, BadDigest, PreconditionFailed."""
        try:
            upload = self.get(bucket, key, upload_id)
            completed = self._complete(upload, listed, asked, expected)
        except (S3Error, NotFoundError):
            done = self._done(bucket, key, upload_id)
            if done is None:
                raise
            return done
        self._end(upload_id)
        return completed

    def _complete(
        self, upload: Upload, listed: list[ListedPart], asked: Conditions, expected: multipart.Promised
    ) -> Completed:
        stored = self.parts(upload)
        chosen = multipart.choose(listed, {number: part for number, (part, _) in stored.items()})
        multipart.check_listed(listed, chosen, upload.algorithm, upload.kind)
        checksum, of_parts = None, {}
        if upload.algorithm:
            algorithm = checksums.algorithm_of(upload.algorithm)
            value = multipart.checksum(algorithm, upload.kind, chosen)
            if value is not None:
                checksum = algorithm.name, value, upload.kind
                of_parts = record.encode_parts(multipart.part_digests(algorithm, chosen))
        size = sum(part.size_bytes for part in chosen)
        multipart.check_promised(expected, size, None if checksum is None else checksum[:2], upload.kind)
        described = Record(
            multipart.etag(chosen),
            record.SPLICED_VERSION,
            upload.headers,
            upload.metadata,
            checksum,
            record.runs([part.size_bytes for part in chosen]),
            upload.upload_id,
        )
        tags = upload.tags.encode() if upload.tags else None
        with self._store.splice([stored[part.number][1] for part in chosen]) as writing:
            bucket, key = upload.bucket.encode(), upload.key.encode()
            acl = upload.acl.encode() if upload.acl else None
            done = self._store.commit(bucket, key, writing, described, asked=asked, tags=tags, acl=acl, more=of_parts)
        return Completed(described.etag, checksum, done.version_id)

    def _done(self, bucket: bytes, key: bytes, upload_id: str) -> Completed | None:
        """The object, or one of the newest versions of it, that came from the upload."""
        current = self._store.find(bucket, key)
        shelved = itertools.islice(self._store.archive.shelved(bucket, key), _VERSIONS_LOOKED_AT)
        for found in itertools.chain([current] if current else [], shelved):
            if upload_id and found.record.upload == upload_id:
                return Completed(found.record.etag, found.record.checksum, found.record.version_id or None)
        return None

    def abort(self, bucket: bytes, key: bytes, upload_id: str) -> None:
        """Raises S3Error NoSuchUpload."""
        self.get(bucket, key, upload_id)
        self._end(upload_id)

    def _end(self, upload_id: str) -> None:
        ended = _ENDED + b"/" + upload_id.encode() + b"-" + secrets.token_hex(4).encode()
        with contextlib.suppress(NotFoundError):
            self._volume.rename(_path(upload_id), ended)
            self._volume.remove_tree(ended)

    def sweep(self) -> None:
        """Remove what a killed process had renamed away."""
        for name in list(self._names(_ENDED)):
            with contextlib.suppress(NotFoundError):
                self._volume.remove_tree(_ENDED + b"/" + name)


def new_upload_id() -> str:
    return secrets.token_hex(_UPLOAD_ID_CHARS // 2)


def _path(upload_id: str) -> bytes:
    return _UPLOADS + b"/" + upload_id.encode()
