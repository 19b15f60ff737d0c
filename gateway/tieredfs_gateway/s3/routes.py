"""Which call a request is: by what its path names, its method, and the sub-resource in its query. Pure, and a table."""

import enum
from dataclasses import dataclass
from typing import Final

from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import Request


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
    (B, "PUT", "versioning"): Operation("PutBucketVersioning", B, True, Body.SMALL),
    (B, "GET", "acl"): Operation("GetBucketAcl", B, False),
    (B, "PUT", "acl"): Operation("PutBucketAcl", B, True, Body.SMALL),
    (B, "GET", "policy"): Operation("GetBucketPolicy", B, False),
    (B, "PUT", "policy"): Operation("PutBucketPolicy", B, True, Body.SMALL),
    (B, "DELETE", "policy"): Operation("DeleteBucketPolicy", B, True),
    (B, "GET", "policyStatus"): Operation("GetBucketPolicyStatus", B, False),
    (B, "GET", "publicAccessBlock"): Operation("GetPublicAccessBlock", B, False),
    (B, "PUT", "publicAccessBlock"): Operation("PutPublicAccessBlock", B, True, Body.SMALL),
    (B, "DELETE", "publicAccessBlock"): Operation("DeletePublicAccessBlock", B, True),
    (B, "GET", "ownershipControls"): Operation("GetBucketOwnershipControls", B, False),
    (B, "PUT", "ownershipControls"): Operation("PutBucketOwnershipControls", B, True, Body.SMALL),
    (B, "DELETE", "ownershipControls"): Operation("DeleteBucketOwnershipControls", B, True),
    (B, "GET", "cors"): Operation("GetBucketCors", B, False),
    (B, "PUT", "cors"): Operation("PutBucketCors", B, True, Body.SMALL),
    (B, "DELETE", "cors"): Operation("DeleteBucketCors", B, True),
    (B, "GET", "lifecycle"): Operation("GetBucketLifecycleConfiguration", B, False),
    (B, "PUT", "lifecycle"): Operation("PutBucketLifecycleConfiguration", B, True, Body.SMALL),
    (B, "DELETE", "lifecycle"): Operation("DeleteBucketLifecycle", B, True),
    (B, "GET", "tagging"): Operation("GetBucketTagging", B, False),
    (B, "PUT", "tagging"): Operation("PutBucketTagging", B, True, Body.SMALL),
    (B, "DELETE", "tagging"): Operation("DeleteBucketTagging", B, True),
    (B, "GET", "encryption"): Operation("GetBucketEncryption", B, False),
    (B, "DELETE", "encryption"): Operation("DeleteBucketEncryption", B, True),
    (B, "GET", "object-lock"): Operation("GetObjectLockConfiguration", B, False),
    (B, "GET", "accelerate"): Operation("GetBucketAccelerateConfiguration", B, False),
    (B, "GET", "requestPayment"): Operation("GetBucketRequestPayment", B, False),
    (B, "GET", "logging"): Operation("GetBucketLogging", B, False),
    (B, "GET", "notification"): Operation("GetBucketNotificationConfiguration", B, False),
    (B, "GET", "replication"): Operation("GetBucketReplication", B, False),
    (B, "DELETE", "replication"): Operation("DeleteBucketReplication", B, True),
    (B, "GET", "website"): Operation("GetBucketWebsite", B, False),
    (B, "DELETE", "website"): Operation("DeleteBucketWebsite", B, True),
    (B, "GET", "analytics"): Operation("ListBucketAnalyticsConfigurations", B, False),
    (B, "GET", "inventory"): Operation("ListBucketInventoryConfigurations", B, False),
    (B, "GET", "metrics"): Operation("ListBucketMetricsConfigurations", B, False),
    (B, "GET", "intelligent-tiering"): Operation("ListBucketIntelligentTieringConfigurations", B, False),
    (B, "HEAD", ""): Operation("HeadBucket", B, False),
    (B, "PUT", ""): Operation("CreateBucket", B, True, Body.SMALL),
    (B, "DELETE", ""): Operation("DeleteBucket", B, True),
    (B, "POST", "delete"): Operation("DeleteObjects", B, True, Body.SMALL),
    (O, "GET", ""): Operation("GetObject", O, False),
    (O, "GET", "attributes"): Operation("GetObjectAttributes", O, False),
    (O, "GET", "acl"): Operation("GetObjectAcl", O, False),
    (O, "PUT", "acl"): Operation("PutObjectAcl", O, True, Body.SMALL),
    (O, "GET", "tagging"): Operation("GetObjectTagging", O, False),
    (O, "GET", "retention"): Operation("GetObjectRetention", O, False),
    (O, "PUT", "retention"): Operation("PutObjectRetention", O, True),
    (O, "GET", "legal-hold"): Operation("GetObjectLegalHold", O, False),
    (O, "PUT", "legal-hold"): Operation("PutObjectLegalHold", O, True),
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

POST_OBJECT: Final = Operation("PostObject", O, True, Body.CONTENT)
"""Not in the table: it is a form, which names its key and its signer itself."""
LISTINGS: Final = ("ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads")


def level_of(request: Request) -> Level:
    if not request.bucket:
        return Level.SERVICE
    return Level.OBJECT if request.key else Level.BUCKET


def is_form(request: Request) -> bool:
    """A form that a browser posts to a bucket, to be authenticated by what is in it."""
    return (
        request.method == "POST"
        and level_of(request) is Level.BUCKET
        and not SUBRESOURCES & set(request.query)
        and request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    )


def route(request: Request) -> Operation:
    """Raises S3Error NotImplemented, MethodNotAllowed, PreconditionFailed (a POST to a bucket that is no form)."""
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
    if not subresource and request.method == "POST" and level is Level.BUCKET:
        raise S3Error("PreconditionFailed", "Bucket POST must be of the enclosure-type multipart/form-data")
    if not subresource:
        raise S3Error("MethodNotAllowed", fields={"Method": request.method[:20], "ResourceType": level.value.upper()})
    raise S3Error(
        "NotImplemented", f"{request.method[:20]} with {subresource or 'no sub-resource'} is not implemented."
    )
