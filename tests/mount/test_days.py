"""Bad input and bad days, as a user meets them: through `python -m tieredfs` and through the mount."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount import volumes
from tests.mount.volumes import Lab, is_mounted, wait_until
from tieredfs.errors import ConfigurationError, NotSupportedError, TieredError
from tieredfs.fuse.mounting import Machine, choose_driver
from tieredfs.host import libc
from tieredfs.limits import MIB, TIB
from tieredfs.testing.features import children, finish

REQUEST, CONDITION, INTEGRITY = 2, 3, 4
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for mount(2)")


def refused(done: "subprocess.CompletedProcess[str]", code: int, *words: str) -> None:
    """The command ended with that code and one line that says all of this."""
    assert done.returncode == code, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def format_arguments(lab: Lab, *, url: str = "", disks: str = "d{0..5}") -> list[str]:
    return ["format", url or lab.url, "--data", f"disk://{lab.root}/{disks}", "--block-size", "4MiB"]


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size."""
    path.mkdir(exist_ok=True)
    libc.mount("tmpfs", str(path), "tmpfs", 0, f"size={size_bytes}")
    try:
        yield path
    finally:
        libc.unmount(str(path), libc.MNT_DETACH)


def chunk_files(lab: Lab) -> list[Path]:
    return sorted(path for disk in range(6) for path in lab.disk(disk).glob("chunks/*/*"))


# ---- format, destroy -------------------------------------------------------------------------------------------------


class TestFormat:
    def test_over_a_volume_is_refused_unless_forced(self, lab: Lab) -> None:
        assert lab.run(*format_arguments(lab)).returncode == 0
        lab.mnt.mkdir()
        lab.mount()
        (lab.mnt / "precious").write_bytes(os.urandom(MIB))
        lab.unmount(flush=True)
        chunks = chunk_files(lab)
        assert len(chunks) == 6
        refused(lab.run(*format_arguments(lab)), REQUEST, "there is a volume at", "--force")
        refused(
            lab.run(*format_arguments(lab, url=f"sqlite://{lab.root}/other.db")),
            REQUEST,
            "is a disk of volume",
            "--force",
        )
        assert not (lab.root / "other.db").exists()
        assert chunk_files(lab) == chunks
        lab.mount()
        assert (lab.mnt / "precious").stat().st_size == MIB
        refused(lab.run(*format_arguments(lab), "--force"), CONDITION, "in use by", "mount")
        refused(lab.run("destroy", lab.url, "--yes"), CONDITION, "in use by", "mount")
        lab.unmount()
        assert lab.run(*format_arguments(lab), "--force").returncode == 0
        assert chunk_files(lab) == []
        shutil.rmtree(lab.root / "cache")
        lab.mount()
        assert os.listdir(lab.mnt) == []

    def test_over_foreign_files_is_refused_even_when_forced(self, lab: Lab) -> None:
        lab.disk(3).mkdir()
        (lab.disk(3) / "thesis.tex").write_text("years of work")
        for force in ([], ["--force"]):
            refused(lab.run(*format_arguments(lab), *force), REQUEST, "is not empty", "thesis.tex")
        assert (lab.disk(3) / "thesis.tex").read_text() == "years of work"
        assert not (lab.root / "volume.db").exists()

    def test_forced_over_a_file_that_is_no_volume_is_refused(self, lab: Lab) -> None:
        (lab.root / "volume.db").write_bytes(b"my diary\n" * 1000)
        refused(lab.run(*format_arguments(lab)), REQUEST, "volume.db")
        done = lab.run(*format_arguments(lab), "--force")
        assert done.returncode in {REQUEST, INTEGRITY}, done
        assert (lab.root / "volume.db").read_bytes() == b"my diary\n" * 1000, "not ours, not ours to delete"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--code", "rs:4+2", "--data", "disk://{root}/d{{0..4}}"], ["rs:4+2", "6", "5"]),
            (["--data", "disk://{root}/d{{0..5}}", "--block-size", "12345"], ["12345"]),
            (["--data", "ftp://bucket"], ["ftp://bucket"]),
            (["--code", "raid5", "--data", "disk://{root}/d{{0..5}}"], ["raid5"]),
            (["--data", "disk://{root}/d{{0..5}}", "--durability", "maybe"], ["maybe"]),
            (["--data", "disk://{root}/same", "--data", "disk://{root}/same", "--code", "replica:2"], ["same"]),
            ([], ["data"]),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, lab: Lab, arguments: list[str], words: list[str]) -> None:
        arguments = [argument.format(root=lab.root) for argument in arguments]
        refused(lab.run("format", lab.url, *arguments), REQUEST, *words)
        assert os.listdir(lab.root) == []

    def test_a_data_directory_that_is_a_file(self, lab: Lab) -> None:
        lab.disk(2).write_text("a file")
        refused(lab.run(*format_arguments(lab)), REQUEST, "d2 cannot be a data directory", "Not a directory")
        assert not (lab.root / "volume.db").exists()

    def test_destroy_wants_to_be_meant_and_deletes_all(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        (lab.mnt / "file").write_bytes(os.urandom(100))
        lab.unmount(flush=True)
        (lab.disk(1) / "note.txt").write_text("a stranger's")
        refused(lab.run("destroy", lab.url), REQUEST, "--yes")
        assert len(chunk_files(lab)) == 6
        assert lab.run("destroy", lab.url, "--yes").returncode == 0
        assert chunk_files(lab) == []
        assert not (lab.root / "volume.db").exists()
        assert (lab.disk(1) / "note.txt").read_text() == "a stranger's"
        refused(lab.run("status", lab.url), REQUEST, "volume.db")


# ---- mounting --------------------------------------------------------------------------------------------------------


class TestMountPoint:
    def test_each_that_cannot_be_one_is_refused_with_the_reason(self, lab: Lab) -> None:
        lab.format()
        (lab.root / "full").mkdir()
        (lab.root / "full/file").touch()
        (lab.root / "file").touch()
        refused(lab.run("mount", lab.url, f"{lab.root}/missing"), REQUEST, "does not exist")
        refused(lab.run("mount", lab.url, f"{lab.root}/full"), REQUEST, "is not empty")
        refused(lab.run("mount", lab.url, f"{lab.root}/file"), REQUEST, "is not a directory")
        lab.mount()
        refused(lab.run("mount", lab.url, str(lab.mnt)), REQUEST, "already a mount point")
        (lab.root / "fit").mkdir()
        refused(lab.run("mount", "sqlite:///nowhere/at/all.db", f"{lab.root}/fit"), REQUEST, "/nowhere/at/all.db")

    def test_what_is_no_mount_of_ours(self, lab: Lab) -> None:
        for verb in ("umount", "info", "warmup", "evict", "drain", "status"):
            refused(lab.run(verb, str(lab.root)), REQUEST, "not", "TieredFS mount")

    def test_a_mount_that_is_in_use_stays_and_says_so(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        with open(lab.mnt / "busy", "w") as file:
            done = lab.run("umount", str(lab.mnt))
            assert done.returncode == CONDITION
            assert "is in use" in done.stderr
            assert "try again" in done.stderr
            assert is_mounted(lab.mnt)
            file.write("still works")
        assert (lab.mnt / "busy").read_text() == "still works"
        assert lab.run("umount", "--flush", str(lab.mnt)).returncode == 0
        assert not is_mounted(lab.mnt)

    def test_the_mount_of_a_dead_daemon_is_taken_away_and_used_again(self, lab: Lab) -> None:
        lab.format()
        for how in ("umount", "mount"):
            mounted = lab.mount()
            (lab.mnt / f"before-{how}").write_text("acknowledged")
            daemon = lab.daemon_pid()
            os.kill(mounted.process.pid, signal.SIGKILL)  # the keeper first: it would start another daemon
            os.kill(daemon, signal.SIGKILL)
            mounted.process.wait(20)
            wait_until(lambda daemon=daemon: not Path(f"/proc/{daemon}").exists(), "the daemon is gone")
            assert is_mounted(lab.mnt)
            if how == "umount":
                assert lab.run("umount", str(lab.mnt)).returncode == 0
                assert not is_mounted(lab.mnt)
            lab.mounts.clear()
        lab.mount()  # over the stale one
        assert sorted(os.listdir(lab.mnt)) == ["before-mount", "before-umount"]
        assert (lab.mnt / "before-mount").read_text() == "acknowledged"

    def test_read_only(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        (lab.mnt / "file").write_text("content")
        lab.unmount()
        lab.mount(read_only=True)
        assert (lab.mnt / "file").read_text() == "content"
        with pytest.raises(OSError, match="Read-only"):
            (lab.mnt / "new").touch()
        with pytest.raises(OSError, match="Read-only"):
            (lab.mnt / "file").unlink()


CAPABLE = Machine((6, 12), True, True, True, True)


@pytest.mark.parametrize(
    ("wanted", "machine", "driver", "words"),
    [
        ("auto", CAPABLE, "kernel", "passthrough"),
        ("kernel", CAPABLE, "kernel", "passthrough"),
        ("fuse-python", CAPABLE, "fuse-python", "asked for"),
        ("auto", Machine((6, 8), True, True, True, True), "kernel", "6.8 has no FUSE passthrough"),
        ("auto", Machine((6, 12), True, True, False, True), "kernel", "needs root"),
        ("auto", Machine((6, 12), True, False, False, True), "kernel", "needs root"),
        ("auto", Machine((5, 3), True, True, True, True), "fuse-python", "older than 5.4"),
        ("kernel", Machine((5, 3), True, True, True, True), NotSupportedError, "Use --driver fuse-python"),
        ("auto", Machine((6, 12), False, True, True, True), NotSupportedError, "modprobe fuse"),
        ("fuse-python", Machine((6, 12), False, True, True, True), NotSupportedError, "modprobe fuse"),
        ("auto", Machine((6, 12), True, False, False, False), NotSupportedError, "fusermount"),
        ("windows", CAPABLE, ConfigurationError, "one of auto, kernel, fuse-python"),
    ],
)
def test_the_driver_for_a_machine(wanted: str, machine: Machine, driver: Any, words: str) -> None:
    if isinstance(driver, str):
        chosen, reason = choose_driver(wanted, machine)
        assert chosen == driver
        assert words in reason
        return
    with pytest.raises(driver, match=words):
        choose_driver(wanted, machine)


# ---- the cache directory ---------------------------------------------------------------------------------------------


def _fill(file: Any, size_mib: int) -> None:
    for _ in range(size_mib):
        file.write(b"h" * MIB)


class TestCacheDirectory:
    def test_two_mounts_of_one_are_refused(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        (lab.root / "second").mkdir()
        refused(lab.run("mount", lab.url, f"{lab.root}/second"), CONDITION, "in use by another mount", "--cache-dir")
        assert not is_mounted(lab.root / "second")
        (lab.mnt / "file").write_text("the first goes on")
        lab.mount(lab.root / "second", cache_dir=f"{lab.root}/cache2")
        assert (lab.root / "second/file").read_text() == "the first goes on"
        lab.unmount(point=lab.root / "second")

    def test_foreign_ones_are_refused(self, lab: Lab) -> None:
        lab.format()
        (lab.root / "mine").mkdir()
        (lab.root / "mine/file").touch()
        done = lab.run("mount", lab.url, str(lab.mnt), "--cache-dir", f"{lab.root}/mine")
        refused(done, REQUEST, "is not a cache directory and not empty")
        with volumes.lab() as other:
            other.format()
            other.mount()
            other.unmount()
            done = lab.run("mount", lab.url, str(lab.mnt), "--cache-dir", f"{other.root}/cache")
            refused(done, REQUEST, "is the cache of another volume")
        identity = lab.root / "newer/tieredfs-cache.json"
        identity.parent.mkdir()
        identity.write_text(json.dumps({"format": 99, "volume": "x", "cache": "y"}))
        refused(lab.run("mount", lab.url, str(lab.mnt), "--cache-dir", str(identity.parent)), REQUEST, "format 99")
        identity.write_text("{")
        refused(
            lab.run("mount", lab.url, str(lab.mnt), "--cache-dir", str(identity.parent)), INTEGRITY, "cache identity"
        )
        assert not is_mounted(lab.mnt)

    @ROOT_ONLY
    def test_a_full_ssd_says_so_to_the_program_and_loses_nothing(self, lab: Lab) -> None:
        lab.format()
        with small_disk(lab.root / "ssd", 700 * MIB):
            lab.mount(cache_dir=f"{lab.root}/ssd/cache")
            (lab.mnt / "before").write_bytes(b"b" * MIB)
            with open(lab.mnt / "huge", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                _fill(file, 800)
            (lab.mnt / "huge").unlink()
            wait_until(lambda: shutil.disk_usage(lab.root / "ssd").free > 300 * MIB, "its room is given back")
            assert (lab.mnt / "before").read_bytes() == b"b" * MIB
            (lab.mnt / "after").write_bytes(b"a" * MIB)
            lab.ask("drain")
            assert lab.ask("info", path="after")["state"] == "stored"
            lab.unmount()

    @ROOT_ONLY
    def test_nobody_waits_for_an_ssd_that_others_have_filled(self, lab: Lab) -> None:
        lab.format()
        with small_disk(lab.root / "ssd", 700 * MIB):
            lab.mount(cache_dir=f"{lab.root}/ssd/cache")
            (lab.mnt / "before").write_bytes(b"b" * MIB)
            lab.ask("drain")
            lab.ask("evict", paths=["before"])
            with open(lab.root / "ssd/foreign", "wb") as foreign:
                os.posix_fallocate(foreign.fileno(), 0, 500 * MIB)
            wait_until(lambda: lab.ask("status")["cache"]["full"], "the daemon has seen that the SSD is full")
            with pytest.raises(OSError, match="No space left"):
                (lab.mnt / "new").write_bytes(b"n")
            assert lab.ask("status")["cache"]["waits_for_room"] == 0
            assert "make room there" in (lab.root / "volume.db.log").read_text()
            (lab.root / "ssd/foreign").unlink()
            wait_until(lambda: not lab.ask("status")["cache"]["full"], "the daemon has seen that there is room")
            (lab.mnt / "new").write_bytes(b"n")
            lab.unmount()


# ---- disks -----------------------------------------------------------------------------------------------------------


class TestDisks:
    def put(self, lab: Lab, name: str = "file", size: int = 5 * MIB) -> bytes:
        data = os.urandom(size)
        (lab.mnt / name).write_bytes(data)
        lab.ask("drain")
        assert lab.ask("evict", paths=[name])["kept"] == 0
        return data

    def problems(self, lab: Lab) -> dict[int, str]:
        return {disk["disk"]: disk["problem"] for disk in lab.ask("status")["volume"]["disks"] if not disk["reachable"]}

    def test_a_missing_disk_and_one_of_another_volume_are_named_and_done_without(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        data = self.put(lab)
        lab.unmount()
        lab.disk(0).rename(lab.root / "unplugged")
        with volumes.lab() as other:
            other.format()
            lab.disk(1).rename(lab.root / "d1-away")
            other.disk(1).rename(lab.disk(1))
            lab.mount()
            problems = self.problems(lab)
            assert set(problems) == {1, 2}
            assert "d0" in problems[1]
            assert "belongs to volume" in problems[2]
            assert lab.ask("status")["volume"]["redundancy"] == 0
            assert (lab.mnt / "file").read_bytes() == data
            before = sorted(lab.disk(1).rglob("*"))
            (lab.mnt / "new").write_bytes(b"n" * MIB)
            assert (lab.mnt / "new").read_bytes() == b"n" * MIB
            assert sorted(lab.disk(1).rglob("*")) == before, "not a byte on another volume's disk"

    def test_foreign_files_on_a_disk_are_left_alone(self, lab: Lab) -> None:
        lab.format()
        (lab.disk(0) / "note.txt").write_text("a stranger's")
        (lab.disk(0) / "chunks/00").mkdir(exist_ok=True)
        (lab.disk(0) / "chunks/00/strange").write_text("a stranger's")
        lab.mount()
        data = self.put(lab)
        assert (lab.mnt / "file").read_bytes() == data
        assert self.problems(lab) == {}
        lab.unmount()
        assert lab.run("gc", lab.url).returncode == 0
        assert lab.run("fsck", lab.url).returncode == 0
        assert (lab.disk(0) / "note.txt").read_text() == "a stranger's"
        assert (lab.disk(0) / "chunks/00/strange").read_text() == "a stranger's"

    @ROOT_ONLY
    def test_a_disk_that_is_read_only_is_read_and_not_written(self, lab: Lab) -> None:
        with small_disk(lab.disk(2), 300 * MIB) as disk:
            lab.format()
            lab.mount()
            data = self.put(lab)
            lab.unmount()
            libc.mount("tmpfs", str(disk), "tmpfs", 32 | libc.MS_RDONLY, "size=300m")  # 32: MS_REMOUNT
            lab.mount()
            assert (lab.mnt / "file").read_bytes() == data
            again = self.put(lab, "again")
            assert (lab.mnt / "again").read_bytes() == again
            disks = {chunk["disk"] for chunk in lab.ask("info", path="again")["chunks"]}
            assert 3 not in disks
            lab.unmount()

    @ROOT_ONLY
    def test_a_full_disk_takes_no_chunk_and_the_others_do(self, lab: Lab) -> None:
        with small_disk(lab.disk(2), 100 * MIB) as disk:
            lab.format()
            (disk / "filler").write_bytes(bytes(60 * MIB))
            lab.mount()
            data = self.put(lab)
            assert (lab.mnt / "file").read_bytes() == data
            disks = {chunk["disk"] for chunk in lab.ask("info", path="file")["chunks"]}
            assert disks == {1, 2, 4, 5, 6}
            lab.unmount()

    @ROOT_ONLY
    def test_a_full_store_keeps_data_staged_and_says_so_until_there_is_room(self, lab: Lab) -> None:
        with contextlib.ExitStack() as stack:
            for number in range(3):
                disk = stack.enter_context(small_disk(lab.disk(number), 100 * MIB))
            lab.format(code="rs:2+1", disks=3)
            lab.mount()
            fillers = [lab.disk(number) / "filler" for number in range(3)]
            for filler in fillers:
                filler.write_bytes(bytes(60 * MIB))
            (lab.mnt / "file").write_bytes(b"f" * MIB)
            wait_until(lambda: lab.ask("status")["drain"]["last_error"], "the drain fails")
            assert "NoSpaceError" in lab.ask("status")["drain"]["last_error"]
            assert lab.ask("info", path="file")["state"] == "staged"
            assert (lab.mnt / "file").read_bytes() == b"f" * MIB
            for filler in fillers:
                filler.unlink()
            lab.ask("drain")
            assert lab.ask("info", path="file")["state"] == "stored"
            assert lab.ask("evict", paths=["file"])["evicted"] == 1
            assert (lab.mnt / "file").read_bytes() == b"f" * MIB
            assert lab.ask("status")["drain"]["last_error"] is None
            lab.unmount()
            assert disk.exists()


def chunk_paths(lab: Lab, name: str) -> list[Path]:
    """The chunks of a file of one block, by index: data first, then parity."""
    chunks = lab.ask("info", path=name)["chunks"]
    assert len({chunk["block"] for chunk in chunks}) == 1
    return [
        next(Path(chunk["url"].removeprefix("disk://")).glob(f"chunks/*/{chunk['block']}.{chunk['index']:02x}"))
        for chunk in sorted(chunks, key=lambda chunk: chunk["index"])
    ]


# ---- rotten chunks ---------------------------------------------------------------------------------------------------


def truncate(chunks: list[Path]) -> None:
    os.truncate(chunks[0], 10_000)


def flip(chunks: list[Path]) -> None:
    with open(chunks[0], "r+b") as file:
        file.seek(20_000)
        byte = file.read(1)
        file.seek(20_000)
        file.write(bytes([byte[0] ^ 1]))


def swap(chunks: list[Path]) -> None:
    first, second = chunks[0], chunks[1]
    first.rename(first.parent / "aside")
    second.rename(first)
    (first.parent / "aside").rename(second)


def duplicate(chunks: list[Path]) -> None:
    shutil.copyfile(chunks[1], chunks[0])


def remove(chunks: list[Path]) -> None:
    chunks[0].unlink()


def empty(chunks: list[Path]) -> None:
    chunks[0].write_bytes(b"")


@pytest.mark.parametrize("harm", [truncate, flip, swap, duplicate, remove, empty], ids=lambda harm: harm.__name__)
def test_chunks_that_rot_while_mounted_are_read_around_repaired_and_counted(
    lab: Lab, harm: Callable[[list[Path]], None]
) -> None:
    lab.format()
    lab.mount()
    data = os.urandom(4 * MIB)
    (lab.mnt / "file").write_bytes(data)
    lab.ask("drain")
    assert lab.ask("evict", paths=["file"])["evicted"] == 1
    chunks = chunk_paths(lab, "file")[:4]  # those that hold data, so that a read meets them
    before = [chunk.read_bytes() for chunk in chunks]
    harm(chunks)
    assert [chunk.exists() and chunk.read_bytes() for chunk in chunks] != before
    assert (lab.mnt / "file").read_bytes() == data
    wait_until(lambda: [chunk.exists() and chunk.read_bytes() for chunk in chunks] == before, "the damage is repaired")
    repair = lab.ask("status")["repair"]
    assert sum(value for value in repair.values() if isinstance(value, int)) > 0, repair
    lab.unmount()
    done = lab.run("fsck", lab.url)
    assert done.returncode == 0, done.stderr + done.stdout


def test_more_loss_than_the_code_bears_is_an_error_and_never_wrong_bytes(lab: Lab) -> None:
    lab.format()
    lab.mount()
    (lab.mnt / "file").write_bytes(os.urandom(4 * MIB))
    (lab.mnt / "other").write_bytes(b"o" * 9 * MIB)
    lab.ask("drain")
    lab.ask("evict", paths=["file"])
    away = {path: path.read_bytes() for path in chunk_paths(lab, "file")[:3]}
    for path in away:
        path.unlink()
    with pytest.raises(OSError, match="Input/output error"):
        (lab.mnt / "file").read_bytes()
    assert (lab.mnt / "other").read_bytes() == b"o" * 9 * MIB
    lab.unmount()
    assert lab.run("fsck", lab.url).returncode == 1
    for path, content in away.items():
        path.write_bytes(content)
    lab.mount()
    assert len((lab.mnt / "file").read_bytes()) == 4 * MIB


# ---- metadata --------------------------------------------------------------------------------------------------------


class TestMetadataFile:
    def test_garbage_and_what_is_no_volume(self, lab: Lab) -> None:
        lab.format()
        path = lab.root / "volume.db"
        good = path.read_bytes()
        for content, code in ((b"garbage" * 5000, INTEGRITY), (b"", REQUEST), (good[: len(good) // 2], INTEGRITY)):
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.write_bytes(content)
            for verb in (["mount", lab.url, str(lab.mnt)], ["status", lab.url]):
                done = lab.run(*verb)
                assert done.returncode in {code, INTEGRITY}, (content[:7], done)
                assert "Traceback" not in done.stderr
                assert "volume.db" in done.stderr
            assert path.read_bytes() == content, "it was not touched"
            assert not is_mounted(lab.mnt)
        database = sqlite3.connect(lab.root / "songs.db")
        database.execute("CREATE TABLE songs (title TEXT)")
        database.commit()
        database.close()
        done = lab.run("status", f"sqlite://{lab.root}/songs.db")
        assert done.returncode in {REQUEST, INTEGRITY}
        assert "songs.db" in done.stderr

    def test_a_newer_version_is_refused(self, lab: Lab) -> None:
        lab.format()
        database = sqlite3.connect(lab.root / "volume.db")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute(f"PRAGMA user_version={version + 1}")
        database.close()
        for verb in (["mount", lab.url, str(lab.mnt)], ["status", lab.url], ["gc", lab.url], ["fsck", lab.url]):
            refused(lab.run(*verb), REQUEST, f"has schema {version + 1}; this program knows {version}")
        assert not is_mounted(lab.mnt)

    @ROOT_ONLY
    def test_one_on_a_full_file_system_names_the_one_that_needs_room(self, lab: Lab) -> None:
        """Deleting files of the volume, the advice for a full store, needs room there itself."""
        with small_disk(lab.root / "small", 2 * MIB) as small:
            url = f"sqlite://{small}/volume.db"
            assert lab.run(*format_arguments(lab, url=url)).returncode == 0
            with (small / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * 4096)
            for verb in ("gc", "status"):
                refused(lab.run(verb, url), CONDITION, str(small), "make room on the file system that it is on")
            (small / "filler").unlink()
            assert lab.run("fsck", url).returncode == 0

    def test_a_missing_one(self, lab: Lab) -> None:
        for verb in ("status", "gc", "fsck", "config", "drain"):
            refused(lab.run(verb, lab.url), REQUEST, "volume.db", "tieredfs format")
        refused(lab.run("mount", lab.url, str(lab.root)), REQUEST)
        assert os.listdir(lab.root) == []
        refused(lab.run("status", "mysql://host/db"), REQUEST, "mysql")


# ---- names and shapes ------------------------------------------------------------------------------------------------


class TestShapes:
    def test_names(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        root = os.fsencode(lab.mnt)
        names = [
            b"n" * 255,
            b"\xff\xfe not utf-8",
            "ä".encode("latin-1"),
            b" ",
            b"new\nline",
            b"-rf",
            b"*?[",
            "☃".encode(),
        ]
        for name in names:
            with open(root + b"/" + name, "wb") as file:
                file.write(name)
        assert sorted(os.listdir(root)) == sorted(names)
        with pytest.raises(OSError, match="File name too long"):
            open(root + b"/" + b"n" * 256, "wb").close()
        lab.ask("drain")
        for name in names:
            told = lab.run("info", os.fsdecode(root + b"/" + name), "--json")
            assert told.returncode == 0, told.stderr
            assert json.loads(told.stdout)["state"] == "stored"
        assert lab.json("evict", str(lab.mnt))["evicted"] == len(names)
        for name in names:
            with open(root + b"/" + name, "rb") as file:
                assert file.read() == name

    def test_the_longest_path_and_a_thousand_directories(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        here = os.open(lab.mnt, os.O_RDONLY)
        for _ in range(1000):
            os.mkdir(b"d" * 5, dir_fd=here)
            deeper = os.open(b"d" * 5, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
        with open(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
            file.write(b"deep")
        os.close(here)
        lab.ask("drain")
        sums = lab.ask("info", path="")
        assert (sums["directories"], sums["files"], sums["staged_files"]) == (1000, 1, 0)
        base = os.fsencode(lab.mnt)
        path = base + b"/ddddd" * 600
        while len(path) < 4095:
            if not os.path.isdir(path):
                os.mkdir(path)
            left = 4095 - len(path) - 1
            path += b"/" + b"q" * (left if left <= 255 else min(200, left - 2))
        assert len(path) == 4095, "with its NUL the 4096 bytes that Linux allows"
        with open(path, "wb") as file:
            file.write(b"longest")
        assert os.stat(path).st_size == 7
        with pytest.raises(OSError, match="File name too long"):
            os.stat(path + b"x")
        subprocess.run(["rm", "-rf", str(lab.mnt / "ddddd")], check=True, timeout=60)
        assert os.listdir(lab.mnt) == []

    def test_a_sparse_file_of_a_tebibyte_comes_back_from_the_store(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        with open(lab.mnt / "sparse", "wb") as file:
            for offset in (0, TIB // 3, TIB - 5):
                file.seek(offset)
                file.write(b"point")
        assert (lab.mnt / "sparse").stat().st_size == TIB
        lab.ask("drain")
        told = lab.ask("info", path="sparse")
        assert sum(block["size_bytes"] for block in told["blocks"]) < MIB
        assert lab.ask("evict", paths=["sparse"])["evicted"] == 1
        with open(lab.mnt / "sparse", "rb") as file:
            for offset in (0, TIB // 3, TIB - 5):
                file.seek(offset)
                assert file.read(5) == b"point"
            file.seek(TIB // 2)
            assert file.read(MIB) == bytes(MIB)
        assert (lab.mnt / "sparse").stat().st_blocks * 512 < MIB
        assert lab.ask("status")["cache"]["used_bytes"] < MIB

    def test_eight_processes_at_disjoint_offsets(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        size, parts = 300_007, 16
        (lab.mnt / "file").touch()
        script = (
            "import os, sys; rank = int(sys.argv[1]); size, parts = int(sys.argv[2]), int(sys.argv[3])\n"
            "descriptor = os.open('file', os.O_WRONLY)\n"
            "for part in range(rank, 8 * parts, 8):\n"
            "    data = (b'%08d' % part) * (size // 8 + 1)\n"
            "    assert os.pwrite(descriptor, data[:size], part * size) == size\n"
            "os.fsync(descriptor); os.close(descriptor)\n"
        )
        commands = [[sys.executable, "-c", script, str(rank), str(size), str(parts)] for rank in range(8)]
        with children(commands, lab.mnt) as running:
            finish(running)

        def check() -> None:
            with open(lab.mnt / "file", "rb") as file:
                for part in range(8 * parts):
                    assert file.read(size) == ((b"%08d" % part) * (size // 8 + 1))[:size]
                assert file.read() == b""

        check()
        wait_until(
            lambda: (lab.ask("drain"), lab.ask("info", path="file")["state"])[1] == "stored",
            "every rank's close arrived",
        )
        assert lab.ask("evict", paths=["file"])["evicted"] == 1
        check()

    def test_a_tree_is_removed_while_another_process_creates_in_it(self, lab: Lab) -> None:
        lab.format()
        lab.mount()
        (lab.mnt / "tree").mkdir()
        script = (
            "import os\n"
            "made = 0\n"
            "for number in range(100_000):\n"
            "    try:\n"
            "        os.makedirs(f'tree/{number % 7}', exist_ok=True)\n"
            "        with open(f'tree/{number % 7}/{number}', 'w') as file: file.write('x')\n"
            "        made += 1\n"
            "    except FileNotFoundError: pass\n"
            "    if number > 300 and os.path.exists('stop'): break\n"
            "print(made)\n"
        )
        with children([[sys.executable, "-c", script]], lab.mnt) as running:
            for _ in range(5):
                subprocess.run(["rm", "-rf", "tree"], cwd=lab.mnt, check=False, capture_output=True, timeout=60)
            (lab.mnt / "stop").touch()
            assert int(finish(running)[0]) > 0
        subprocess.run(["rm", "-rf", "tree"], cwd=lab.mnt, check=True, timeout=60)
        assert os.listdir(lab.mnt) == ["stop"]
        lab.ask("drain")
        lab.unmount()
        assert lab.run("fsck", lab.url).returncode == 0
        with lab.open() as volume:
            assert volume.metadata.orphans() == []
            assert volume.metadata.staged() == []


# ---- durability store ------------------------------------------------------------------------------------------------


def test_at_durability_store_what_was_fsynced_survives_the_loss_of_the_ssd(lab: Lab) -> None:
    lab.run(*format_arguments(lab), "--durability", "store")
    lab.mnt.mkdir(exist_ok=True)
    mounted = lab.mount()
    descriptor = os.open(lab.mnt / "model.pt", os.O_WRONLY | os.O_CREAT)
    assert os.write(descriptor, b"m" * 3 * MIB) == 3 * MIB
    os.fsync(descriptor)
    os.fsync(descriptor)
    assert lab.ask("status")["drain"]["stored_bytes"] == 3 * MIB, "the second fsync had nothing to do"
    daemon = lab.daemon_pid()
    os.kill(mounted.process.pid, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    mounted.process.wait(20)
    libc.unmount(str(lab.mnt), libc.MNT_DETACH)
    with pytest.raises(OSError, match="connect"):
        os.close(descriptor)
    lab.mounts.clear()
    shutil.rmtree(lab.root / "cache/content")
    lab.mount()
    assert (lab.mnt / "model.pt").read_bytes() == b"m" * 3 * MIB


@pytest.mark.parametrize("reader", ["none", "before", "after"])
def test_a_mapping_that_outlives_its_descriptor_is_read_back_whole(lab: Lab, reader: str) -> None:
    """Whether or not somebody has the file open for reading, since before it was mapped or after it."""
    lab.format()
    lab.mount()
    c = ctypes.CDLL(None, use_errno=True)
    c.mmap.restype = ctypes.c_void_p
    c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    (lab.mnt / "mapped").write_bytes(bytes(8192))
    lab.ask("drain")
    with contextlib.ExitStack() as readers:
        if reader == "before":
            readers.enter_context(open(lab.mnt / "mapped", "rb"))
        descriptor = os.open(lab.mnt / "mapped", os.O_RDWR)
        address = c.mmap(None, 8192, 3, 1, descriptor, 0)
        if reader == "after":
            readers.enter_context(open(lab.mnt / "mapped", "rb"))
        os.close(descriptor)
        lab.ask("drain")
        ctypes.memmove(address, b"early", 5)
        lab.ask("drain")
        ctypes.memmove(address + 4096, b"late", 4)
        c.munmap(address, 8192)
        lab.ask("drain")
    wait_until(lambda: lab.ask("evict", paths=["mapped"])["evicted"] == 1, "the file was evicted")
    assert (lab.mnt / "mapped").read_bytes() == b"early" + bytes(4091) + b"late" + bytes(4092)


def test_every_domain_error_has_a_line_and_no_traceback() -> None:
    from tieredfs.cli.outcomes import error_line, exit_code_of
    from tieredfs.errors import domain_errors

    for kind in domain_errors():
        error: TieredError = kind("what happened")
        assert error_line(error).startswith("tieredfs: ")
        assert exit_code_of(error) in {REQUEST, CONDITION, INTEGRITY}
