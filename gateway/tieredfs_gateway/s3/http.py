"""A request and a response of S3, as values, between the event loop and the calls."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from tieredfs_gateway.s3 import keys, sigv4, xml
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.keystore import AccessKey, Scope

HEADER_BYTES_MAX: Final = 32 * 1024
METADATA_BYTES_MAX: Final = 8 * 1024
"""AWS allows 2 KiB; some clients (data version tools) send more, and 8 KiB fit the attribute."""
XML_TYPE: Final = "application/xml"
_META: Final = "x-amz-meta-"
KEPT_HEADERS: Final = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Request:
    """`bucket` and `key` are empty where the path names none. Headers: names in lower case, repeated ones joined."""

    signable: sigv4.Signable
    headers: Mapping[str, str]
    query: Mapping[str, str]
    bucket: bytes
    key: bytes
    request_id: str
    client: str
    virtual_host: bool = False
    """The bucket is in front of the host's name, not in the path."""
    secure: bool = False
    """Over TLS."""

    @property
    def method(self) -> str:
        return self.signable.method

    @property
    def resource(self) -> str:
        return self.signable.raw_path.decode("utf-8", "replace")

    @property
    def bucket_name(self) -> str:
        return self.bucket.decode("utf-8", "replace")

    @property
    def key_name(self) -> str:
        return self.key.decode()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: known by a signature that holds, or anonymous."""

    key: AccessKey
    claim: sigv4.Claim

    @property
    def is_anonymous(self) -> bool:
        return not self.key.access_key_id


ANONYMOUS: Final = AccessKey("", "", Scope(), 0)
"""Of a request without a signature: only policies and public ACLs allow it anything."""


class Content(Protocol):
    """Bytes that are sent piece by piece. `read` blocks. `read_now` fills `target` from its start with what is in memory, and
    says how much that was; 0: `read` it."""

    def read(self, offset: int, length: int) -> bytes: ...
    def read_now(self, offset: int, target: bytearray) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Response:
    """`content`, when there is one, is `length` bytes from `offset`; then `body` is empty."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    content: Content | None = None
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Described:
    """What a client says of an object that it makes."""

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def xml_response(
    root: str,
    children: Mapping[str, xml.Tree],
    headers: Sequence[tuple[str, str]] = (),
    rows: Sequence[tuple[str, xml.Tree]] = (),
) -> Response:
    """`rows` come after the children, in their order, whatever their names."""
    return Response(200, [("content-type", XML_TYPE), *headers], xml.document(root, children, rows=rows))


def parse_request(
    method: str,
    raw_path: bytes,
    raw_query: bytes,
    raw_headers: Sequence[tuple[bytes, bytes]],
    request_id: str,
    client: str,
    domains: Sequence[str],
    *,
    secure: bool = False,
) -> Request:
    """Raises S3Error RequestHeaderSectionTooLarge, InvalidURI, KeyTooLongError."""
    pairs: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    size = 0
    for raw_name, raw_value in raw_headers:
        size += len(raw_name) + len(raw_value)
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "surrogateescape").strip()
        pairs.append((name, value))
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    if size > HEADER_BYTES_MAX:
        raise S3Error("RequestHeaderSectionTooLarge")
    bucket, key, virtual_host = _split(raw_path, headers.get("host", ""), domains)
    keys.check_key(key)
    query = dict([parameter.text for parameter in sigv4.parameters(raw_query)])
    signable = sigv4.Signable(method, raw_path, raw_query, pairs)
    return Request(signable, headers, query, bucket, key, request_id, client, virtual_host, secure)


def _split(raw_path: bytes, host: str, domains: Sequence[str]) -> tuple[bytes, bytes, bool]:
    """Path style, or the bucket in front of one of our domains."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    path = raw_path.removeprefix(b"/")
    for domain in domains:
        if name.endswith(f".{domain}"):
            return name.removesuffix(f".{domain}").encode("utf-8", "replace"), unquote_to_bytes(path), True
    bucket, _, key = path.partition(b"/")
    return unquote_to_bytes(bucket), unquote_to_bytes(key), False


def described(headers: Mapping[str, str]) -> Described:
    """Content headers and user metadata. Raises S3Error MetadataTooLarge, InvalidArgument."""
    metadata = {name.removeprefix(_META): value for name, value in headers.items() if name.startswith(_META)}
    size = sum(len(name) + len(value.encode("utf-8", "surrogateescape")) for name, value in metadata.items())
    if size > METADATA_BYTES_MAX:
        raise S3Error("MetadataTooLarge", fields={"MaxSizeAllowed": str(METADATA_BYTES_MAX), "Size": str(size)})
    kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
    if "content-encoding" in kept:
        codings = [coding.strip() for coding in kept["content-encoding"].split(",")]
        kept["content-encoding"] = ", ".join(coding for coding in codings if coding and coding != "aws-chunked")
        if not kept["content-encoding"]:
            del kept["content-encoding"]
    for value in (*kept.values(), *metadata.values()):
        if _CONTROL.search(value) or any("\ud800" <= char <= "\udfff" for char in value):
            raise S3Error("InvalidArgument", "A header that is kept must be UTF-8 without control characters.")
    return Described(kept, metadata)


def latin(value: str) -> bytes:
    """A header's value as it goes out: never with a line break, whatever it came from."""
    return (value if value.isprintable() else _CONTROL.sub(" ", value)).encode("utf-8", "replace")
