"""SIGKILL at each step of a change in a bucket with versions: old or new, nothing lost, and the next change goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3.dying import BUCKET, KEY, put
from tieredfs.config import parse_code
from tieredfs.host import crash
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_gateway.s3 import bucket_rules
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.version_listing import Row, every

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 60.0


class Rig:
    def __init__(self, url: str, volume: FileSystem) -> None:
        self.url = url
        self.store = Store(volume, volume.volume.host.clock)
        self.store.create_bucket(BUCKET)

    def rows(self) -> list[Row]:
        return list(every(self.store, BUCKET))

    def etags(self) -> list[str]:
        """Newest first; empty: a delete marker."""
        return ["" if row.version.record.marker else row.version.record.etag for row in self.rows()]

    def die(self, point: str, *arguments: str) -> None:
        environment = os.environ | {crash.ENVIRONMENT: f"{point}:1", "PYTHONPATH": f"{ROOT}:{ROOT}/gateway"}
        line = [sys.executable, "-m", "tests.s3.dying", self.url, *arguments]
        done = subprocess.run(line, env=environment, cwd=ROOT, check=False, capture_output=True, timeout=WAIT_S)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    url = f"sqlite://{tmp_path}/volume.db"
    disks, code = [f"disk://{tmp_path}/d"], parse_code("replica:1")
    format_volume(url, disks, code=code, durability=Durability.SSD, name="crash", block_bytes=1 << 20)
    with FileSystem.at(url, purpose="test") as volume:
        yield Rig(url, volume)


@pytest.mark.parametrize(
    ("state", "act", "point", "before", "after"),
    [
        ("Enabled", "put", "link.committed", ["two", "one"], ["two", "one"]),
        ("Enabled", "put", "place.committed", ["two", "one"], ["new", "two", "one"]),
        ("Enabled", "put", "place.committed", ["", "two", "one"], ["new", "", "two", "one"]),
        ("Enabled", "delete", "link.committed", ["two", "one"], ["two", "one"]),
        ("Enabled", "delete", "place.committed", ["two", "one"], ["two", "one"]),
        ("Enabled", "delete", "remove.committed", ["two", "one"], ["", "two", "one"]),
        ("Enabled", "delete newest", "rename.committed", ["two", "one"], ["one"]),
        ("Enabled", "delete newest", "rename.committed", ["", "two", "one"], ["two", "one"]),
        ("Enabled", "delete newest", "remove.committed", ["", "two", "one"], ["two", "one"]),
        ("Enabled", "delete newest", "remove.committed", ["one"], []),
        ("Suspended", "put", "link.committed", ["two", "one"], ["two", "one"]),
        ("Suspended", "put", "place.committed", ["two", "one"], ["new", "two", "one"]),
        ("Suspended", "delete", "place.committed", ["two", "one"], ["two", "one"]),
        ("Suspended", "delete", "remove.committed", ["two", "one"], ["", "two", "one"]),
    ],
)
def test_killed_at_a_step(rig: Rig, state: str, act: str, point: str, before: list[str], after: list[str]) -> None:
    assert point in crash.POINTS
    rig.store.settings.put(BUCKET, bucket_rules.VERSIONING, b"Enabled")
    for etag in reversed(before):
        if etag:
            put(rig.store, etag)
        else:
            rig.store.delete(BUCKET, KEY)
    assert rig.etags() == before
    rig.store.settings.put(BUCKET, bucket_rules.VERSIONING, state.encode())
    newest = [rig.rows()[0].version.version_id] if act == "delete newest" else []
    rig.die(point, act, *newest)
    assert rig.etags() == after
    assert [row.latest for row in rig.rows()] == [True, *[False] * (len(after) - 1)][: len(after)]
    current = rig.store.find(BUCKET, KEY)
    assert (current.record.etag if current else "") == (after[0] if after else "")
    rig.store.settings.put(BUCKET, bucket_rules.VERSIONING, b"Enabled")
    put(rig.store, "last")
    assert [etag for etag in rig.etags() if etag] == ["last", *filter(None, after)]
