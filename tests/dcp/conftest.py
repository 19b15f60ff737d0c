"""A small volume for DCP; closed when its test is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.filesystem.conftest import make_volume
from tieredfs_client.filesystem import TieredFileSystem
from tieredfs_client.filesystem.connections import CONNECTIONS


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield make_volume(tmp_path)
    CONNECTIONS.close_all()


@pytest.fixture
def fs(url: str) -> TieredFileSystem:
    return TieredFileSystem(meta_url=url)
