"""Dumps as objects of an S3-compatible bucket. The contract is `tieredfs.chunk.dump_shelf.DumpShelf`.

    PREFIX/metadata/<nanoseconds since 1970, 16 hex digits>.dump

One of a piece is put at once, a larger one in parts: either is there whole, or not at all. Parts that nobody put together are
aborted a day later, by whoever puts a large one next. Each request carries the CRC32C of its bytes.
"""

import base64
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from tieredfs.chunk.bucket_client import check_present, fetch, translated
from tieredfs.chunk.directory import METADATA_NAME, DiskIdentity, dump_name, newest_first
from tieredfs.chunk.dump_shelf import HEAD_BYTES, DumpSource, ranges
from tieredfs.config import BucketUrl
from tieredfs.errors import CorruptError, NewerFormatError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Clock, isal
from tieredfs.limits import DUMP_PIECE_BYTES

FORGOTTEN_S: Final = 24 * 3600.0
"""Age at which parts are nobody's: a dump is given up after an hour."""
_ALGORITHM: Final = "CRC32C"


class BucketDumps:
    """`identity`: whose the prefix must still be; None: not asked."""

    def __init__(self, client: Any, url: BucketUrl, clock: Clock, identity: DiskIdentity | None) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        self._identity = identity
        self._folder = f"{url.prefix}/{METADATA_NAME}/".lstrip("/")

    def key_of(self, taken_ns: int) -> str:
        return f"{self._folder}{dump_name(taken_ns)}"

    def label(self, taken_ns: int) -> str:
        return f"s3://{self._url.bucket}/{self.key_of(taken_ns)}"

    # ---- putting ----------------------------------------------------------------------------------------------------

    def put(self, taken_ns: int, source: DumpSource) -> None:
        self._check()
        with self._translated("a dump cannot be put there"):
            if source.size_bytes <= DUMP_PIECE_BYTES:
                body = source.piece(0, source.size_bytes)
                self._client.put_object(**self._named(taken_ns), Body=body, ChecksumCRC32C=_crc(body))
            else:
                self._put_in_parts(taken_ns, source)

    def _put_in_parts(self, taken_ns: int, source: DumpSource) -> None:
        self.abort_uploads(FORGOTTEN_S)
        named = self._named(taken_ns)
        upload = self._client.create_multipart_upload(**named, ChecksumAlgorithm=_ALGORITHM)["UploadId"]
        try:
            parts = []
            for number, (offset, length) in enumerate(ranges(source.size_bytes, DUMP_PIECE_BYTES), start=1):
                body = source.piece(offset, length)
                checked = {"PartNumber": number, "ChecksumCRC32C": _crc(body)}
                made = self._client.upload_part(**named, **checked, UploadId=upload, Body=body)
                parts.append({**checked, "ETag": made["ETag"]})
            self._check()  # it may have become another volume's meanwhile
            self._complete(taken_ns, upload, parts, source.size_bytes)
        except BaseException:
            with contextlib.suppress(TieredError), self._translated("parts of a dump cannot be aborted"):
                self._client.abort_multipart_upload(**named, UploadId=upload)
            raise

    def _complete(self, taken_ns: int, upload: str, parts: list[dict[str, Any]], size_bytes: int) -> None:
        named = self._named(taken_ns)
        try:
            self._client.complete_multipart_upload(**named, UploadId=upload, MultipartUpload={"Parts": parts})
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise
            if int(self._client.head_object(**named)["ContentLength"]) != size_bytes:  # else: the first answer was lost
                raise

    def abort_uploads(self, older_than_s: float) -> None:
        """Parts of dumps that nobody puts together. Raises UnavailableError."""
        begun_before = datetime.fromtimestamp(self._clock.wall_ns() / 1e9 - older_than_s, UTC)
        with self._translated("uploads cannot be listed"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._url.bucket, Prefix=self._folder
            )
            for entry in [entry for page in pages for entry in page.get("Uploads", ())]:
                if entry["Initiated"] <= begun_before:
                    self._client.abort_multipart_upload(
                        Bucket=self._url.bucket, Key=entry["Key"], UploadId=entry["UploadId"]
                    )

    # ---- the others -------------------------------------------------------------------------------------------------

    def taken(self) -> list[int]:
        self._check()
        return self.listed()

    def listed(self) -> list[int]:
        """Whosever they are."""
        with self._translated("its dumps cannot be listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._url.bucket, Prefix=self._folder)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return newest_first(key.removeprefix(self._folder) for key in keys)

    def read(self, taken_ns: int) -> Iterator[bytes]:
        self._check()
        named = self._named(taken_ns)
        with self._translated("a dump cannot be read"):
            size_bytes = int(self._client.head_object(**named)["ContentLength"])
        yield from self._pieces(named["Key"], 0, min(HEAD_BYTES, size_bytes))
        yield from self._pieces(named["Key"], HEAD_BYTES, size_bytes)

    def _pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        what = f"a dump cannot be read from {self._url}"
        for offset, length in ranges(end - start, DUMP_PIECE_BYTES):
            target = bytearray(length)
            try:
                fetch(self._client, self._url, key, self._clock, what, start + offset, [memoryview(target)])
            except CorruptError as error:
                raise UnavailableError(f"{what}: it was replaced meanwhile") from error
            yield bytes(target)

    def delete(self, taken_ns: int) -> None:
        self._check()
        with contextlib.suppress(NotFoundError), self._translated("a dump cannot be deleted"):
            self._client.delete_object(**self._named(taken_ns))

    def _named(self, taken_ns: int) -> dict[str, str]:
        return {"Bucket": self._url.bucket, "Key": self.key_of(taken_ns)}

    def _check(self) -> None:
        if self._identity is None:
            return
        try:
            check_present(self._client, self._url, self._identity)
        except (CorruptError, NewerFormatError) as error:
            raise UnavailableError(str(error)) from error

    def _translated(self, what: str) -> contextlib.AbstractContextManager[None]:
        return translated(f"{self._url}: {what}")


def _crc(body: bytes) -> str:
    return base64.b64encode(isal.crc32c(body).to_bytes(4, "big")).decode()
