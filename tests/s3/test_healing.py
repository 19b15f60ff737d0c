"""Objects are taken while as many disks are gone as the code bears, and become whole while the server runs."""

import os
import time
from collections.abc import Callable

from tests import web
from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.limits import MIB

WAIT_S = 60.0


def gauge(served: Endpoint, name: str) -> float:
    text = web.get(f"{served.url}/metrics", timeout=WAIT_S).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"tieredfs_volume_{name} ")]
    return float(line.split()[1])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.05)


def test_objects_put_while_a_disk_of_2_plus_1_is_gone_survive_another_one() -> None:
    bodies = {"large": os.urandom(9 * MIB), **{f"small-{number}": os.urandom(5000) for number in range(10)}}
    with endpoint() as served:
        s3, lost = served.client(), served.root / "d1"
        bucket = new_bucket(s3)
        assert gauge(served, "short_blocks") == 0
        lost.rename(served.root / "away")
        for key, body in bodies.items():
            s3.put_object(Bucket=bucket, Key=key, Body=body)
        # Small objects take five seconds to gather in one block, so the large one is in the list first.
        wait_until(lambda: gauge(served, "short_bytes") >= sum(map(len, bodies.values())), "all is stored")
        assert gauge(served, "bare_blocks") == gauge(served, "short_blocks") > 0
        (served.root / "away").rename(lost)
        wait_until(lambda: gauge(served, "short_blocks") == 0, "all is healed by the running server")
        served.stop()
        for copy in (served.root / "clients").rglob("content/*/*"):
            copy.unlink()
        (served.root / "d0").rename(served.root / "away")
        served.start()
        for key, body in bodies.items():
            assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        (served.root / "away").rename(served.root / "d0")
