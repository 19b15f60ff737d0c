"""Which call a request is: by what its path names, its method, and the sub-resource in its query. Pure, and a table."""

import enum
from dataclasses import dataclass
from typing import Final

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import Request
from tieredfs_gateway.s3.keystore import Scope


class Level(enum.Enum):
    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


class Body(enum.Enum):
    NONE = "none"
    SMALL = "small"
    """Read into memory, up to `xml.DOCUMENT_BYTES_MAX`."""
    CONTENT = "content"
    """Goes into a file."""


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    level: Level
    writes: bool
    body: Body = Body.NONE


S, B, O = Level.SERVICE, Level.BUCKET, Level.OBJECT  # noqa: E741 - three columns of the table

TABLE: Final[dict[tuple[Level, str, str], Operation]] = {
    (S, "GET", ""): Operation("ListBuckets", S, False),
    (B, "GET", ""): Operation("ListObjects", B, False),
    (B, "GET", "list-type"): Operation("ListObjectsV2", B, False),
    (B, "GET", "versions"): Operation("ListObjectVersions", B, False),
    (B, "GET", "uploads"): Operation("ListMultipartUploads", B, False),
    (B, "GET", "location"): Operation("GetBucketLocation", B, False),
    (B, "GET", "versioning"): Operation("GetBucketVersioning", B, False),
    (B, "GET", "acl"): Operation("GetBucketAcl", B, False),
    (B, "GET", "policy"): Operation("GetBucketPolicy", B, False),
    (B, "GET", "cors"): Operation("GetBucketCors", B, False),
    (B, "GET", "lifecycle"): Operation("GetBucketLifecycleConfiguration", B, False),
    (B, "GET", "encryption"): Operation("GetBucketEncryption", B, False),
    (B, "GET", "tagging"): Operation("GetBucketTagging", B, False),
    (B, "GET", "object-lock"): Operation("GetObjectLockConfiguration", B, False),
    (B, "HEAD", ""): Operation("HeadBucket", B, False),
    (B, "PUT", ""): Operation("CreateBucket", B, True, Body.SMALL),
    (B, "DELETE", ""): Operation("DeleteBucket", B, True),
    (B, "POST", "delete"): Operation("DeleteObjects", B, True, Body.SMALL),
    (O, "GET", ""): Operation("GetObject", O, False),
    (O, "GET", "attributes"): Operation("GetObjectAttributes", O, False),
    (O, "GET", "acl"): Operation("GetObjectAcl", O, False),
    (O, "GET", "tagging"): Operation("GetObjectTagging", O, False),
    (O, "GET", "uploadId"): Operation("ListParts", O, False),
    (O, "HEAD", ""): Operation("HeadObject", O, False),
    (O, "PUT", ""): Operation("PutObject", O, True, Body.CONTENT),
    (O, "PUT", "copy"): Operation("CopyObject", O, True),
    (O, "PUT", "tagging"): Operation("PutObjectTagging", O, True, Body.SMALL),
    (O, "PUT", "uploadId"): Operation("UploadPart", O, True, Body.CONTENT),
    (O, "PUT", "uploadId copy"): Operation("UploadPartCopy", O, True),
    (O, "POST", "uploads"): Operation("CreateMultipartUpload", O, True),
    (O, "POST", "uploadId"): Operation("CompleteMultipartUpload", O, True, Body.SMALL),
    (O, "DELETE", ""): Operation("DeleteObject", O, True),
    (O, "DELETE", "tagging"): Operation("DeleteObjectTagging", O, True),
    (O, "DELETE", "uploadId"): Operation("AbortMultipartUpload", O, True),
}

SUBRESOURCES: Final = frozenset(
    [
        "accelerate",
        "acl",
        "analytics",
        "attributes",
        "cors",
        "delete",
        "encryption",
        "intelligent-tiering",
        "inventory",
        "legal-hold",
        "lifecycle",
        "list-type",
        "location",
        "logging",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "renameObject",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "session",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versioning",
        "versions",
        "website",
    ]
)
"""Query names that choose another call; all others are arguments."""

LISTINGS: Final = ("ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads")


def level_of(request: Request) -> Level:
    if not request.bucket:
        return Level.SERVICE
    return Level.OBJECT if request.key else Level.BUCKET


def route(request: Request) -> Operation:
    """Raises S3Error NotImplemented, MethodNotAllowed."""
    level = level_of(request)
    chosen = sorted(SUBRESOURCES & set(request.query))
    if len(chosen) > 1:
        raise S3Error("InvalidArgument", f"Conflicting query parameters: {', '.join(chosen)}.")
    subresource = chosen[0] if chosen else ""
    if level is Level.OBJECT and request.method == "PUT" and "x-amz-copy-source" in request.headers:
        subresource = f"{subresource} copy".strip()
    operation = TABLE.get((level, request.method, subresource))
    if operation is not None:
        return operation
    if not subresource and request.method not in ("POST", "OPTIONS"):
        raise S3Error("MethodNotAllowed", fields={"Method": request.method[:20], "ResourceType": level.value.upper()})
    raise S3Error(
        "NotImplemented", f"{request.method[:20]} with {subresource or 'no sub-resource'} is not implemented."
    )


def authorize(operation: Operation, request: Request, scope: Scope) -> None:
    """Raises S3Error AccessDenied."""
    if not _allows(operation, request, scope):
        raise S3Error("AccessDenied")


def _allows(operation: Operation, request: Request, scope: Scope) -> bool:
    if operation.writes and scope.read_only:
        return False
    if operation.level is Level.SERVICE:
        return True
    if operation.level is Level.OBJECT:
        return scope.allows_key(request.bucket_name, request.key_name)
    if not scope.allows_bucket(request.bucket_name):
        return False
    if operation.name in LISTINGS:
        return request.query.get("prefix", "").startswith(scope.prefix)
    if operation.name in ("CreateBucket", "DeleteBucket"):
        return not scope.prefix
    return True
