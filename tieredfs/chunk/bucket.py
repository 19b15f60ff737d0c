"""Chunks as objects of an S3-compatible bucket, through boto3. Import it only where a bucket is used.

    PREFIX/tieredfs-disk.json                          which volume and which disk this is, as in a directory
    PREFIX/chunks/<2 hex digits>/<block>.<index>       a chunk, named as in a directory; one PUT each
    PREFIX/metadata/<16 hex digits>.dump               dumps of the metadata (`tieredfs.chunk.bucket_dumps`)

A PUT makes an object whole or not at all, and repeating one is harmless, so there is nothing to recover. Each carries the
CRC32C of the object, joined from checksums that are known, for servers that check it; readers check everything again.
Credentials are the SDK's business: environment, profile, instance role. None is logged, shown or stored.

A bucket does not say how much room it has: `?capacity=` says it, and then what is below the prefix is counted, by a listing now
and then, plus what was put since (chunks, not dumps); without, it is taken for `BUCKET_BYTES_DEFAULT` large and empty.
"""

import base64
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from tieredfs.chunk.bucket_client import ABSENT, check_present, fetch, new_client, read_bucket_identity, translated
from tieredfs.chunk.bucket_dumps import BucketDumps
from tieredfs.chunk.cells import label
from tieredfs.chunk.directory import (
    CHUNKS_NAME,
    FAN_OUT,
    IDENTITY_NAME,
    DiskIdentity,
    check_identity,
    chunk_file_name,
    encode_identity,
    parse_chunk_name,
)
from tieredfs.chunk.remote import RemoteStore
from tieredfs.chunk.store import ChunkName, ChunkStore, StoreSpace
from tieredfs.config import BucketUrl
from tieredfs.core.crc import join
from tieredfs.errors import ForeignDataError, NoSpaceError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Clock, Host, isal
from tieredfs.limits import BUCKET_BYTES_DEFAULT, BUCKET_COUNT_INTERVAL_S

_DELETE_MAX: Final = 1000
"""Keys of one multi-delete, by the protocol."""


class BucketSite:
    """A prefix of a bucket that is a disk of a volume, or may become one."""

    def __init__(self, url: BucketUrl, host: Host) -> None:
        self._url = url
        self._host = host
        self._client = new_client(url)
        self._root = f"{url.prefix}/" if url.prefix else ""

    def identity(self) -> DiskIdentity | None:
        return read_bucket_identity(self._client, self._url)

    def format(self, identity: DiskIdentity) -> None:
        found = self.identity()
        if found is None:
            self._refuse_foreign()
            found = self._claim(identity)
        check_identity(found, identity, str(self._url))

    def _refuse_foreign(self) -> None:
        with translated(f"{self._url} cannot be listed"):
            answer = self._client.list_objects_v2(Bucket=self._url.bucket, Prefix=self._root, MaxKeys=3)
        keys = [entry["Key"].removeprefix(self._root) for entry in answer.get("Contents", ())]
        foreign = [key for key in keys if key]  # what names the prefix itself is a folder of some browser's
        if foreign:
            raise ForeignDataError(f"{self._url} is not empty: it holds {', '.join(foreign)}")

    def _claim(self, identity: DiskIdentity) -> DiskIdentity:
        """Of two that format it at once one wins, where the server knows conditions; the identity that is there then."""
        wanted = {"Bucket": self._url.bucket, "Key": f"{self._root}{IDENTITY_NAME}", "Body": encode_identity(identity)}
        with translated(f"{self._url} cannot be made a disk"):
            try:
                self._client.put_object(**wanted, IfNoneMatch="*")
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "NotImplemented":
                    self._client.put_object(**wanted)
                elif code not in {"PreconditionFailed", "ConditionalRequestConflict"}:
                    raise
        found = self.identity()
        if found is None:
            raise UnavailableError(f"{self._url} does not keep what is put there")
        return found

    def give(self, identity: DiskIdentity) -> None:
        found = self.identity()
        if found is None:
            raise UnavailableError(f"{self._url} is not a disk of a volume (any more)")
        if found.disk_uuid != identity.disk_uuid:
            raise ForeignDataError(f"{self._url} is disk {found.disk_uuid}, not {identity.disk_uuid}")
        with translated(f"{self._url} cannot be given to the volume"):
            self._client.put_object(
                Bucket=self._url.bucket, Key=f"{self._root}{IDENTITY_NAME}", Body=encode_identity(identity)
            )

    def erase(self) -> None:
        chunks = BucketObjects(self._client, self._url, self._host.clock)
        dumps = BucketDumps(self._client, self._url, self._host.clock, None)
        dumps.abort_uploads(0.0)
        keys = itertools.chain((chunks.key_of(name) for name, _ in chunks.listed()), map(dumps.key_of, dumps.listed()))
        while batch := [{"Key": key} for _, key in zip(range(_DELETE_MAX), keys, strict=False)]:
            with translated(f"{self._url} cannot be erased"):
                answer = self._client.delete_objects(Bucket=self._url.bucket, Delete={"Objects": batch, "Quiet": True})
            if errors := answer.get("Errors"):
                raise UnavailableError(f"{self._url} cannot be erased: {errors[0].get('Code')}")
        with translated(f"{self._url} cannot be erased"):
            self._client.delete_object(Bucket=self._url.bucket, Key=f"{self._root}{IDENTITY_NAME}")

    def open(self, identity: DiskIdentity) -> ChunkStore:
        found = self.identity()
        if found is None:
            raise UnavailableError(f"{self._url} is not a disk of a volume (any more)")
        check_identity(found, identity, str(self._url))
        clock = self._host.clock
        dumps = BucketDumps(self._client, self._url, clock, identity)
        return RemoteStore(BucketObjects(self._client, self._url, clock, identity), dumps, clock)


class BucketObjects:
    """`tieredfs.chunk.remote.Objects` in a bucket. `identity`: whose it must still be; None: not asked."""

    def __init__(self, client: Any, url: BucketUrl, clock: Clock, identity: DiskIdentity | None = None) -> None:
        self.where = str(url)
        self._client = client
        self._url = url
        self._clock = clock
        self._identity = identity
        self._chunks = f"{url.prefix}/{CHUNKS_NAME}/".lstrip("/")
        self._usage = _Usage(self, url.capacity_bytes, clock)

    def key_of(self, name: ChunkName) -> str:
        return f"{self._chunks}{name.block % FAN_OUT:02x}/{chunk_file_name(name)}"

    def close(self) -> None:
        self._client.close()

    # ---- one object -------------------------------------------------------------------------------------------------

    def fetch(self, name: ChunkName, start: int, views: Sequence[memoryview]) -> int:
        what = f"{label(name)} cannot be read from {self.where}"
        try:
            return fetch(self._client, self._url, self.key_of(name), self._clock, what, start, views)
        except NotFoundError:
            self._check_present()
            raise

    def store(self, name: ChunkName, header: bytes, payload: memoryview, payload_crc32c: int) -> None:
        what = f"{label(name)} cannot be put to {self.where}"
        self._usage.check_room(len(header) + len(payload), what)
        crc = join(isal.crc32c(header), payload_crc32c, len(payload))
        with translated(what):
            try:
                self._client.put_object(
                    Bucket=self._url.bucket,
                    Key=self.key_of(name),
                    Body=b"".join((header, payload)),  # the SDK sends a file in pieces of 16 KiB, but bytes at once
                    ChecksumCRC32C=base64.b64encode(crc.to_bytes(4, "big")).decode(),
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ABSENT:
                    raise UnavailableError(f"{what}: there is no such bucket") from error
                raise
        self._usage.added(len(header) + len(payload))

    def remove(self, name: ChunkName) -> None:
        """A bucket does not say whether there was something to delete."""
        with contextlib.suppress(NotFoundError), translated(f"{label(name)} cannot be deleted from {self.where}"):
            self._client.delete_object(Bucket=self._url.bucket, Key=self.key_of(name))

    # ---- the whole --------------------------------------------------------------------------------------------------

    def names(self) -> Iterator[ChunkName]:
        self._check_present()
        for name, _ in self.listed():
            yield name

    def listed(self) -> Iterator[tuple[ChunkName, int]]:
        """Chunks and the sizes of their objects, by pages of a thousand."""
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self._url.bucket, Prefix=self._chunks)
        )
        while True:
            with translated(f"{self.where} cannot be listed"):
                page = next(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                fan_out, _, rest = entry["Key"].removeprefix(self._chunks).partition("/")
                name = parse_chunk_name(fan_out, rest)
                if name is not None:
                    yield name, int(entry["Size"])

    def space(self) -> StoreSpace:
        self._check_present()
        return self._usage.space()

    def _check_present(self) -> None:
        check_present(self._client, self._url, self._identity)


class _Usage:
    """How full a bucket with a capacity is: what the last listing counted, and what was put since.

    What is deleted is noticed by the next listing. Until the first one has ended the bucket is taken for empty.
    """

    def __init__(self, objects: BucketObjects, capacity_bytes: int | None, clock: Clock) -> None:
        self._objects = objects
        self._capacity_bytes = capacity_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._counted_bytes = 0
        self._added_bytes = 0
        self._counted_s: float | None = None

    def space(self) -> StoreSpace:
        if self._capacity_bytes is None:
            return StoreSpace(BUCKET_BYTES_DEFAULT, BUCKET_BYTES_DEFAULT)
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._counted_s is None or now_s - self._counted_s > BUCKET_COUNT_INTERVAL_S:
                self._counted_s = now_s
                threading.Thread(target=self._count, name="bucket-count", daemon=True).start()
            free_bytes = self._capacity_bytes - self._counted_bytes - self._added_bytes
        return StoreSpace(self._capacity_bytes, max(0, free_bytes))

    def _count(self) -> None:
        """What others put meanwhile may be counted or not; what we do is counted twice at most, until the next time."""
        with self._lock:
            before_bytes = self._added_bytes
        try:
            counted_bytes = sum(size for _, size in self._objects.listed())
        except TieredError:
            with self._lock:
                self._counted_s = None  # the next look tries again
            return
        with self._lock:
            self._counted_bytes = counted_bytes
            self._added_bytes -= before_bytes

    def check_room(self, size_bytes: int, what: str) -> None:
        """Raises NoSpaceError."""
        if self._capacity_bytes is None:
            return
        with self._lock:
            used_bytes = self._counted_bytes + self._added_bytes
        if used_bytes + size_bytes > self._capacity_bytes:
            raise NoSpaceError(f"{what}: {used_bytes} of its {self._capacity_bytes} bytes are used")

    def added(self, size_bytes: int) -> None:
        with self._lock:
            self._added_bytes += size_bytes
