"""Quotas at the S3 endpoint: PUT, multipart, copy and batches of small objects are refused whole, by the code that stores of
this kind use, and what was there stays."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.s3.endpoint import Endpoint
from tieredfs.limits import MIB
from tieredfs.volume.quotas import QuotaStatus

UNIT = 4096


def refusal(call: Any, **arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"], answer["Error"]["Message"]


def limit(served: Endpoint, path: str, limit_bytes: int | None, limit_inodes: int | None = None) -> None:
    with served.volume() as volume:
        volume.volume.quotas.set(path, limit_bytes, limit_inodes)


def quota(served: Endpoint, path: str) -> QuotaStatus:
    with served.volume() as volume:
        return volume.volume.quotas.get(path)


def test_a_put_over_the_quota_is_refused_and_the_old_object_stays(served: Endpoint, s3: Any, bucket: str) -> None:
    limit(served, bucket, 2 * MIB)
    s3.put_object(Bucket=bucket, Key="k", Body=b"first" * UNIT)
    status, code, message = refusal(s3.put_object, Bucket=bucket, Key="k", Body=bytes(2 * MIB + 1))
    assert (status, code) == (403, "QuotaExceeded")
    assert f"the quota of /{bucket} has 20.0 KiB of 2.00 MiB used" in message
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"first" * UNIT
    s3.put_object(Bucket=bucket, Key="k", Body=bytes(2 * MIB))
    assert quota(served, bucket).used_bytes == 2 * MIB
    assert refusal(s3.put_object, Bucket=bucket, Key="small", Body=b"x")[:2] == (403, "QuotaExceeded")
    s3.delete_object(Bucket=bucket, Key="k")
    s3.put_object(Bucket=bucket, Key="small", Body=b"x")
    assert quota(served, bucket).used_bytes == UNIT


def test_a_multipart_upload_counts_when_it_completes(served: Endpoint, s3: Any, bucket: str) -> None:
    limit(served, bucket, 8 * MIB)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    of_upload = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**of_upload, PartNumber=number, Body=bytes(5 * MIB))["ETag"]}
        for number in (1, 2)
    ]
    completing = of_upload | {"MultipartUpload": {"Parts": parts}}
    assert refusal(s3.complete_multipart_upload, **completing)[:2] == (403, "QuotaExceeded")
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    limit(served, bucket, 10 * MIB)
    s3.complete_multipart_upload(**completing)
    assert quota(served, bucket).used_bytes == 10 * MIB
    assert refusal(s3.copy_object, Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")[:2] == (403, "QuotaExceeded")


def test_of_small_objects_put_at_once_no_more_come_in_than_have_room(served: Endpoint, s3: Any, bucket: str) -> None:
    limit(served, bucket, 20 * UNIT)

    def put(number: int) -> bool:
        try:
            s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"small")
        except ClientError as error:
            refusals.append(str(error.response["Error"]["Code"]))
            return False
        return True

    refusals: list[str] = []
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(put, range(60))) == 20
    assert refusals == ["QuotaExceeded"] * 40
    assert (quota(served, bucket).used_bytes, quota(served, bucket).used_inodes) == (20 * UNIT, 20)
    assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == 20


def test_inodes_are_limited_too(served: Endpoint, s3: Any, bucket: str) -> None:
    limit(served, bucket, None, 3)
    s3.put_object(Bucket=bucket, Key="a/b/c", Body=b"")
    code, message = refusal(s3.put_object, Bucket=bucket, Key="d", Body=b"")[1:]
    assert code == "QuotaExceeded"
    assert "3 of 3 inodes used" in message


def test_versions_count_in_the_bucket_and_not_in_a_directory_of_it(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=bucket, Key="team/k", Body=bytes(UNIT))
    limit(served, bucket, 100 * UNIT)
    limit(served, f"{bucket}/team", 4 * UNIT)
    for size in (2, 3, 4):
        s3.put_object(Bucket=bucket, Key="team/k", Body=bytes(size * UNIT))
    assert quota(served, f"{bucket}/team").used_bytes == 4 * UNIT
    assert quota(served, bucket).used_bytes == (1 + 2 + 3 + 4) * UNIT
    assert refusal(s3.put_object, Bucket=bucket, Key="team/k", Body=bytes(5 * UNIT))[1] == "QuotaExceeded"
    for version in s3.list_object_versions(Bucket=bucket)["Versions"]:
        s3.delete_object(Bucket=bucket, Key="team/k", VersionId=version["VersionId"])
    assert quota(served, f"{bucket}/team").used_bytes == quota(served, bucket).used_bytes == 0
    with served.volume() as volume:
        assert volume.volume.quotas.check(bucket, repair=False).right
