"""The calls on objects and on the parts of uploads. Blocking; each takes a request and gives a response.

What has a large body (`put`, `put_part`) is in two halves: `expect` says what the body must be, before a byte of it is
read, and `put`/`put_part` take the file once the body was found right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from tieredfs.host import Clock
from tieredfs.volume.contract import Naming, Part, Writing
from tieredfs_gateway.s3 import access, checksums, conditions, keys, lifecycle, multipart, ranges, record, versions, xml
from tieredfs_gateway.s3.acl_documents import OWNER, acl_response, asked_acl
from tieredfs_gateway.s3.bucket_calls import iso_date
from tieredfs_gateway.s3.conditions import Conditions
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import KEPT_HEADERS, Caller, Described, Request, Response, described, xml_response
from tieredfs_gateway.s3.ingest import Expected, Received
from tieredfs_gateway.s3.open_content import OpenContent
from tieredfs_gateway.s3.public_access import asked_grants, canned_acl, check_acl, lets
from tieredfs_gateway.s3.ranges import Span
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.sigv4 import STREAMING, UNSIGNED
from tieredfs_gateway.s3.store import Committed, Store
from tieredfs_gateway.s3.tagging import TAGS_MAX, header_tags, parse_tagging, parse_tags, tags_tree
from tieredfs_gateway.s3.uploads import Upload, Uploads, new_upload_id
from tieredfs_gateway.s3.versions import NULL, Object, Versioning

INLINE_BYTES: Final = 256 * 1024
"""Read at once with the look-up: one hop between threads."""
_REFUSED: Final = (
    "x-amz-server-side-encryption",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-object-lock-legal-hold",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
)
ATTRIBUTES: Final = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}
Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the headers of a PUT say of its object: what is kept, on what condition, with which tags, with which ACL."""

    described: Described
    condition: Conditions
    tags: bytes | None
    acl: bytes | None


class ObjectCalls:
    """Safe from any thread."""

    def __init__(self, store: Store, uploads: Uploads, clock: Clock) -> None:
        self._store = store
        self._uploads = uploads
        self._clock = clock

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, request: Request) -> Response:
        reading, found = self._store.open(request.bucket, request.key, version_of(request))
        content = OpenContent(reading)
        return self._content(request, content, found, content.read)

    def get_now(self, request: Request) -> Response | None:
        """`get` where nothing has to be waited for but the metadata; None: ask `get`."""
        reading, found = self._store.open_here(request.bucket, request.key, version_of(request))
        if reading is None:
            return None
        content = OpenContent(reading)
        return self._content(request, content, found, content.read_all_now)

    def _content(
        self, request: Request, content: OpenContent, found: Object, read: Callable[[int, int], bytes | None]
    ) -> Response:
        """A small one is read at once, if `read` can."""
        try:
            response = self._head(request, found)
            body = b""
            if 0 < response.length <= INLINE_BYTES:
                body = read(response.offset, response.length) or b""
            if len(body) < response.length:
                return Response(response.status, response.headers, b"", content, response.offset, response.length)
        except BaseException:
            content.close()
            raise
        content.close()
        return Response(response.status, response.headers, body)

    def head(self, request: Request) -> Response:
        response = self._head(request, self._store.head(request.bucket, request.key, version_of(request)))
        return Response(response.status, response.headers)

    def _head(self, request: Request, found: Object) -> Response:
        """The headers, and which bytes."""
        size, now = found.attributes.size_bytes, found.record
        conditions.check_read(conditions.of_read(request.headers), now.etag, found.attributes.mtime_ns)
        span, extra = self._span(request, found)
        headers = [*object_headers(found), *self._version_headers(request.bucket, found), *extra]
        if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" and now.checksum:
            headers += self._checksum_of(request, found, now.checksum, span)
        if found.tags and (count := len(parse_tags(found.tags.decode()))):
            headers.append(("x-amz-tagging-count", str(count)))
        headers += self._expiration(request, size, found.tags, found.attributes.mtime_ns)
        headers = overridden(headers, request.query)
        if span is None:
            return Response(200, [*headers, ("content-length", str(size))], length=size)
        headers += [("content-length", str(span.length)), ("content-range", span.content_range(size))]
        return Response(206, headers, offset=span.offset, length=span.length)

    def _checksum_of(self, request: Request, found: Object, whole: tuple[str, str, str], span: Span | None) -> Headers:
        """Of what is sent, where that is known: all of it, or one part."""
        if span is None or ("partNumber" in request.query and not found.record.parts):
            return checksum_headers(whole)
        digests = self._store.part_digests(found) if "partNumber" in request.query else []
        if not digests:
            return []
        digest = digests[multipart.parse_part_number(request.query["partNumber"]) - 1]
        return [(checksums.algorithm_of(whole[0]).header, checksums.encode(digest))]

    def _expiration(self, request: Request, size_bytes: int, tags: bytes | None, made_ns: int) -> Headers:
        """When a rule will take the object away; of what is current only."""
        rules = self._store.settings.now(request.bucket).lifecycle
        if not rules or "versionId" in request.query:
            return []
        due = lifecycle.expires(rules, request.key_name, size_bytes, parse_tags((tags or b"").decode()), made_ns)
        if due is None:
            return []
        date, rule_id = conditions.http_date(due[0]), quote(due[1], safe="")
        return [("x-amz-expiration", f'expiry-date="{date}", rule-id="{rule_id}"')]

    def _version_headers(self, bucket: bytes, found: Object) -> Headers:
        """Also the version `null` has an id, once the bucket has versions."""
        if found.version_id == NULL and self._store.settings.now(bucket).versioning is Versioning.NEVER:
            return []
        return [("x-amz-version-id", found.version_id)]

    def _span(self, request: Request, found: Object) -> tuple[Span | None, Headers]:
        size = found.attributes.size_bytes
        if "partNumber" in request.query:
            number = multipart.parse_part_number(request.query["partNumber"])
            if "range" in request.headers:
                raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
            count = found.record.part_count() or 1
            span = _part_span(found.record, number, size)
            extra = [("x-amz-mp-parts-count", str(count))] if found.record.parts else []
            return (span if span.length else None), extra
        if_range = request.headers.get("if-range")
        if if_range is not None and if_range.strip('"') != found.record.etag:
            return None, []
        return ranges.parse_range(request.headers.get("range"), size), []

    def attributes(self, request: Request) -> Response:
        """GetObjectAttributes."""
        wanted = {name.strip() for name in request.headers.get("x-amz-object-attributes", "").split(",")}
        if not wanted <= ATTRIBUTES:
            raise S3Error("InvalidArgument", "Invalid attribute name specified.")
        found = self._store.head(request.bucket, request.key, version_of(request))
        checksum = found.record.checksum
        fields: dict[str, xml.Tree] = {}
        if "ETag" in wanted:
            fields["ETag"] = found.record.etag
        if "Checksum" in wanted and checksum:
            fields["Checksum"] = {f"Checksum{checksum[0]}": checksum[1], "ChecksumType": checksum[2]}
        if "ObjectParts" in wanted and found.record.parts:
            limit = min(_number(request.headers.get("x-amz-max-parts"), 1000), 1000)
            after = _number(request.headers.get("x-amz-part-number-marker"), 0)
            element = f"Checksum{checksum[0]}" if checksum else ""
            digests = self._store.part_digests(found)
            fields["ObjectParts"] = multipart.parts_page(found.record.parts, element, digests, after, limit)
        if "StorageClass" in wanted:
            fields["StorageClass"] = "STANDARD"
        if "ObjectSize" in wanted:
            fields["ObjectSize"] = found.attributes.size_bytes
        modified = ("last-modified", conditions.http_date(found.attributes.mtime_ns))
        return xml_response(
            "GetObjectAttributesResponse", fields, [modified, *self._version_headers(request.bucket, found)]
        )

    # ---- ACLs -------------------------------------------------------------------------------------------------------

    def acl(self, request: Request) -> Response:
        return acl_response(self._store.get_acl(self._store.head(request.bucket, request.key, version_of(request))))

    def put_acl(self, request: Request, body: bytes) -> Response:
        found = self._store.head(request.bucket, request.key, version_of(request))
        self._store.set_acl(found, self._allowed(request.bucket, asked_acl(request, body)))
        self._store.sync()
        return Response(200)

    def check_public(self, request: Request, caller: Caller) -> None:
        """Raises S3Error AccessDenied unless the object's own ACL lets the caller read it."""
        try:
            found = self._store.head(request.bucket, request.key, version_of(request))
        except S3Error as error:
            if access.may_list(request, caller, self._store.settings.now(request.bucket)):
                raise
            raise S3Error("AccessDenied") from error
        if not lets(self._store.get_acl(found), "READ", anonymous=caller.is_anonymous):
            raise S3Error("AccessDenied")

    # ---- writing ----------------------------------------------------------------------------------------------------

    def expect(self, request: Request, caller: Caller) -> Expected:
        """Of the body of a PUT. Raises S3Error for what can be refused before it is read."""
        self.check_put(request)
        return expected_body(request, caller)

    def check_put(self, request: Request) -> None:
        """Raises S3Error for what the headers say, and for a bucket that is not there."""
        self.asked(request)
        self._store.check_bucket(request.bucket)

    def asked(self, request: Request) -> Asked:
        """Raises S3Error for what the headers say."""
        check_supported(request)
        acl = self._acl(request)
        said, on = described(request.headers), conditions.of_write(request.headers)
        return Asked(said, on, header_tags(request.headers.get("x-amz-tagging")), acl)

    def put(self, request: Request, writing: Writing, received: Received) -> Response:
        return self.put_as(self.asked(request), request, writing, received)

    def put_as(self, asked: Asked, request: Request, writing: Writing, received: Received) -> Response:
        made = _made(asked, received)
        done = self._store.commit(
            request.bucket, request.key, writing, made, asked=asked.condition, tags=asked.tags, acl=asked.acl
        )
        return self.was_put(asked, request, received, done)

    def plan_put(self, asked: Asked, request: Request, received: Received) -> Naming | None:
        """See `Store.plan`."""
        made = _made(asked, received)
        return self._store.plan(
            request.bucket, request.key, made, asked=asked.condition, tags=asked.tags, acl=asked.acl
        )

    def was_put(self, asked: Asked, request: Request, received: Received, done: Committed) -> Response:
        checksum = _checksum_of(received)
        headers = [("etag", f'"{received.md5}"'), *(checksum_headers(checksum) if checksum else [])]
        headers += self._expiration(request, received.size_bytes, asked.tags, done.attributes.mtime_ns)
        return Response(200, [*headers, *version_headers(done.version_id)])

    def _acl(self, request: Request) -> bytes | None:
        """Raises S3Error NotImplemented, AccessDenied."""
        if "x-amz-acl" not in request.headers and not asked_grants(request.headers):
            return None
        return self._allowed(request.bucket, canned_acl(request.headers)).encode() or None

    def _allowed(self, bucket: bytes, acl: str) -> str:
        believed = self._store.settings.now(bucket)
        return check_acl(acl, believed.blocks, owner_enforced=believed.owner_enforced)

    def delete(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        names = ("if-match", "x-amz-if-match-size", "x-amz-if-match-last-modified-time", "if-none-match")
        asked = conditions.of_delete(*(request.headers.get(name) for name in names))
        done = self._store.delete(request.bucket, request.key, asked, version_of(request))
        self._store.sync()
        headers = version_headers(done.version_id)
        return Response(204, [*headers, ("x-amz-delete-marker", "true")] if done.marker else headers)

    def copy(self, request: Request, caller: Caller) -> Response:
        """By reference: no byte is read, whatever the size."""
        check_supported(request)
        self._store.check_bucket(request.bucket)
        source, source_key, version_id = self._source(request, caller)
        replace = _directive(request, "x-amz-metadata-directive")
        said = described(request.headers)
        changed = replace or "x-amz-storage-class" in request.headers  # to the same class: how clients renew an object
        if not changed and version_id is None and source_key == (request.bucket, request.key):
            raise S3Error("InvalidRequest", "This copy request is illegal because it changes nothing about the object.")
        old = source.record
        kept = said if replace else Described(old.headers, old.metadata)
        made = Record(old.etag, record.SPLICED_VERSION, kept.headers, kept.metadata, old.checksum, old.parts)
        if _directive(request, "x-amz-tagging-directive"):
            tags = header_tags(request.headers.get("x-amz-tagging"))
        else:
            tags = source.tags
        with self._store.splice([Part(source.attributes.inode, 0, source.attributes.size_bytes)]) as writing:
            asked, acl = conditions.of_write(request.headers), self._acl(request)
            kept_parts = self._store.part_attributes(source)
            done = self._store.commit(
                request.bucket, request.key, writing, made, asked=asked, tags=tags, acl=acl, more=kept_parts
            )
        fields = {"LastModified": iso_date(done.attributes.mtime_ns), "ETag": f'"{made.etag}"'}
        headers = [*version_headers(done.version_id), *self._source_headers(source_key[0], source)]
        return xml_response("CopyObjectResult", fields | _checksum_fields(made.checksum), headers)

    def _source_headers(self, bucket: bytes, source: Object) -> Headers:
        return [("x-amz-copy-source-version-id", value) for _, value in self._version_headers(bucket, source)]

    def _source(self, request: Request, caller: Caller) -> tuple[Object, tuple[bytes, bytes], str | None]:
        bucket, key, version_id = parse_copy_source(request.headers["x-amz-copy-source"])
        self._store.check_bucket(bucket)
        action = "s3:GetObject" if version_id is None else "s3:GetObjectVersion"
        access.check_key(request, caller, self._store.settings.now(bucket), bucket.decode(), key.decode(), action)
        try:
            found = self._store.head(bucket, key, version_id)
        except S3Error as error:
            if error.code != "MethodNotAllowed":
                raise
            message = "The source of a copy request may not specifically refer to a delete marker by version id."
            raise S3Error("InvalidRequest", message) from error
        asked = conditions.of_copy_source(request.headers)
        conditions.check_copy_source(asked, found.record.etag, found.attributes.mtime_ns)
        return found, (bucket, key), version_id

    # ---- tags -------------------------------------------------------------------------------------------------------

    def get_tags(self, request: Request) -> Response:
        found = self._store.head(request.bucket, request.key, version_of(request))
        tags = tags_tree(found.tags or b"")
        return xml_response("Tagging", tags, self._version_headers(request.bucket, found))

    def put_tags(self, request: Request, body: bytes) -> Response:
        found = self._store.head(request.bucket, request.key, version_of(request))
        self._store.set_tags(found, parse_tagging(body, TAGS_MAX))
        self._store.sync()
        return Response(200, self._version_headers(request.bucket, found))

    def delete_tags(self, request: Request) -> Response:
        found = self._store.head(request.bucket, request.key, version_of(request))
        self._store.set_tags(found, b"")
        self._store.sync()
        return Response(204, self._version_headers(request.bucket, found))

    # ---- multipart --------------------------------------------------------------------------------------------------

    def begin_upload(self, request: Request) -> Response:
        check_supported(request)
        acl = self._acl(request)
        said, tags = described(request.headers), header_tags(request.headers.get("x-amz-tagging"))
        name = request.headers.get("x-amz-checksum-algorithm", "")
        algorithm = checksums.algorithm_of(name) if name else None
        if algorithm is None and "x-amz-checksum-type" in request.headers:
            raise S3Error("InvalidRequest", "x-amz-checksum-type comes with x-amz-checksum-algorithm only.")
        kind = multipart.parse_kind(request.headers.get("x-amz-checksum-type"), algorithm) if algorithm else ""
        upload = Upload(
            new_upload_id(),
            request.bucket_name,
            request.key_name,
            self._clock.wall_ns(),
            said.headers,
            said.metadata,
            algorithm.name if algorithm else "",
            kind,
            (tags or b"").decode(),
            (acl or b"").decode(),
        )
        self._uploads.begin(upload)
        headers = [("x-amz-checksum-algorithm", upload.algorithm), ("x-amz-checksum-type", kind)] if kind else []
        fields = {"Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.upload_id}
        return xml_response("InitiateMultipartUploadResult", fields, headers)

    def expect_part(self, request: Request, caller: Caller) -> Expected:
        multipart.parse_part_number(request.query.get("partNumber"))
        upload = self._uploads.get(request.bucket, request.key, request.query["uploadId"])
        expected = expected_body(request, caller)
        given = expected.announced.algorithm
        if upload.algorithm and given is None:
            wanted = checksums.Announced(
                expected.announced.md5, checksums.algorithm_of(upload.algorithm), None, trailer=False
            )
            return Expected(expected.size_bytes, wanted, expected.sha256)
        if upload.algorithm and given is not None and given.name != upload.algorithm:
            raise S3Error("InvalidRequest", f"The upload was begun with {upload.algorithm}, the part has {given.name}.")
        return expected

    def put_part(self, request: Request, writing: Writing, received: Received) -> Response:
        upload = self._uploads.get(request.bucket, request.key, request.query["uploadId"])
        number = multipart.parse_part_number(request.query.get("partNumber"))
        self._uploads.put_part(upload, number, writing, received)
        headers: Headers = [("etag", f'"{received.md5}"')]
        if received.checksum is not None:
            headers.append((checksums.algorithm_of(received.checksum[0]).header, received.checksum[1]))
        return Response(200, headers)

    def copy_part(self, request: Request, caller: Caller) -> Response:
        """By reference. Its ETag is made from what it refers to: its bytes are not read. It has a checksum if it is a whole object
        that has the upload's."""
        upload = self._uploads.get(request.bucket, request.key, request.query["uploadId"])
        number = multipart.parse_part_number(request.query.get("partNumber"))
        source, (source_bucket, _), _ = self._source(request, caller)
        size = source.attributes.size_bytes
        span = ranges.parse_copy_range(request.headers.get("x-amz-copy-source-range"), size)
        if span.length > multipart.PART_BYTES_MAX:
            raise S3Error("EntityTooLarge")
        etag = multipart.reference_etag(source.record.etag, span.offset, span.length)
        whole = source.record.checksum
        known = None
        if whole is not None and whole[0] == upload.algorithm and whole[2] == checksums.FULL_OBJECT:
            known = (whole[0], whole[1]) if span.length == size else None
        with self._store.splice([Part(source.attributes.inode, span.offset, span.length)]) as writing:
            self._uploads.put_part(upload, number, writing, Received(span.length, etag, known), record.SPLICED_VERSION)
        fields = {"LastModified": iso_date(self._clock.wall_ns()), "ETag": f'"{etag}"'}
        fields |= {f"Checksum{known[0]}": known[1]} if known else {}
        return xml_response("CopyPartResult", fields, self._source_headers(source_bucket, source))

    def list_parts(self, request: Request) -> Response:
        upload = self._uploads.get(request.bucket, request.key, request.query["uploadId"])
        limit = _number(request.query.get("max-parts"), 1000)
        after = _number(request.query.get("part-number-marker"), 0)
        stored = [part for number, (part, _) in self._uploads.parts(upload).items() if number > after]
        shown, truncated = stored[: min(limit, 1000)], len(stored) > min(limit, 1000)
        fields: dict[str, xml.Tree] = {
            "Bucket": upload.bucket,
            "Key": upload.key,
            "UploadId": upload.upload_id,
            "PartNumberMarker": after,
            "NextPartNumberMarker": shown[-1].number if shown else 0,
            "MaxParts": limit,
            "IsTruncated": truncated,
            "Initiator": OWNER,
            "Owner": OWNER,
            "StorageClass": "STANDARD",
            "ChecksumAlgorithm": upload.algorithm or None,
            "ChecksumType": upload.kind or None,
            "Part": [_part_fields(part) for part in shown],
        }
        return xml_response("ListPartsResult", fields)

    def complete(self, request: Request, body: bytes) -> Response:
        self._store.check_bucket(request.bucket)
        listed = multipart.parse_complete(xml.parse(body, "CompleteMultipartUpload"))
        expected = multipart.promised(request.headers)
        asked = conditions.of_write(request.headers)
        done = self._uploads.complete(request.bucket, request.key, request.query["uploadId"], listed, asked, expected)
        host = request.headers.get("host", "")
        fields: dict[str, xml.Tree] = {
            "Location": f"{'https' if request.secure else 'http'}://{host}{request.resource}",
            "Bucket": request.bucket_name,
            "Key": request.key_name,
            "ETag": f'"{done.etag}"',
        }
        headers = version_headers(done.version_id)
        return xml_response("CompleteMultipartUploadResult", fields | _checksum_fields(done.checksum), headers)

    def abort(self, request: Request) -> Response:
        self._uploads.abort(request.bucket, request.key, request.query["uploadId"])
        return Response(204)


# ---- what headers say ------------------------------------------------------------------------------------------------


def version_of(request: Request) -> str | None:
    """Raises S3Error InvalidArgument."""
    text = request.query.get("versionId")
    return None if text is None else versions.check_id(text)


def check_supported(request: Request) -> None:
    """Raises S3Error NotImplemented for what would be ignored otherwise."""
    for name in request.headers:
        if name.startswith(_REFUSED):
            raise S3Error("NotImplemented", f"{name} is not implemented.")
    if request.headers.get("x-amz-storage-class", "STANDARD") != "STANDARD":
        raise S3Error("InvalidStorageClass", "The only storage class is STANDARD.")


def expected_body(request: Request, caller: Caller) -> Expected:
    """Raises S3Error MissingContentLength, EntityTooLarge, InvalidDigest."""
    streaming = caller.claim.payload in STREAMING
    name = "x-amz-decoded-content-length" if streaming else "content-length"
    text = request.headers.get(name)
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 19):
        raise S3Error("MissingContentLength", f"You must provide the {name} HTTP header.")
    if int(text) > multipart.PART_BYTES_MAX:
        raise S3Error("EntityTooLarge", fields={"ProposedSize": text, "MaxSizeAllowed": str(multipart.PART_BYTES_MAX)})
    sha256 = None if streaming or caller.claim.payload == UNSIGNED else caller.claim.payload
    return Expected(int(text), checksums.announced(request.headers), sha256)


def parse_copy_source(header: str) -> tuple[bytes, bytes, str | None]:
    """`[/]bucket/key[?versionId=ID]`, percent-encoded. Raises S3Error."""
    path, _, query = header.partition("?")
    if query and not query.startswith("versionId="):
        raise S3Error("InvalidArgument", "The copy source has an unknown parameter.")
    version_id = versions.check_id(query.removeprefix("versionId=")) if query else None
    bucket, _, key = unquote_to_bytes(path).removeprefix(b"/").partition(b"/")
    if not bucket or not key:
        raise S3Error("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
    keys.check_key(key)
    return bucket, key, version_id


def _checksum_of(received: Received) -> tuple[str, str, str] | None:
    return None if received.checksum is None else (*received.checksum, checksums.FULL_OBJECT)


def _made(asked: Asked, received: Received) -> Record:
    """Of an object that is put."""
    said = asked.described
    return Record(received.md5, record.CREATED_VERSION, said.headers, said.metadata, _checksum_of(received))


def _directive(request: Request, name: str) -> bool:
    """Whether it says REPLACE. Raises S3Error InvalidArgument."""
    value = request.headers.get(name, "COPY").upper()
    if value not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"Unknown {name}.")
    return value == "REPLACE"


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise S3Error("InvalidArgument")
    return int(text)


# ---- what responses say ----------------------------------------------------------------------------------------------


def version_headers(version_id: str | None) -> Headers:
    return [] if version_id is None else [("x-amz-version-id", version_id)]


def object_headers(found: Object) -> Headers:
    kept = found.record.headers
    headers = [
        ("etag", f'"{found.record.etag}"'),
        ("last-modified", conditions.http_date(found.attributes.mtime_ns)),
        ("accept-ranges", "bytes"),
        ("content-type", kept.get("content-type") or "binary/octet-stream"),
    ]
    headers += [(name, kept[name]) for name in KEPT_HEADERS[1:] if name in kept]
    return headers + [(f"x-amz-meta-{name}", value) for name, value in found.record.metadata.items()]


def overridden(headers: Headers, query: Mapping[str, str]) -> Headers:
    """`response-content-type` and its like, in the query of a signed request."""
    asked = {name: query[f"response-{name}"] for name in KEPT_HEADERS if f"response-{name}" in query}
    return [(name, value) for name, value in headers if name not in asked] + list(asked.items())


def checksum_headers(checksum: tuple[str, str, str]) -> Headers:
    return [(checksums.algorithm_of(checksum[0]).header, checksum[1]), ("x-amz-checksum-type", checksum[2])]


def _checksum_fields(checksum: tuple[str, str, str] | None) -> dict[str, xml.Tree]:
    return {} if checksum is None else {f"Checksum{checksum[0]}": checksum[1], "ChecksumType": checksum[2]}


def _part_fields(part: multipart.StoredPart) -> Mapping[str, xml.Tree]:
    return {
        "PartNumber": part.number,
        "LastModified": iso_date(part.modified_ns),
        "ETag": f'"{part.etag}"',
        "Size": part.size_bytes,
        **{f"Checksum{name}": value for name, value in part.checksums.items()},
    }


def _part_span(described_as: Record, number: int, size_bytes: int) -> Span:
    """Where a part of the object is. Raises S3Error InvalidPartNumber."""
    if not described_as.parts:
        if number != 1:
            raise S3Error("InvalidPartNumber")
        return Span(0, size_bytes)
    offset = 0
    for part_bytes, count in described_as.parts:
        if number <= count:
            return Span(offset + (number - 1) * part_bytes, part_bytes)
        number -= count
        offset += count * part_bytes
    raise S3Error("InvalidPartNumber")
