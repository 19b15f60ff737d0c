"""One small volume for the tests that leave it alone; a directory of it for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume


def new_volume(root: Path) -> str:
    url = f"sqlite://{root}/volume.db"
    disks = [f"disk://{root}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 << 20)
    return url


@pytest.fixture(scope="package")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSystem]:
    with FileSystem.at(new_volume(tmp_path_factory.mktemp("reading")), purpose="test") as opened:
        yield opened


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A path of the volume that no other test has."""
    return f"t{abs(hash(request.node.nodeid)):x}"
