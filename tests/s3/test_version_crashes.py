"""SIGKILL at each step of a change in a bucket with versions: old or new, nothing lost, and the next change goes on."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.host import crash


@pytest.fixture(scope="module")
def mortal() -> Iterator[Endpoint]:
    with endpoint() as made:
        yield made


State = list[tuple[str, str, bool]]


def state(s3: Any, bucket: str) -> State:
    """What the key's history is, newest first: body (empty: a delete marker), id, latest."""
    answer = s3.list_object_versions(Bucket=bucket)
    found = [(v["LastModified"], v["VersionId"], v["IsLatest"], False) for v in answer.get("Versions", [])]
    found += [(v["LastModified"], v["VersionId"], v["IsLatest"], True) for v in answer.get("DeleteMarkers", [])]
    shown = []
    for _, version, latest, marker in sorted(found, key=lambda row: row[1]):
        body = "" if marker else s3.get_object(Bucket=bucket, Key="k", VersionId=version)["Body"].read().decode()
        shown.append((body, version, latest))
    return shown


def current(s3: Any, bucket: str) -> str:
    try:
        return str(s3.get_object(Bucket=bucket, Key="k")["Body"].read().decode())
    except s3.exceptions.NoSuchKey:
        return ""


Act = Callable[[Any, str, State], Any]


def put(s3: Any, bucket: str, _: State) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"new")


def delete(s3: Any, bucket: str, _: State) -> None:
    s3.delete_object(Bucket=bucket, Key="k")


def delete_newest(s3: Any, bucket: str, before: State) -> None:
    s3.delete_object(Bucket=bucket, Key="k", VersionId=before[0][1])


@pytest.mark.parametrize(
    ("act", "point", "marked", "after"),
    [
        (put, "link.committed", False, ["two", "one"]),
        (put, "place.committed", False, ["new", "two", "one"]),
        (put, "place.committed", True, ["new", "", "two", "one"]),
        (delete, "link.committed", False, ["two", "one"]),
        (delete, "place.committed", False, ["two", "one"]),
        (delete, "remove.committed", False, ["", "two", "one"]),
        (delete_newest, "rename.committed", False, ["one"]),
        (delete_newest, "rename.committed", True, ["two", "one"]),
        (delete_newest, "remove.committed", True, ["two", "one"]),
    ],
)
def test_killed_at_a_step(mortal: Endpoint, act: Act, point: str, marked: bool, after: list[str]) -> None:
    assert point in crash.POINTS
    s3 = mortal.client()
    bucket = new_bucket(s3)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"one", b"two"):
        s3.put_object(Bucket=bucket, Key="k", Body=body)
    if marked:
        s3.delete_object(Bucket=bucket, Key="k")
    before = state(s3, bucket)
    assert mortal.stop() == 0
    mortal.environment = {crash.ENVIRONMENT: f"{point}:1"}
    mortal.start()
    with pytest.raises((BotoCoreError, ClientError)):
        act(mortal.client(), bucket, before)
    assert mortal.process is not None
    assert mortal.process.wait(30) == -signal.SIGKILL
    mortal.environment = {}
    mortal.start()
    s3 = mortal.client()
    found = state(s3, bucket)
    assert [body for body, _, _ in found] == after
    assert [latest for _, _, latest in found] == [True] + [False] * (len(found) - 1)
    assert current(s3, bucket) == after[0]
    s3.put_object(Bucket=bucket, Key="k", Body=b"last")
    follow = [body for body, _, _ in state(s3, bucket)]
    assert [body for body in follow if body] == ["last", *(body for body in after if body)]
