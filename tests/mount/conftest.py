"""Fixtures: one volume a test (`lab`), and one mount for the shipped suites (`mounted`)."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import volumes
from tieredfs.testing.features import Features


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        reason = "no usable /dev/fuse"
    elif os.geteuid() != 0 and not (shutil.which("fusermount3") or shutil.which("fusermount")):
        reason = "mounting needs root or fusermount"
    for item in items:
        if "tests/mount" in str(item.path):
            item.add_marker(pytest.mark.mount)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def lab() -> Iterator[volumes.Lab]:
    with volumes.lab() as made:
        yield made


@pytest.fixture(scope="package")
def shared_lab() -> Iterator[volumes.Lab]:
    with volumes.lab() as made:
        made.format()
        made.mount(allow_other=True)
        yield made


@pytest.fixture
def mounted(shared_lab: volumes.Lab) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=shared_lab.mnt))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def features() -> Features:
    return Features()
