"""Snapshots under a real mount: taken while programs write, seen by any tool, changed by none, and gone back to."""

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.mount import volumes
from tests.mount.test_pushing import eventually
from tieredfs.errors import InvalidRequestError

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture(params=["kernel", "fuse-python"])
def driven(lab: volumes.Lab, request: pytest.FixtureRequest) -> volumes.Lab:
    lab.format(code="rs:2+1", disks=3)
    lab.mount(driver=request.param)
    return lab


@pytest.fixture
def mounted(lab: volumes.Lab) -> volumes.Lab:
    lab.format(code="rs:2+1", disks=3)
    lab.mount(driver="kernel")
    return lab


def contents(top: Path) -> dict[str, object]:
    """Everything below a directory, as a program sees it."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        seen = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(top))] = (seen.st_mode, seen.st_uid, seen.st_mtime_ns // 10**9, data)
    return found


def test_from_taking_it_to_removing_it(driven: volumes.Lab) -> None:
    run = driven.mnt / "runs" / "7"
    (run / "deep").mkdir(parents=True)
    (run / "empty").mkdir()
    (run / "weights").write_bytes(os.urandom(5 << 20))
    for number in range(20):
        (run / "deep" / f"{number}").write_text(f"{number}")
    (run / "deep" / "script").write_text("#!/bin/sh\n")
    (run / "deep" / "script").chmod(0o750)
    before = contents(run)
    taken = driven.json("snapshot", "create", str(run), "monday")
    assert (taken["file_count"], taken["open_file_count"], taken["path"]) == (22, 0, str(run))
    place = Path(taken["place"])
    assert place == driven.mnt / ".snapshots" / "runs" / "7" / "@monday"
    eventually(place.exists)
    assert contents(place) == before
    assert os.listdir(driven.mnt) == [".tieredfs", "runs"]

    refused(place, run)
    assert contents(place) == before
    (run / "weights").write_bytes(b"overwritten")
    shutil.rmtree(driven.mnt / "runs")
    assert driven.run("gc", driven.url).returncode == 0
    assert contents(place) == before
    assert [row["name"] for row in driven.json("snapshot", "list", str(driven.mnt))] == ["monday"]
    assert "monday" in driven.run("snapshot", "list").stdout
    lost = driven.run("restore", str(run), "monday")
    assert (lost.returncode, "runs" in lost.stderr) == (2, True), "there is nothing to put it into"
    run.parent.mkdir()
    assert driven.json("restore", str(run), "monday")["file_count"] == 22
    eventually(run.exists)
    assert contents(run) == before
    (run / "deep" / "0").write_text("it can be changed")

    assert driven.json("snapshot", "rm", str(run), "monday")["entry_count"] == 25
    eventually(lambda: not (driven.mnt / ".snapshots").exists())
    again = driven.run("snapshot", "rm", str(run), "monday")
    assert (again.returncode, "snapshot list" in again.stderr) == (2, True)
    assert driven.run("snapshot", "list", str(driven.mnt)).stdout == "there are no snapshots\n"
    driven.unmount(flush=True)
    assert driven.json("fsck", driven.url)["clean"] is True


def refused(place: Path, run: Path) -> None:
    """Whatever a program tries."""
    file = place / "weights"
    attempts: Sequence[Callable[[], object]] = (
        lambda: file.open("r+b"),
        lambda: file.open("wb"),
        lambda: os.truncate(file, 0),
        lambda: (place / "new").write_bytes(b""),
        (place / "new").mkdir,
        lambda: (place / "new").symlink_to("x"),
        file.unlink,
        (place / "empty").rmdir,
        lambda: file.rename(run / "stolen"),
        lambda: (run / "weights").rename(place / "weights"),
        lambda: os.link(file, run / "linked"),
        lambda: os.link(run / "weights", place / "linked"),
        lambda: file.chmod(0),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file, (1, 1)),
        lambda: os.setxattr(file, "user.x", b"x"),
        lambda: shutil.rmtree(place),
        lambda: place.rename(place.parent / "@tuesday"),
        lambda: (place.parents[2]).rename(run / "all"),
    )
    for number, attempt in enumerate(attempts):
        try:
            attempt()
        except OSError as error:
            refusal = error.errno
        else:
            refusal = None
        assert refusal == errno.EROFS, number


def test_tools_do_not_trip_over_it(mounted: volumes.Lab, tmp_path: Path) -> None:
    """Of the whole mount, which is where a listing could show them; and they read what is in them."""
    (mounted.mnt / "data").mkdir()
    (mounted.mnt / "data" / "f").write_text("x")
    assert mounted.run("snapshot", "create", str(mounted.mnt), "all").returncode == 0
    place = mounted.mnt / ".snapshots" / "@all"
    eventually(place.exists)
    found = subprocess.run(["find", str(mounted.mnt), "-name", "f"], capture_output=True, text=True, check=True).stdout
    assert found.split() == [str(mounted.mnt / "data" / "f")]
    copied = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(mounted.mnt), str(copied)], check=True)
    assert sorted(os.listdir(copied)) == [".tieredfs", "data"]
    subprocess.run(["cp", "-a", str(place), str(tmp_path / "of the snapshot")], check=True)
    assert sorted(os.listdir(tmp_path / "of the snapshot")) == ["data"]
    assert subprocess.run(["diff", "-r", str(place / "data"), str(mounted.mnt / "data")], check=False).returncode == 0
    refused = mounted.run("restore", str(mounted.mnt), "all", "--force")
    assert (refused.returncode, "--to" in refused.stderr) == (2, True)


def test_a_file_that_is_being_written_to_has_what_was_written_before(mounted: volumes.Lab) -> None:
    (mounted.mnt / "run").mkdir()
    stop = threading.Event()
    with (mounted.mnt / "run" / "log").open("wb") as log:
        log.write(b"before\n" * 1000)
        log.flush()

        def write() -> None:
            while not stop.wait(0.001):
                log.write(b"during\n")
                log.flush()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            done = mounted.run("snapshot", "create", str(mounted.mnt / "run"), "s", "--json")
        finally:
            stop.set()
            writer.join()
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)
    assert taken["open_file_count"] == 1
    whole = (mounted.mnt / "run" / "log").read_bytes()
    kept = Path(taken["place"], "log")
    eventually(kept.exists)
    content = kept.read_bytes()
    assert content.startswith(b"before\n" * 1000)
    assert whole.startswith(content)
    assert len(content) == taken["size_bytes"]


def test_programs_go_on_in_the_tree_that_was_replaced(mounted: volumes.Lab) -> None:
    run = mounted.mnt / "run"
    run.mkdir()
    for name in ("a", "b"):
        (run / name).write_text("old")
    assert mounted.run("snapshot", "create", str(run), "s").returncode == 0
    for name in ("a", "b"):
        (run / name).write_text("new")
    (run / "staged").write_text("of after the snapshot")
    refused = mounted.run("restore", str(run), "s")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    seen: set[tuple[str, ...]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(one_look(run))

    looking = threading.Thread(target=look)
    looking.start()
    with (run / "a").open("r+") as opened, (run / "staged").open("r+") as staged:
        try:
            assert mounted.run("restore", str(run), "s", "--force").returncode == 0
            eventually(lambda: (run / "a").read_text() == "old")
        finally:
            stop.set()
            looking.join()
        assert os.fstat(opened.fileno()).st_nlink == 0, "it has no name any more, and is there"
        assert (opened.read(), staged.read()) == ("new", "of after the snapshot")
        opened.seek(0)
        opened.write("still written to")
        opened.flush()
        os.fsync(opened.fileno())
        opened.seek(0)
        assert opened.read() == "still written to"
    assert sorted(os.listdir(run)) == ["a", "b"]
    assert seen >= {("new", "new")}
    assert seen <= {("new", "new"), ("old", "old"), ("new", "gone"), ("gone", "gone")}, "never a mixture"
    eventually(lambda: os.listdir(mounted.mnt / ".tieredfs" / "clones") == [])
    mounted.unmount(flush=True)
    assert mounted.json("fsck", mounted.url)["clean"] is True


def one_look(run: Path) -> tuple[str, ...]:
    """Two files of one directory, whichever has the name now."""
    found = []
    directory = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in ("a", "b"):
            try:
                descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
            except OSError as error:
                found.append("gone" if error.errno in {errno.ENOENT, errno.ESTALE} else str(error))
                continue
            with os.fdopen(descriptor) as file:
                found.append(file.read())
    finally:
        os.close(directory)
    return tuple(found)


@pytest.mark.parametrize("inodes", [None, "all", [[1]], ["1"], {}])
def test_a_mount_is_asked_to_store_inodes_and_nothing_else(mounted: volumes.Lab, inodes: object) -> None:
    with pytest.raises(InvalidRequestError, match="list of inodes"):
        mounted.ask("store", inodes=inodes)
    assert mounted.ask("store", inodes=[12345]) == {"stored": []}
