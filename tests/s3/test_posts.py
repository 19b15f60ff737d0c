"""POST uploads: the form's bytes in any pieces, the policy's conditions, and real forms over HTTP."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from tests import web
from tests.s3.endpoint import Endpoint
from tieredfs.limits import MIB
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.forms import FIELDS_BYTES_MAX, FormDecoder, Sizes, check_policy, parse_boundary
from tieredfs_gateway.s3.keystore import Scope

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def form(boundary: bytes, fields: dict[str, str], file: bytes, after: bytes = b"") -> bytes:
    head = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, name.encode(), value.encode())
        for name, value in fields.items()
    )
    disposition = b'Content-Disposition: form-data; name="file"; filename="C:\\\\dir\\\\a b.txt"\r\nContent-Type: a/b'
    return head + b"--%s\r\n%s\r\n\r\n%s\r\n--%s--\r\n" % (boundary, disposition, file, boundary) + after


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text(max_size=20), max_size=3),
    st.lists(st.sampled_from([b"\r\n", b"--", b"B", b"\r\n--", b"\r\n--B", b"x", b"\r"]), max_size=12).map(b"".join),
    st.integers(1, 40),
)
def test_a_form_comes_in_any_pieces(fields: dict[str, str], file: bytes, step: int) -> None:
    if b"\r\n--Bo" in b"\r\n" + file + b"\r\n":
        return
    raw = form(b"Bo", fields, file, b"an epilogue")
    decoder, content = FormDecoder(b"Bo"), b""
    for at in range(0, len(raw), step):
        content += b"".join(decoder.feed(raw[at : at + step]))
    decoder.finish()
    assert (decoder.fields, content) == (fields, file)
    assert decoder.file_name == "C:\\dir\\a b.txt"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"no boundary at all", "MalformedPOSTRequest"),
        (b"--B\r\nContent-Type: x\r\n\r\nvalue\r\n--B--", "MalformedPOSTRequest"),
        (b"--B--\r\n", "InvalidArgument"),
        (form(b"B", {"key": "k"}, b"")[:-30], "InvalidArgument"),
        (form(b"B", {"key": "k"}, b"content")[:-8], "IncompleteBody"),
        (form(b"B", {"key": "x" * (FIELDS_BYTES_MAX + 1)}, b""), "MaxPostPreDataLengthExceededError"),
        (form(b"B", {f"k{n}": "x" * 20_000 for n in range(9)}, b""), "MaxPostPreDataLengthExceededError"),
        (b'--B\r\nContent-Disposition: form-data; name="a"' + b"x" * 70_000, "MaxPostPreDataLengthExceededError"),
        (form(b"B", {"a": "1"}, b"").replace(b'name="file"', b'name="a"'), "MalformedPOSTRequest"),
    ],
)
@pytest.mark.parametrize("step", [7, 1 << 20])
def test_what_is_no_form(raw: bytes, code: str, step: int) -> None:
    decoder = FormDecoder(b"B")

    def decode() -> None:
        for at in range(0, len(raw), step):
            decoder.feed(raw[at : at + step])
        decoder.finish()

    with pytest.raises(S3Error) as caught:
        decode()
    assert caught.value.code == code


def test_boundaries() -> None:
    assert parse_boundary("multipart/form-data; boundary=abc") == b"abc"
    assert parse_boundary('Multipart/Form-Data; charset=utf-8; boundary="a b"') == b"a b"
    for wrong in (None, "text/plain", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 100):
        with pytest.raises(S3Error):
            parse_boundary(wrong)


def policy(*conditions: Any, expiration: str = "2030-01-01T01:00:00.000Z") -> str:
    return base64.b64encode(json.dumps({"expiration": expiration, "conditions": conditions}).encode()).decode()


@pytest.mark.parametrize(
    ("conditions", "fields", "code"),
    [
        ([{"bucket": "b"}, {"key": "k"}], {"key": "k"}, None),
        ([{"bucket": "b"}, ["eq", "$key", "k"]], {"key": "other"}, "AccessDenied"),
        ([{"bucket": "b"}, ["starts-with", "$key", "user/"]], {"key": "user/x"}, None),
        ([{"bucket": "b"}, ["starts-with", "$key", "user/"]], {"key": "x"}, "AccessDenied"),
        ([{"bucket": "b"}, ["starts-with", "$key", ""]], {"key": "x", "x-ignore-me": "1"}, None),
        ([{"bUcKeT": "b"}, {"KEY": "k"}], {"key": "k"}, None),
        ([{"key": "k"}], {"key": "k"}, "AccessDenied"),
        ([{"bucket": "other"}, {"key": "k"}], {"key": "k"}, "AccessDenied"),
        ([{"bucket": "b"}, {"key": "k"}], {"key": "k", "acl": "public-read"}, "AccessDenied"),
        ([{"bucket": "b"}, {"key": "k"}, {"acl": "private"}], {"key": "k"}, "AccessDenied"),
        ([["contains", "$key", "k"]], {"key": "k"}, "InvalidPolicyDocument"),
        ([["eq", "key", "k"]], {"key": "k"}, "InvalidPolicyDocument"),
        ([{"key": 1}], {"key": "k"}, "InvalidPolicyDocument"),
        ([{}], {"key": "k"}, "InvalidPolicyDocument"),
        ([["content-length-range", "a", 2]], {}, "InvalidPolicyDocument"),
        ([["content-length-range", -1, 2]], {}, "InvalidPolicyDocument"),
    ],
)
def test_conditions_of_a_policy(conditions: list[Any], fields: dict[str, str], code: str | None) -> None:
    if code is None:
        assert check_policy(policy(*conditions), "b", fields, NOW, 100) == Sizes(0, 100)
        return
    with pytest.raises(S3Error) as caught:
        check_policy(policy(*conditions), "b", fields, NOW, 100)
    assert caught.value.code == code


def test_sizes_and_times_of_a_policy() -> None:
    assert check_policy(policy({"bucket": "b"}, ["content-length-range", "5", 10]), "b", {}, NOW, 100) == Sizes(5, 10)
    for broken in ("", "####", base64.b64encode(b"[]").decode(), policy(expiration="soon")):
        with pytest.raises(S3Error, match="Invalid Policy"):
            check_policy(broken, "b", {}, NOW, 100)
    with pytest.raises(S3Error, match="expired"):
        check_policy(policy(), "b", {}, NOW + timedelta(hours=2), 100)


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def post(served: Endpoint, made: dict[str, Any], file: bytes, **more: str) -> httpx.Response:
    body = form(b"Boundary", made["fields"] | more, file)
    headers = {"content-type": "multipart/form-data; boundary=Boundary"}
    return web.post(made["url"], content=body, headers=headers, timeout=30)


@pytest.mark.parametrize("version", ["s3", "s3v4"])
@pytest.mark.parametrize("size", [0, 1000, 3 * MIB + 1])
def test_a_form_that_botocore_signs(served: Endpoint, s3: Any, bucket: str, version: str, size: int) -> None:
    signer = served.client(signature_version=version)
    conditions = [
        ["starts-with", "$Content-Type", "text/"],
        ["content-length-range", 0, 4 * MIB],
        {"x-amz-meta-a": "é"},
    ]
    made = signer.generate_presigned_post(bucket, "up/${filename}", Conditions=conditions)
    file = b"\r\n--Bound" * (size // 9) + b"x" * (size % 9)
    answer = post(served, made, file, **{"Content-Type": "text/plain", "x-amz-meta-a": "é"})
    assert answer.status_code == 204, answer.text
    found = s3.get_object(Bucket=bucket, Key="up/a b.txt")
    assert found["Body"].read() == file
    assert (found["ContentType"], found["ETag"]) == ("text/plain", f'"{hashlib.md5(file).hexdigest()}"')
    assert answer.headers["etag"] == found["ETag"]


def test_what_the_form_wants_to_hear(served: Endpoint, s3: Any, bucket: str) -> None:
    made = s3.generate_presigned_post(
        bucket, "k", Fields={"success_action_status": "201"}, Conditions=[{"success_action_status": "201"}]
    )
    answer = post(served, made, b"1")
    assert answer.status_code == 201
    assert b"<Key>k</Key>" in answer.content
    assert answer.headers["location"].endswith(f"/{bucket}/k")
    target = "https://else.where/done?a=1"
    made = s3.generate_presigned_post(
        bucket, "k", Fields={"success_action_redirect": target}, Conditions=[{"success_action_redirect": target}]
    )
    answer = post(served, made, b"2")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"{target}&bucket={bucket}&key=k&etag=")


def test_forms_that_are_refused_leave_nothing(served: Endpoint, s3: Any, bucket: str) -> None:
    made = s3.generate_presigned_post(bucket, "k", Conditions=[["content-length-range", 2, 5]])
    assert b"EntityTooSmall" in post(served, made, b"1").content
    assert b"EntityTooLarge" in post(served, made, b"123456").content
    assert b"EntityTooLarge" in post(served, made, bytes(9 * MIB)).content
    assert b"Extra input fields" in post(served, made, b"123", acl="public-read").content
    signature = next(name for name in made["fields"] if name.lower() in ("signature", "x-amz-signature"))
    forged = {"url": made["url"], "fields": made["fields"] | {signature: "0" * 64}}
    assert b"SignatureDoesNotMatch" in post(served, forged, b"123").content
    unknown = {"url": made["url"], "fields": made["fields"] | {"AWSAccessKeyId": "NOBODY"}}
    assert b"InvalidAccessKeyId" in post(served, unknown, b"123").content
    assert post(served, {"url": made["url"], "fields": {"key": "k"}}, b"123").status_code == 403
    missing = {"url": f"{served.url}/no-such-bucket-here", "fields": made["fields"]}
    assert post(served, missing, b"123").status_code == 403, "the policy names another bucket"
    missing["fields"] = {"key": "k"}
    assert b"NoSuchBucket" in post(served, missing, b"123").content
    assert post(served, made, b"123").status_code == 204
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"123"
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    assert served.is_tidy()


def test_a_limited_key_posts_below_its_prefix_only(served: Endpoint, s3: Any, bucket: str) -> None:
    limited = served.client(served.add_key(Scope((bucket,), "mine/")))
    assert post(served, limited.generate_presigned_post(bucket, "mine/k"), b"1").status_code == 204
    assert post(served, limited.generate_presigned_post(bucket, "k"), b"1").status_code == 403
    with pytest.raises(ClientError):
        s3.head_object(Bucket=bucket, Key="k")


def test_a_form_makes_a_version(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = post(served, s3.generate_presigned_post(bucket, "k"), b"1")
    second = post(served, s3.generate_presigned_post(bucket, "k"), b"2")
    versions = [found["VersionId"] for found in s3.list_object_versions(Bucket=bucket)["Versions"]]
    assert versions == [second.headers["x-amz-version-id"], first.headers["x-amz-version-id"]]
