"""Two server processes over one volume: compare-and-swap loses nothing, and no acknowledged version is missing."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests import web
from tests.s3.endpoint import Endpoint, endpoint, free_port, new_bucket

Pair = tuple[Endpoint, Endpoint]
CLIENTS = 3
"""Of each server."""
ROUNDS = 8


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with endpoint("--no-access-log") as one:
        two = Endpoint(one.root, free_port(), one.key, options=("--no-access-log",))
        two.start()
        try:
            yield one, two
        finally:
            two.stop()


def made_bucket(pair: Pair, state: str) -> str:
    s3 = pair[0].client()
    bucket = new_bucket(s3)
    if state:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": state})
    return bucket


def everywhere(pair: Pair, act: Callable[[Any, "Counter[str]"], None]) -> "Counter[str]":
    """What came of it, by all clients."""
    counts: list[Counter[str]] = []

    def run(server: Endpoint) -> None:
        mine: Counter[str] = Counter()
        counts.append(mine)
        client = server.client()
        try:
            for _ in range(ROUNDS):
                act(client, mine)
        except Exception as error:  # noqa: BLE001 - the test's own thread: shown in the assertion
            mine[repr(error)] += 1

    threads = [threading.Thread(target=run, args=(server,)) for server in pair for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return sum(counts, Counter())


@pytest.mark.parametrize("state", ["", "Enabled"])
def test_a_counter_loses_no_increment_and_no_reader_misses_it(pair: Pair, state: str) -> None:
    bucket = made_bucket(pair, state)
    s3 = pair[0].client()
    s3.put_object(Bucket=bucket, Key="n", Body=b"0")

    def increment(client: Any, counts: "Counter[str]") -> None:
        for _ in range(1000):
            now = client.get_object(Bucket=bucket, Key="n")  # NoSuchKey would end this thread
            counts["odd etag"] += now["ETag"].endswith('-1"')
            body = b"%d" % (int(now["Body"].read()) + 1)
            try:
                client.put_object(Bucket=bucket, Key="n", Body=body, IfMatch=now["ETag"])
            except ClientError as error:
                counts[error.response["Error"]["Code"]] += 1
                continue
            counts["won"] += 1
            return

    counts = everywhere(pair, increment)
    assert +counts - Counter({"PreconditionFailed": 1 << 30, "ConditionalRequestConflict": 1 << 30}) == {
        "won": 2 * CLIENTS * ROUNDS
    }
    assert s3.get_object(Bucket=bucket, Key="n")["Body"].read() == b"%d" % (2 * CLIENTS * ROUNDS)
    if state:
        assert len(s3.list_object_versions(Bucket=bucket)["Versions"]) == 2 * CLIENTS * ROUNDS + 1


def test_every_version_that_was_acknowledged_is_there(pair: Pair) -> None:
    bucket = made_bucket(pair, "Enabled")
    acknowledged: list[str] = []
    markers: list[str] = []

    def put_and_delete(client: Any, counts: "Counter[str]") -> None:
        counts["put"] += 1
        acknowledged.append(client.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"])
        if counts["put"] % 3 == 0:
            markers.append(client.delete_object(Bucket=bucket, Key="k")["VersionId"])

    counts = everywhere(pair, put_and_delete)
    assert counts == {"put": 2 * CLIENTS * ROUNDS}
    found = pair[1].client().list_object_versions(Bucket=bucket)
    assert {version["VersionId"] for version in found["Versions"]} == set(acknowledged)
    assert {version["VersionId"] for version in found["DeleteMarkers"]} == set(markers)
    assert len(set(acknowledged)) == len(acknowledged)


def test_what_is_configured_through_one_holds_in_the_other_at_once(pair: Pair) -> None:
    bucket = made_bucket(pair, "")
    one, two = (server.client() for server in pair)
    one.put_object(Bucket=bucket, Key="k", Body=b"x")
    for _ in range(5):
        assert web.get(f"{pair[1].url}/{bucket}/k").status_code == 403
        one.put_object_acl(Bucket=bucket, Key="k", ACL="public-read")
        one.put_bucket_cors(
            Bucket=bucket, CORSConfiguration={"CORSRules": [{"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]}]}
        )
        answer = web.get(f"{pair[1].url}/{bucket}/k", headers={"Origin": "https://a.org"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        two.delete_bucket_cors(Bucket=bucket)
        assert (
            "access-control-allow-origin"
            not in web.get(f"{pair[0].url}/{bucket}/k", headers={"Origin": "https://a.org"}).headers
        )
        blocks = {"IgnorePublicAcls": True}
        two.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=blocks)
        assert web.get(f"{pair[0].url}/{bucket}/k").status_code == 403
        one.delete_public_access_block(Bucket=bucket)
        assert web.get(f"{pair[1].url}/{bucket}/k").status_code == 200
        two.put_object_acl(Bucket=bucket, Key="k", ACL="private")
