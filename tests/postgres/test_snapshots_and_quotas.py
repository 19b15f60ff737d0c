"""Snapshots below quotas where the metadata are in PostgreSQL: the tests of `tests/volume`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres.borrowed import cases_of
from tests.postgres.server import Server
from tests.volume import test_snapshots_and_quotas as on_sqlite
from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs.volume.places import ENVIRONMENT


@pytest.fixture
def url(server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "state"))
    url = server.url(database)
    disks = [f"disk://{tmp_path}/d{{0..2}}"]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="kept", block_bytes=MIB)
    return url


@pytest.fixture
def volume(url: str) -> Iterator[FileSystem]:
    with FileSystem.at(url, purpose="test") as opened:
        yield opened


CASES = cases_of(on_sqlite, "volume")
globals().update(CASES)


def test_the_cases_are_here() -> None:
    assert len(CASES) > 3
