"""Capability tokens: who holds one may read the datasets that it names, until it expires.

    token = base64url(claims) "." base64url(HMAC-SHA256(secret, "tieredfs-dataset-v1." base64url(claims)))
    claims = {"exp": seconds since 1970, "src": [source, ...]}

A source names itself and everything below it (`datasets/flights` allows `datasets/flights/2013/*.parquet`); `*` alone names
all. Who has the secret makes tokens; whoever checks one needs nothing but the secret and the time. This module is pure.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.errors import Refusal

SECRET_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 4096
SOURCES_MAX: Final = 64
ANY: Final = "*"
_CONTEXT: Final = b"tieredfs-dataset-v1."


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says."""

    sources: tuple[str, ...]
    expires_s: int


def make_token(secret: bytes, sources: Sequence[str], expires_s: int) -> str:
    """Raises ConfigurationError."""
    check_secret(secret)
    named = tuple(dict.fromkeys(source.strip("/") for source in sources))
    if not 0 < len(named) <= SOURCES_MAX or not all(named):
        raise ConfigurationError(f"a token names 1 to {SOURCES_MAX} sources, none of them empty; `{ANY}` names all")
    claims = json.dumps({"exp": expires_s, "src": named}, separators=(",", ":")).encode()
    body = _packed(claims)
    token = f"{body}.{_packed(_mac(secret, body))}"
    if len(token) > TOKEN_BYTES_MAX:
        raise ConfigurationError(f"the names of the sources make a token of more than {TOKEN_BYTES_MAX} bytes")
    return token


def check_secret(secret: bytes) -> None:
    """Raises ConfigurationError."""
    if len(secret) < SECRET_BYTES_MIN:
        raise ConfigurationError(f"the gateway's secret has {len(secret)} bytes; it needs at least {SECRET_BYTES_MIN}")


def check_token(token: str | None, secret: bytes, source: str | None, now_s: float) -> Claims:
    """`source`: None to ask whether the token is good for anything. Raises Refusal."""
    if not token:
        raise Refusal("token_missing", "this gateway wants a token: `Authorization: Bearer ...`")
    body, dot, mac = token.partition(".")
    if not dot or len(token) > TOKEN_BYTES_MAX or not token.isascii():
        raise Refusal("token_invalid", "this is no token of this gateway")
    if not hmac.compare_digest(_packed(_mac(secret, body)), mac):
        raise Refusal("token_invalid", "the token was not made with this gateway's secret, or was changed")
    claims = _claims(body)
    if now_s >= claims.expires_s:
        raise Refusal("token_expired", f"the token expired {now_s - claims.expires_s:.0f} s ago")
    if source is not None and not any(_covers(named, source) for named in claims.sources):
        raise Refusal("token_scope", f"the token is for {', '.join(claims.sources)}, not for {source}")
    return claims


def _covers(named: str, source: str) -> bool:
    """Whether a token's source names a requested one. Nothing climbs: `..` is refused by readers, too."""
    wanted = "/".join(part for part in source.split("/") if part)
    if ".." in wanted.split("/"):
        return False
    return named in (ANY, wanted) or wanted.startswith(f"{named}/")


def _claims(body: str) -> Claims:
    try:
        document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return Claims(tuple(str(source) for source in document["src"]), int(document["exp"]))
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise Refusal("token_invalid", "the token is signed, but not a token of this version") from error


def _mac(secret: bytes, body: str) -> bytes:
    return hmac.new(secret, _CONTEXT + body.encode("ascii"), hashlib.sha256).digest()


def _packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
