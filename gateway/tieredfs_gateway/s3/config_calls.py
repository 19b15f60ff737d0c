"""The calls that set, show and remove what is configured for a bucket. Blocking; each takes a request and gives a response.

What S3 has and this endpoint has not is answered as S3 answers for a bucket where it was never configured; setting it is
NotImplemented (`routes`), so nobody believes in what does not happen.
"""

from collections.abc import Callable, Mapping
from typing import Final

from tieredfs_gateway.s3 import bucket_rules, xml
from tieredfs_gateway.s3.acl_documents import acl_response, asked_acl
from tieredfs_gateway.s3.cors import parse_cors
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.http import Request, Response, xml_response
from tieredfs_gateway.s3.lifecycle import parse_lifecycle, with_ids
from tieredfs_gateway.s3.policy import parse_policy
from tieredfs_gateway.s3.public_access import BLOCK_NAMES, check_acl, parse_blocks
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.tagging import BUCKET_TAGS_MAX, parse_tagging, tags_tree
from tieredfs_gateway.s3.versions import Versioning
from tieredfs_gateway.s3.xml import Element

Call = Callable[[Request], Response]
UNCONFIGURED: Final[Mapping[str, tuple[str, Mapping[str, xml.Tree]]]] = {
    "GetBucketAccelerateConfiguration": ("AccelerateConfiguration", {}),
    "GetBucketRequestPayment": ("RequestPaymentConfiguration", {"Payer": "BucketOwner"}),
    "GetBucketLogging": ("BucketLoggingStatus", {}),
    "GetBucketNotificationConfiguration": ("NotificationConfiguration", {}),
    "ListBucketAnalyticsConfigurations": ("ListBucketAnalyticsConfigurationResult", {"IsTruncated": False}),
    "ListBucketInventoryConfigurations": ("ListInventoryConfigurationsResult", {"IsTruncated": False}),
    "ListBucketMetricsConfigurations": ("ListMetricsConfigurationsResult", {"IsTruncated": False}),
    "ListBucketIntelligentTieringConfigurations": (
        "ListBucketIntelligentTieringConfigurationsOutput",
        {"IsTruncated": False},
    ),
}
_REMOVED_ALREADY: Final = ("DeleteBucketEncryption", "DeleteBucketReplication", "DeleteBucketWebsite")
_LOCK_CALLS: Final = ("GetObjectRetention", "PutObjectRetention", "GetObjectLegalHold", "PutObjectLegalHold")
ABSENT: Final[Mapping[str, str]] = {
    "GetBucketEncryption": "ServerSideEncryptionConfigurationNotFoundError",
    "GetObjectLockConfiguration": "ObjectLockConfigurationNotFoundError",
    "GetBucketReplication": "ReplicationConfigurationNotFoundError",
    "GetBucketWebsite": "NoSuchWebsiteConfiguration",
}


class ConfigCalls:
    """Safe from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._settings = store.settings

    def plain(self) -> dict[str, Call]:
        """Those without a body, by operation."""
        calls: dict[str, Call] = {
            "GetBucketLocation": self.get_location,
            "GetBucketVersioning": self.get_versioning,
            "GetBucketAcl": self.get_acl,
            "GetBucketPolicy": self.get_policy,
            "GetBucketPolicyStatus": self.get_policy_status,
            "GetBucketTagging": self.get_tags,
            "GetBucketCors": self._shown(bucket_rules.CORS, "CORSConfiguration", "NoSuchCORSConfiguration"),
            "GetBucketLifecycleConfiguration": self._shown(
                bucket_rules.LIFECYCLE, "LifecycleConfiguration", "NoSuchLifecycleConfiguration"
            ),
            "GetPublicAccessBlock": self._shown(
                bucket_rules.BLOCKS, "PublicAccessBlockConfiguration", "NoSuchPublicAccessBlockConfiguration"
            ),
            "GetBucketOwnershipControls": self._shown(
                bucket_rules.OWNERSHIP, "OwnershipControls", "OwnershipControlsNotFoundError"
            ),
            "DeleteBucketPolicy": self._removed(bucket_rules.POLICY),
            "DeleteBucketCors": self._removed(bucket_rules.CORS),
            "DeleteBucketLifecycle": self._removed(bucket_rules.LIFECYCLE),
            "DeleteBucketTagging": self._removed(bucket_rules.TAGS),
            "DeletePublicAccessBlock": self._removed(bucket_rules.BLOCKS),
            "DeleteBucketOwnershipControls": self._removed(bucket_rules.OWNERSHIP),
        }
        calls |= {name: self._unconfigured(root, tree) for name, (root, tree) in UNCONFIGURED.items()}
        calls |= {name: self._absent(code) for name, code in ABSENT.items()}
        calls |= dict.fromkeys(_REMOVED_ALREADY, self._removed_already)
        no_lock = self._absent("InvalidRequest", "Bucket is missing Object Lock Configuration")
        return calls | dict.fromkeys(_LOCK_CALLS, no_lock)

    def with_body(self) -> dict[str, Callable[[Request, bytes], Response]]:
        return {
            "PutBucketVersioning": self.put_versioning,
            "PutBucketAcl": self.put_acl,
            "PutBucketPolicy": self.put_policy,
            "PutBucketTagging": self.put_tags,
            "PutBucketCors": self.put_cors,
            "PutBucketLifecycleConfiguration": self.put_lifecycle,
            "PutPublicAccessBlock": self.put_blocks,
            "PutBucketOwnershipControls": self.put_ownership,
        }

    # ---- in general -------------------------------------------------------------------------------------------------

    def _unconfigured(self, root: str, tree: Mapping[str, xml.Tree]) -> Call:
        def call(request: Request) -> Response:
            self._store.check_bucket(request.bucket)
            return xml_response(root, tree)

        return call

    def _absent(self, code: str, message: str | None = None) -> Call:
        def call(request: Request) -> Response:
            self._store.check_bucket(request.bucket)
            raise S3Error(code, message)

        return call

    def _shown(self, name: bytes, root: str, absent: str) -> Call:
        """A document that was set, as it was set."""

        def call(request: Request) -> Response:
            raw = self._set(request, name, absent)
            return Response(200, [("content-type", "application/xml")], xml.rendered(xml.parse(raw, root)))

        return call

    def _removed(self, name: bytes) -> Call:
        def call(request: Request) -> Response:
            self._store.check_bucket(request.bucket)
            self._settings.remove(request.bucket, name)
            return Response(204)

        return call

    def _removed_already(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        return Response(204)

    def _set(self, request: Request, name: bytes, absent: str) -> bytes:
        self._store.check_bucket(request.bucket)
        raw = self._settings.get(request.bucket, name)
        if raw is None:
            raise S3Error(absent)
        return raw

    def _keep(self, request: Request, name: bytes, value: bytes, status: int = 200) -> Response:
        self._store.check_bucket(request.bucket)
        self._settings.put(request.bucket, name, value)
        return Response(status)

    def get_location(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        document = Element("LocationConstraint")
        document.text = (self._settings.get(request.bucket, bucket_rules.LOCATION) or b"").decode("utf-8", "replace")
        return Response(200, [("content-type", "application/xml")], xml.rendered(document))

    # ---- versioning -------------------------------------------------------------------------------------------------

    def get_versioning(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        state = self._settings.versioning(request.bucket)
        return xml_response("VersioningConfiguration", {"Status": state.value or None})

    def put_versioning(self, request: Request, body: bytes) -> Response:
        document = xml.parse(body, "VersioningConfiguration")
        status = document.need("Status")
        if status not in (Versioning.ENABLED.value, Versioning.SUSPENDED.value):
            raise S3Error("MalformedXML", "Status is Enabled or Suspended.")
        if document.get("MfaDelete") == "Enabled":
            raise S3Error("NotImplemented", "MfaDelete is not implemented.")
        return self._keep(request, bucket_rules.VERSIONING, status.encode())

    # ---- who may ----------------------------------------------------------------------------------------------------

    def get_acl(self, request: Request) -> Response:
        self._store.check_bucket(request.bucket)
        return acl_response((self._settings.get(request.bucket, bucket_rules.ACL) or b"").decode("ascii", "replace"))

    def put_acl(self, request: Request, body: bytes) -> Response:
        believed = self._settings.now(request.bucket)
        acl = check_acl(asked_acl(request, body), believed.blocks, owner_enforced=believed.owner_enforced)
        return self._keep(request, bucket_rules.ACL, acl.encode())

    def get_policy(self, request: Request) -> Response:
        raw = self._set(request, bucket_rules.POLICY, "NoSuchBucketPolicy")
        return Response(200, [("content-type", "application/json")], raw)

    def put_policy(self, request: Request, body: bytes) -> Response:
        policy = parse_policy(body, request.bucket_name)
        if policy.is_public() and self._settings.now(request.bucket).blocks.block_policy:
            raise S3Error("AccessDenied", "Public policies are blocked by the public access block of the bucket.")
        return self._keep(request, bucket_rules.POLICY, body, status=204)

    def get_policy_status(self, request: Request) -> Response:
        raw = self._set(request, bucket_rules.POLICY, "NoSuchBucketPolicy")
        policy = parse_policy(raw, request.bucket_name)
        return xml_response("PolicyStatus", {"IsPublic": policy.is_public()})

    def put_blocks(self, request: Request, body: bytes) -> Response:
        document = xml.parse(body, "PublicAccessBlockConfiguration")
        parse_blocks(document)
        for name in BLOCK_NAMES:  # S3 shows all four, set or not
            if document.get(name) is None:
                added = Element(name)
                added.text = "false"
                document.children.append(added)
        return self._keep(request, bucket_rules.BLOCKS, xml.rendered(document))

    def put_ownership(self, request: Request, body: bytes) -> Response:
        rules = xml.parse(body, "OwnershipControls").all("Rule")
        if len(rules) != 1 or (ownership := rules[0].need("ObjectOwnership")) not in bucket_rules.OWNERSHIPS:
            raise S3Error("MalformedXML")
        if ownership == bucket_rules.OWNER_ENFORCED and self._settings.now(request.bucket).acl:
            raise S3Error("InvalidBucketAclWithObjectOwnership")
        return self._keep(request, bucket_rules.OWNERSHIP, body)

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def get_tags(self, request: Request) -> Response:
        return xml_response("Tagging", tags_tree(self._set(request, bucket_rules.TAGS, "NoSuchTagSet")))

    def put_tags(self, request: Request, body: bytes) -> Response:
        return self._keep(request, bucket_rules.TAGS, parse_tagging(body, BUCKET_TAGS_MAX), status=204)

    def put_cors(self, request: Request, body: bytes) -> Response:
        parse_cors(xml.parse(body, "CORSConfiguration"))
        return self._keep(request, bucket_rules.CORS, body)

    def put_lifecycle(self, request: Request, body: bytes) -> Response:
        document = xml.parse(body, "LifecycleConfiguration")
        with_ids(document, parse_lifecycle(document))
        return self._keep(request, bucket_rules.LIFECYCLE, xml.rendered(document))
