"""Versioning over real HTTP: what boto3 sees, and what the mount's side of the volume shows."""

import secrets
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.s3.endpoint import Endpoint, new_bucket
from tieredfs.limits import MIB
from tieredfs_gateway.s3.store import Store


def code(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def get(s3: Any, bucket: str, key: str, **arguments: Any) -> bytes:
    return bytes(s3.get_object(Bucket=bucket, Key=key, **arguments)["Body"].read())


def put(s3: Any, bucket: str, key: str, body: bytes, **arguments: Any) -> str:
    return str(s3.put_object(Bucket=bucket, Key=key, Body=body, **arguments).get("VersionId", ""))


def set_state(s3: Any, bucket: str, state: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": state})


def rows(s3: Any, bucket: str, **arguments: Any) -> list[tuple[str, str, str, bool]]:
    """Kind, key, id, latest, in the order of the answer's kinds."""
    answer = s3.list_object_versions(Bucket=bucket, **arguments)
    return [("V", v["Key"], v["VersionId"], v["IsLatest"]) for v in answer.get("Versions", [])] + [
        ("M", v["Key"], v["VersionId"], v["IsLatest"]) for v in answer.get("DeleteMarkers", [])
    ]


@pytest.fixture
def kept(s3: Any) -> str:
    name = new_bucket(s3)
    set_state(s3, name, "Enabled")
    return name


def test_the_state_is_what_was_set(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    for state in ("Enabled", "Suspended", "Enabled"):
        set_state(s3, bucket, state)
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == state
    assert code(s3.put_bucket_versioning, Bucket=bucket, VersioningConfiguration={"Status": "Off"}) == "MalformedXML"
    assert code(s3.get_bucket_versioning, Bucket="not-there-at-all") == "NoSuchBucket"


def test_each_put_is_a_version(s3: Any, kept: str) -> None:
    ids = [put(s3, kept, "k", b"%d" % number) for number in range(4)]
    assert len(set(ids)) == 4
    assert get(s3, kept, "k") == b"3"
    assert [get(s3, kept, "k", VersionId=version) for version in ids] == [b"0", b"1", b"2", b"3"]
    assert rows(s3, kept) == [("V", "k", ids[n], n == 3) for n in (3, 2, 1, 0)]
    assert s3.head_object(Bucket=kept, Key="k")["VersionId"] == ids[3]
    assert s3.head_object(Bucket=kept, Key="k", VersionId=ids[0])["ContentLength"] == 1
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=kept)["Contents"]] == ["k"]


def test_a_delete_makes_a_marker_and_deleting_that_restores(s3: Any, kept: str) -> None:
    version = put(s3, kept, "k", b"1")
    done = s3.delete_object(Bucket=kept, Key="k")
    assert done["DeleteMarker"] is True
    marker = done["VersionId"]
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=kept, Key="k")
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert (caught.value.response["Error"]["Code"], headers["x-amz-delete-marker"]) == ("NoSuchKey", "true")
    assert headers["x-amz-version-id"] == marker
    assert get(s3, kept, "k", VersionId=version) == b"1"
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=kept, Key="k", VersionId=marker)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 405
    assert rows(s3, kept) == [("V", "k", version, False), ("M", "k", marker, True)]
    assert s3.list_objects_v2(Bucket=kept)["KeyCount"] == 0
    undone = s3.delete_object(Bucket=kept, Key="k", VersionId=marker)
    assert (undone["DeleteMarker"], undone["VersionId"]) == (True, marker)
    assert get(s3, kept, "k") == b"1"
    assert rows(s3, kept) == [("V", "k", version, True)]


def test_markers_upon_markers(s3: Any, kept: str) -> None:
    version = put(s3, kept, "k", b"1")
    first = s3.delete_object(Bucket=kept, Key="k")["VersionId"]
    second = s3.delete_object(Bucket=kept, Key="k")["VersionId"]
    assert first != second
    s3.delete_object(Bucket=kept, Key="k", VersionId=second)
    assert code(s3.get_object, Bucket=kept, Key="k") == "NoSuchKey"
    assert rows(s3, kept) == [("V", "k", version, False), ("M", "k", first, True)]
    never = s3.delete_object(Bucket=kept, Key="never-there")
    assert never["DeleteMarker"] is True


def test_deleting_the_current_version_brings_the_one_before_back(s3: Any, kept: str) -> None:
    ids = [put(s3, kept, "deep/er/k", b"%d" % number) for number in range(3)]
    s3.delete_object(Bucket=kept, Key="deep/er/k", VersionId=ids[2])
    assert get(s3, kept, "deep/er/k") == b"1"
    s3.delete_object(Bucket=kept, Key="deep/er/k", VersionId=ids[0])
    assert rows(s3, kept) == [("V", "deep/er/k", ids[1], True)]
    s3.delete_object(Bucket=kept, Key="deep/er/k", VersionId=ids[1])
    assert rows(s3, kept) == []
    s3.delete_bucket(Bucket=kept)


def test_null_is_what_was_there_before(s3: Any, bucket: str) -> None:
    assert put(s3, bucket, "k", b"old") == ""
    assert rows(s3, bucket) == [("V", "k", "null", True)]
    set_state(s3, bucket, "Enabled")
    assert s3.head_object(Bucket=bucket, Key="k")["VersionId"] == "null"
    version = put(s3, bucket, "k", b"new")
    assert rows(s3, bucket) == [("V", "k", version, True), ("V", "k", "null", False)]
    assert get(s3, bucket, "k", VersionId="null") == b"old"
    assert "VersionId" not in s3.put_object(Bucket=new_bucket(s3), Key="k", Body=b"")


@pytest.mark.parametrize("when", ["get", "drop"])
def test_a_version_that_becomes_current_while_it_is_deleted_goes(
    served: Endpoint, s3: Any, kept: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    old, newest = put(s3, kept, "k", b"1"), put(s3, kept, "k", b"2")
    with served.volume() as volume:
        one, other = (Store(volume, volume.volume.host.clock) for _ in range(2))
        look = getattr(one.archive, when)

        def late(*arguments: Any) -> Any:
            if rows(s3, kept)[0][2] == newest:
                other.delete(kept.encode(), b"k", version_id=newest)
            return look(*arguments)

        monkeypatch.setattr(one.archive, when, late)
        assert one.delete(kept.encode(), b"k", version_id=old).version_id == old
        volume.flush(30)
    assert rows(s3, kept) == []


def test_while_suspended_there_is_one_null(s3: Any, kept: str) -> None:
    version = put(s3, kept, "k", b"kept")
    set_state(s3, kept, "Suspended")
    assert put(s3, kept, "k", b"null 1") == "null"
    assert put(s3, kept, "k", b"null 2") == "null"
    assert rows(s3, kept) == [("V", "k", "null", True), ("V", "k", version, False)]
    assert get(s3, kept, "k", VersionId="null") == b"null 2"
    done = s3.delete_object(Bucket=kept, Key="k")
    assert (done["VersionId"], done["DeleteMarker"]) == ("null", True)
    assert rows(s3, kept) == [("V", "k", version, False), ("M", "k", "null", True)]
    set_state(s3, kept, "Enabled")
    newest = put(s3, kept, "k", b"again")
    assert rows(s3, kept) == [("V", "k", newest, True), ("V", "k", version, False), ("M", "k", "null", False)]
    s3.delete_object(Bucket=kept, Key="k", VersionId="null")
    s3.delete_object(Bucket=kept, Key="k", VersionId=newest)
    assert get(s3, kept, "k") == b"kept"


def test_ids_that_are_none_and_ids_of_nothing(s3: Any, kept: str) -> None:
    put(s3, kept, "k", b"1")
    assert code(s3.get_object, Bucket=kept, Key="k", VersionId="bogus") == "InvalidArgument"
    assert code(s3.get_object, Bucket=kept, Key="k", VersionId="0" * 32) == "NoSuchVersion"
    assert code(s3.get_object, Bucket=kept, Key="k", VersionId="null") == "NoSuchVersion"
    assert s3.delete_object(Bucket=kept, Key="k", VersionId="0" * 32)["VersionId"] == "0" * 32
    assert get(s3, kept, "k") == b"1"


def test_copies_tags_and_attributes_are_of_a_version(s3: Any, kept: str) -> None:
    first = put(s3, kept, "k", b"first", Tagging="a=1")
    second = put(s3, kept, "k", b"second")
    source = {"Bucket": kept, "Key": "k", "VersionId": first}
    copied = s3.copy_object(Bucket=kept, Key="k", CopySource=source)
    assert copied["CopySourceVersionId"] == first
    assert copied["VersionId"] not in (first, second)
    assert get(s3, kept, "k") == b"first"
    assert s3.get_object_tagging(Bucket=kept, Key="k", VersionId=first)["TagSet"] == [{"Key": "a", "Value": "1"}]
    s3.put_object_tagging(Bucket=kept, Key="k", VersionId=second, Tagging={"TagSet": [{"Key": "b", "Value": "2"}]})
    assert s3.get_object_tagging(Bucket=kept, Key="k", VersionId=second)["TagSet"] == [{"Key": "b", "Value": "2"}]
    s3.delete_object_tagging(Bucket=kept, Key="k", VersionId=second)
    assert s3.get_object_tagging(Bucket=kept, Key="k", VersionId=second)["TagSet"] == []
    found = s3.get_object_attributes(Bucket=kept, Key="k", VersionId=second, ObjectAttributes=["ObjectSize"])
    assert (found["ObjectSize"], found["VersionId"]) == (6, second)
    marker = s3.delete_object(Bucket=kept, Key="k")["VersionId"]
    assert code(s3.copy_object, Bucket=kept, Key="x", CopySource=source | {"VersionId": marker}) == "InvalidRequest"
    assert code(s3.copy_object, Bucket=kept, Key="x", CopySource=f"{kept}/k") == "NoSuchKey"


def test_completing_an_upload_is_a_version(s3: Any, kept: str) -> None:
    old = put(s3, kept, "k", b"old")
    upload = s3.create_multipart_upload(Bucket=kept, Key="k")["UploadId"]
    part = s3.upload_part_copy(
        Bucket=kept, Key="k", UploadId=upload, PartNumber=1, CopySource={"Bucket": kept, "Key": "k", "VersionId": old}
    )
    assert part["CopySourceVersionId"] == old
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]}
    done = s3.complete_multipart_upload(Bucket=kept, Key="k", UploadId=upload, MultipartUpload=parts)
    again = s3.complete_multipart_upload(Bucket=kept, Key="k", UploadId=upload, MultipartUpload=parts)
    assert done["VersionId"] == again["VersionId"] != old
    assert rows(s3, kept) == [("V", "k", done["VersionId"], True), ("V", "k", old, False)]
    put(s3, kept, "k", b"newer")
    again = s3.complete_multipart_upload(Bucket=kept, Key="k", UploadId=upload, MultipartUpload=parts)
    assert again["VersionId"] == done["VersionId"]
    assert get(s3, kept, "k") == b"newer"


def test_conditions_look_at_what_is_current(s3: Any, kept: str) -> None:
    first = s3.put_object(Bucket=kept, Key="k", Body=b"1", IfNoneMatch="*")
    assert code(s3.put_object, Bucket=kept, Key="k", Body=b"2", IfNoneMatch="*") == "PreconditionFailed"
    put(s3, kept, "k", b"2", IfMatch=first["ETag"])
    assert code(s3.put_object, Bucket=kept, Key="k", Body=b"3", IfMatch=first["ETag"]) == "PreconditionFailed"
    assert code(s3.delete_object, Bucket=kept, Key="k", IfMatch=first["ETag"]) == "PreconditionFailed"
    s3.delete_object(Bucket=kept, Key="k")
    put(s3, kept, "k", b"4", IfNoneMatch="*")
    assert get(s3, kept, "k") == b"4"
    assert len(rows(s3, kept)) == 4


def test_many_are_deleted_with_their_versions(s3: Any, kept: str) -> None:
    first, second = put(s3, kept, "k", b"1"), put(s3, kept, "k", b"2")
    wanted = [{"Key": "k", "VersionId": first}, {"Key": "k"}, {"Key": "gone", "VersionId": "bogus"}]
    done = s3.delete_objects(Bucket=kept, Delete={"Objects": wanted})
    assert done["Deleted"][0] == {"Key": "k", "VersionId": first}
    marker = done["Deleted"][1]["DeleteMarkerVersionId"]
    assert done["Deleted"][1]["DeleteMarker"] is True
    assert [error["Code"] for error in done["Errors"]] == ["NoSuchVersion"]
    assert rows(s3, kept) == [("V", "k", second, False), ("M", "k", marker, True)]
    done = s3.delete_objects(Bucket=kept, Delete={"Objects": [{"Key": "k", "VersionId": marker}]})
    assert done["Deleted"] == [{"Key": "k", "VersionId": marker, "DeleteMarker": True, "DeleteMarkerVersionId": marker}]
    assert get(s3, kept, "k") == b"2"


KEYS = ["a", "a/b", "a//b", "a-b", "b/", "b/x/y", "..", "long" + "x" * 300 + "/z", "z\x01", "é"]


def test_versions_are_listed_page_by_page_in_order(s3: Any, kept: str) -> None:
    ids: dict[str, list[str]] = {}
    for round_ in range(3):
        for key in KEYS:
            ids.setdefault(key, []).insert(0, put(s3, kept, key, b"%d" % round_))
    for key in KEYS[::3]:
        ids[key].insert(0, s3.delete_object(Bucket=kept, Key=key)["VersionId"])
    expected = [(key, version) for key in sorted(KEYS, key=str.encode) for version in ids[key]]
    for size in (1, 2, 7, 1000):
        found, arguments = [], dict[str, str]()
        for _ in range(len(expected) + 1):
            answer = s3.list_object_versions(Bucket=kept, MaxKeys=size, **arguments)
            page = answer.get("Versions", []) + answer.get("DeleteMarkers", [])
            assert len(page) <= size
            found += sorted(
                ((v["Key"], v["VersionId"]) for v in page), key=lambda row: (row[0].encode(), ids[row[0]].index(row[1]))
            )
            if not answer["IsTruncated"]:
                break
            arguments = {"KeyMarker": answer["NextKeyMarker"]}
            if answer.get("NextVersionIdMarker"):
                arguments["VersionIdMarker"] = answer["NextVersionIdMarker"]
        assert found == expected, size


def test_versions_are_rolled_up(s3: Any, kept: str) -> None:
    for key in ("a/1", "a/2", "b", "c/1"):
        put(s3, kept, key, b"1")
        put(s3, kept, key, b"2")
    s3.delete_object(Bucket=kept, Key="c/1")
    prefixes, keys, arguments = [], [], dict[str, str]()
    for _ in range(10):
        answer = s3.list_object_versions(Bucket=kept, Delimiter="/", MaxKeys=1, **arguments)
        prefixes += [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
        keys += [found["Key"] for found in answer.get("Versions", [])]
        if not answer["IsTruncated"]:
            break
        arguments = {"KeyMarker": answer["NextKeyMarker"]}
        if answer.get("NextVersionIdMarker"):
            arguments["VersionIdMarker"] = answer["NextVersionIdMarker"]
    assert (prefixes, keys) == (["a/", "c/"], ["b", "b"])
    assert [key for _, key, _, _ in rows(s3, kept, Prefix="a/2")] == ["a/2", "a/2"]
    assert code(s3.list_object_versions, Bucket=kept, VersionIdMarker="null") == "InvalidArgument"


def test_keys_that_are_directories_of_others_have_versions(s3: Any, kept: str) -> None:
    ids = [put(s3, kept, "a", b"file"), put(s3, kept, "a/b", b"below"), put(s3, kept, "a", b"again")]
    s3.delete_object(Bucket=kept, Key="a")
    s3.delete_object(Bucket=kept, Key="a", VersionId=rows(s3, kept, Prefix="a")[-1][2])
    assert (get(s3, kept, "a"), get(s3, kept, "a/b")) == (b"again", b"below")
    s3.delete_object(Bucket=kept, Key="a", VersionId=ids[2])
    assert get(s3, kept, "a") == b"file"


def test_a_bucket_with_old_versions_is_not_empty(s3: Any, kept: str) -> None:
    version = put(s3, kept, "k", b"1")
    marker = s3.delete_object(Bucket=kept, Key="k")["VersionId"]
    assert code(s3.delete_bucket, Bucket=kept) == "BucketNotEmpty"
    for gone in (marker, version):
        s3.delete_object(Bucket=kept, Key="k", VersionId=gone)
    s3.delete_bucket(Bucket=kept)
    s3.create_bucket(Bucket=kept)
    assert "Status" not in s3.get_bucket_versioning(Bucket=kept)


def test_the_volume_shows_the_newest_and_the_shelf(served: Endpoint, s3: Any, kept: str) -> None:
    old = put(s3, kept, "dir/k", b"old")
    put(s3, kept, "dir/k", b"new")
    with served.volume() as volume:
        shown = [path.decode() for path, _ in volume.walk(kept.encode())]
        shelf = f"{kept}/.%@versions/dir/.%=k"
        assert [path for path in shown if ".%@versions" in path][-1] == f"{shelf}/{old}"
        with volume.create() as writing:
            writing.commit(f"{kept}/dir/k".encode())  # as `mv other dir/k` in the mount: the newest is replaced
    assert s3.head_object(Bucket=kept, Key="dir/k")["VersionId"] == "null"
    assert [version for _, _, version, _ in rows(s3, kept)] == ["null", old]
    newest = put(s3, kept, "dir/k", b"newer")
    assert [version for _, _, version, _ in rows(s3, kept)] == [newest, "null", old]
    for key in (".%@versions", ".%@versions/dir/.%=k/" + old):
        assert code(s3.get_object, Bucket=kept, Key=key) == "NoSuchKey"


def test_large_versions_share_nothing_but_the_key(s3: Any, kept: str) -> None:
    bodies = [secrets.token_bytes(2 * MIB) for _ in range(2)]
    ids = [put(s3, kept, "k", body) for body in bodies]
    assert [get(s3, kept, "k", VersionId=version) for version in ids] == bodies
    assert get(s3, kept, "k", VersionId=ids[0], Range="bytes=5-9") == bodies[0][5:10]
