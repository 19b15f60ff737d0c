"""Who may do what: the scope of the key, the bucket's policy, and public ACLs, in this order of strength. Pure.

A Deny of the policy holds for everybody, but for a key without limits that reads, sets or removes the policy itself (so
nobody locks everybody out). What is not denied is allowed by the scope of the key, by an Allow of the policy, or by an ACL of
the bucket or the object (`public_access`), which lets those with a key do what it lets anybody do.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from tieredfs_gateway.s3.acl_documents import OWNER
from tieredfs_gateway.s3.bucket_rules import Believed
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import KEPT_HEADERS, Caller, Request
from tieredfs_gateway.s3.keystore import Scope
from tieredfs_gateway.s3.policy import NO_POLICY, Policy, Question, Verdict
from tieredfs_gateway.s3.public_access import GRANT_HEADERS, asked_grants, lets
from tieredfs_gateway.s3.routes import LISTINGS, Level, Operation

ACTIONS: Final = {
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListBuckets": "s3:ListAllMyBuckets",
    "HeadObject": "s3:GetObject",
    "GetObjectAttributes": "s3:GetObject",
    "CopyObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "PostObject": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "GetBucketCors": "s3:GetBucketCORS",
    "PutBucketCors": "s3:PutBucketCORS",
    "DeleteBucketCors": "s3:PutBucketCORS",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "DeleteBucketLifecycle": "s3:PutLifecycleConfiguration",
    "DeleteBucketTagging": "s3:PutBucketTagging",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "DeletePublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "DeleteBucketOwnershipControls": "s3:PutBucketOwnershipControls",
}
"""Operations whose action has another name."""
_OF_VERSIONS: Final = (
    "s3:GetObject",
    "s3:DeleteObject",
    "s3:GetObjectTagging",
    "s3:PutObjectTagging",
    "s3:GetObjectAcl",
)
_WITH_OBJECT: Final = {"x-amz-acl": "s3:PutObjectAcl", "x-amz-tagging": "s3:PutObjectTagging"}
_EXPECTED_OWNERS: Final = ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner")
_UNLOCKABLE: Final = ("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy")
_BY_BUCKET_ACL: Final = {
    "s3:ListBucket": "READ",
    "s3:ListBucketVersions": "READ",
    "s3:ListBucketMultipartUploads": "READ",
    "s3:PutObject": "WRITE",
    "s3:DeleteObject": "WRITE",
}
"""What the permissions of a bucket's ACL let one do."""


def action_of(operation: Operation, request: Request) -> str:
    action = ACTIONS.get(operation.name, f"s3:{operation.name}")
    if "versionId" in request.query and action in _OF_VERSIONS:
        return action.replace("ObjectTagging", "ObjectVersionTagging").replace("ObjectAcl", "ObjectVersionAcl") + (
            "Version" if action.endswith("Object") else ""
        )
    return action


def check(operation: Operation, request: Request, caller: Caller, believed: Believed) -> bool:
    """Raises S3Error AccessDenied, InvalidRequest. False: only if the object's own ACL says that the caller may read it."""
    if any(request.headers.get(name, OWNER["ID"]) != OWNER["ID"] for name in _EXPECTED_OWNERS):
        raise S3Error("AccessDenied", "The bucket does not belong to the expected owner.")
    if caller.is_anonymous and action_of(operation, request).startswith("s3:GetObject") and _asks_for_headers(request):
        message = "Request specific response headers cannot be used for anonymous GET requests."
        raise S3Error("InvalidRequest", message)
    if operation.name == "DeleteObjects":  # each of its keys is judged on its own: `check_key`
        return True
    if operation.level is Level.SERVICE:
        if caller.is_anonymous:
            raise S3Error("AccessDenied")
        return True
    by_scope = not caller.is_anonymous and scope_allows(operation, request, caller.key.scope)
    if by_scope and believed.policy is NO_POLICY:  # nothing denies it, as for most requests
        return True
    verdicts = [_judge(operation, request, caller, believed, action) for action in actions_of(operation, request)]
    unlocked = operation.name in _UNLOCKABLE and caller.key.scope == Scope()
    if Verdict.DENIED in verdicts and not unlocked:
        raise S3Error("AccessDenied")
    if by_scope or all(verdict is Verdict.ALLOWED for verdict in verdicts):
        return True
    actions = actions_of(operation, request)
    if _by_bucket_acl(actions[0], caller, believed):  # an object that one may put may come with an ACL and tags
        return True
    if actions[0] in ("s3:GetObject", "s3:GetObjectVersion") and not believed.blocks.ignore_acls:
        return False
    raise S3Error("AccessDenied")


def _by_bucket_acl(action: str, caller: Caller, believed: Believed) -> bool:
    permission = _BY_BUCKET_ACL.get(action)
    if permission is None or believed.blocks.ignore_acls:
        return False
    return lets(believed.acl, permission, anonymous=caller.is_anonymous)


def _asks_for_headers(request: Request) -> bool:
    """What is public is not to be dressed up by anybody: as a page of another type, say."""
    return any(f"response-{name}" in request.query for name in KEPT_HEADERS)


def actions_of(operation: Operation, request: Request) -> list[str]:
    """All that must be allowed: an object may come with an ACL and with tags."""
    actions = [action_of(operation, request)]
    if actions[0] == "s3:PutObject":
        actions += [action for header, action in _WITH_OBJECT.items() if header in request.headers]
        actions += ["s3:PutObjectAcl"] if asked_grants(request.headers) else []
    return actions


def _judge(operation: Operation, request: Request, caller: Caller, believed: Believed, action: str) -> Verdict:
    if believed.policy is NO_POLICY:  # most buckets have none
        return Verdict.SILENT
    resource = f"{request.bucket_name}/{request.key_name}" if request.key else request.bucket_name
    return judge(caller, believed, action, resource, context_of(operation, request))


def judge(caller: Caller, believed: Believed, action: str, resource: str, context: Mapping[str, str]) -> Verdict:
    policy: Policy = believed.policy
    if caller.is_anonymous and believed.blocks.restrict:
        policy = NO_POLICY
    return policy.judge(Question(caller.key.access_key_id, action, resource, context))


def may_list(request: Request, caller: Caller, believed: Believed) -> bool:
    """Whether the caller may know which objects of the bucket there are."""
    verdict = judge(caller, believed, "s3:ListBucket", request.bucket_name, context_of(None, request))
    if verdict is not Verdict.SILENT:
        return verdict is Verdict.ALLOWED
    by_scope = not caller.is_anonymous and caller.key.scope.allows_key(request.bucket_name, request.key_name)
    return by_scope or _by_bucket_acl("s3:ListBucket", caller, believed)


def check_key(request: Request, caller: Caller, believed: Believed, bucket: str, key: str, action: str) -> None:
    """Of one key: of many to be deleted, or the source of a copy. Raises S3Error AccessDenied."""
    verdict = judge(caller, believed, action, f"{bucket}/{key}", context_of(None, request))
    scope = caller.key.scope
    allowed = not caller.is_anonymous and scope.allows_key(bucket, key)
    if scope.read_only and not action.startswith("s3:Get"):
        allowed = False
    allowed = allowed or _by_bucket_acl(action, caller, believed)
    if verdict is Verdict.DENIED or (verdict is Verdict.SILENT and not allowed):
        raise S3Error("AccessDenied")


_CONTEXT_HEADERS: Final = {
    "referer": "aws:referer",
    "user-agent": "aws:useragent",
    "x-amz-acl": "s3:x-amz-acl",
    **{name: f"s3:{name}" for name in GRANT_HEADERS},
    "x-amz-metadata-directive": "s3:x-amz-metadata-directive",
    "x-amz-server-side-encryption": "s3:x-amz-server-side-encryption",
}


def context_of(operation: Operation | None, request: Request) -> dict[str, str]:
    """The condition keys of a policy that the request has."""
    found = {"aws:sourceip": request.client, "aws:securetransport": "true" if request.secure else "false"}
    found |= {key: request.headers[name] for name, key in _CONTEXT_HEADERS.items() if name in request.headers}
    if "x-amz-copy-source" in request.headers:  # however it is written
        path, mark, version = request.headers["x-amz-copy-source"].partition("?")
        found["s3:x-amz-copy-source"] = unquote(path).removeprefix("/") + mark + version
    if operation is not None and operation.name in LISTINGS:
        for name in ("prefix", "delimiter", "max-keys"):
            if name in request.query:
                found[f"s3:{name}"] = request.query[name]
    if "versionId" in request.query:
        found["s3:versionid"] = request.query["versionId"]
    return found


def scope_allows(operation: Operation, request: Request, scope: Scope) -> bool:
    if operation.writes and scope.read_only:
        return False
    if operation.level is Level.OBJECT:
        return scope.allows_key(request.bucket_name, request.key_name)
    if not scope.allows_bucket(request.bucket_name):
        return False
    if operation.name in LISTINGS:
        return request.query.get("prefix", "").startswith(scope.prefix)
    return not operation.writes or not scope.prefix
