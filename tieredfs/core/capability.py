"""Capability tokens for storage nodes, and for hosts that serve what is staged: who holds one may do one thing to one chunk, dump,
disk, place or staged content, for a minute. Pure.

    token  = "v1." base64url(claims) "." base64url(HMAC-SHA256(secret, "tieredfs-node-v1." base64url(claims)))
    claims = [verb, volume uuid, disk, chunk, seconds since 1970 until which it holds]

Whoever has the secret makes them, one per call; a node checks one with the secret and its clock, and asks nobody. Clocks may
differ by `SKEW_S`: a token holds so much longer, and one that would hold longer than `LIFE_S` and that is refused, too, so that
none that was made carelessly lasts.
"""

import base64
import binascii
import enum
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Final

LIFE_S: Final = 60
SKEW_S: Final = 30
SECRET_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 8192
"""A place's path has 4,096 bytes."""
_PREFIX: Final = "v1."
_CONTEXT: Final = b"tieredfs-node-v1."


class Verb(enum.StrEnum):
    """What a token allows. On the wire: never renamed."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"
    SPACE = "space"
    IDENTIFY = "identify"
    FORMAT = "format"
    GIVE = "give"
    ERASE = "erase"
    STAGED = "staged"
    HURRY = "hurry"


class Verdict(enum.Enum):
    """What a node makes of a token."""

    GOOD = "it allows this"
    MISSING = "this node wants a token: Authorization: Bearer ..."
    INVALID = "the token was not made with this node's secret, or was changed"
    EXPIRED = "the token has expired; look at both clocks"
    EARLY = "the token would hold for too long; look at both clocks"
    SCOPE = "the token is for something else"


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that may be done.

    `disk`: a disk's uuid, or the path of a place that is none yet; `chunk`: the file name of a chunk or dump, empty for the whole
    disk. Of what is staged: a cache's uuid and a content's name.
    """

    verb: Verb
    volume: str
    disk: str
    chunk: str = ""


def make_token(secret: bytes, right: Right, now_s: float) -> str:
    """ASCII. About 10 us."""
    claims = [right.verb, right.volume, right.disk, right.chunk, int(now_s) + LIFE_S]
    body = _packed(json.dumps(claims, separators=(",", ":")).encode())
    return f"{_PREFIX}{body}.{_packed(_mac(secret, body))}"


def judge(token: str, secret: bytes, wanted: Right, now_s: float) -> Verdict:
    """Whether the token allows `wanted` now."""
    if not token:
        return Verdict.MISSING
    body, dot, mac = token.removeprefix(_PREFIX).partition(".")
    if not dot or not token.startswith(_PREFIX) or len(token) > TOKEN_BYTES_MAX or not token.isascii():
        return Verdict.INVALID
    if not hmac.compare_digest(_packed(_mac(secret, body)), mac):
        return Verdict.INVALID
    found = _claims(body)
    if found is None:
        return Verdict.INVALID
    right, until_s = found
    if now_s >= until_s + SKEW_S:
        return Verdict.EXPIRED
    if now_s < until_s - LIFE_S - SKEW_S:
        return Verdict.EARLY
    return Verdict.GOOD if right == wanted else Verdict.SCOPE


def _claims(body: str) -> tuple[Right, int] | None:
    try:
        verb, volume, disk, chunk, until_s = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return Right(Verb(verb), str(volume), str(disk), str(chunk)), int(until_s)
    except (ValueError, TypeError, binascii.Error):
        return None


def _mac(secret: bytes, body: str) -> bytes:
    return hmac.new(secret, _CONTEXT + body.encode("ascii"), hashlib.sha256).digest()


def _packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
