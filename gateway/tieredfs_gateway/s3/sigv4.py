"""AWS Signature Version 4, the server's side: headers, presigned URLs, and the seeds of chunk signatures. Pure.

`read` finds what a request claims; the caller looks up the secret of the access key; `verify` says whether the claim is
true. Comparing is constant-time. Written from Amazon's description of the protocol; botocore's signers are the oracle of
its tests.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from tieredfs_gateway.s3.chunked import ChunkSigner
from tieredfs_gateway.s3.errors import S3Error

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER: Final = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING: Final = (STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER)
SKEW: Final = timedelta(minutes=15)
EXPIRES_S_MAX: Final = 7 * 24 * 3600
REMEMBERED_BYTES_MAX: Final = 256
"""Of a parameter in a query: longer ones are worked out each time."""

_TIME: Final = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_CREDENTIAL: Final = re.compile(r"([^/\s]{1,128})/(\d{8})/([^/\s]{1,64})/([^/\s]{1,32})/aws4_request", re.ASCII)
_PARTS: Final = re.compile(r"\s*([A-Za-z]+)=([^,]*)(?:,|$)")
_SIGNED_NAMES: Final = re.compile(r"[!-~]{1,8192}", re.ASCII)
_HEX64: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_UNRESERVED: Final = re.compile(rb"[A-Za-z0-9_.~-]*")
_CANONICAL_PATH: Final = re.compile(rb"[A-Za-z0-9_.~/-]*")
_SPACES: Final = re.compile(r" {2,}")

Pairs = Sequence[tuple[str, str]]
"""Headers, names in lower case, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Signable:
    """A request as it came over the wire."""

    method: str
    raw_path: bytes
    raw_query: bytes
    headers: Pairs


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of its signature. `payload` is the hash that it names, or one of the words above."""

    access_key_id: str
    date: str
    region: str
    service: str
    time: str
    expires_s: int | None
    signed_headers: tuple[str, ...]
    signature: str
    payload: str

    @property
    def is_link_v2(self) -> bool:
        """Known by a link of version 2, of which there is nothing to say here."""
        return not self.signature

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def unsigned_claim(access_key_id: str) -> Claim:
    """Of a request that is known in another way, with an unsigned body."""
    return Claim(access_key_id, "", "", "s3", "", None, (), "", UNSIGNED)


class Parameter(NamedTuple):
    """One of a query, decoded, a `+` is a space: as bytes, as text, and encoded as it is signed."""

    name: bytes
    value: bytes
    text: tuple[str, str]
    latin: tuple[str, str]
    canonical: tuple[str, str]


@lru_cache(maxsize=4)
def parameters(raw_query: bytes) -> tuple[Parameter, ...]:
    """In order. Of each request it is asked three times, one after the other."""
    return tuple(
        [
            _remembered(item) if len(item) <= REMEMBERED_BYTES_MAX else _parameter(item)
            for item in raw_query.split(b"&")
            if item
        ]
    )


def _parameter(item: bytes) -> Parameter:
    raw_name, _, raw_value = item.partition(b"=")
    name, value = _decoded(raw_name), _decoded(raw_value)
    text = name.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
    latin = name.decode("latin-1"), value.decode("latin-1")
    return Parameter(name, value, text, latin, (_encoded(name), _encoded(value)))


_remembered = lru_cache(maxsize=1024)(_parameter)
"""Of a client's links most parameters are the same, its credential above all."""


def _decoded(text: bytes) -> bytes:
    if b"%" not in text and b"+" not in text:
        return text
    return unquote_to_bytes(text.replace(b"+", b" "))


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(request: Signable) -> Claim | None:
    """None: the request is anonymous. Raises S3Error for a claim that makes no sense."""
    authorizations = [value for name, value in request.headers if name == "authorization" and value.strip()]
    found = parameters(request.raw_query)
    named = {parameter.name for parameter in found}
    presigned = b"X-Amz-Algorithm" in named or b"X-Amz-Signature" in named
    if (authorizations and presigned) or len(authorizations) > 1:
        raise S3Error("InvalidArgument", "Only one auth mechanism allowed.")
    if authorizations:
        return _read_header(authorizations[0], request)
    if presigned:
        return _read_query(dict([parameter.latin for parameter in found]))
    return None


def _only_v4() -> S3Error:
    return S3Error(
        "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
    )


def _read_header(value: str, request: Signable) -> Claim:
    algorithm, _, rest = value.strip().partition(" ")
    if algorithm == "AWS" and ":" in rest:
        raise _only_v4()
    if algorithm != ALGORITHM:
        raise S3Error("InvalidArgument", "Unsupported Authorization Type", fields={"ArgumentName": "Authorization"})
    parts = dict(_PARTS.findall(rest))
    if set(parts) != {"Credential", "SignedHeaders", "Signature"}:
        raise S3Error("AuthorizationHeaderMalformed", "It needs Credential, SignedHeaders and Signature.")
    headers = dict(request.headers)
    payload = headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    return _claim(
        parts["Credential"].strip(),
        parts["SignedHeaders"].strip(),
        parts["Signature"].strip(),
        headers.get("x-amz-date") or _from_http_date(headers.get("date")),
        None,
        payload.strip(),
        "AuthorizationHeaderMalformed",
    )


def _from_http_date(value: str | None) -> str:
    if value is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.")
    if _TIME.fullmatch(value):
        return value
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(value).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.") from error


def _read_query(query: dict[str, str]) -> Claim:
    code = "AuthorizationQueryParametersError"
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise S3Error(code, 'X-Amz-Algorithm only supports "AWS4-HMAC-SHA256".')
    missing = {"X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"} - set(query)
    if missing:
        raise S3Error(code, f"Query-string authentication needs {', '.join(sorted(missing))}.")
    expires = query["X-Amz-Expires"]
    if not (expires.isascii() and expires.isdigit() and len(expires) < 10 and 1 <= int(expires) <= EXPIRES_S_MAX):
        raise S3Error(code, f"X-Amz-Expires must be a number from 1 to {EXPIRES_S_MAX}.")
    return _claim(
        query["X-Amz-Credential"],
        query["X-Amz-SignedHeaders"],
        query["X-Amz-Signature"],
        query["X-Amz-Date"],
        int(expires),
        query.get("X-Amz-Content-Sha256", UNSIGNED),
        code,
    )


def _claim(
    credential: str, signed: str, signature: str, time: str, expires_s: int | None, payload: str, code: str
) -> Claim:
    match = _CREDENTIAL.fullmatch(credential)
    if match is None:
        raise S3Error(code, "The Credential is not ID/YYYYMMDD/REGION/s3/aws4_request.")
    if match[4] != "s3":
        raise S3Error(code, f"Incorrect service {match[4]!r}. This endpoint belongs to 's3'.")
    if not _TIME.fullmatch(time):
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.")
    if not _SIGNED_NAMES.fullmatch(signed) or "host" not in signed.split(";"):
        raise S3Error(code, "SignedHeaders must name host.")
    if not _HEX64.fullmatch(signature):
        raise S3Error("SignatureDoesNotMatch")
    if payload != UNSIGNED and payload not in STREAMING and not _HEX64.fullmatch(payload):
        if payload.startswith("STREAMING-AWS4-ECDSA"):
            raise S3Error("NotImplemented", "SigV4A is not implemented.")
        raise S3Error("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-..., or a SHA-256.")
    return Claim(match[1], match[2], match[3], match[4], time, expires_s, tuple(signed.split(";")), signature, payload)


# ---- verifying -------------------------------------------------------------------------------------------------------


def verify(claim: Claim, secret: str, request: Signable, now: datetime) -> None:
    """Raises S3Error SignatureDoesNotMatch, RequestTimeTooSkewed, AccessDenied (expired, or a header is not signed)."""
    key = signing_key(secret, claim)
    if not any(
        hmac.compare_digest(hmac.digest(key, text, "sha256").hex(), claim.signature)
        for text in _strings_to_sign(claim, request)
    ):
        raise S3Error("SignatureDoesNotMatch", fields={"AWSAccessKeyId": claim.access_key_id})
    _check_time(claim, now)
    if claim.time[:8] != claim.date:
        code = "AuthorizationHeaderMalformed" if claim.expires_s is None else "AuthorizationQueryParametersError"
        raise S3Error(code, f"Invalid credential date {claim.date}. This date is not the same as X-Amz-Date.")
    unsigned = {name for name, _ in request.headers if name.startswith("x-amz-")} - set(claim.signed_headers)
    if unsigned - {"x-amz-content-sha256"}:
        raise S3Error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            fields={"HeadersNotSigned": ", ".join(sorted(unsigned))},
        )


@lru_cache(maxsize=64)
def _moment(text: str) -> datetime:
    """Of `20261126T133015Z`; strptime takes twenty times as long. Raises ValueError."""
    day = int(text[:4]), int(text[4:6]), int(text[6:8])
    return datetime(*day, int(text[9:11]), int(text[11:13]), int(text[13:15]), tzinfo=UTC)


def _check_time(claim: Claim, now: datetime) -> None:
    try:
        signed_at = _moment(claim.time)
    except ValueError as error:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.") from error
    if claim.expires_s is not None:
        if now > signed_at + timedelta(seconds=claim.expires_s):
            raise S3Error("AccessDenied", "Request has expired", fields={"X-Amz-Expires": str(claim.expires_s)})
        if signed_at > now + SKEW:
            raise S3Error("AccessDenied", "Request is not valid yet")
    elif abs(now - signed_at) > SKEW:
        raise S3Error(
            "RequestTimeTooSkewed",
            fields={"RequestTime": claim.time, "ServerTime": now.strftime("%Y%m%dT%H%M%SZ")},
        )


def derived_key(secret: str, date: str, region: str) -> bytes:
    """What signs on that day in that region: of a form's policy, say."""
    return _signing_key(secret, date, region, "s3")


def signing_key(secret: str, claim: Claim) -> bytes:
    return _signing_key(secret, claim.date, claim.region, claim.service)


@lru_cache(maxsize=1024)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def chunk_signer(claim: Claim, secret: str) -> ChunkSigner:
    return ChunkSigner(signing_key(secret, claim), claim.time, claim.scope, claim.signature)


def _strings_to_sign(claim: Claim, request: Signable) -> Iterator[bytes]:
    """With the path encoded as it should be and, where that is not what came, with the path as it came: clients that
    encode otherwise sign one or the other."""
    raw = request.raw_path
    canonical = raw.decode() if _CANONICAL_PATH.fullmatch(raw) else quote(unquote_to_bytes(raw), safe="/~")
    yield _string_to_sign(claim, request, canonical)
    came = request.raw_path.decode("latin-1")
    if came != canonical:
        yield _string_to_sign(claim, request, came)


def _string_to_sign(claim: Claim, request: Signable, path: str) -> bytes:
    """Raises S3Error when a signed header did not come."""
    lines = [
        request.method,
        path,
        _canonical_query(request.raw_query),
        *_canonical_headers(claim, request),
        "",
        ";".join(claim.signed_headers),
        claim.payload,
    ]
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{ALGORITHM}\n{claim.time}\n{claim.scope}\n{digest}".encode()


def _canonical_query(raw_query: bytes) -> str:
    pairs = [parameter.canonical for parameter in parameters(raw_query) if parameter.name != b"X-Amz-Signature"]
    pairs.sort()
    return "&".join(["=".join(pair) for pair in pairs])


def _encoded(text: bytes) -> str:
    return text.decode() if _UNRESERVED.fullmatch(text) else quote(text, safe="~")


def _canonical_headers(claim: Claim, request: Signable) -> list[str]:
    values: dict[str, list[str]] = {}
    wanted = frozenset(claim.signed_headers)
    for name, value in request.headers:
        if name in wanted:
            values.setdefault(name, []).append(_SPACES.sub(" ", value.strip()))
    lines = []
    for name in claim.signed_headers:
        if name not in values:
            raise S3Error("SignatureDoesNotMatch", f"The signed header {name[:100]!r} did not come.")
        lines.append(f"{name}:{','.join(values[name])}")
    return lines
