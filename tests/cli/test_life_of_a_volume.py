"""The command line as a user types it, over a real volume and a real mount: from `up` to `destroy`."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tieredfs.fuse.mounting")
pytestmark = [pytest.mark.mount, pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse")]

TIMEOUT_S = 60


def tieredfs(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tieredfs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def data_of(*arguments: str) -> dict[str, object]:
    done = tieredfs(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def url(home: Path) -> str:
    return f"sqlite://{home}/volume.db"


@pytest.fixture
def point(tmp_path: Path, home: Path) -> Iterator[Path]:
    """A mount made by `up`; taken away whatever happens."""
    point = tmp_path / "mnt"
    done = tieredfs("up", str(home), str(point), "--cache-size", "1GiB")
    if "mounting needs root" in done.stderr:
        pytest.skip("this user may not mount")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    yield point
    if os.path.ismount(point):
        assert tieredfs("umount", str(point)).returncode == 0


def test_from_up_to_destroy(point: Path, home: Path, url: str) -> None:
    content = os.urandom(3 << 20)
    (point / "a name").mkdir()
    (point / "a name" / "file").write_bytes(content)
    (point / "latest").symlink_to("a name")

    with (point / "a name" / "open").open("wb") as staged:
        staged.write(content)
        staged.flush()
        kept = tieredfs("evict", staged.name, "--json")
    assert kept.returncode == 3, "nothing of it could be dropped"
    assert json.loads(kept.stdout)["kept_staged"] == 1
    assert "not stored yet" in kept.stderr
    (point / "a name" / "open").unlink()
    assert data_of("drain", url)["staged_file_count"] == 0
    found = data_of("info", f"{point}/latest/file")
    assert (found["state"], found["size_bytes"], found["path"]) == ("stored", len(content), "a name/file")
    assert data_of("status", url)["safe"] is True
    assert [mount["mount_point"] for mount in json.loads(tieredfs("status", "--json").stdout)].count(str(point)) == 1

    assert data_of("evict", f"{point}/a name")["evicted"] == 1
    assert data_of("info", f"{point}/a name/file")["cached_ratio"] == 0
    assert data_of("warmup", f"{point}/a name/file")["failed"] == 0
    assert (point / "a name" / "file").read_bytes() == content

    assert tieredfs("destroy", url, "--yes").returncode == 3, "refused while it is mounted"
    assert tieredfs("umount", "--flush", str(point)).returncode == 0
    assert tieredfs("info", f"{point}/a name/file").returncode == 2, "no mount any more"
    assert tieredfs("destroy", url, "--yes").returncode == 0
    assert not (home / "volume.db").exists()


def test_the_mount_is_measured_beside_another_directory(point: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    data = data_of(
        "bench", str(point), "--against", str(tmp_path / "plain"), "--size", "8M", "--files", "50", "--rounds", "1"
    )
    assert isinstance(data["figures"], list)
    assert all(figure["ratio"] > 0 for figure in data["figures"])
    assert list(point.iterdir()) == []


def test_umount_returns_when_the_daemon_has_ended(point: Path) -> None:
    from tieredfs.fuse.control import ControlClient, find_mount
    from tieredfs.fuse.mounting import unmount

    (point / "staged").write_bytes(os.urandom(1 << 20))
    found = find_mount(str(point))
    assert found is not None
    process = ControlClient(found.mount_id).ping()["process"]
    assert isinstance(process, int)
    daemon = os.pidfd_open(process)
    try:
        unmount(str(point), flush=False, progress=lambda *_: None)
        assert select.select([daemon], [], [], 0)[0] == [daemon]
    finally:
        os.close(daemon)


def test_what_was_staged_is_drained_without_a_mount(point: Path, url: str) -> None:
    (point / "file").write_bytes(b"x" * 100_000)
    assert tieredfs("umount", str(point)).returncode == 0
    data_of("drain", url)
    status = data_of("status", url)
    assert status["safe"] is True
    assert status["mounts"] == []


def test_a_second_format_and_a_second_mount_are_refused(point: Path, home: Path, url: str) -> None:
    again = tieredfs("format", url, "--data", f"disk://{home}/other/d{{0..5}}")
    assert again.returncode == 2
    assert "already" in again.stderr
    assert tieredfs("mount", url, str(point)).returncode == 2
    assert "Traceback" not in again.stderr


def test_a_clone_and_the_loss_of_the_metadata(point: Path, home: Path, url: str) -> None:
    content = os.urandom(1 << 20)
    (point / "run").mkdir()
    (point / "run" / "weights").write_bytes(content)
    os.link(point / "run" / "weights", point / "run" / "again")
    assert not (point / "copy").exists()  # the mount has that in mind
    assert data_of("clone", f"{point}/run", f"{point}/copy")["file_count"] == 1
    assert wait_for_names(point / "copy") == ["again", "weights"]
    (point / "run" / "weights").write_bytes(b"changed")
    assert (point / "copy" / "weights").read_bytes() == content
    assert tieredfs("clone", f"{point}/run", f"{point}/copy").returncode == 2, "something is there"

    assert data_of("dump", url)["record_count"]
    refused = tieredfs("load", url, str(home / "disks" / "d0"))
    assert (refused.returncode, "already" in refused.stderr) == (2, True)
    assert tieredfs("umount", str(point)).returncode == 0
    for path in home.glob("volume.db*"):
        path.unlink()
    lost = tieredfs("up", str(home), str(point))
    assert (lost.returncode, "tieredfs load" in lost.stderr) == (2, True)
    assert data_of("load", url, *map(str, (home / "disks").iterdir()))["away"] == {}
    assert tieredfs("up", str(home), str(point), "--cache-size", "1GiB").returncode == 0
    assert (point / "copy" / "weights").read_bytes() == content
    assert (point / "run" / "again").read_bytes() == b"changed", "what was only on the SSD, too"


def wait_for_names(directory: Path) -> list[str]:
    """A mount hears within moments of what another process did."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not directory.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return sorted(path.name for path in directory.iterdir())
