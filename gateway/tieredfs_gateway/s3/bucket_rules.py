"""What is configured for a bucket: the attributes that hold it, and reading those that requests are judged by. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from tieredfs_gateway.s3 import xml
from tieredfs_gateway.s3.cors import CorsRules, parse_cors
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.lifecycle import Rule, parse_lifecycle
from tieredfs_gateway.s3.policy import DENY_ALL, NO_POLICY, Policy, parse_policy
from tieredfs_gateway.s3.public_access import ALL_BLOCKS, NO_BLOCKS, Blocks, parse_blocks
from tieredfs_gateway.s3.versions import Versioning

T = TypeVar("T")
VERSIONING: Final = b"user.s3.versioning"
POLICY: Final = b"user.s3.policy"
CORS: Final = b"user.s3.cors"
LIFECYCLE: Final = b"user.s3.lifecycle"
TAGS: Final = b"user.s3.tags"
ACL: Final = b"user.s3.acl"
BLOCKS: Final = b"user.s3.public-access-block"
OWNERSHIP: Final = b"user.s3.ownership"
LOCATION: Final = b"user.s3.location"
"""The region that its maker named; no region is another place here."""
OWNER_ENFORCED: Final = "BucketOwnerEnforced"
OWNERSHIPS: Final = (OWNER_ENFORCED, "BucketOwnerPreferred", "ObjectWriter")
JUDGED: Final = (POLICY, CORS, ACL, BLOCKS, VERSIONING, LIFECYCLE, OWNERSHIP)


@dataclass(frozen=True, slots=True)
class Believed:
    """What a request is judged by."""

    policy: Policy = NO_POLICY
    cors: CorsRules = ()
    acl: str = ""
    blocks: Blocks = NO_BLOCKS
    versioning: Versioning = Versioning.NEVER
    lifecycle: tuple[Rule, ...] = ()
    owner_enforced: bool = False
    """No ACLs but the owner's."""


def read_believed(bucket: str, raw: Mapping[bytes, bytes]) -> Believed:
    """`raw`: the attributes that there are."""
    return Believed(
        parsed(lambda text: parse_policy(text, bucket), raw.get(POLICY), NO_POLICY, DENY_ALL),
        parsed(lambda text: parse_cors(xml.parse(text, "CORSConfiguration")), raw.get(CORS), (), ()),
        raw.get(ACL, b"").decode("ascii", "replace"),
        parsed(parse_blocks_document, raw.get(BLOCKS), NO_BLOCKS, ALL_BLOCKS),
        parse_state(raw.get(VERSIONING)),
        parsed(parse_rules, raw.get(LIFECYCLE), (), ()),
        OWNER_ENFORCED.encode() in raw.get(OWNERSHIP, b""),
    )


_STATES: Final = {state.value.encode(): state for state in Versioning}


def parse_state(raw: bytes | None) -> Versioning:
    """What is no state keeps everything."""
    return _STATES.get(raw or b"", Versioning.ENABLED)


def parse_rules(text: bytes) -> tuple[Rule, ...]:
    return parse_lifecycle(xml.parse(text, "LifecycleConfiguration"))


def parse_blocks_document(text: bytes) -> Blocks:
    return parse_blocks(xml.parse(text, "PublicAccessBlockConfiguration"))


def parsed(parse: Callable[[bytes], T], raw: bytes | None, default: T, broken: T) -> T:
    """What somebody wrote over it through the mount, and cannot be read, must not allow or delete anything: `broken`."""
    if raw is None:
        return default
    try:
        return parse(raw)
    except S3Error:
        return broken
