"""A small volume, and a `FileSystem` over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite://{tmp_path}/volume.db"
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 << 20)
    return url


@pytest.fixture
def volume(url: str) -> Iterator[FileSystem]:
    with FileSystem.at(url, purpose="test") as opened:
        yield opened
