"""POST uploads, carried out: fields, who signed, what the policy wants, then the file, as it comes, into the volume."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

from tieredfs.volume.contract import Writing
from tieredfs_gateway.s3 import access, checksums, forms, keys, multipart, sigv4, tagging, xml
from tieredfs_gateway.s3.body import IncomingBody
from tieredfs_gateway.s3.bucket_rules import Believed
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import ANONYMOUS, KEPT_HEADERS, XML_TYPE, Caller, Request, Response
from tieredfs_gateway.s3.ingest import Expected, FileSink, Ingest
from tieredfs_gateway.s3.keystore import AccessKey
from tieredfs_gateway.s3.object_calls import ObjectCalls
from tieredfs_gateway.s3.routes import POST_OBJECT

Run = Callable[..., Awaitable[Any]]
_STATUSES: Final = ("200", "201", "204")


class Surroundings(Protocol):
    """What the endpoint lends: threads, keys, settings, the time."""

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any: ...
    async def key(self, access_key_id: str) -> AccessKey: ...
    async def believed(self, bucket: bytes) -> Believed: ...
    def now(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    request: Request
    fields: dict[str, str]
    sizes: forms.Sizes


async def receive(
    around: Surroundings, objects: ObjectCalls, writing: Writing, request: Request, body: IncomingBody
) -> Response:
    """Raises S3Error; then the file has no name."""
    decoder = forms.FormDecoder(forms.parse_boundary(request.headers.get("content-type")))
    views: list[memoryview] = []
    while not decoder.file_begun and not body.ended:
        views += [view for piece in await body.batch() for view in decoder.feed(piece)]
    if not decoder.file_begun:
        decoder.finish()
    asked = await _asked(around, objects, request, decoder)
    announced = checksums.announced(asked.request.headers)
    ingest = Ingest(Expected(asked.sizes.most, announced, None, exact=False), _Begun(decoder, views))
    sink = FileSink(writing.descriptor)
    pieces: Sequence[bytes] = [b""]
    while True:
        await around.run(_take, ingest, pieces, sink)
        if body.ended:
            break
        pieces = await body.batch()
    received = await around.run(ingest.finish)
    if received.size_bytes < asked.sizes.least:
        limits = {"ProposedSize": str(received.size_bytes), "MinSizeAllowed": str(asked.sizes.least)}
        raise S3Error("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size", fields=limits)
    stored = await around.run(objects.put, asked.request, writing, received)
    return _answer(asked, stored)


class _Begun:
    """The decoder, and what it gave out while the fields were still coming."""

    def __init__(self, decoder: forms.FormDecoder, views: Sequence[memoryview]) -> None:
        self._decoder = decoder
        self._views = list(views)

    def feed(self, data: bytes, /) -> list[memoryview]:
        views, self._views = self._views, []
        return views + self._decoder.feed(data)

    def finish(self) -> dict[str, str]:
        return dict(self._decoder.finish())


def _take(ingest: Ingest, pieces: Sequence[bytes], sink: Callable[[Sequence[memoryview], int], None]) -> None:
    ingest.take_md5(ingest.take(pieces, sink))


async def _asked(around: Surroundings, objects: ObjectCalls, request: Request, decoder: forms.FormDecoder) -> _Asked:
    """Raises S3Error for who may not, and for what the policy does not allow."""
    fields = dict(decoder.fields)
    name = fields.get("key", "").replace("${filename}", decoder.file_name.replace("\\", "/").rpartition("/")[2])
    if not name:
        raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'key'.")
    fields["key"] = name  # the policy is about the key that the object gets
    signed = forms.read_signature(fields)
    caller, sizes = Caller(ANONYMOUS, sigv4.unsigned_claim("")), forms.Sizes(0, multipart.PART_BYTES_MAX)
    if signed is not None:
        key = await around.key(signed.access_key_id)
        if not signed.is_true(key.secret_access_key):
            raise S3Error("SignatureDoesNotMatch", fields={"AWSAccessKeyId": signed.access_key_id})
        sizes = forms.check_policy(signed.policy, request.bucket_name, fields, around.now(), sizes.most)
        caller = Caller(key, sigv4.unsigned_claim(signed.access_key_id))
    elif "policy" in fields:
        raise S3Error("AccessDenied", "A policy needs a signature.")
    keys.check_key(name.encode())
    posted = replace(request, key=name.encode(), headers=_headers(request, fields), query={})
    await around.run(objects.check_put, posted)
    if not access.check(POST_OBJECT, posted, caller, await around.believed(request.bucket)):
        raise S3Error("AccessDenied")
    return _Asked(posted, fields, sizes)


def _headers(request: Request, fields: dict[str, str]) -> dict[str, str]:
    """The fields that are headers of a PUT."""
    found = {name: value for name, value in fields.items() if _is_header(name)}
    found["host"] = request.headers.get("host", "")
    if "acl" in fields:
        found["x-amz-acl"] = fields["acl"]
    if "tagging" in fields:
        found["x-amz-tagging"] = urlencode(
            tagging.parse_tags(tagging.tag_set(_tagging(fields["tagging"]), 10).decode())
        )
    return found


_OF_SIGNATURE: Final = ("x-amz-signature", "x-amz-credential", "x-amz-date", "x-amz-algorithm", "x-amz-security-token")


def _is_header(name: str) -> bool:
    return name in KEPT_HEADERS or name == "content-md5" or (name.startswith("x-amz-") and name not in _OF_SIGNATURE)


def _tagging(text: str) -> xml.Element:
    return xml.parse(text.encode(), "Tagging")


def _answer(asked: _Asked, stored: Response) -> Response:
    """`success_action_redirect`, else `success_action_status`, else 204."""
    request, fields = asked.request, asked.fields
    named = dict(stored.headers)
    etag, key = named["etag"], request.key_name
    host = request.headers.get("host", "")
    scheme = "https" if request.secure else "http"
    path = quote(request.key, safe="/~")
    location = f"{scheme}://{host}/{path if request.virtual_host else f'{request.bucket_name}/{path}'}"
    headers = [*stored.headers, ("location", location)]
    redirect = fields.get("success_action_redirect") or fields.get("redirect")
    if redirect and urlsplit(redirect).scheme in ("http", "https"):
        query = urlencode({"bucket": request.bucket_name, "key": key, "etag": etag})
        joined = f"{redirect}{'&' if urlsplit(redirect).query else '?'}{query}"
        return Response(303, [*stored.headers, ("location", joined)])
    status = fields.get("success_action_status", "204")
    if status == "201":
        tree = {"Location": location, "Bucket": request.bucket_name, "Key": key, "ETag": etag}
        body = xml.document("PostResponse", tree, namespace=False)
        return Response(201, [*headers, ("content-type", XML_TYPE)], body)
    return Response(int(status) if status in _STATUSES else 204, headers)
