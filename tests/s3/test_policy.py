"""Policies, ACLs and the public access block: the language as values, and who may do what over real HTTP."""

import json
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from tests.s3.endpoint import Endpoint
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.keystore import Scope
from tieredfs_gateway.s3.policy import Question, Verdict, matches_pattern, parse_policy

ARN = "arn:aws:s3:::bkt"


def code(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def statement(**changes: Any) -> dict[str, Any]:
    made = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{ARN}/*"} | changes
    return {name: value for name, value in made.items() if value is not None}


def document(*statements: dict[str, Any]) -> bytes:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)}).encode()


# ---- the language ----------------------------------------------------------------------------------------------------


@given(st.text("ab/", max_size=8), st.text("ab/*?", max_size=8))
def test_patterns_match_as_a_plain_search_does(text: str, pattern: str) -> None:
    def search(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(search(pattern[1:], text[at:]) for at in range(len(text) + 1))
        return bool(text) and pattern[0] in ("?", text[0]) and search(pattern[1:], text[1:])

    assert matches_pattern(pattern, text) == search(pattern, text)


def test_patterns_with_many_stars_are_no_bomb() -> None:
    assert not matches_pattern("*a" * 60 + "b", "a" * 5000)


@pytest.mark.parametrize(
    ("changes", "question", "verdict"),
    [
        ({}, Question("", "s3:GetObject", "bkt/k"), Verdict.ALLOWED),
        ({}, Question("KEY", "s3:GetObject", "bkt/k"), Verdict.ALLOWED),
        ({}, Question("", "s3:PutObject", "bkt/k"), Verdict.SILENT),
        ({}, Question("", "s3:GetObjectVersion", "bkt/k"), Verdict.SILENT),
        ({"Action": "s3:get*"}, Question("", "s3:GetObjectVersion", "bkt/k"), Verdict.ALLOWED),
        ({"Resource": "*"}, Question("", "s3:GetObject", "bkt/a/b"), Verdict.ALLOWED),
        ({"Resource": "arn:aws:s3:::b*/a"}, Question("", "s3:GetObject", "bkt/a"), Verdict.ALLOWED),
        ({"Resource": f"{ARN}/a/?"}, Question("", "s3:GetObject", "bkt/a/b"), Verdict.ALLOWED),
        ({"Resource": f"{ARN}/a/?"}, Question("", "s3:GetObject", "bkt/a/bc"), Verdict.SILENT),
        ({"Principal": {"AWS": "KEY"}}, Question("KEY", "s3:GetObject", "bkt/k"), Verdict.ALLOWED),
        (
            {"Principal": {"AWS": ["arn:aws:iam::1:user/KEY"]}},
            Question("KEY", "s3:GetObject", "bkt/k"),
            Verdict.ALLOWED,
        ),
        ({"Principal": {"AWS": "KEY"}}, Question("", "s3:GetObject", "bkt/k"), Verdict.SILENT),
        ({"Effect": "Deny", "Action": "*"}, Question("KEY", "s3:DeleteObject", "bkt/k"), Verdict.DENIED),
    ],
)
def test_statements_are_judged(changes: dict[str, Any], question: Question, verdict: Verdict) -> None:
    assert parse_policy(document(statement(**changes)), "bkt").judge(question) is verdict


@pytest.mark.parametrize(
    ("condition", "context", "verdict"),
    [
        ({"StringEquals": {"s3:prefix": ["a/", "b/"]}}, {"s3:prefix": "b/"}, Verdict.ALLOWED),
        ({"StringEquals": {"s3:prefix": "a/"}}, {"s3:prefix": "a/x"}, Verdict.SILENT),
        ({"StringLike": {"s3:prefix": "a/*"}}, {"s3:prefix": "a/x"}, Verdict.ALLOWED),
        ({"StringLike": {"s3:prefix": "a/*"}}, {}, Verdict.SILENT),
        ({"StringLikeIfExists": {"s3:prefix": "a/*"}}, {}, Verdict.ALLOWED),
        ({"StringNotEquals": {"s3:prefix": "a/"}}, {}, Verdict.ALLOWED),
        ({"StringNotEquals": {"s3:prefix": "a/"}}, {"s3:prefix": "a/"}, Verdict.SILENT),
        ({"NumericLessThanEquals": {"s3:max-keys": "10"}}, {"s3:max-keys": "10"}, Verdict.ALLOWED),
        ({"NumericLessThanEquals": {"s3:max-keys": 10}}, {"s3:max-keys": "11"}, Verdict.SILENT),
        ({"NumericLessThanEquals": {"s3:max-keys": 10}}, {"s3:max-keys": "-1"}, Verdict.SILENT),
        ({"Bool": {"aws:SecureTransport": False}}, {"aws:securetransport": "false"}, Verdict.ALLOWED),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:sourceip": "10.9.8.7"}, Verdict.ALLOWED),
        ({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:sourceip": "10.9.8.7"}, Verdict.SILENT),
        ({"Null": {"s3:x-amz-acl": "true"}}, {}, Verdict.ALLOWED),
        ({"Null": {"s3:x-amz-acl": True}}, {"s3:x-amz-acl": "private"}, Verdict.SILENT),
        ({"StringLike": {"aws:Referer": ["https://a.org/*"]}}, {"aws:referer": "https://a.org/x"}, Verdict.ALLOWED),
    ],
)
def test_conditions_hold_or_not(condition: dict[str, Any], context: dict[str, str], verdict: Verdict) -> None:
    listing = statement(Action="s3:ListBucket", Resource=ARN, Condition=condition)
    assert parse_policy(document(listing), "bkt").judge(Question("", "s3:ListBucket", "bkt", context)) is verdict


UNCHECKED: list[dict[str, Any]] = [
    {"Effect": "Maybe"},
    {"Effect": None},
    {"Principal": None},
    {"Principal": {"Service": "x"}},
    {"Principal": {"AWS": []}},
    {"Principal": {"AWS": "arn:aws:iam::123456789012:root"}},
    {"Principal": {"AWS": "arn:aws:iam::1:role/x"}},
    {"NotAction": "s3:*"},
    {"NotPrincipal": "*"},
    {"Action": "ec2:Start"},
    {"Action": []},
    {"Resource": "arn:aws:s3:::other/*"},
    {"Resource": f"{ARN}x/*"},
    {"Resource": f"{ARN}/${{aws:username}}/*"},
    {"Condition": {"StringEquals": {"aws:PrincipalTag/a": "x"}}},
    {"Condition": {"Sometimes": {"s3:prefix": "x"}}},
    {"Condition": {"IpAddress": {"aws:SourceIp": "somewhere"}}},
    {"Condition": {"Bool": {"s3:prefix": "true"}}},
    {"Condition": []},
]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"Version": "2012-10-17"}',
        b'{"Statement": [], "Statement": []}',
        b'{"Version": "1999-01-01", "Statement": [{}]}',
        b" " * 30_000,
        *(document(statement(**changes)) for changes in UNCHECKED),
    ],
)
def test_what_would_not_be_checked_is_refused(raw: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        parse_policy(raw, "bkt")
    assert caught.value.code == "MalformedPolicy"


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nobody(served: Endpoint) -> Any:
    config = Config(signature_version=UNSIGNED, retries={"max_attempts": 1})
    return boto3.client("s3", endpoint_url=served.url, region_name="us-east-1", config=config)


def set_policy(s3: Any, bucket: str, *statements: dict[str, Any]) -> None:
    text = document(*statements).decode().replace(ARN, f"arn:aws:s3:::{bucket}")
    s3.put_bucket_policy(Bucket=bucket, Policy=text)


def test_anonymous_requests_are_refused_where_nothing_allows_them(nobody: Any, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    for call in (nobody.get_object, nobody.head_object, nobody.delete_object, nobody.get_object_tagging):
        assert code(call, Bucket=bucket, Key="k") in ("AccessDenied", "403")
    assert code(nobody.put_object, Bucket=bucket, Key="k", Body=b"") == "AccessDenied"
    for call in (nobody.list_objects_v2, nobody.get_bucket_policy, nobody.delete_bucket, nobody.get_bucket_acl):
        assert code(call, Bucket=bucket) == "AccessDenied"
    assert code(nobody.create_bucket, Bucket="made-by-nobody") == "AccessDenied"
    assert code(nobody.list_buckets) == "AccessDenied"
    errors = nobody.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})["Errors"]
    assert [error["Code"] for error in errors] == ["AccessDenied"]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_a_policy_lets_anybody_read_below_a_prefix(nobody: Any, s3: Any, bucket: str) -> None:
    for key in ("open/k", "closed/k"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    listing = statement(Action="s3:ListBucket", Resource=ARN, Condition={"StringLike": {"s3:prefix": "open/*"}})
    set_policy(s3, bucket, statement(Resource=f"{ARN}/open/*"), listing)
    assert nobody.get_object(Bucket=bucket, Key="open/k")["Body"].read() == b"open/k"
    assert code(nobody.get_object, Bucket=bucket, Key="closed/k") == "AccessDenied"
    assert nobody.list_objects_v2(Bucket=bucket, Prefix="open/")["KeyCount"] == 1
    assert code(nobody.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"][1]["Condition"]
    s3.delete_bucket_policy(Bucket=bucket)
    assert code(nobody.get_object, Bucket=bucket, Key="open/k") == "AccessDenied"
    assert code(s3.get_bucket_policy, Bucket=bucket) == "NoSuchBucketPolicy"
    assert code(s3.get_bucket_policy_status, Bucket=bucket) == "NoSuchBucketPolicy"


def test_anybody_may_write_where_a_policy_says_so(nobody: Any, s3: Any, bucket: str) -> None:
    set_policy(s3, bucket, statement(Action=["s3:PutObject", "s3:DeleteObject"], Resource=f"{ARN}/inbox/*"))
    nobody.put_object(Bucket=bucket, Key="inbox/k", Body=b"from nobody")
    assert s3.get_object(Bucket=bucket, Key="inbox/k")["Body"].read() == b"from nobody"
    assert code(nobody.get_object, Bucket=bucket, Key="inbox/k") == "AccessDenied"
    assert code(nobody.put_object, Bucket=bucket, Key="k", Body=b"") == "AccessDenied"
    assert code(nobody.put_object, Bucket=bucket, Key="inbox/k", Body=b"", ACL="public-read") == "AccessDenied"
    assert code(nobody.put_object, Bucket=bucket, Key="inbox/k", Body=b"", Tagging="a=b") == "AccessDenied"
    assert code(nobody.copy_object, Bucket=bucket, Key="inbox/c", CopySource=f"{bucket}/inbox/k") == "AccessDenied"
    wanted = [{"Key": "inbox/k"}, {"Key": "k"}]
    done = nobody.delete_objects(Bucket=bucket, Delete={"Objects": wanted})
    assert [found["Key"] for found in done["Deleted"]] == ["inbox/k"]
    assert [found["Key"] for found in done["Errors"]] == ["k"]


def test_denials_are_stronger_than_keys(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    other = served.client(served.add_key(Scope(("some-other-bucket",))))
    assert code(other.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    other_id = other.meta.config and other._request_signer._credentials.access_key
    set_policy(s3, bucket, statement(Principal={"AWS": other_id}))
    assert other.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
    assert code(other.put_object, Bucket=bucket, Key="k", Body=b"") == "AccessDenied"
    set_policy(s3, bucket, statement(Effect="Deny", Action="s3:*", Resource=[ARN, f"{ARN}/*"]))
    assert code(s3.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    assert code(s3.list_objects_v2, Bucket=bucket) == "AccessDenied"
    errors = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})["Errors"]
    assert errors[0]["Code"] == "AccessDenied"
    s3.delete_bucket_policy(Bucket=bucket)  # who has an unlimited key is never locked out of the policy itself
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_conditions_hold_for_each_of_many_keys(nobody: Any, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    here = {"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}
    set_policy(s3, bucket, statement(Action="s3:*", Resource="*", Condition=here))
    errors = nobody.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})["Errors"]
    assert errors[0]["Code"] == "AccessDenied"
    plain = {"Bool": {"aws:SecureTransport": "false"}}
    set_policy(s3, bucket, statement(Effect="Deny", Action="s3:DeleteObject", Condition=plain))
    assert s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})["Errors"][0]["Code"] == "AccessDenied"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_limited_keys_set_no_policy(served: Endpoint, s3: Any, bucket: str) -> None:
    text = document(statement(Resource=f"arn:aws:s3:::{bucket}/*")).decode()
    for scope in (Scope((bucket,), "pre/"), Scope((bucket,), read_only=True), Scope(("another-one",))):
        limited = served.client(served.add_key(scope))
        assert code(limited.put_bucket_policy, Bucket=bucket, Policy=text) == "AccessDenied"
    assert code(s3.put_bucket_policy, Bucket=bucket, Policy="{}") == "MalformedPolicy"


def test_canned_acls_are_what_they_say(nobody: Any, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="open", Body=b"1", ACL="public-read")
    s3.put_object(Bucket=bucket, Key="closed", Body=b"2")
    assert nobody.get_object(Bucket=bucket, Key="open")["Body"].read() == b"1"
    assert code(nobody.get_object, Bucket=bucket, Key="closed") == "AccessDenied"
    assert code(nobody.get_object, Bucket=bucket, Key="not-there") == "AccessDenied"
    grants = s3.get_object_acl(Bucket=bucket, Key="open")["Grants"]
    assert [(grant["Grantee"]["Type"], grant["Permission"]) for grant in grants] == [
        ("Group", "READ"),
        ("CanonicalUser", "FULL_CONTROL"),
    ]
    assert len(s3.get_object_acl(Bucket=bucket, Key="closed")["Grants"]) == 1
    s3.put_object_acl(Bucket=bucket, Key="closed", ACL="public-read")
    s3.put_object_acl(Bucket=bucket, Key="open", AccessControlPolicy=s3_acl(s3, bucket))
    assert nobody.head_object(Bucket=bucket, Key="closed")["ContentLength"] == 1
    assert code(nobody.get_object, Bucket=bucket, Key="open") == "AccessDenied"
    assert code(nobody.list_objects_v2, Bucket=bucket) == "AccessDenied"
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    assert nobody.list_objects_v2(Bucket=bucket)["KeyCount"] == 2
    assert len(s3.get_bucket_acl(Bucket=bucket)["Grants"]) == 2
    assert code(s3.put_bucket_acl, Bucket=bucket, ACL="aws-exec-read") == "NotImplemented"
    s3.put_object(Bucket=bucket, Key="closed", Body=b"3")
    assert code(nobody.get_object, Bucket=bucket, Key="closed") == "AccessDenied"


def test_a_bucket_that_anybody_writes_to(nobody: Any, s3: Any, bucket: str) -> None:
    assert code(nobody.put_object, Bucket=bucket, Key="k", Body=b"1") == "AccessDenied"
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    assert permissions(s3.get_bucket_acl(Bucket=bucket)) == {("AllUsers", "READ"), ("AllUsers", "WRITE")}
    nobody.put_object(Bucket=bucket, Key="k", Body=b"1")
    assert nobody.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    assert code(nobody.get_object, Bucket=bucket, Key="k") == "AccessDenied", "the object has an ACL of its own"
    nobody.put_object(Bucket=bucket, Key="k", Body=b"2", ACL="public-read", Tagging="a=b")
    assert nobody.get_object(Bucket=bucket, Key="k")["Body"].read() == b"2"
    refused = (
        (nobody.put_object_acl, {"Key": "k", "ACL": "private"}),
        (nobody.put_object_tagging, {"Key": "k", "Tagging": {"TagSet": []}}),
        (nobody.put_bucket_acl, {"ACL": "private"}),
        (nobody.put_bucket_versioning, {"VersioningConfiguration": {"Status": "Enabled"}}),
    )
    for call, arguments in refused:
        assert code(call, Bucket=bucket, **arguments) == "AccessDenied"
    assert "Errors" not in nobody.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})
    set_policy(s3, bucket, statement(Effect="Deny", Action="s3:PutObject"))
    assert code(nobody.put_object, Bucket=bucket, Key="k", Body=b"3") == "AccessDenied"
    s3.delete_bucket_policy(Bucket=bucket)
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    assert code(nobody.put_object, Bucket=bucket, Key="k", Body=b"4") == "AccessDenied"
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_what_everybody_with_a_key_may_read(served: Endpoint, nobody: Any, s3: Any, bucket: str) -> None:
    stranger = served.client(served.add_key(Scope(("another-one",), read_only=True)))
    s3.put_object(Bucket=bucket, Key="shared", Body=b"1", ACL="authenticated-read")
    s3.put_object(Bucket=bucket, Key="open", Body=b"2", ACL="public-read-write")
    s3.put_object(Bucket=bucket, Key="closed", Body=b"3")
    assert permissions(s3.get_object_acl(Bucket=bucket, Key="shared")) == {("AuthenticatedUsers", "READ")}
    assert stranger.get_object(Bucket=bucket, Key="shared")["Body"].read() == b"1"
    assert [client.get_object(Bucket=bucket, Key="open")["Body"].read() for client in (stranger, nobody)] == [b"2"] * 2
    assert code(nobody.get_object, Bucket=bucket, Key="shared") == "AccessDenied"
    for key in ("closed", "not-there"):
        assert code(stranger.get_object, Bucket=bucket, Key=key) == "AccessDenied"
    for key in ("shared", "open"):
        assert code(stranger.put_object, Bucket=bucket, Key=key, Body=b"4") == "AccessDenied"
    assert code(stranger.list_objects_v2, Bucket=bucket) == "AccessDenied"
    as_document = {name: s3.get_object_acl(Bucket=bucket, Key="shared")[name] for name in ("Owner", "Grants")}
    s3.put_bucket_acl(Bucket=bucket, AccessControlPolicy=as_document)
    assert stranger.list_objects_v2(Bucket=bucket)["KeyCount"] == 3
    assert code(nobody.list_objects_v2, Bucket=bucket) == "AccessDenied"
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration={"IgnorePublicAcls": True})
    assert code(stranger.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert code(stranger.get_object, Bucket=bucket, Key="shared") == "AccessDenied"


def permissions(acl: dict[str, Any]) -> set[tuple[str, str]]:
    """Of groups, by the last part of their names."""
    grants = [grant for grant in acl["Grants"] if grant["Grantee"]["Type"] == "Group"]
    return {(grant["Grantee"]["URI"].rpartition("/")[2], grant["Permission"]) for grant in grants}


def s3_acl(s3: Any, bucket: str) -> dict[str, Any]:
    found = s3.get_bucket_acl(Bucket=bucket)
    return {"Owner": found["Owner"], "Grants": found["Grants"][:1]}


def test_a_copys_source_is_judged_however_it_is_written(served: Endpoint, s3: Any, bucket: str) -> None:
    stranger = served.client(served.add_key(Scope(("another-one",))))
    for key in ("open/k", "closed/k"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"1")
    source = {"StringLike": {"s3:x-amz-copy-source": f"{bucket}/open/*"}}
    set_policy(s3, bucket, statement(), statement(Action="s3:PutObject", Condition=source))
    for written in (f"{bucket}/open/k", f"/{bucket}/open/k"):
        stranger.copy_object(Bucket=bucket, Key="copy", CopySource=written)
    for written in (f"{bucket}/closed/k", f"/{bucket}/closed/k"):
        assert code(stranger.copy_object, Bucket=bucket, Key="copy", CopySource=written) == "AccessDenied"


def test_a_policy_forbids_grants(s3: Any, bucket: str) -> None:
    everybody = 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'
    granted = {"StringLike": {"s3:x-amz-grant-read": "*AllUsers*"}}
    set_policy(s3, bucket, statement(Effect="Deny", Action="s3:PutObject", Condition=granted))
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"1", GrantRead=everybody) == "AccessDenied"
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")


def test_uploads_in_parts_have_their_acl(nobody: Any, s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", ACL="public-read")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"part")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload=parts)
    assert nobody.get_object(Bucket=bucket, Key="k")["Body"].read() == b"part"


def test_the_public_access_block_blocks(nobody: Any, s3: Any, bucket: str) -> None:
    assert code(s3.get_public_access_block, Bucket=bucket) == "NoSuchPublicAccessBlockConfiguration"
    s3.put_object(Bucket=bucket, Key="k", Body=b"1", ACL="public-read")
    set_policy(s3, bucket, statement())
    blocks = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=blocks)
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == blocks
    assert code(nobody.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"", ACL="public-read") == "AccessDenied"
    assert code(s3.put_bucket_acl, Bucket=bucket, ACL="public-read") == "AccessDenied"
    text = document(statement(Resource=f"arn:aws:s3:::{bucket}/*")).decode()
    assert code(s3.put_bucket_policy, Bucket=bucket, Policy=text) == "AccessDenied"
    s3.delete_public_access_block(Bucket=bucket)
    assert nobody.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_a_policy_that_cannot_be_read_opens_nothing_and_can_be_removed(
    served: Endpoint, nobody: Any, s3: Any, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"1", ACL="public-read")
    assert nobody.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
    with served.volume() as volume:
        volume.set_xattr(bucket.encode(), b"user.s3.policy", b"somebody wrote this")
    s3.put_bucket_tagging(
        Bucket=bucket, Tagging={"TagSet": []}
    )  # whatever is set here is seen at once, with all the rest
    for client in (nobody, s3):
        assert code(client.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    s3.delete_bucket_policy(Bucket=bucket)
    assert nobody.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
