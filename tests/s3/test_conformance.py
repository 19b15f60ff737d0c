"""Answers that conformance suites of S3 look at, where an endpoint is easily a little different."""

import base64
import datetime
import hashlib
import zlib
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests import web
from tests.s3.endpoint import Endpoint, new_bucket
from tests.s3.test_bad_input import code_of
from tieredfs.limits import MIB


def said(call: Any, **arguments: Any) -> tuple[int, str]:
    """Status and code of what is refused."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["ResponseMetadata"]["HTTPStatusCode"], caught.value.response["Error"]["Code"]


# ---- buckets and listings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_ab", "ab", "foo..bar", "foo.-bar", "foo-.bar", "foo_bar", "192.168.5.123", "foo-"])
def test_names_that_are_no_host_names(served: Endpoint, name: str) -> None:
    assert code_of(served.send("PUT", f"/{name}")) == "InvalidBucketName"


def test_buckets_are_listed_in_pages_if_one_asks(s3: Any) -> None:
    first, second, third = sorted(new_bucket(s3) for _ in range(3))
    found = []
    for page in s3.get_paginator("list_buckets").paginate(PaginationConfig={"PageSize": 1}):
        assert len(page["Buckets"]) <= 1
        found += [bucket["Name"] for bucket in page["Buckets"]]
    assert found == sorted(found)
    assert {first, second, third} <= set(found)
    assert [bucket["Name"] for bucket in s3.list_buckets(Prefix=second)["Buckets"]] == [second]
    assert len(s3.list_buckets()["Buckets"]) >= 3


@pytest.mark.parametrize(
    "query", ["max-buckets=0", "max-buckets=x", "max-buckets=10001", "prefix=%FF", "continuation-token=x"]
)
def test_pages_of_buckets_that_there_cannot_be(served: Endpoint, query: str) -> None:
    assert code_of(served.send("GET", f"/?{query}")) == "InvalidArgument"


def test_an_empty_token_is_the_beginning(s3: Any, bucket: str) -> None:
    for key in ("bar", "baz"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    page = s3.list_objects_v2(Bucket=bucket, ContinuationToken="")
    assert [item["Key"] for item in page["Contents"]] == ["bar", "baz"]
    assert (page["ContinuationToken"], page["IsTruncated"]) == ("", False)


def test_uploads_are_rolled_up(s3: Any, bucket: str) -> None:
    for key in ("a/1", "a/2", "b", "c/d/e", "c/f"):
        s3.create_multipart_upload(Bucket=bucket, Key=key)

    def shown(page: Any) -> list[str]:
        return [item["Key"] for item in page.get("Uploads", [])] + [p["Prefix"] for p in page.get("CommonPrefixes", [])]

    page = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert (shown(page), page["Delimiter"]) == (["b", "a/", "c/"], "/")
    assert shown(s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", Prefix="c/")) == ["c/f", "c/d/"]
    found, marker = list[str](), dict[str, str]()
    while True:
        page = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", MaxUploads=1, **marker)
        found += shown(page)
        if not page["IsTruncated"]:
            break
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    assert found == ["a/", "b", "c/"]


def test_a_bucket_is_created_again_unless_it_would_be_another(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar")
    s3.create_bucket(Bucket=bucket)
    located = {"LocationConstraint": "eu-west-1"}
    again = s3.create_bucket
    assert said(again, Bucket=bucket, CreateBucketConfiguration=located) == (409, "BucketAlreadyOwnedByYou")
    assert said(again, Bucket=bucket, ObjectOwnership="ObjectWriter") == (409, "BucketAlreadyOwnedByYou")
    assert said(again, Bucket=bucket, ACL="public-read") == (409, "BucketAlreadyExists")
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


@pytest.mark.parametrize("ownership", ["BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter"])
def test_buckets_are_created_with_their_ownership(s3: Any, ownership: str) -> None:
    name = f"owned-{ownership.lower()}"
    s3.create_bucket(Bucket=name, ObjectOwnership=ownership)
    rules = s3.get_bucket_ownership_controls(Bucket=name)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": ownership}]


def test_a_bucket_without_acls_has_none_from_before(s3: Any, bucket: str) -> None:
    controls = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    enforce = {"Bucket": bucket, "OwnershipControls": controls}
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    refused = (400, "InvalidBucketAclWithObjectOwnership")
    assert said(s3.put_bucket_ownership_controls, **enforce) == refused
    created = {"Bucket": "owned-and-public", "ACL": "public-read", "ObjectOwnership": "BucketOwnerEnforced"}
    assert said(s3.create_bucket, **created) == refused
    created = {"Bucket": "owned-by-whom", "ObjectOwnership": "Whom"}
    assert said(s3.create_bucket, **created) == (400, "InvalidArgument")
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    s3.put_bucket_ownership_controls(**enforce)


def test_what_is_not_in_order_is_not_rolled_up(served: Endpoint, bucket: str) -> None:
    assert served.send("GET", f"/{bucket}?allow-unordered=true").status_code == 200
    assert code_of(served.send("GET", f"/{bucket}?allow-unordered=true&delimiter=a")) == "InvalidArgument"


# ---- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ("", 403, "AccessDenied"),
        ("AWS HAHAHA", 400, "InvalidArgument"),
        ("AWS a:b", 400, "InvalidRequest"),
        ("Basic YTpi", 400, "InvalidArgument"),
        ("AWS4-HMAC-SHA256 Credential=HAHAHA", 400, "AuthorizationHeaderMalformed"),
    ],
)
def test_authorizations_that_are_none(served: Endpoint, bucket: str, value: str, status: int, code: str) -> None:
    answer = web.put(f"{served.url}/{bucket}/k", content=b"", headers={"authorization": value})
    assert (answer.status_code, code_of(answer)) == (status, code)


@pytest.mark.parametrize("moment", ["Bad Date", "", "20100707T215304Z", "20300707T215304Z", "99990707T215304Z"])
def test_a_date_that_was_not_signed_is_forbidden(served: Endpoint, bucket: str, moment: str) -> None:
    request = served.signed("PUT", f"/{bucket}/k", b"")
    headers = dict(request.headers.items()) | {"X-Amz-Date": moment}
    assert web.put(f"{served.url}/{bucket}/k", content=b"", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("x-amz-acl", "public-ready", "InvalidArgument"),
        ("x-amz-acl", "log-delivery-write", "NotImplemented"),
        ("x-amz-storage-class", "NONSENSE", "InvalidStorageClass"),
        ("content-md5", "", "InvalidDigest"),
        ("content-md5", "YWJyYWNhZGFicmE=", "InvalidDigest"),
        ("content-md5", "rL0Y20xXQPDB7cdSrQiOfw==", "BadDigest"),
        ("x-amz-if-match-size", "7", "NotImplemented"),
    ],
)
def test_headers_of_a_put(served: Endpoint, s3: Any, bucket: str, header: str, value: str, code: str) -> None:
    assert code_of(served.send("PUT", f"/{bucket}/k", b"bar", {header: value})) == code
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_deletes_on_condition(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"bar")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    wrong = {"ETag": '"e"', "Size": 99, "LastModifiedTime": datetime.datetime(2021, 9, 6, tzinfo=datetime.UTC)}
    for name, value in wrong.items():
        assert said(s3.delete_object, Bucket=bucket, Key="k", **{f"IfMatch{name.removeprefix('ETag')}": value}) == (
            412,
            "PreconditionFailed",
        )
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", name: value}]})
        assert [error["Code"] for error in answer["Errors"]] == ["PreconditionFailed"]
    right = {"IfMatch": etag, "IfMatchSize": 3, "IfMatchLastModifiedTime": modified}
    for _ in range(2):  # what is not there is deleted already
        s3.delete_object(Bucket=bucket, Key="k", **right)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_anybody_reads_what_is_public_but_does_not_dress_it_up(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar", ACL="public-read")
    assert web.get(f"{served.url}/{bucket}/k").content == b"bar"
    answer = web.get(f"{served.url}/{bucket}/k?response-content-type=text/html")
    assert (answer.status_code, code_of(answer)) == (400, "InvalidRequest")
    answer = served.send("GET", f"/{bucket}/k?response-content-type=text%2Fhtml")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("deflate, gzip", "deflate, gzip"),
        ("deflate, aws-chunked, gzip", "deflate, gzip"),
        ("gzip, aws-chunked", "gzip"),
        ("aws-chunked", None),
    ],
)
def test_codings_of_the_transfer_are_not_the_objects(s3: Any, bucket: str, sent: str, kept: str | None) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar", ContentEncoding=sent)
    assert s3.head_object(Bucket=bucket, Key="k").get("ContentEncoding") == kept


def test_an_empty_content_type_is_none(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar", ContentType="")
    assert s3.head_object(Bucket=bucket, Key="k")["ContentType"] == "binary/octet-stream"


def test_a_bucket_belongs_to_whom_one_expects(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar", ExpectedBucketOwner="tieredfs")
    for call, arguments in (
        (s3.list_objects_v2, {"ExpectedBucketOwner": "111122223333"}),
        (s3.put_object, {"Key": "k", "Body": b"x", "ExpectedBucketOwner": "111122223333"}),
        (s3.copy_object, {"Key": "c", "CopySource": f"{bucket}/k", "ExpectedSourceBucketOwner": "111122223333"}),
        (s3.delete_objects, {"Delete": {"Objects": [{"Key": "k"}]}, "ExpectedBucketOwner": "111122223333"}),
    ):
        assert said(call, Bucket=bucket, **arguments) == (403, "AccessDenied")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"bar"


def test_who_may_list_a_bucket_is_told_what_is_not_there(served: Endpoint, s3: Any, bucket: str) -> None:
    assert web.get(f"{served.url}/{bucket}/gone").status_code == 403
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    answer = web.get(f"{served.url}/{bucket}/gone")
    assert (answer.status_code, code_of(answer)) == (404, "NoSuchKey")


def test_that_a_bucket_is_not_there_anybody_may_know(served: Endpoint) -> None:
    for method, path in (("GET", "?list-type=2"), ("GET", "/k"), ("DELETE", "/k"), ("PUT", "?versioning")):
        answer = web.request(method, f"{served.url}/no-such-bucket-here{path}")
        assert (answer.status_code, code_of(answer)) == (404, "NoSuchBucket")
    assert web.put(f"{served.url}/no-such-bucket-here").status_code == 403


def test_grants_to_those_who_are_not_there(s3: Any, bucket: str) -> None:
    acl = {name: s3.get_bucket_acl(Bucket=bucket)[name] for name in ("Owner", "Grants")}
    for grantee, code in (
        ({"Type": "CanonicalUser", "ID": "somebody"}, "InvalidArgument"),
        ({"Type": "Group", "URI": "http://acs.amazonaws.com/groups/global/Nobodies"}, "InvalidArgument"),
        ({"Type": "AmazonCustomerByEmail", "EmailAddress": "a@b.invalid"}, "UnresolvableGrantByEmailAddress"),
    ):
        grants = [*acl["Grants"], {"Grantee": grantee, "Permission": "READ"}]
        asked = {"Owner": acl["Owner"], "Grants": grants}
        assert said(s3.put_bucket_acl, Bucket=bucket, AccessControlPolicy=asked) == (400, code)


def test_grants_in_headers(served: Endpoint, s3: Any, bucket: str) -> None:
    groups = "http://acs.amazonaws.com/groups/global"
    everybody, grants = f'uri="{groups}/AllUsers"', {"GrantFullControl": 'id="tieredfs"'}
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar", GrantRead=everybody, **grants)
    assert web.get(f"{served.url}/{bucket}/k").content == b"bar"
    s3.put_bucket_acl(Bucket=bucket, GrantRead=everybody, GrantWrite=everybody)
    assert web.put(f"{served.url}/{bucket}/other", content=b"x").status_code == 200
    for header, code in (
        ({"GrantRead": "id=somebody"}, "InvalidArgument"),
        ({"GrantRead": "somebody"}, "InvalidArgument"),
        ({"GrantRead": f'uri="{groups}/Nobodies"'}, "InvalidArgument"),
        ({"GrantRead": 'emailAddress="a@b.invalid"'}, "UnresolvableGrantByEmailAddress"),
        ({"GrantRead": everybody, "ACL": "private"}, "InvalidRequest"),
    ):
        assert said(s3.put_object, Bucket=bucket, Key="k", Body=b"x", **header) == (400, code)
    assert said(s3.put_object_acl, Bucket=bucket, Key="k", GrantReadACP=everybody) == (501, "NotImplemented")


def test_answers_say_to_whom_and_for_what_they_are_allowed(served: Endpoint, s3: Any, bucket: str) -> None:
    rules = [{"AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["*.suffix"], "MaxAgeSeconds": 9}]
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": rules})
    for method, headers in (("GET", {}), ("DELETE", {"access-control-request-method": "PUT"})):
        answer = web.request(method, f"{served.url}/{bucket}/k", headers={"origin": "a.suffix", **headers})
        shown = [answer.headers[f"access-control-{name}"] for name in ("allow-origin", "allow-methods", "max-age")]
        assert (answer.status_code, shown) == (403, ["a.suffix", "GET, PUT", "9"])


# ---- objects in parts ------------------------------------------------------------------------------------------------


def test_what_is_said_of_the_whole_is_checked(s3: Any, bucket: str) -> None:
    begun = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    of_upload = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    part = s3.upload_part(**of_upload, PartNumber=1, Body=b"abc", ChecksumAlgorithm="CRC32")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}]}
    complete = {**of_upload, "MultipartUpload": parts}
    assert said(s3.complete_multipart_upload, **complete, MpuObjectSize=4) == (400, "InvalidRequest")
    assert said(s3.complete_multipart_upload, **complete, ChecksumType="COMPOSITE") == (400, "InvalidRequest")
    assert said(s3.complete_multipart_upload, **complete, ChecksumCRC32="AAAAAA==") == (400, "BadDigest")
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    whole = part["ChecksumCRC32"]
    s3.complete_multipart_upload(**complete, MpuObjectSize=3, ChecksumType="FULL_OBJECT", ChecksumCRC32=whole)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"abc"


def test_the_checksum_of_checksums_is_checked_with_its_number_of_parts(s3: Any, bucket: str) -> None:
    of_upload = {"Bucket": bucket, "Key": "k"}
    of_upload["UploadId"] = s3.create_multipart_upload(**of_upload, ChecksumAlgorithm="SHA256")["UploadId"]
    part = s3.upload_part(**of_upload, PartNumber=1, Body=b"abc", ChecksumAlgorithm="SHA256")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}]}
    complete = {**of_upload, "MultipartUpload": parts}
    whole = base64.b64encode(hashlib.sha256(base64.b64decode(part["ChecksumSHA256"])).digest()).decode()
    without = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    assert said(s3.complete_multipart_upload, **of_upload, MultipartUpload=without) == (400, "InvalidRequest")
    assert said(s3.complete_multipart_upload, **complete, ChecksumSHA256="bad") == (400, "InvalidRequest")
    assert said(s3.complete_multipart_upload, **complete, ChecksumSHA256=f"{whole}-2") == (400, "BadDigest")
    assert s3.complete_multipart_upload(**complete, ChecksumSHA256=f"{whole}-1")["ChecksumSHA256"] == f"{whole}-1"


@pytest.mark.parametrize(("algorithm", "kind"), [("CRC32", "FULL_OBJECT"), ("SHA256", "COMPOSITE")])
def test_checksums_of_parts_are_kept_shown_and_copied(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    pieces, field = [bytes(5 * MIB), b"a" * 5 * MIB, b"end"], f"Checksum{algorithm}"
    of_upload = {"Bucket": bucket, "Key": "k"}
    begun = s3.create_multipart_upload(**of_upload, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    of_upload["UploadId"] = begun["UploadId"]
    parts = []
    for number, piece in enumerate(pieces, 1):
        made = s3.upload_part(**of_upload, PartNumber=number, Body=piece, ChecksumAlgorithm=algorithm)
        parts.append({"PartNumber": number, "ETag": made["ETag"], field: made[field]})
    whole = s3.complete_multipart_upload(**of_upload, MultipartUpload={"Parts": parts})[field]
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    for key in ("k", "copy"):
        wanted = {"Bucket": bucket, "Key": key, "ObjectAttributes": ["Checksum", "ObjectParts"]}
        shown = s3.get_object_attributes(**wanted)
        assert shown["Checksum"] == {field: whole, "ChecksumType": kind}
        assert [part[field] for part in shown["ObjectParts"]["Parts"]] == [part[field] for part in parts]
        page = s3.get_object_attributes(**wanted, MaxParts=1, PartNumberMarker=1)["ObjectParts"]
        assert [(part["PartNumber"], part[field]) for part in page["Parts"]] == [(2, parts[1][field])]
        for number, piece in enumerate(pieces, 1):
            got = s3.get_object(Bucket=bucket, Key=key, PartNumber=number, ChecksumMode="ENABLED")
            assert (got[field], got["Body"].read()) == (parts[number - 1][field], piece)
        partial = s3.get_object(Bucket=bucket, Key=key, Range="bytes=0-9", ChecksumMode="ENABLED")
        assert (len(partial["Body"].read()), field in partial) == (10, False)


def test_checksums_that_cannot_be_checked_are_refused(s3: Any, bucket: str) -> None:
    of_upload = {"Bucket": bucket, "Key": "k"}
    assert said(s3.create_multipart_upload, **of_upload, ChecksumType="COMPOSITE") == (400, "InvalidRequest")
    begun = s3.create_multipart_upload(**of_upload, ChecksumAlgorithm="SHA1")
    of_upload["UploadId"] = begun["UploadId"]
    part = s3.upload_part(**of_upload, PartNumber=1, Body=b"abc", ChecksumAlgorithm="SHA1")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA1": part["ChecksumSHA1"]}]}
    complete = {**of_upload, "MultipartUpload": parts}
    assert said(s3.complete_multipart_upload, **complete, ChecksumCRC32="NSRBwg==") == (400, "InvalidRequest")
    s3.complete_multipart_upload(**complete)


def test_a_whole_object_that_is_copied_as_a_part_keeps_its_checksum(s3: Any, bucket: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="source", Body=bytes(5 * MIB), ChecksumAlgorithm="CRC32")
    of_upload = {"Bucket": bucket, "Key": "k"}
    begun = s3.create_multipart_upload(**of_upload, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    of_upload["UploadId"] = begun["UploadId"]
    copied = s3.upload_part_copy(**of_upload, PartNumber=1, CopySource=f"{bucket}/source")["CopyPartResult"]
    assert copied["ChecksumCRC32"] == put["ChecksumCRC32"]
    last = s3.upload_part(**of_upload, PartNumber=2, Body=b"abc", ChecksumAlgorithm="CRC32")
    parts = [{"PartNumber": number, "ETag": part["ETag"]} for number, part in enumerate((copied, last), 1)]
    s3.complete_multipart_upload(**of_upload, MultipartUpload={"Parts": parts})
    checksum = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["ChecksumCRC32"]
    assert base64.b64decode(checksum) == zlib.crc32(bytes(5 * MIB) + b"abc").to_bytes(4, "big")


def test_attributes_show_parts_in_pages(served: Endpoint, s3: Any, bucket: str) -> None:
    sizes = [5 * MIB, 5 * MIB, 7]
    of_upload = {"Bucket": bucket, "Key": "k"}
    of_upload["UploadId"] = s3.create_multipart_upload(**of_upload)["UploadId"]
    etags = [s3.upload_part(**of_upload, PartNumber=n, Body=bytes(size))["ETag"] for n, size in enumerate(sizes, 1)]
    listed = s3.list_parts(**of_upload)
    assert (listed["NextPartNumberMarker"], listed["IsTruncated"]) == (3, False)
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    s3.complete_multipart_upload(**of_upload, MultipartUpload={"Parts": parts})
    wanted = {"Bucket": bucket, "Key": "k", "ObjectAttributes": ["ObjectParts"]}
    whole = s3.get_object_attributes(**wanted)["ObjectParts"]
    assert [(part["PartNumber"], part["Size"]) for part in whole["Parts"]] == list(enumerate(sizes, 1))
    page = s3.get_object_attributes(**wanted, MaxParts=1, PartNumberMarker=1)["ObjectParts"]
    assert [part["PartNumber"] for part in page["Parts"]] == [2]
    assert (page["TotalPartsCount"], page["NextPartNumberMarker"], page["IsTruncated"]) == (3, 2, True)
    for headers in ({}, {"x-amz-object-attributes": "Foo"}):
        assert code_of(served.send("GET", f"/{bucket}/k?attributes=", b"", headers)) == "InvalidArgument"


def test_an_object_is_renewed_by_copying_it_to_its_storage_class(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar", Metadata={"a": "b"})
    itself = {"Bucket": bucket, "Key": "k", "CopySource": {"Bucket": bucket, "Key": "k"}}
    assert said(s3.copy_object, **itself) == (400, "InvalidRequest")
    s3.copy_object(**itself, StorageClass="STANDARD")
    assert s3.head_object(Bucket=bucket, Key="k")["Metadata"] == {"a": "b"}
