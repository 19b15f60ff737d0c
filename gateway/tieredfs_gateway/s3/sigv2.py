"""Links signed with Signature Version 2: what boto3 makes by default of `generate_presigned_url`. Pure.

Only links, and only because clients in daily use make them; headers of version 2 are refused. HMAC-SHA1 over method,
Content-MD5, Content-Type, expiry, every `x-amz-` header, path, and the sub-resources; a link carries such headers in its query
when the client is not to send them. Other query arguments are not in the text, so one that would choose another call
is refused.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.routes import SUBRESOURCES
from tieredfs_gateway.s3.sigv4 import EXPIRES_S_MAX, Signable, parameters

_SIGNED_QUERY: Final = frozenset(
    b"accelerate acl cors defaultObjectAcl location logging partNumber policy requestPayment torrent versioning versionId "
    b"versions website uploads uploadId response-content-type response-content-language response-expires "
    b"response-cache-control response-content-disposition response-content-encoding delete lifecycle tagging restore "
    b"storageClass notification replication analytics metrics inventory select select-type object-lock".split()
)
"""Query names that are part of the text."""
_ID: Final = re.compile(r"[A-Za-z0-9]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Link:
    """What a link claims."""

    access_key_id: str
    expires: int
    signature: str


def read(request: Signable) -> Link | None:
    """None: no such link. Raises S3Error AccessDenied for one that makes no sense."""
    query = dict(parameter.latin for parameter in parameters(request.raw_query))
    if not {"AWSAccessKeyId", "Signature"} <= set(query):
        return None
    expires = query.get("Expires", "")
    if not (expires.isascii() and expires.isdigit() and len(expires) < 12):
        raise S3Error("AccessDenied", "Query-string authentication requires the Signature, Expires and AWSAccessKeyId.")
    if not _ID.fullmatch(query["AWSAccessKeyId"]):
        raise S3Error("InvalidAccessKeyId")
    return Link(query["AWSAccessKeyId"], int(expires), query["Signature"])


def verify(link: Link, secret: str, request: Signable, now: datetime, bucket: bytes = b"") -> None:
    """`bucket`: of a virtual host. Raises S3Error SignatureDoesNotMatch, AccessDenied (expired, or chooses another call)."""
    if not any(
        hmac.compare_digest(_sign(secret, text), link.signature.encode("latin-1", "replace"))
        for text in _texts(link, request, bucket)
    ):
        raise S3Error("SignatureDoesNotMatch", fields={"AWSAccessKeyId": link.access_key_id})
    chosen = {each.name for each in parameters(request.raw_query) if each.latin[0] in SUBRESOURCES}
    if chosen - _SIGNED_QUERY - {b"list-type"}:
        raise S3Error("AccessDenied", "This sub-resource is not protected by a version 2 signature.")
    seconds = now.timestamp()
    if seconds > link.expires:
        raise S3Error("AccessDenied", "Request has expired", fields={"ServerTime": now.astimezone(UTC).isoformat()})
    if link.expires > seconds + EXPIRES_S_MAX:
        raise S3Error("AccessDenied", f"A link is valid for {EXPIRES_S_MAX} s at most.")


def carried(request: Signable) -> dict[str, str]:
    """Headers that the link has in its query and the client did not send."""
    sent = {name for name, _ in request.headers}
    pairs = ((parameter.latin[0], parameter.value) for parameter in parameters(request.raw_query))
    return {
        name: value.decode("utf-8", "surrogateescape").strip()
        for name, value in pairs
        if (name.startswith("x-amz-") or name in ("content-md5", "content-type")) and name not in sent
    }


def _sign(secret: str, text: bytes) -> bytes:
    return base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha1).digest())


def _texts(link: Link, request: Signable, bucket: bytes) -> Iterator[bytes]:
    headers = carried(request)
    for name, value in request.headers:
        headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
    lines = [request.method, headers.get("content-md5", ""), headers.get("content-type", ""), str(link.expires)]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-amz-")]
    head = "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n"
    prefix = b"/" + bucket if bucket else b""
    query = _canonical_query(request.raw_query)
    canonical = quote(unquote_to_bytes(request.raw_path), safe="/~").encode()
    yield head + prefix + canonical + query
    if request.raw_path != canonical:
        yield head + prefix + request.raw_path + query


def _canonical_query(raw_query: bytes) -> bytes:
    pairs = []
    for item in raw_query.split(b"&"):
        name, equals, value = item.partition(b"=")
        if unquote_to_bytes(name) in _SIGNED_QUERY:
            pairs.append((name, unquote_to_bytes(value.replace(b"+", b" ")) if equals else None))
    parts = [name if value is None else name + b"=" + value for name, value in sorted(pairs, key=lambda pair: pair[0])]
    return b"?" + b"&".join(parts) if parts else b""
