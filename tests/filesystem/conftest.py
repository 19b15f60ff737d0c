"""A small volume, and fsspec's view of it; closed when its test is over."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import format_volume
from tieredfs_client.filesystem import TieredFileSystem
from tieredfs_client.filesystem.connections import CONNECTIONS


def make_volume(directory: Path) -> str:
    url = f"sqlite://{directory}/volume.db"
    disks = [f"disk://{directory}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 << 20)
    return url


@pytest.fixture(scope="module")
def module_url() -> Iterator[str]:
    """One volume for a module whose tests use names of their own; in memory where possible, for syncs cost nothing there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tieredfs-tests-", dir=memory) as directory:
        yield make_volume(Path(directory))
        CONNECTIONS.close_all()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield make_volume(tmp_path)
    CONNECTIONS.close_all()


@pytest.fixture
def fs(url: str) -> TieredFileSystem:
    made = fsspec.filesystem("tieredfs", meta_url=url)
    assert isinstance(made, TieredFileSystem)
    return made
