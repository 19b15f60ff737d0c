"""The calls on the service and on buckets. Blocking; each takes a request and gives a response."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from tieredfs.errors import TieredError
from tieredfs_gateway.s3 import access, conditions, keys, listing, version_listing, versions, xml
from tieredfs_gateway.s3.acl_documents import OWNER
from tieredfs_gateway.s3.bucket_rules import ACL, LOCATION, OWNER_ENFORCED, OWNERSHIP, OWNERSHIPS
from tieredfs_gateway.s3.errors import S3Error, told
from tieredfs_gateway.s3.http import Caller, Request, Response, xml_response
from tieredfs_gateway.s3.public_access import canned_acl
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.store import Deleted, Store
from tieredfs_gateway.s3.uploads import Upload, Uploads

MULTI_DELETE_MAX: Final = 1000
REGION: Final = "us-east-1"
BUCKETS_MAX: Final = 10_000
"""On one page, if pages are asked for."""


def iso_date(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}Z"


class BucketCalls:
    """Safe from any thread."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self._store = store
        self._uploads = uploads

    def list_buckets(self, request: Request, caller: Caller) -> Response:
        """All of them, unless the client asks for pages."""
        prefix, token = _Query(request).text("prefix"), request.query.get("continuation-token")
        after, limit = listing.parse_token(token) if token else b"", _max_buckets(request.query.get("max-buckets"))
        wanted = [
            {"Name": name.decode(), "CreationDate": iso_date(created_ns)}
            for name, created_ns in self._store.buckets()
            if name > after and name.decode().startswith(prefix) and caller.key.scope.allows_bucket(name.decode())
        ]
        shown = wanted[:limit]
        fields: dict[str, xml.Tree] = {
            "Owner": OWNER,
            "Buckets": {"Bucket": shown},
            "ContinuationToken": listing.token_of(shown[-1]["Name"].encode()) if len(shown) < len(wanted) else None,
            "Prefix": prefix if "prefix" in request.query else None,
        }
        return xml_response("ListAllMyBucketsResult", fields)

    def create(self, request: Request, body: bytes) -> Response:
        """In the region us-east-1 a bucket that is there already is created again, unless it would be another."""
        acl, ownership = canned_acl(request.headers), request.headers.get("x-amz-object-ownership")
        constraint = xml.parse(body, "CreateBucketConfiguration").get("LocationConstraint") if body.strip() else None
        if constraint and len(constraint) > 64:
            raise S3Error("IllegalLocationConstraintException")
        if ownership is not None and ownership not in OWNERSHIPS:
            raise S3Error("InvalidArgument", fields={"ArgumentName": "x-amz-object-ownership"})
        if acl and ownership == OWNER_ENFORCED:
            raise S3Error("InvalidBucketAclWithObjectOwnership")
        if request.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
            raise S3Error("NotImplemented", "Object lock is not implemented.")
        try:
            self._store.create_bucket(request.bucket)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou" or ownership or (constraint or REGION) != REGION:
                raise
            if acl != self._store.settings.now(request.bucket).acl:
                raise S3Error("BucketAlreadyExists", fields={"BucketName": request.bucket_name}) from error
        if acl:
            self._store.settings.put(request.bucket, ACL, acl.encode())
        if constraint and constraint != REGION:
            self._store.settings.put(request.bucket, LOCATION, constraint.encode())
        if ownership:
            rule = xml.document("OwnershipControls", {"Rule": {"ObjectOwnership": ownership}})
            self._store.settings.put(request.bucket, OWNERSHIP, rule)
        self._store.sync()
        return Response(200, [("location", f"/{request.bucket_name}")])

    def head(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        region = (self._store.settings.get(request.bucket, LOCATION) or REGION.encode()).decode("utf-8", "replace")
        return Response(200, [("x-amz-bucket-region", region)])

    def delete(self, request: Request) -> Response:
        self._store.delete_bucket(request.bucket)
        self._store.sync()
        return Response(204)

    # ---- listings ---------------------------------------------------------------------------------------------------

    def list_v1(self, request: Request) -> Response:
        query = _Query(request)
        page = self._page(request, query, query.text("marker").encode())
        fields: dict[str, xml.Tree] = {
            "Name": request.bucket_name,
            "Prefix": query.shown("prefix"),
            "Marker": query.shown("marker"),
            "MaxKeys": query.max_keys,
        }
        if page.truncated and query.delimiter:
            fields["NextMarker"] = query.encode(page.last)
        return xml_response("ListBucketResult", fields | self._listed(query, page, owner=True))

    def list_v2(self, request: Request) -> Response:
        query = _Query(request)
        token = request.query.get("continuation-token")
        after = listing.parse_token(token) if token else query.text("start-after").encode()
        page = self._page(request, query, after)
        fields: dict[str, xml.Tree] = {
            "Name": request.bucket_name,
            "Prefix": query.shown("prefix"),
            "StartAfter": query.shown("start-after") if "start-after" in request.query else None,
            "ContinuationToken": token,
            "KeyCount": len(page.objects) + len(page.common_prefixes),
            "MaxKeys": query.max_keys,
            "NextContinuationToken": listing.token_of(page.last) if page.truncated else None,
        }
        owner = request.query.get("fetch-owner", "").lower() == "true"
        return xml_response("ListBucketResult", fields | self._listed(query, page, owner=owner))

    def list_versions(self, request: Request) -> Response:
        """Also of a bucket that never had versions: every object is its only one, `null`."""
        self._store.check_bucket(request.bucket)
        query = _Query(request)
        marker = version_listing.parse_markers(query.text("key-marker"), request.query.get("version-id-marker"))
        asked = version_listing.Request(
            query.text("prefix").encode(), query.delimiter, query.text("key-marker").encode(), marker, query.max_keys
        )
        page = version_listing.page(self._store, request.bucket, asked)
        fields: dict[str, xml.Tree] = {
            "Name": request.bucket_name,
            "Prefix": query.shown("prefix"),
            "KeyMarker": query.shown("key-marker"),
            "VersionIdMarker": marker or "",
            "NextKeyMarker": query.encode(page.next_key) if page.truncated else None,
            "NextVersionIdMarker": page.next_version if page.truncated else None,
            "MaxKeys": query.max_keys,
            "Delimiter": query.shown("delimiter") if query.delimiter else None,
            "EncodingType": query.encoding,
            "IsTruncated": page.truncated,
            "CommonPrefixes": [{"Prefix": query.encode(prefix)} for prefix in page.common_prefixes],
        }
        rows = [
            ("DeleteMarker" if row.version.record.marker else "Version", _version_entry(query, row))
            for row in page.rows
        ]
        return xml_response("ListVersionsResult", fields, rows=rows)

    def _page(self, request: Request, query: "_Query", after: bytes) -> listing.Page:
        self._store.check_bucket(request.bucket)
        asked = listing.Request(query.text("prefix").encode(), query.delimiter, after, query.max_keys)
        return listing.page(self._store.source(request.bucket), asked)

    def _records(self, page: listing.Page) -> list[Record]:
        return self._store.records_of([found.attributes for found in page.objects])

    def _listed(self, query: "_Query", page: listing.Page, *, owner: bool) -> dict[str, xml.Tree]:
        shown = zip(page.objects, self._records(page), strict=True)
        return {
            "Delimiter": query.shown("delimiter") if query.delimiter else None,
            "EncodingType": query.encoding,
            "IsTruncated": page.truncated,
            "Contents": [
                _entry(query, found, described) | {"Owner": OWNER if owner else None} for found, described in shown
            ],
            "CommonPrefixes": [{"Prefix": query.encode(prefix)} for prefix in page.common_prefixes],
        }

    # ---- uploads and deletion ---------------------------------------------------------------------------------------

    def list_uploads(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        query = _Query(request, limit="max-uploads")
        after = (query.text("key-marker"), query.text("upload-id-marker"))
        wanted = _rolled_up(self._uploads.listed(request.bucket), query, after)
        shown, truncated = wanted[: query.max_keys], len(wanted) > query.max_keys
        last = shown[-1] if truncated and shown else None
        next_key, next_id = (
            (last, "") if isinstance(last, str) else (last.key, last.upload_id) if last else (None, None)
        )
        fields: dict[str, xml.Tree] = {
            "Bucket": request.bucket_name,
            "KeyMarker": query.shown("key-marker"),
            "UploadIdMarker": after[1],
            "NextKeyMarker": None if next_key is None else query.encode(next_key.encode()),
            "NextUploadIdMarker": next_id,
            "Prefix": query.shown("prefix") if query.text("prefix") else None,
            "Delimiter": query.shown("delimiter") if query.delimiter else None,
            "EncodingType": query.encoding,
            "MaxUploads": query.max_keys,
            "IsTruncated": truncated,
            "Upload": [
                {
                    "Key": query.encode(upload.key.encode()),
                    "UploadId": upload.upload_id,
                    "Initiator": OWNER,
                    "Owner": OWNER,
                    "StorageClass": "STANDARD",
                    "Initiated": iso_date(upload.started_ns),
                }
                for upload in shown
                if isinstance(upload, Upload)
            ],
            "CommonPrefixes": [{"Prefix": query.encode(row.encode())} for row in shown if isinstance(row, str)],
        }
        return xml_response("ListMultipartUploadsResult", fields)

    def delete_many(self, request: Request, body: bytes, caller: Caller) -> Response:
        """Each on its own; the answer says what became of each."""
        if "content-md5" not in request.headers and not any(
            name.startswith("x-amz-checksum-") for name in request.headers
        ):
            raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5")
        self._store.check_bucket(request.bucket)
        document = xml.parse(body, "Delete")
        wanted = document.all("Object")
        if not 1 <= len(wanted) <= MULTI_DELETE_MAX:
            raise S3Error("MalformedXML", f"From 1 to {MULTI_DELETE_MAX} objects can be deleted at once.")
        quiet = (document.get("Quiet") or "").lower() == "true"
        deleted: list[dict[str, str]] = []
        failed: list[dict[str, str]] = []
        for element in wanted:
            key = element.exact("Key")
            if not key:
                raise S3Error("MalformedXML", "An object needs a Key.")
            version_id = element.get("VersionId") or None
            said = {"Key": key} | ({"VersionId": version_id} if version_id else {})
            try:
                done = self._delete_one(request, element, key, version_id, caller)
            except (S3Error, TieredError) as caught:
                error = told(caught)
                failed.append(said | {"Code": error.code, "Message": error.message})
                continue
            if done.marker:
                said |= {"DeleteMarker": "true", "DeleteMarkerVersionId": done.version_id or ""}
            deleted.append(said)
        self._store.sync()
        return xml_response("DeleteResult", {"Deleted": [] if quiet else deleted, "Error": failed})

    def _delete_one(
        self, request: Request, element: xml.Element, key: str, version_id: str | None, caller: Caller
    ) -> Deleted:
        name = "s3:DeleteObjectVersion" if version_id else "s3:DeleteObject"
        access.check_key(request, caller, self._store.settings.now(request.bucket), request.bucket_name, key, name)
        if version_id is not None and not versions.is_id(version_id):
            raise S3Error("NoSuchVersion")
        keys.check_key(key.encode())
        asked = conditions.of_delete(element.get("ETag"), element.get("Size"), element.get("LastModifiedTime"))
        return self._store.delete(request.bucket, key.encode(), asked, version_id)


class _Query:
    """What the listings share: page size, delimiter, encoding."""

    def __init__(self, request: Request, limit: str = "max-keys") -> None:
        self._query = request.query
        self.encoding = request.query.get("encoding-type")
        if self.encoding not in (None, "url"):
            raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
        self.max_keys = listing.parse_max_keys(request.query.get(limit))
        self.delimiter = self.text("delimiter").encode()
        if self.delimiter and request.query.get("allow-unordered", "").lower() == "true":
            raise S3Error("InvalidArgument", "What is not in order has no common prefixes.")

    def text(self, name: str) -> str:
        """Raises S3Error InvalidArgument where it is not UTF-8."""
        value = self._query.get(name, "")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise S3Error("InvalidArgument", f"{name} is not UTF-8.")
        return value

    def shown(self, name: str) -> str:
        return self.encode(self.text(name).encode())

    def encode(self, key: bytes) -> str:
        return quote(key, safe="/~") if self.encoding else key.decode()


def _version_entry(query: _Query, row: version_listing.Row) -> dict[str, xml.Tree]:
    version = row.version
    named: dict[str, xml.Tree] = {
        "Key": query.encode(row.key),
        "VersionId": version.version_id,
        "IsLatest": row.latest,
        "LastModified": iso_date(version.attributes.mtime_ns),
        "Owner": OWNER,
    }
    if version.record.marker:
        return named
    checksum = version.record.checksum
    return named | {
        "ETag": f'"{version.record.etag}"',
        "ChecksumAlgorithm": checksum[0] if checksum else None,
        "ChecksumType": checksum[2] if checksum else None,
        "Size": version.attributes.size_bytes,
        "StorageClass": "STANDARD",
    }


def _entry(query: _Query, found: listing.Found, described: Record) -> dict[str, xml.Tree]:
    return {
        "Key": query.encode(found.key),
        "LastModified": iso_date(found.attributes.mtime_ns),
        "ETag": f'"{described.etag}"',
        "ChecksumAlgorithm": described.checksum[0] if described.checksum else None,
        "ChecksumType": described.checksum[2] if described.checksum else None,
        "Size": found.attributes.size_bytes,
        "StorageClass": "STANDARD",
    }


def _max_buckets(text: str | None) -> int | None:
    """Raises S3Error InvalidArgument."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= BUCKETS_MAX):
        raise S3Error("InvalidArgument", f"Argument max-buckets must be an integer between 1 and {BUCKETS_MAX}.")
    return int(text)


def _rolled_up(uploads: Iterable[Upload], query: _Query, after: tuple[str, str]) -> list[Upload | str]:
    """Uploads in their order, and the common prefixes of those that have the delimiter. One that ended a page is over."""
    prefix, rows = query.text("prefix").encode(), list[Upload | str]()
    for upload in uploads:
        if not upload.key.encode().startswith(prefix) or not _comes_after(upload, after):
            continue
        shared = listing.common_prefix(prefix, query.delimiter, upload.key.encode())
        if shared is None:
            rows.append(upload)
        elif shared.decode() != after[0] and shared.decode() not in rows[-1:]:
            rows.append(shared.decode())
    return rows


def _comes_after(upload: Upload, after: tuple[str, str]) -> bool:
    if not after[1]:
        return upload.key.encode() > after[0].encode() or not after[0]
    return (upload.key.encode(), upload.upload_id) > (after[0].encode(), after[1])
