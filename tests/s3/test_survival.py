"""SIGKILL in the middle of a PUT, a complete and a copy: the object is old or new, never mixed, and nothing else is left."""

import signal
import socket
from collections.abc import Iterator

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.host import crash
from tieredfs.limits import MIB

OLD = b"o" * (6 * MIB)
NEW = b"n" * (7 * MIB + 1)


@pytest.fixture
def mortal() -> Iterator[Endpoint]:
    with endpoint("--workers", "1") as made:  # the process that is killed is the one that serves
        yield made


def test_killed_in_the_middle_of_a_put_the_object_is_the_old_one(mortal: Endpoint) -> None:
    s3 = mortal.client()
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    request = mortal.signed("PUT", f"/{bucket}/k", b"", payload="UNSIGNED-PAYLOAD")
    with socket.create_connection(("127.0.0.1", mortal.port), timeout=10) as connection:
        connection.sendall(mortal.head_of(request, [("Content-Length", str(len(NEW)))]) + NEW[: 5 * MIB])
        assert mortal.stop(signal.SIGKILL) == -signal.SIGKILL
    mortal.start()
    assert mortal.client().get_object(Bucket=bucket, Key="k")["Body"].read() == OLD
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]


@pytest.mark.parametrize("point", ["flush.published", "sync.data-durable", "place.committed"])
def test_killed_at_the_commit_the_object_is_old_or_new(mortal: Endpoint, point: str) -> None:
    assert point in crash.POINTS
    s3 = mortal.client()
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    assert mortal.stop() == 0
    mortal.environment = {crash.ENVIRONMENT: f"{point}:1"}
    mortal.start()
    with pytest.raises((BotoCoreError, ClientError)):
        mortal.client().put_object(Bucket=bucket, Key="k", Body=NEW)
    assert mortal.process is not None
    assert mortal.process.wait(30) == -signal.SIGKILL
    mortal.environment = {}
    mortal.start()
    expected = NEW if point == "place.committed" else OLD
    assert mortal.client().get_object(Bucket=bucket, Key="k")["Body"].read() == expected


@pytest.mark.parametrize("point", ["pack.written", "place.committed"])
def test_killed_at_the_commit_of_a_small_object_it_is_old_or_new(mortal: Endpoint, point: str) -> None:
    assert point in crash.POINTS
    s3 = mortal.client()
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="k", Body=b"old")
    assert mortal.stop() == 0
    mortal.environment = {crash.ENVIRONMENT: f"{point}:1"}
    mortal.start()
    with pytest.raises((BotoCoreError, ClientError)):
        mortal.client().put_object(Bucket=bucket, Key="k", Body=b"newer")
    assert mortal.process is not None
    assert mortal.process.wait(30) == -signal.SIGKILL
    mortal.environment = {}
    mortal.start()
    expected = b"newer" if point == "place.committed" else b"old"
    assert mortal.client().get_object(Bucket=bucket, Key="k")["Body"].read() == expected


def test_killed_between_complete_and_its_end_completing_again_finds_it_done(mortal: Endpoint) -> None:
    s3 = mortal.client()
    bucket = new_bucket(s3)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    parts = []
    for number, body in ((1, OLD), (2, NEW)):
        put = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": put["ETag"]})
    assert mortal.stop() == 0
    mortal.environment = {crash.ENVIRONMENT: "rename.committed:1"}
    mortal.start()
    arguments = {"Bucket": bucket, "Key": "k", "UploadId": upload, "MultipartUpload": {"Parts": parts}}
    with pytest.raises((BotoCoreError, ClientError)):
        mortal.client().complete_multipart_upload(**arguments)
    assert mortal.process is not None
    assert mortal.process.wait(30) == -signal.SIGKILL
    mortal.environment = {}
    mortal.start()
    done = mortal.client().complete_multipart_upload(**arguments)
    assert done["ETag"].endswith('-2"')
    assert mortal.client().get_object(Bucket=bucket, Key="k")["Body"].read() == OLD + NEW
    with mortal.volume() as volume:
        assert [path for name in (b"uploads", b"ended") for path, _ in volume.walk(b".tieredfs/s3/" + name)] == []


def test_it_ends_politely(mortal: Endpoint) -> None:
    mortal.client().list_buckets()
    assert mortal.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("point", ["place.committed"])
def test_killed_in_a_copy_the_target_is_whole(mortal: Endpoint, point: str) -> None:
    s3 = mortal.client()
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="source", Body=NEW)
    s3.put_object(Bucket=bucket, Key="k", Body=OLD)
    assert mortal.stop() == 0
    mortal.environment = {crash.ENVIRONMENT: f"{point}:1"}
    mortal.start()
    with pytest.raises((BotoCoreError, ClientError)):
        mortal.client().copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/source")
    assert mortal.process is not None
    assert mortal.process.wait(30) == -signal.SIGKILL
    mortal.environment = {}
    mortal.start()
    assert mortal.client().get_object(Bucket=bucket, Key="k")["Body"].read() == NEW
