"""Local files keep no access time: read twice, the second read would pay for it."""

import os
from pathlib import Path

import pytest

from tieredfs.cache.layout import CacheDirectory
from tieredfs.host import local_host
from tieredfs.host.files import forgo_access_times
from tieredfs.model import InodeId

LONG_AGO_S = 1_000_000_000


def _read_time_after_a_read(file: Path) -> int:
    file.write_bytes(b"x")
    os.utime(file, (LONG_AGO_S, file.stat().st_mtime))  # relatime would move it now
    file.read_bytes()
    return int(file.stat().st_atime)


def test_a_read_leaves_the_access_time_alone(tmp_path: Path) -> None:
    if _read_time_after_a_read(tmp_path / "plain") == LONG_AGO_S:
        pytest.skip("this file system is mounted noatime")
    if not forgo_access_times(str(tmp_path)):
        pytest.skip("this file system has no such attribute")
    assert _read_time_after_a_read(tmp_path / "marked") == LONG_AGO_S


def test_the_ssd_directory_is_marked(tmp_path: Path) -> None:
    if not forgo_access_times(str(tmp_path)):
        pytest.skip("this file system has no such attribute")
    directory = CacheDirectory(str(tmp_path / "cache"), "uuid", local_host().files)
    for path in (directory.content(InodeId(0x1234), 1), directory.filling(InodeId(0x1234), 1)):
        assert _read_time_after_a_read(Path(path)) == LONG_AGO_S
    directory.close()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        forgo_access_times(str(tmp_path / "missing"))
