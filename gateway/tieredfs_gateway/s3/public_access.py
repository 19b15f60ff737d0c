"""Canned ACLs and the public access block: what may be public at all. Pure.

`public-read` lets anybody list a bucket, or read an object; `authenticated-read` lets everybody who has a key of this
endpoint, whatever its scope. A bucket's `public-read-write` lets anybody put and delete objects too; an object's says no
more than `public-read`, as in S3. Those that add the bucket's owner are the same as `private`, for everything belongs to
one owner. The two that are for services of AWS are refused: there are none here. A bucket's public access block refuses
public ACLs and policies, or makes them say nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.xml import Element

ALL_USERS: Final = "http://acs.amazonaws.com/groups/global/AllUsers"
AUTHENTICATED: Final = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
OWNER_ID: Final = "tieredfs"
PUBLIC_READ: Final = "public-read"
PUBLIC_READ_WRITE: Final = "public-read-write"
AUTHENTICATED_READ: Final = "authenticated-read"
GRANTS: Final[Mapping[str, frozenset[tuple[str, str]]]] = {
    "": frozenset(),
    PUBLIC_READ: frozenset({(ALL_USERS, "READ")}),
    PUBLIC_READ_WRITE: frozenset({(ALL_USERS, "READ"), (ALL_USERS, "WRITE")}),
    AUTHENTICATED_READ: frozenset({(AUTHENTICATED, "READ")}),
}
"""What each says beside that its owner may do everything: group and permission."""
CANNED: Final = {
    "private": "",
    "bucket-owner-full-control": "",
    "bucket-owner-read": "",
    **{name: name for name in GRANTS if name},
}
OTHERS: Final = ("aws-exec-read", "log-delivery-write")
"""S3 has them, and they are not here."""
GRANT_HEADERS: Final = {
    "x-amz-grant-full-control": "FULL_CONTROL",
    "x-amz-grant-read": "READ",
    "x-amz-grant-read-acp": "READ_ACP",
    "x-amz-grant-write": "WRITE",
    "x-amz-grant-write-acp": "WRITE_ACP",
}
BLOCK_NAMES: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


@dataclass(frozen=True, slots=True)
class Blocks:
    """What the public access block of a bucket says."""

    block_acls: bool = False
    ignore_acls: bool = False
    block_policy: bool = False
    restrict: bool = False


NO_BLOCKS: Final = Blocks()
ALL_BLOCKS: Final = Blocks(True, True, True, True)


def parse_blocks(document: Element) -> Blocks:
    """Raises S3Error MalformedXML."""
    values = []
    for name in BLOCK_NAMES:
        text = (document.get(name) or "false").lower()
        if text not in ("true", "false"):
            raise S3Error("MalformedXML", f"{name} is true or false.")
        values.append(text == "true")
    return Blocks(*values)


def asked_grants(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Permissions, and the lists of those who are granted them."""
    return [(permission, headers[name]) for name, permission in GRANT_HEADERS.items() if name in headers]


def canned_acl(headers: Mapping[str, str]) -> str:
    """A name of `GRANTS`. Raises S3Error NotImplemented, InvalidArgument, InvalidRequest, UnresolvableGrantByEmailAddress."""
    if grants := asked_grants(headers):
        if "x-amz-acl" in headers:
            raise S3Error("InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed")
        return _named((kind, value, permission) for permission, text in grants for kind, value in _grantees(text))
    name = headers.get("x-amz-acl", "private")
    if name not in CANNED and name not in OTHERS:
        raise S3Error("InvalidArgument", fields={"ArgumentName": "x-amz-acl", "ArgumentValue": name[:64]})
    if name not in CANNED:
        raise S3Error("NotImplemented", f"The ACLs here are {', '.join(CANNED)}.")
    return CANNED[name]


def _grantees(text: str) -> Iterator[tuple[str, str]]:
    """Of `uri="...", id="..."`. Raises S3Error InvalidArgument."""
    for grantee in text.split(","):
        kind, equals, value = grantee.strip().partition("=")
        if not equals or kind.lower() not in ("id", "uri", "emailaddress"):
            raise S3Error("InvalidArgument", "Argument format not recognized")
        yield kind.lower(), value.strip().strip('"')


def _named(grants: Iterable[tuple[str, str, str]]) -> str:
    """The canned ACL that says the same. `grants`: kind of grantee, grantee, permission. Nobody is known but the owner.

    Raises S3Error InvalidArgument, UnresolvableGrantByEmailAddress, NotImplemented."""
    granted = set()
    for kind, value, permission in grants:
        if permission not in GRANT_HEADERS.values():
            raise S3Error("MalformedXML")
        if kind == "emailaddress":
            raise S3Error("UnresolvableGrantByEmailAddress")
        if kind == "uri" and value in (ALL_USERS, AUTHENTICATED):
            granted.add((value, permission))
        elif kind == "uri" or value != OWNER_ID:
            name = "Group/URI" if kind == "uri" else "CanonicalUser/ID"
            raise S3Error("InvalidArgument", "Invalid id", fields={"ArgumentName": name})
        elif permission != "FULL_CONTROL":
            raise S3Error("NotImplemented", "The owner has FULL_CONTROL.")
    acl = {said: name for name, said in GRANTS.items()}.get(frozenset(granted))
    if acl is None:
        raise S3Error("NotImplemented", f"The ACLs here are {', '.join(CANNED)}.")
    return acl


def check_acl(acl: str, blocks: Blocks, *, owner_enforced: bool) -> str:
    """Raises S3Error AccessDenied, AccessControlListNotSupported."""
    if acl and owner_enforced:
        raise S3Error("AccessControlListNotSupported")
    if acl and blocks.block_acls:
        raise S3Error("AccessDenied", "Public ACLs are blocked by the public access block of the bucket.")
    return acl


def parse_acl(document: Element) -> str:
    """Of an `AccessControlPolicy` that says what one of the canned ACLs says. Raises S3Error MalformedXML, and as `canned_acl`."""
    lists = document.all("AccessControlList")
    if len(lists) != 1:
        raise S3Error("MalformedXML")
    grants = []
    for grant in lists[0].all("Grant"):
        grantees = grant.all("Grantee")
        named = (
            [(kind, text) for kind in ("EmailAddress", "URI", "ID") if (text := grantees[0].get(kind))]
            if grantees
            else []
        )
        if len(grantees) != 1 or not named:
            raise S3Error("MalformedXML")
        grants.append((named[0][0].lower(), named[0][1], grant.need("Permission")))
    return _named(grants)


def lets(acl: str, permission: str, *, anonymous: bool) -> bool:
    """Whether it lets everybody who is anonymous, or has a key. What is no ACL lets nobody."""
    groups = (ALL_USERS,) if anonymous else (ALL_USERS, AUTHENTICATED)
    return any((group, permission) in GRANTS.get(acl, ()) for group in groups)
