"""Quotas as programs on a mount meet them, under both drivers: EDQUOT, EXDEV, and what `mv`, `dd` and `df` make of them."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount import volumes
from tieredfs.testing.metadata_check import broken_invariants
from tieredfs.volume import Volume

UNIT = 4096
MIB = 1 << 20


@pytest.fixture(scope="module", params=["kernel", "fuse-python"])
def lab(request: pytest.FixtureRequest) -> Iterator[volumes.Lab]:
    with volumes.lab() as made:
        made.format()
        made.mount(driver=request.param)
        yield made


@pytest.fixture
def volume(lab: volumes.Lab) -> Iterator[Volume]:
    with lab.open() as opened:
        yield opened


@pytest.fixture
def team(lab: volumes.Lab, volume: Volume, request: pytest.FixtureRequest) -> Path:
    """A directory of its own for the test, with 1 MiB and 6 inodes."""
    path: Path = lab.mnt / request.node.originalname
    path.mkdir()
    volume.quotas.set(path.name, MIB, 6)
    return path


def used(volume: Volume, team: Path) -> tuple[int, int]:
    status = volume.quotas.get(team.name)
    return status.used_bytes, status.used_inodes


def refused(call: Any, *arguments: Any) -> int:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or 0
    raise AssertionError("it was done")


def is_portable(lab: volumes.Lab) -> bool:
    return lab.mounts[-1].driver == "fuse-python"


def test_a_full_directory_takes_no_more_until_something_goes(volume: Volume, team: Path) -> None:
    (team / "a").write_bytes(bytes(MIB - UNIT))
    (team / "b").write_bytes(b"the last block")
    assert used(volume, team) == (MIB, 2)
    assert refused((team / "c").write_bytes, b"x") == errno.EDQUOT
    assert refused(os.open, team / "a", os.O_WRONLY) == errno.EDQUOT
    assert sorted(path.name for path in team.iterdir()) == ["a", "b"]
    assert (team / "b").read_bytes() == b"the last block"
    (team / "sub").mkdir()
    assert refused((team / "sub" / "c").write_bytes, b"x") == errno.EDQUOT
    os.truncate(team / "a", 5 * UNIT)
    (team / "c").write_bytes(b"x")
    (team / "b").unlink()
    assert used(volume, team) == (6 * UNIT, 3)


def test_inodes_run_out(volume: Volume, team: Path) -> None:
    for number in range(5):
        (team / str(number)).touch()
    (team / "directory").mkdir()
    assert refused((team / "directory" / "more").touch) == errno.EDQUOT
    assert refused((team / "more").mkdir) == errno.EDQUOT
    assert refused((team / "more").symlink_to, "0") == errno.EDQUOT
    assert refused(os.mkfifo, team / "more") == errno.EDQUOT
    (team / "0").unlink()
    (team / "directory" / "more").touch()
    assert used(volume, team) == (0, 6)


def test_what_the_daemon_grows_is_refused_at_once(lab: volumes.Lab, volume: Volume, team: Path) -> None:
    (team / "file").write_bytes(b"x")
    assert refused(os.truncate, team / "file", MIB + 1) == errno.EDQUOT
    os.truncate(team / "file", MIB)
    os.truncate(team / "file", UNIT)
    with (team / "file").open("r+b") as file:
        if not is_portable(lab):
            assert refused(os.posix_fallocate, file.fileno(), 0, MIB + 1) == errno.EDQUOT
        assert refused(os.ftruncate, file.fileno(), MIB + 1) == errno.EDQUOT
    assert used(volume, team) == (UNIT, 1)


def test_what_was_written_is_kept_and_counted(lab: volumes.Lab, volume: Volume, team: Path) -> None:
    """By the kernel, a file may grow past its quota until it is closed; through the daemon it is stopped where the quota ends."""
    content = os.urandom(3 * MIB)
    with (team / "file").open("wb", buffering=0) as file:
        if is_portable(lab):
            assert (
                refused(lambda: [file.write(content[at : at + UNIT]) for at in range(0, len(content), UNIT)])
                == errno.EDQUOT
            )
        else:
            file.write(content)
            os.fsync(file.fileno())
    kept = (team / "file").read_bytes()
    assert kept == content[: len(kept)]
    assert len(kept) == (MIB if is_portable(lab) else 3 * MIB)
    assert used(volume, team) == (len(kept), 1)
    assert refused((team / "more").touch) == errno.EDQUOT
    lab.run("drain", lab.url)
    assert used(volume, team) == (len(kept), 1)


def test_dd_says_disk_quota_exceeded(volume: Volume, team: Path) -> None:
    (team / "full").write_bytes(bytes(MIB))
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={team}/more", "bs=4096", "count=1"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Disk quota exceeded" in done.stderr


def test_files_move_and_large_directories_are_copied(lab: volumes.Lab, volume: Volume, team: Path) -> None:
    outside = lab.mnt / f"{team.name}-outside"
    outside.mkdir()
    (outside / "file").write_bytes(bytes(10 * UNIT))
    (outside / "file").rename(team / "file")
    assert used(volume, team) == (10 * UNIT, 1)
    assert refused(os.link, team / "file", outside / "link") == errno.EXDEV
    (outside / "large").write_bytes(bytes(MIB))
    assert refused((outside / "large").rename, team / "large") == errno.EDQUOT
    many = outside / "many"
    many.mkdir()
    volume.quotas.set(team.name, None, 100_000)
    for number in range(1030):
        (many / str(number)).touch()
    assert refused(many.rename, team / "many") == errno.EXDEV
    subprocess.run(["mv", str(many), str(team)], check=True)
    assert len(os.listdir(team / "many")) == 1030
    assert not many.exists()
    assert used(volume, team) == (10 * UNIT, 1032)


def test_statfs_below_a_quota_shows_the_quota(lab: volumes.Lab, volume: Volume, team: Path) -> None:
    (team / "file").write_bytes(bytes(10 * UNIT))
    if is_portable(lab):
        pytest.skip("libfuse does not say of what statfs is asked")
    for path in (team, team / "file"):
        shown = os.statvfs(path)
        assert (shown.f_blocks * shown.f_frsize, shown.f_bavail * shown.f_frsize) == (MIB, MIB - 10 * UNIT)
        assert (shown.f_files, shown.f_favail) == (6, 5)
    assert os.statvfs(lab.mnt).f_blocks * UNIT > MIB
    said = subprocess.run(["df", "-B1", "--output=size,avail", team], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[1].split() == [str(MIB), str(MIB - 10 * UNIT)]


def test_the_records_are_right_after_all_of_that(volume: Volume) -> None:
    assert [
        check for quota in volume.quotas.list() if not (check := volume.quotas.check(quota.path, repair=False)).right
    ] == []
    assert broken_invariants(volume._engine) == []


@pytest.mark.timeout(120)
def test_a_daemon_that_dies_between_two_steps_leaves_the_records_right() -> None:
    """What is used is in the transaction of what uses it. The successor goes on, and nobody's count is lost or doubled."""
    with volumes.lab() as made:
        made.format()
        tokens = volumes.CrashTokens(made.root / "tokens")
        with tokens.armed():
            made.mount()
        team = made.mnt / "team"
        team.mkdir()
        with made.open() as volume:
            volume.quotas.set("team", MIB, 100)
        steps: dict[str, Any] = {
            "create.committed": lambda: (team / "a").write_bytes(bytes(3 * UNIT)),
            "flush.published": lambda: (team / "b").write_bytes(bytes(2 * UNIT)),
            "write.marked": lambda: (team / "b").open("ab").close(),
            "rename.committed": lambda: (team / "a").rename(made.mnt / "moved"),
            "unlink.committed": (team / "b").unlink,
        }
        counted = []
        for point, step in steps.items():
            tokens.lay(point)
            step()
            assert tokens.left() == [], f"the daemon died at {point}"
            with made.open() as volume:
                counted.append(used(volume, team))
                assert volume.quotas.check("team", repair=False).right
        assert counted == [(3 * UNIT, 1), (5 * UNIT, 2), (5 * UNIT, 2), (2 * UNIT, 1), (0, 0)]
