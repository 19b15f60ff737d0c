"""Volumes in memory, where there is room: they are made of some 1,500 directories each, and syncs are not what is tested here."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.curator.care_volume import memory


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="care-", dir=memory()) as made:
        yield Path(os.path.realpath(made))
