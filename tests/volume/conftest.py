"""A volume of three directories, rs:2+1, and its file system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite://{tmp_path}/volume.db"
    disks = [f"disk://{tmp_path}/d{{0..2}}"]
    format_volume(made, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="kept", block_bytes=MIB)
    return made


@pytest.fixture
def volume(url: str) -> Iterator[FileSystem]:
    with FileSystem.at(url, purpose="test") as opened:
        yield opened
