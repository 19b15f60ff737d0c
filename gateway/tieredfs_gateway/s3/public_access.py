"""Canned ACLs and the public access block: what may be public at all. Pure.

There are two ACLs, `private` and `public-read` (a bucket's lets anybody list it, an object's lets anybody read it); those
that add the bucket's owner are the same as `private`, for everything belongs to one owner. A bucket's public access
block refuses public ACLs and policies, or makes them say nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.xml import Element

PUBLIC_READ: Final = "public-read"
CANNED: Final = {
    "private": "",
    "bucket-owner-full-control": "",
    "bucket-owner-read": "",
    PUBLIC_READ: PUBLIC_READ,
}
OTHERS: Final = ("public-read-write", "authenticated-read", "aws-exec-read", "log-delivery-write")
"""S3 has them, and they are not here."""
ALL_USERS: Final = "http://acs.amazonaws.com/groups/global/AllUsers"
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


def canned_acl(headers: Mapping[str, str]) -> str:
    """`public-read`, or empty for private. Raises S3Error NotImplemented, InvalidArgument."""
    name = headers.get("x-amz-acl", "private")
    if name not in CANNED and name not in OTHERS:
        raise S3Error("InvalidArgument", fields={"ArgumentName": "x-amz-acl", "ArgumentValue": name[:64]})
    if name not in CANNED:
        raise S3Error("NotImplemented", f"The ACLs here are {', '.join(CANNED)}.")
    if any(header.startswith("x-amz-grant-") for header in headers):
        raise S3Error("NotImplemented", "Grants are not implemented; x-amz-acl is.")
    return CANNED[name]


def check_acl(acl: str, blocks: Blocks, *, owner_enforced: bool) -> str:
    """Raises S3Error AccessDenied, AccessControlListNotSupported."""
    if acl and owner_enforced:
        raise S3Error("AccessControlListNotSupported")
    if acl and blocks.block_acls:
        raise S3Error("AccessDenied", "Public ACLs are blocked by the public access block of the bucket.")
    return acl


def parse_acl(document: Element, owner: str) -> str:
    """Of an `AccessControlPolicy` that says what one of the two ACLs says. Raises S3Error MalformedXML, NotImplemented."""
    lists = document.all("AccessControlList")
    if len(lists) != 1:
        raise S3Error("MalformedXML")
    acl = ""
    for grant in lists[0].all("Grant"):
        grantees = grant.all("Grantee")
        if len(grantees) != 1:
            raise S3Error("MalformedXML")
        uri, permission = grantees[0].get("URI"), grant.need("Permission")
        if uri == ALL_USERS and permission == "READ":
            acl = PUBLIC_READ
        elif uri is not None or grantees[0].get("ID") != owner or permission != "FULL_CONTROL":
            raise S3Error("NotImplemented", "Only private and public-read ACLs are implemented.")
    return acl
