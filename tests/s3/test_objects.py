"""Buckets and objects as boto3 uses them, over real HTTP and a real volume."""

import hashlib
import io
import os
import threading
import time
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from tests import web
from tests.s3.endpoint import Endpoint, new_bucket
from tieredfs.limits import MIB
from tieredfs_gateway.s3.keystore import Scope

BIG = os.urandom(12 * MIB + 17)


def code(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def get(s3: Any, bucket: str, key: str, **arguments: Any) -> bytes:
    return bytes(s3.get_object(Bucket=bucket, Key=key, **arguments)["Body"].read())


# ---- buckets ---------------------------------------------------------------------------------------------------------


def test_buckets_come_and_go(s3: Any) -> None:
    bucket = new_bucket(s3)
    assert bucket in [found["Name"] for found in s3.list_buckets()["Buckets"]]
    s3.head_bucket(Bucket=bucket)
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    s3.put_object(Bucket=bucket, Key="deep/er/key", Body=b"x")
    assert code(s3.delete_bucket, Bucket=bucket) == "BucketNotEmpty"
    s3.delete_object(Bucket=bucket, Key="deep/er/key")
    s3.delete_bucket(Bucket=bucket)
    assert code(s3.head_bucket, Bucket=bucket) == "404"
    assert code(s3.list_objects_v2, Bucket=bucket) == "NoSuchBucket"
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"") == "NoSuchBucket"


def test_a_location_constraint_of_us_east_1_is_accepted(s3: Any) -> None:
    s3.create_bucket(Bucket="located-bucket", CreateBucketConfiguration={"LocationConstraint": "us-east-1"})
    assert s3.get_bucket_location(Bucket="located-bucket")["LocationConstraint"] is None
    s3.delete_bucket(Bucket="located-bucket")


def test_a_bucket_is_where_its_maker_said(s3: Any) -> None:
    s3.create_bucket(Bucket="european-bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert s3.get_bucket_location(Bucket="european-bucket")["LocationConstraint"] == "eu-west-1"
    assert s3.head_bucket(Bucket="european-bucket")["BucketRegion"] == "eu-west-1"
    s3.delete_bucket(Bucket="european-bucket")


@pytest.mark.parametrize("name", ["Upper", "a.b..c", "x" * 64, "1.2.3.4", "-ab"])
def test_names_that_no_bucket_has_are_refused(served: Endpoint, name: str) -> None:
    assert served.send("PUT", f"/{name}").status_code == 400


def test_hidden_directories_are_no_buckets(served: Endpoint, s3: Any) -> None:
    s3.create_bucket(Bucket="hidden-copies")
    assert not any(found["Name"].startswith(".") for found in s3.list_buckets()["Buckets"])
    secrets = f"/.tieredfs/s3/keys/{served.key.access_key_id}"
    for path in (
        secrets,
        secrets.replace(".", "%2e"),
        "/.tieredfs",
        "/.snapshots",
        "/.snapshots/@all/f",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/x",
    ):
        assert served.send("GET", path).status_code in (400, 404)
        assert served.send("HEAD", path).status_code in (400, 404)
        assert served.send("PUT", path, b"x").status_code in (400, 404)
        assert served.send("DELETE", path).status_code in (400, 404)
        copied = served.send("PUT", "/hidden-copies/k", headers={"x-amz-copy-source": path})
        assert b"<Code>InvalidBucketName</Code>" in copied.content or copied.status_code == 400
    s3.delete_bucket(Bucket="hidden-copies")


# ---- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 5 * MIB + 3])
def test_what_is_put_is_what_is_got(s3: Any, bucket: str, size: int) -> None:
    body = BIG[:size]
    put = s3.put_object(Bucket=bucket, Key="k", Body=body)
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ContentLength"], head["ETag"]) == (size, put["ETag"])
    assert get(s3, bucket, "k") == body


KEYS = [
    "plain",
    "a/b/c.txt",
    "sp ace+plus&amp;",
    "é/ü/漢字",
    "/leading",
    "trailing/",
    "double//slash",
    "//",
    "dots/./and/../more",
    "..",
    "../../escape",
    "%2F%41",
    "ctrl-\x01\x1f\x7f",
    "new\nline",
    ".%:looks-escaped",
    "x" * 1024,
    "/" * 300,
    ("y" * 300 + "/") * 3,
    "q?u=1#f",
]


def test_any_legal_key_round_trips_and_lists(s3: Any, bucket: str) -> None:
    for key in KEYS:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for key in KEYS:
        assert get(s3, bucket, key) == key.encode()
    listed = [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert listed == sorted(KEYS, key=str.encode)
    answer = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in KEYS if "\x01" not in key and key != "new\nline"]}
    )
    assert "Errors" not in answer
    for key in ("ctrl-\x01\x1f\x7f", "new\nline"):
        s3.delete_object(Bucket=bucket, Key=key)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    s3.delete_bucket(Bucket=bucket)


def test_keys_that_are_too_long_are_refused(s3: Any, bucket: str) -> None:
    assert code(s3.put_object, Bucket=bucket, Key="x" * 1025, Body=b"") == "KeyTooLongError"


def test_a_key_may_be_another_keys_directory(s3: Any, bucket: str) -> None:
    for key in ("a", "a/b", "a/b/c", "a/", "a//x"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
        assert get(s3, bucket, key) == key.encode()
    for key in ("a", "a/b", "a/b/c", "a/", "a//x"):
        assert get(s3, bucket, key) == key.encode()
    s3.put_object(Bucket=bucket, Key="a", Body=b"again")
    assert get(s3, bucket, "a") == b"again"
    s3.delete_object(Bucket=bucket, Key="a/b/c")
    s3.delete_object(Bucket=bucket, Key="a")
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["a/", "a//x", "a/b"]


def test_metadata_and_content_headers_come_back(s3: Any, bucket: str) -> None:
    s3.put_object(
        Bucket=bucket,
        Key="k",
        Body=b"x",
        Metadata={"step": "100", "spaced": "a  b"},
        ContentType="application/x-tensor",
        CacheControl="no-store",
        ContentDisposition='attachment; filename="x"',
        ContentEncoding="zstd",
        ContentLanguage="de",
    )
    head = s3.head_object(Bucket=bucket, Key="k")
    assert head["Metadata"]["step"] == "100"
    assert (head["ContentType"], head["CacheControl"], head["ContentEncoding"]) == (
        "application/x-tensor",
        "no-store",
        "zstd",
    )
    changed = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="text/plain", ResponseCacheControl="max-age=1")
    changed["Body"].read()  # else its socket is closed by the collector, in the middle of some other test
    assert (changed["ContentType"], changed["CacheControl"]) == ("text/plain", "max-age=1")
    assert code(s3.put_object, Bucket=bucket, Key="m", Body=b"", Metadata={"a": "x" * 9000}) == "MetadataTooLarge"


def test_ranges_and_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=BIG)["ETag"]
    for span, expected in (
        ("bytes=0-0", BIG[:1]),
        ("bytes=5-3000004", BIG[5:3000005]),
        ("bytes=-7", BIG[-7:]),
        ("bytes=9-", BIG[9:]),
    ):
        found = s3.get_object(Bucket=bucket, Key="k", Range=span)
        assert found["Body"].read() == expected
        assert found["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert code(s3.get_object, Bucket=bucket, Key="k", Range=f"bytes={len(BIG)}-") == "InvalidRange"
    assert code(s3.get_object, Bucket=bucket, Key="k", IfNoneMatch=etag) == "304"
    assert code(s3.get_object, Bucket=bucket, Key="k", IfMatch='"other"') == "PreconditionFailed"
    assert code(s3.head_object, Bucket=bucket, Key="k", IfMatch='"other"') == "412"
    assert get(s3, bucket, "k", IfMatch=etag, Range="bytes=0-1") == BIG[:2]


def test_tags(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="run=7&kind=ckpt&done")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [
        {"Key": "done", "Value": ""},
        {"Key": "kind", "Value": "ckpt"},
        {"Key": "run", "Value": "7"},
    ]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "ü &"}]})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "ü &"}]
    s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/k")
    assert s3.get_object_tagging(Bucket=bucket, Key="c")["TagSet"] == [{"Key": "a", "Value": "ü &"}]
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []


def test_copies_refer_to_the_same_blocks(served: Endpoint, s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=BIG, Metadata={"a": "1"}, ContentType="text/x")["ETag"]
    copied = s3.copy_object(Bucket=bucket, Key="d/copy", CopySource={"Bucket": bucket, "Key": "k"})
    assert copied["CopyObjectResult"]["ETag"] == etag
    assert get(s3, bucket, "d/copy") == BIG
    assert s3.head_object(Bucket=bucket, Key="d/copy")["Metadata"] == {"a": "1"}
    s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/k", MetadataDirective="REPLACE", Metadata={"b": "2"})
    assert s3.head_object(Bucket=bucket, Key="k")["Metadata"] == {"b": "2"}
    with served.volume() as volume:
        first, second = (volume.stat(f"{bucket}/{name}".encode()).inode for name in ("k", "d/copy"))
        metadata = volume.volume.metadata
        assert [item.block for item in metadata.extents(first)] == [item.block for item in metadata.extents(second)]
    assert code(s3.copy_object, Bucket=bucket, Key="k", CopySource=f"{bucket}/k") == "InvalidRequest"
    assert code(s3.copy_object, Bucket=bucket, Key="x", CopySource=f"{bucket}/none") == "NoSuchKey"
    assert (
        code(s3.copy_object, Bucket=bucket, Key="x", CopySource=f"{bucket}/k", CopySourceIfMatch='"other"')
        == "PreconditionFailed"
    )


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_checked_kept_and_shown(s3: Any, bucket: str, algorithm: str) -> None:
    field = f"Checksum{algorithm}"
    known = {"SHA1": hashlib.sha1(b"abc"), "SHA256": hashlib.sha256(b"abc")}
    if algorithm in known or algorithm == "CRC32":  # the others need a native library in the client
        put = s3.put_object(Bucket=bucket, Key="k", Body=b"abc", ChecksumAlgorithm=algorithm)
    else:
        import base64

        from tieredfs_gateway.s3.checksums import ALGORITHMS

        hasher = ALGORITHMS[algorithm].make()
        hasher.update(b"abc")
        put = s3.put_object(Bucket=bucket, Key="k", Body=b"abc", **{field: base64.b64encode(hasher.digest()).decode()})
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")[field] == put[field]
    length = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}[algorithm]
    import base64 as b64

    wrong = {field: b64.b64encode(bytes(length)).decode()}
    assert code(s3.put_object, Bucket=bucket, Key="bad", Body=b"abc", **wrong) == "BadDigest"
    assert code(s3.head_object, Bucket=bucket, Key="bad") == "404"


# ---- multipart -------------------------------------------------------------------------------------------------------


def test_multipart_uploads(s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m/k", Metadata={"a": "b"}, Tagging="t=1")["UploadId"]
    pieces = [BIG[: 5 * MIB], BIG[5 * MIB : 10 * MIB], BIG[10 * MIB :]]
    parts: list[dict[str, Any]] = []
    for number, piece in reversed(list(enumerate(pieces, 1))):
        put = s3.upload_part(Bucket=bucket, Key="m/k", UploadId=upload, PartNumber=number, Body=piece)
        parts.insert(0, {"PartNumber": number, "ETag": put["ETag"]})
    assert [part["Size"] for part in s3.list_parts(Bucket=bucket, Key="m/k", UploadId=upload)["Parts"]] == [
        len(p) for p in pieces
    ]
    assert [found["UploadId"] for found in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    wrong = [{**parts[0], "ETag": '"' + "0" * 32 + '"'}, *parts[1:]]
    arguments = {"Bucket": bucket, "Key": "m/k", "UploadId": upload}
    assert code(s3.complete_multipart_upload, **arguments, MultipartUpload={"Parts": wrong}) == "InvalidPart"
    done = s3.complete_multipart_upload(**arguments, MultipartUpload={"Parts": parts})
    digests = b"".join(hashlib.md5(piece).digest() for piece in pieces)
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    again = s3.complete_multipart_upload(**arguments, MultipartUpload={"Parts": parts})
    assert again["ETag"] == done["ETag"]
    assert get(s3, bucket, "m/k") == BIG
    second = s3.get_object(Bucket=bucket, Key="m/k", PartNumber=2)
    assert (second["Body"].read(), second["PartsCount"]) == (pieces[1], 3)
    assert code(s3.get_object, Bucket=bucket, Key="m/k", PartNumber=4) in ("InvalidPartNumber", "416")
    assert s3.head_object(Bucket=bucket, Key="m/k")["Metadata"] == {"a": "b"}
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_aborted_uploads_leave_nothing(served: Endpoint, s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    for call in (s3.list_parts, s3.abort_multipart_upload):
        assert code(call, Bucket=bucket, Key="k", UploadId=upload) == "NoSuchUpload"
    arguments = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    assert code(s3.upload_part, **arguments, PartNumber=1, Body=b"x") == "NoSuchUpload"
    listed = {"Parts": [{"PartNumber": 1, "ETag": "x"}]}
    assert code(s3.complete_multipart_upload, **arguments, MultipartUpload=listed) == "NoSuchUpload"
    with served.volume() as volume:
        assert all(upload.encode() not in path for path, _ in volume.walk(b".tieredfs"))


def test_parts_are_copied_by_reference(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="source", Body=BIG)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    parts = []
    for number, span in ((1, f"bytes=0-{6 * MIB - 1}"), (2, f"bytes={6 * MIB}-{len(BIG) - 1}")):
        copied = s3.upload_part_copy(
            Bucket=bucket,
            Key="k",
            UploadId=upload,
            PartNumber=number,
            CopySource=f"{bucket}/source",
            CopySourceRange=span,
        )
        parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    assert get(s3, bucket, "k") == BIG


def test_the_transfer_manager(s3: Any, bucket: str) -> None:
    config = TransferConfig(multipart_threshold=6 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(BIG), bucket, "big", Config=config)
    target = io.BytesIO()
    s3.download_fileobj(bucket, "big", target, Config=config)
    assert target.getvalue() == BIG
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "again", Config=config)
    assert get(s3, bucket, "again") == BIG
    head = s3.head_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"].endswith("-3")


# ---- listings --------------------------------------------------------------------------------------------------------


def test_listings(s3: Any, bucket: str) -> None:
    keys = sorted([f"d{n}/{m}" for n in range(4) for m in range(5)] + ["d", "d-1", "z", "é"], key=str.encode)
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    for size in (1, 3, 1000):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
        assert [found["Key"] for page in pages for found in page.get("Contents", [])] == keys
        old = s3.get_paginator("list_objects").paginate(
            Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": size}
        )
        found = [item for page in old for item in page.get("CommonPrefixes", [])]
        assert [item["Prefix"] for item in found] == [f"d{n}/" for n in range(4)]
    assert [
        found["Key"] for found in s3.list_objects_v2(Bucket=bucket, Prefix="d1/", StartAfter="d1/2")["Contents"]
    ] == ["d1/3", "d1/4"]
    assert "Owner" in s3.list_objects_v2(Bucket=bucket, FetchOwner=True)["Contents"][0]
    assert len(s3.list_object_versions(Bucket=bucket)["Versions"]) == len(keys)
    assert code(s3.list_objects_v2, Bucket=bucket, ContinuationToken="bogus!") == "InvalidArgument"


# ---- the same files through other doors ------------------------------------------------------------------------------


def test_a_file_is_an_object_and_an_object_a_file(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="run/model.pt", Body=b"from s3", Metadata={"a": "1"})
    with served.volume() as volume:
        with volume.open(f"{bucket}/run/model.pt".encode()) as reading:
            target = bytearray(7)
            reading.read_into(0, memoryview(target))
            assert target == b"from s3"
        with volume.create() as writing:
            os.pwrite(writing.descriptor, b"from a file", 0)
            writing.commit(f"{bucket}/run/other.pt".encode())
        volume.flush(30)
    assert get(s3, bucket, "run/other.pt") == b"from a file"
    assert "-" in s3.head_object(Bucket=bucket, Key="run/other.pt")["ETag"]


# ---- who may ---------------------------------------------------------------------------------------------------------


def test_scopes(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="in/a", Body=b"1")
    s3.put_object(Bucket=bucket, Key="out", Body=b"2")
    reader = served.client(served.add_key(Scope((bucket,), "in/", read_only=True)))
    assert get(reader, bucket, "in/a") == b"1"
    assert [found["Name"] for found in reader.list_buckets()["Buckets"]] == [bucket]
    assert [found["Key"] for found in reader.list_objects_v2(Bucket=bucket, Prefix="in/")["Contents"]] == ["in/a"]
    for call, arguments in (
        (reader.list_objects_v2, {}),
        (reader.get_object, {"Key": "out"}),
        (reader.put_object, {"Key": "in/a", "Body": b"x"}),
        (reader.delete_object, {"Key": "in/a"}),
        (reader.delete_bucket, {}),
    ):
        assert code(call, Bucket=bucket, **arguments) == "AccessDenied"
    writer = served.client(served.add_key(Scope((bucket,), "in/")))
    assert code(writer.copy_object, Bucket=bucket, Key="in/b", CopySource=f"{bucket}/out") == "AccessDenied"
    answer = writer.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "in/a"}, {"Key": "out"}]})
    assert [found["Code"] for found in answer["Errors"]] == ["AccessDenied"]
    assert [found["Key"] for found in answer["Deleted"]] == ["in/a"]


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_presigned_urls(served: Endpoint, bucket: str, version: str) -> None:
    s3 = served.client(signature_version=version)
    params = {"Bucket": bucket, "Key": "p q/é+"}
    put = s3.generate_presigned_url("put_object", Params=params, ExpiresIn=60)
    assert web.put(put, content=b"linked").status_code == 200
    url = s3.generate_presigned_url("get_object", Params=params | {"ResponseContentType": "a/b"}, ExpiresIn=60)
    answer = web.get(url)
    assert (answer.content, answer.headers["content-type"]) == (b"linked", "a/b")
    assert web.get(url.replace("p%20q", "other")).status_code == 403
    assert web.get(url.replace("a%2Fb", "a%2Fc")).status_code == 403
    assert web.delete(url).status_code == 403
    assert web.get(f"{url}&tagging=").status_code == 403
    assert web.get(f"{url}&retention=").status_code == 403
    assert web.get(url.replace("Signature=", "Signature=00")).status_code == 403
    assert web.get(url, headers={"x-amz-acl": "private"}).status_code == 403
    gone = s3.generate_presigned_url("get_object", Params=params, ExpiresIn=-1 if version == "s3" else 1)
    time.sleep(0 if version == "s3" else 2.1)
    assert b"Request has expired" in web.get(gone).content
    assert web.get(f"{served.url}/{bucket}/p%20q/%C3%A9%2B").status_code == 403


def test_links_of_version_2_carry_metadata(served: Endpoint, bucket: str) -> None:
    s3 = served.client(signature_version="s3")
    params = {"Bucket": bucket, "Key": "k", "ContentType": "a/b", "Metadata": {"step": "7"}}
    put = s3.generate_presigned_url("put_object", Params=params, ExpiresIn=60)
    assert "x-amz-meta-step" in put
    assert web.put(put, content=b"x").status_code == 200
    head = served.client().head_object(Bucket=bucket, Key="k")
    assert (head["ContentType"], head["Metadata"]) == ("a/b", {"step": "7"})


def test_virtual_host_style(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/b", Body=b"host")
    request = served.signed("GET", "/a/b", headers={"Host": f"{bucket}.localhost:{served.port}"})
    answer = served.raw(with_its_host(request))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"host")


def test_virtual_host_style_links(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/b", Body=b"host")
    for version in ("s3", "s3v4"):
        client = served.client(signature_version=version, s3={"addressing_style": "virtual"}, host="localhost")
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a/b"}, ExpiresIn=60)
        assert url.startswith(f"http://{bucket}.localhost:{served.port}/a/b?")
        address = url.replace(f"{bucket}.localhost", "127.0.0.1")
        assert web.get(address, headers={"Host": f"{bucket}.localhost:{served.port}"}).content == b"host"


def with_its_host(request: Any) -> bytes:
    lines = ["GET /a/b HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# ---- compare and swap ------------------------------------------------------------------------------------------------


def test_one_of_many_creators_wins(served: Endpoint, s3: Any, bucket: str) -> None:
    outcomes: list[str] = []

    def create(number: int) -> None:
        try:
            served.client().put_object(Bucket=bucket, Key="lock", Body=b"%d" % number, IfNoneMatch="*")
            outcomes.append(f"won {number}")
        except ClientError as error:
            outcomes.append(error.response["Error"]["Code"])

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    winners = [text for text in outcomes if text.startswith("won")]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert get(s3, bucket, "lock").decode() == winners[0].removeprefix("won ")


def test_a_counter_under_contention_loses_no_increment(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="n", Body=b"0")
    lost = []

    def increment() -> None:
        client = served.client()
        for _ in range(5):
            while True:
                now = client.get_object(Bucket=bucket, Key="n")
                value = int(now["Body"].read())
                try:
                    client.put_object(Bucket=bucket, Key="n", Body=b"%d" % (value + 1), IfMatch=now["ETag"])
                    break
                except ClientError as error:
                    lost.append(error.response["Error"]["Code"])

    def run() -> None:
        try:
            increment()
        except BotoCoreError as error:
            lost.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(lost) <= {"PreconditionFailed", "ConditionalRequestConflict"}
    assert get(s3, bucket, "n") == b"20"


def test_conditional_deletes(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    assert code(s3.delete_object, Bucket=bucket, Key="k", IfMatch='"other"') == "PreconditionFailed"
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=etag)
    assert code(s3.head_object, Bucket=bucket, Key="k") == "404"
