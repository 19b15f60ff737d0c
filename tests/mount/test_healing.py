"""With two of the six disks gone everything goes on, through a real mount; when they are back, so is the redundancy."""

import contextlib
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.mount.volumes import CrashTokens, Lab, wait_until
from tieredfs.errors import UnavailableError
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.testing.metadata_check import broken_invariants

LOST = (1, 4)
OTHERS = (0, 2)


def take_away(lab: Lab, *disks: int) -> None:
    for disk in disks:
        lab.disk(disk).rename(lab.root / f"away{disk}")


def bring_back(lab: Lab, *disks: int) -> None:
    for disk in disks:
        (lab.root / f"away{disk}").rename(lab.disk(disk))


def write(lab: Lab) -> dict[str, bytes]:
    """A file of three blocks, synced, and small ones that share one."""
    contents = {"large": os.urandom(9 * MIB)} | {f"small-{number}": os.urandom(3000) for number in range(20)}
    for name, data in contents.items():
        with open(lab.mnt / name, "wb") as file:
            file.write(data)
            if name == "large":
                file.flush()
                os.fsync(file.fileno())
    return contents


def short(lab: Lab) -> Any:
    return lab.ask("status")["volume"]["short"]


def healed_by_whom_there_is(lab: Lab) -> bool:
    with contextlib.suppress(UnavailableError):  # between two daemons
        return bool(short(lab)["block_count"] == 0)
    return False


def assert_reads(lab: Lab, contents: dict[str, bytes]) -> None:
    """From the store: nothing is left on the SSD."""
    lab.ask("evict", paths=["."])
    assert lab.ask("status")["cache"]["resident_files"] == 0
    for name, data in contents.items():
        assert (lab.mnt / name).read_bytes() == data, name


def assert_whole(lab: Lab) -> None:
    """Every block of the volume has a chunk on each of the six disks."""
    with lab.open() as volume:
        assert [block.missing for block in volume.metadata.list_blocks(0, 1000) if block.missing] == []  # type: ignore[arg-type]
        assert broken_invariants(volume._engine) == []


@pytest.mark.parametrize("durability", [Durability.SSD, Durability.STORE], ids=lambda durability: durability.name)
def test_two_disks_go_and_come_back_and_then_two_others_go(lab: Lab, durability: Durability) -> None:
    lab.format(durability=durability)
    lab.mount()
    take_away(lab, *LOST)
    contents = write(lab)
    if durability is Durability.STORE:
        assert short(lab)["bare_count"] >= 3, "fsync returned: the file is stored, on the four disks that there are"
    lab.ask("drain")
    assert lab.ask("info", path="large")["state"] == "stored"
    assert {block["missing_chunks"] for block in lab.ask("info", path="large")["blocks"]} == {2}
    found, status = short(lab), lab.ask("status")["volume"]
    assert found["block_count"] == found["bare_count"] >= 4
    assert found["size_bytes"] >= sum(map(len, contents.values()))
    assert (status["safe"], status["redundancy"], status["staged"]["file_count"]) == (False, 0, 0)
    kept = lab.ask("evict", paths=list(contents))
    assert (kept["evicted"], kept["kept_bare"], kept["kept"]) == (0, len(contents), len(contents))
    bring_back(lab, *LOST)
    wait_until(lambda: short(lab)["block_count"] == 0, "all is healed by itself")
    assert lab.ask("status")["volume"]["safe"]
    assert_whole(lab)
    take_away(lab, *OTHERS)
    assert_reads(lab, contents)
    bring_back(lab, *OTHERS)
    lab.unmount(flush=True)
    assert lab.run("fsck", lab.url).returncode == 0


def test_disks_that_were_missing_at_the_mount_are_noticed_by_the_running_daemon(lab: Lab) -> None:
    lab.format()
    take_away(lab, *LOST)
    lab.mount()
    contents = write(lab)
    lab.ask("drain")
    daemon = lab.daemon_pid()
    assert short(lab)["bare_count"] >= 4
    bring_back(lab, *LOST)
    wait_until(lambda: short(lab)["block_count"] == 0, "the disks are found and all is healed")
    assert lab.daemon_pid() == daemon
    take_away(lab, *OTHERS)
    assert_reads(lab, contents)
    bring_back(lab, *OTHERS)
    lab.unmount()


def test_what_is_bare_stays_on_the_ssd_through_a_restart_and_is_read_there(lab: Lab) -> None:
    """The disks that were away come back empty-handed, and one that has the chunks goes: only the copy is left."""
    lab.format()
    lab.mount()
    take_away(lab, *LOST)
    contents = write(lab)
    lab.unmount(flush=True)
    lab.mount()
    assert lab.ask("evict", paths=["."])["evicted"] == 0
    take_away(lab, *OTHERS)
    for name, data in contents.items():
        assert (lab.mnt / name).read_bytes() == data
    bring_back(lab, *OTHERS, *LOST)
    wait_until(lambda: short(lab)["block_count"] == 0, "all is healed")
    assert_reads(lab, contents)
    lab.unmount()


def test_deleted_disks_are_replaced_and_the_blocks_move_on_to_the_new_ones(lab: Lab) -> None:
    lab.format()
    lab.mount()
    for disk in LOST:
        shutil.rmtree(lab.disk(disk))
    contents = write(lab)
    lab.ask("drain")
    for number, disk in enumerate(LOST):
        assert lab.run("disk", "add", lab.url, f"disk://{lab.root}/new{number}").returncode == 0
        assert lab.run("disk", "rebuild", lab.url, str(disk + 1)).returncode == 0
    wait_until(lambda: short(lab)["block_count"] == 0, "the daemon heard of the new disks and healed")
    take_away(lab, *OTHERS)
    assert_reads(lab, contents)
    bring_back(lab, *OTHERS)
    lab.unmount()
    assert lab.run("fsck", lab.url).returncode == 0


@pytest.mark.parametrize("everybody", [False, True], ids=["daemon", "daemon and keeper"])
@pytest.mark.parametrize("point", ["rebuild.chunk-written", "rebuild.committed"])
def test_a_daemon_dies_while_it_heals(lab: Lab, tmp_path: Path, point: str, everybody: bool) -> None:
    tokens = CrashTokens(tmp_path / "tokens")
    lab.format()
    with tokens.armed():
        lab.mount()
        take_away(lab, *LOST)
        contents = write(lab)
        lab.ask("drain")
        tokens.lay(point, everybody=everybody)
        bring_back(lab, *LOST)
        wait_until(lambda: tokens.left() == [], "the daemon died while it healed")
        if everybody:
            wait_until(lambda: lab.mounts[-1].process.poll() is not None, "the keeper died, too")
            lab.run("umount", str(lab.mnt))
            lab.mount()
        wait_until(lambda: healed_by_whom_there_is(lab), "its successor finished")
    take_away(lab, *OTHERS)
    assert_reads(lab, contents)
    bring_back(lab, *OTHERS)
    lab.unmount()
    assert lab.run("gc", lab.url).returncode == 0
    assert lab.run("fsck", lab.url).returncode == 0


def first_line(process: "subprocess.Popen[str]") -> str:
    """On standard error."""
    assert process.stderr is not None
    assert select.select([process.stderr], [], [], 60)[0], "it says nothing"
    return process.stderr.readline()


def test_a_store_that_takes_nothing_says_why_and_goes_on_when_it_can(lab: Lab) -> None:
    lab.format()
    lab.mount()
    take_away(lab, *LOST, 5)
    contents = write(lab)
    for command in (["drain"], ["umount", "--flush"]):
        waiting = lab.start(*command, str(lab.mnt))
        said = first_line(waiting)
        assert "still waiting" in said
        assert "rs:4+2 needs 4 disks at least; 3 of 6 can take a chunk" in said
        bring_back(lab, 5)
        assert waiting.wait(60) == 0
        take_away(lab, 5)
        if command == ["drain"]:
            contents["late"] = os.urandom(5000)
            (lab.mnt / "late").write_bytes(contents["late"])
    bring_back(lab, 5)
    lab.mount()
    bring_back(lab, *LOST)
    wait_until(lambda: short(lab)["block_count"] == 0, "all is healed")
    assert_reads(lab, contents)
    lab.unmount()
