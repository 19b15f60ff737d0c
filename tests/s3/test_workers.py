"""Several processes behind one port: what one of them did holds in the others, and one that dies is replaced."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError

from tests import web
from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.limits import MIB
from tieredfs_gateway.s3.keystore import Scope

WAIT_S = 60.0
WORKERS = 3
PART = os.urandom(5 * MIB)


@pytest.fixture(scope="module")
def pool() -> Iterator[Endpoint]:
    with endpoint("--workers", str(WORKERS)) as made:
        wait_for(lambda: (made.root / "log").read_text().count("serving sqlite") == WORKERS)
        wait_for(lambda: listeners(made) == WORKERS)  # a worker says so just before it does
        yield made


def wait_for(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def pids(pool: Endpoint) -> list[int]:
    assert pool.process is not None
    parent = pool.process.pid
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def listeners(pool: Endpoint) -> int:
    """Sockets that listen on the port."""
    local = f":{pool.port:04X} "
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return sum(local in line and line.split()[3] == "0A" for line in lines)


def fresh(pool: Endpoint) -> Any:
    """A client with connections of its own: whichever worker the kernel gives it."""
    return pool.client()


def test_every_worker_listens(pool: Endpoint) -> None:
    assert len(pids(pool)) == WORKERS
    assert listeners(pool) == WORKERS


def test_what_one_worker_took_all_of_them_have(pool: Endpoint) -> None:
    bucket = new_bucket(fresh(pool))
    for number in range(12):
        fresh(pool).put_object(Bucket=bucket, Key=f"k{number:02}", Body=b"%d" % number)
        seen = fresh(pool).get_object(Bucket=bucket, Key=f"k{number:02}")["Body"].read()
        assert seen == b"%d" % number
        keys = [found["Key"] for found in fresh(pool).list_objects_v2(Bucket=bucket)["Contents"]]
        assert keys == [f"k{at:02}" for at in range(number + 1)]
    fresh(pool).put_object(Bucket=bucket, Key="k00", Body=b"other")
    assert all(fresh(pool).get_object(Bucket=bucket, Key="k00")["Body"].read() == b"other" for _ in range(12))
    fresh(pool).delete_object(Bucket=bucket, Key="k00")
    for _ in range(12):
        with pytest.raises(ClientError, match="404"):
            fresh(pool).head_object(Bucket=bucket, Key="k00")


def test_compare_and_swap_between_workers_loses_no_increment(pool: Endpoint) -> None:
    bucket = new_bucket(fresh(pool))
    fresh(pool).put_object(Bucket=bucket, Key="n", Body=b"0")
    done: list[int] = []
    refusals: set[str] = set()

    def add(times: int) -> None:
        client = fresh(pool)
        while times:
            now = client.get_object(Bucket=bucket, Key="n")
            value = int(now["Body"].read()) + 1
            try:
                client.put_object(Bucket=bucket, Key="n", Body=b"%d" % value, IfMatch=now["ETag"])
            except ClientError as error:
                refusals.add(error.response["Error"]["Code"])
                continue
            times -= 1
            done.append(value)

    threads = [threading.Thread(target=add, args=(5,)) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(done) == list(range(1, 46))
    assert refusals <= {"PreconditionFailed", "ConditionalRequestConflict"}
    assert fresh(pool).get_object(Bucket=bucket, Key="n")["Body"].read() == b"45"


def test_one_of_many_creators_wins(pool: Endpoint) -> None:
    bucket = new_bucket(fresh(pool))
    for key in ("lock", "deep/lock"):
        outcomes: list[str] = []

        def create(key: str = key, outcomes: list[str] = outcomes) -> None:
            try:
                fresh(pool).put_object(Bucket=bucket, Key=key, Body=b"mine", IfNoneMatch="*")
            except ClientError as error:
                outcomes.append(error.response["Error"]["Code"])
            else:
                outcomes.append("created")

        threads = [threading.Thread(target=create) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(outcomes) == ["PreconditionFailed"] * 11 + ["created"]


def test_parts_that_different_workers_took_are_completed_by_another(pool: Endpoint) -> None:
    bucket = new_bucket(fresh(pool))
    upload = fresh(pool).create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    named = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    parts = [
        {"PartNumber": number, "ETag": fresh(pool).upload_part(**named, PartNumber=number, Body=PART)["ETag"]}
        for number in range(1, 7)
    ]
    fresh(pool).complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    assert fresh(pool).get_object(Bucket=bucket, Key="k")["Body"].read() == PART * 6


def test_a_key_that_is_removed_is_refused_by_all(pool: Endpoint) -> None:
    key = pool.add_key(Scope())
    assert all(pool.client(key).list_buckets() for _ in range(12))
    with pool.volume() as volume:
        volume.remove(b".tieredfs/s3/keys/" + key.access_key_id.encode())
    time.sleep(1.1)  # for so long a key that was looked up is believed
    for _ in range(12):
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            pool.client(key).list_buckets()


def test_metrics_are_of_all_workers(pool: Endpoint) -> None:
    def counted() -> float:
        lines = web.get(f"{pool.url}/metrics").text.splitlines()
        wanted = 'tieredfs_s3_requests_total{operation="HeadBucket",status="200"} '
        return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))

    bucket, before = new_bucket(fresh(pool)), counted()
    for _ in range(20):
        fresh(pool).head_bucket(Bucket=bucket)
    assert counted() == before + 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced_and_what_it_took_is_there(pool: Endpoint, number: signal.Signals) -> None:
    bucket = new_bucket(fresh(pool))
    for at in range(12):
        fresh(pool).put_object(Bucket=bucket, Key=f"k{at}", Body=b"%d" % at)
    before = pids(pool)
    victim = before[0]
    os.kill(victim, number)
    wait_for(lambda: victim not in pids(pool))
    for at in range(12):  # the others serve what it has on its SSD
        ask = partial(read, pool, bucket, f"k{at}")
        assert patient(ask) == b"%d" % at
    wait_for(lambda: len(pids(pool)) == WORKERS and listeners(pool) == WORKERS)
    assert set(before) - {victim} < set(pids(pool))
    assert all(fresh(pool).head_bucket(Bucket=bucket) for _ in range(12))


def read(pool: Endpoint, bucket: str, key: str) -> bytes:
    body: bytes = fresh(pool).get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def patient(ask: Callable[[], Any]) -> Any:
    """A connection that waited for the dead worker is reset once."""
    for _ in range(5):
        with contextlib.suppress(HTTPClientError):
            return ask()
    return ask()


def test_workers_do_not_outlive_their_supervisor() -> None:
    with endpoint("--workers", "2") as orphaned:
        left = pids(orphaned)
        assert len(left) == 2
        assert orphaned.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
        assert listeners(orphaned) == 0


def test_all_end_politely() -> None:
    with endpoint("--workers", "2") as polite:
        left = pids(polite)
        polite.client().list_buckets()
        assert polite.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_workers_that_cannot_start_are_not_started_for_ever(pool: Endpoint, tmp_path: Path) -> None:
    import subprocess

    from tests.s3.endpoint import command, free_port

    shutil.copy(pool.meta_url.removeprefix("sqlite://"), tmp_path / "volume.db")
    (tmp_path / "clients").write_text("in the way of their SSD directories")
    options = ["--listen", f"127.0.0.1:{free_port()}", "--workers", "2"]
    line, environment = command(pool.root / "entry-points", "s3", f"sqlite://{tmp_path}/volume.db", *options)
    done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode != 0
    assert "workers in a row" in done.stderr
