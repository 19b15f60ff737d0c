"""Mount points that must be refused, and the ways a mount goes."""

import os
from pathlib import Path

import pytest

from tests.fuse.kernel.mounts import needs_root_mount, served
from tieredfs.errors import BusyError, MountPointError, NotAMountError
from tieredfs.fuse.kernel import mounting
from tieredfs.testing.loopback import LoopbackOperations

pytestmark = [pytest.mark.timeout(60)]


def test_a_missing_mount_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="does not exist"):
        mounting.check_mountpoint(str(tmp_path / "missing"))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountPointError, match="not a directory"):
        mounting.check_mountpoint(str(tmp_path / "file"))


def test_a_directory_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(MountPointError, match="not empty"):
        mounting.check_mountpoint(str(tmp_path))


def test_an_empty_directory_is_taken_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "point").mkdir()
    monkeypatch.chdir(tmp_path)
    assert mounting.check_mountpoint("point") == str(tmp_path / "point")


def test_unmounting_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotAMountError):
        mounting.unmount(str(tmp_path))


@pytest.mark.mount
@needs_root_mount
def test_a_mount_point_in_use_is_refused_and_a_dead_mount_of_ours_cleared(tmp_path: Path) -> None:
    point = tmp_path / "a point"
    point.mkdir()
    path = mounting.check_mountpoint(str(point))
    device = mounting.mount_fuse(path, mounting.MountOptions(source="volume"))
    try:
        entry = mounting.mount_at(path)
        assert entry is not None
        assert (entry.filesystem, entry.source) == (mounting.FILESYSTEM, "volume")
        os.close(device)  # the daemon dies, and nobody holds the device
        device = -1
        with pytest.raises(OSError, match="not connected"):
            os.stat(path)
        assert mounting.check_mountpoint(str(point)) == path
        assert mounting.mount_at(path) is None
    finally:
        if device >= 0:
            os.close(device)
        while mounting.mount_at(path) is not None:
            mounting.unmount(path, lazy=True)


@pytest.mark.mount
@needs_root_mount
def test_a_live_mount_is_refused_as_mount_point(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    operations = LoopbackOperations(str(tmp_path / "below"))
    with served(operations, tmp_path / "mount"), pytest.raises(MountPointError, match="already a mount point"):
        mounting.check_mountpoint(str(tmp_path / "mount"))
    operations.close()


@pytest.mark.mount
@needs_root_mount
def test_a_busy_mount_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    operations = LoopbackOperations(str(tmp_path / "below"))
    with served(operations, tmp_path / "mount"):
        with open(tmp_path / "mount" / "file", "wb"), pytest.raises(BusyError, match="in use"):
            mounting.unmount(str(tmp_path / "mount"))
        assert (tmp_path / "mount" / "file").exists()
    operations.close()


@pytest.mark.mount
@needs_root_mount
def test_read_only_and_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"content")
    operations = LoopbackOperations(str(tmp_path / "below"))
    with served(operations, tmp_path / "mount", mount=mounting.MountOptions(read_only=True)):
        assert (tmp_path / "mount" / "file").read_bytes() == b"content"
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mount" / "file").write_bytes(b"no")
        entry = mounting.mount_at(str(tmp_path / "mount"))
        assert entry is not None
        assert mounting.set_read_ahead(entry)
        read_ahead = Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text()
        assert int(read_ahead) == mounting.READ_AHEAD_BYTES // 1024
    operations.close()
