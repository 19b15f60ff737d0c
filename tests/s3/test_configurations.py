"""Bucket configurations: what is kept, and what is answered for those that this endpoint does not have."""

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.s3.endpoint import Endpoint


def code(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def test_buckets_have_tags(s3: Any, bucket: str) -> None:
    assert code(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"
    tags = [{"Key": f"k{n}", "Value": "v & w"} for n in range(50)]
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags
    too_many = [*tags, {"Key": "one more", "Value": ""}]
    assert code(s3.put_bucket_tagging, Bucket=bucket, Tagging={"TagSet": too_many}) == "InvalidTag"
    twice = [tags[0], tags[0]]
    assert code(s3.put_bucket_tagging, Bucket=bucket, Tagging={"TagSet": twice}) == "InvalidTag"
    s3.delete_bucket_tagging(Bucket=bucket)
    assert code(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"


def test_ownership_controls_are_kept(s3: Any, bucket: str) -> None:
    assert code(s3.get_bucket_ownership_controls, Bucket=bucket) == "OwnershipControlsNotFoundError"
    controls = {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=controls)
    assert s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"] == controls
    s3.delete_bucket_ownership_controls(Bucket=bucket)
    assert code(s3.get_bucket_ownership_controls, Bucket=bucket) == "OwnershipControlsNotFoundError"


def test_enforced_ownership_refuses_acls(s3: Any, bucket: str) -> None:
    controls = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=controls)
    refused = "AccessControlListNotSupported"
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"", ACL="public-read") == refused
    assert code(s3.put_bucket_acl, Bucket=bucket, ACL="public-read") == refused
    s3.put_object(Bucket=bucket, Key="k", Body=b"", ACL="bucket-owner-full-control")


@pytest.mark.parametrize(
    ("call", "code_expected"),
    [
        ("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ("get_bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
    ],
)
def test_what_no_bucket_here_has(s3: Any, bucket: str, call: str, code_expected: str) -> None:
    assert code(getattr(s3, call), Bucket=bucket) == code_expected
    assert code(getattr(s3, call), Bucket="no-such-bucket-here") == "NoSuchBucket"


def test_what_was_never_configured(s3: Any, bucket: str) -> None:
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    assert "Status" not in s3.get_bucket_accelerate_configuration(Bucket=bucket)
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    assert "QueueConfigurations" not in s3.get_bucket_notification_configuration(Bucket=bucket)
    for name in ("encryption", "replication", "website"):
        getattr(s3, f"delete_bucket_{name}")(Bucket=bucket)
    for call in ("analytics", "inventory", "metrics", "intelligent_tiering"):
        assert getattr(s3, f"list_bucket_{call}_configurations")(Bucket=bucket)["IsTruncated"] is False


def test_what_would_not_be_done_is_refused(served: Endpoint, bucket: str) -> None:
    for name in ("encryption", "object-lock", "replication", "website", "logging", "notification", "accelerate"):
        answer = served.send("PUT", f"/{bucket}?{name}=", b"<x/>")
        assert (answer.status_code, b"<Code>NotImplemented</Code>" in answer.content) == (501, True)
    assert served.send("GET", f"/{bucket}/k?torrent=").status_code == 501
    for name in ("retention", "legal-hold"):
        for method in ("GET", "PUT"):
            answer = served.send(method, f"/{bucket}/k?{name}=")
            assert (answer.status_code, b"missing Object Lock" in answer.content) == (400, True)


def test_a_new_bucket_of_the_same_name_has_none_of_it(s3: Any, bucket: str) -> None:
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    s3.put_bucket_cors(
        Bucket=bucket, CORSConfiguration={"CORSRules": [{"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]}]}
    )
    s3.delete_bucket(Bucket=bucket)
    s3.create_bucket(Bucket=bucket)
    assert code(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"
    assert code(s3.get_bucket_cors, Bucket=bucket) == "NoSuchCORSConfiguration"
