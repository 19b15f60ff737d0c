"""Small objects until the SSD is full, by themselves and by others: refused or late, and none that was acknowledged is lost."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.limits import CACHE_FREE_RESERVE_BYTES, MIB, SEGMENT_BYTES, STORE_FREE_RESERVE_BYTES

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root, for mount(2), and ext4"),
]

WAIT_S = 60.0
PATIENCE_S = 5.0
"""Of a client, after which it takes it that its upload waits for room."""
SIZE = 100_000
SSD_BYTES = CACHE_FREE_RESERVE_BYTES + 48 * MIB
STORE_BYTES = 160 * MIB
REFUSED = "503 ServiceUnavailable"


@contextmanager
def small_ext4(point: Path, size_bytes: int) -> Iterator[Path]:
    image = point.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    made = ["mkfs.ext4", "-q", "-m", "0", "-N", "8192", "-J", "size=4", str(image)]
    subprocess.run(made, check=True, capture_output=True, timeout=WAIT_S)
    point.mkdir()
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=False, timeout=WAIT_S).returncode:
        pytest.skip("no loop device may be mounted here")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True, timeout=WAIT_S)
        image.unlink()


@contextmanager
def with_small_ssd(size_bytes: int) -> Iterator[tuple[Endpoint, Path, Path]]:
    """An endpoint, the file system that its SSD directories are on, and another small one that its disks are on."""
    with endpoint("--workers", "1") as made, small_ext4(made.root / "store", STORE_BYTES) as store:
        made.stop()
        for number in range(3):
            shutil.move(made.root / f"d{number}", store)
            (made.root / f"d{number}").symlink_to(store / f"d{number}")
        shutil.rmtree(made.root / "clients")
        with small_ext4(made.root / "clients", size_bytes) as ssd:
            try:
                made.start()
                yield made, ssd, store
            finally:
                made.stop(signal.SIGKILL)


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def put(s3: Any, bucket: str, key: str, body: bytes) -> str:
    """What became of it: `stored`, `waits`, or the code of the error."""
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    except ReadTimeoutError:
        return "waits"
    except ClientError as error:
        status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        return f"{status} {code}"
    return "stored"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.1)


def fill(place: Path, left_bytes: int) -> Path:
    """Others take what is free there, but for `left_bytes`."""
    path = place / "of-others"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(place) - left_bytes)
    return path


def check(made: Endpoint, bucket: str, bodies: dict[str, bytes]) -> None:
    s3 = made.client()
    assert {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in bodies} == bodies


def test_small_objects_until_the_ssd_is_full_and_killed_then() -> None:
    """The store takes nothing; when it does, others still fill the SSD; when they go, all is well."""
    with with_small_ssd(SSD_BYTES) as (made, ssd, store):
        s3 = made.client(read_timeout=PATIENCE_S)
        bucket = new_bucket(s3)
        full_store = fill(store, STORE_FREE_RESERVE_BYTES // 2)
        free_before = free_bytes(ssd)
        bodies: dict[str, bytes] = {}
        while (said := put(s3, bucket, f"k{len(bodies):03}", body := os.urandom(SIZE))) == "stored":
            bodies[f"k{len(bodies):03}"] = body
            taken = len(bodies) * SIZE
            assert taken < free_before - CACHE_FREE_RESERVE_BYTES + SEGMENT_BYTES, (
                "little comes between two looks at the room"
            )
        assert said == "waits"
        assert free_bytes(ssd) < CACHE_FREE_RESERVE_BYTES
        assert len(bodies) * SIZE > SEGMENT_BYTES
        full_ssd = fill(ssd, MIB // 4)

        assert made.stop(signal.SIGKILL) == -signal.SIGKILL
        made.start()
        check(made, bucket, bodies)
        s3 = made.client(read_timeout=PATIENCE_S)
        assert put(s3, bucket, "meanwhile", b"x" * SIZE) == "waits"

        full_store.unlink()
        until(lambda: put(s3, bucket, "refused", b"x" * SIZE) == REFUSED, "nothing is left to wait for")
        assert put(s3, bucket, "refused", b"x" * 2 * MIB) == REFUSED
        check(made, bucket, bodies)
        full_ssd.unlink()
        until(lambda: put(s3, bucket, "after", b"after") == "stored", "there is room")
        check(made, bucket, bodies | {"after": b"after"})


def test_near_a_full_ssd_small_objects_go_on_in_the_same_segment() -> None:
    """Room is short all the time, and never all of it is taken."""
    with with_small_ssd(SSD_BYTES) as (made, ssd, _):
        s3 = made.client()
        bucket = new_bucket(s3)
        assert CACHE_FREE_RESERVE_BYTES < free_bytes(ssd) < 2 * CACHE_FREE_RESERVE_BYTES
        bodies = {f"k{number:02}": os.urandom(1000) for number in range(30)}
        for key, body in bodies.items():
            assert put(s3, bucket, key, body) == "stored"
            time.sleep(0.1)
        numbers = [int(path.name, 16) for path in ssd.glob("*/segments/*")]
        assert numbers
        assert max(numbers) <= 2, "each is made under the next number"
        check(made, bucket, bodies)
