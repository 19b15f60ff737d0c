"""What is there after power came back: everything that was acknowledged.

Each story is told to a machine, then the power is cut in every way that matters: changes of names reached the disk or not, bytes
did or did not or were torn, and the database came back as it was last synced or as it was in the end.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cache.dying import ONE, TWO
from tests.cache.power import CALLER, Life, Machine, Machines
from tests.whole_files import get
from tieredfs.cache.recover import newest_of
from tieredfs.config import parse_code
from tieredfs.errors import NotFoundError
from tieredfs.host.crash import ENVIRONMENT
from tieredfs.model import ROOT, BlockId, Durability
from tieredfs.volume import FileSystem, format_volume

ROOT_FOLDER = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.allows_warnings("staged file.* were not on the SSD any more", "is damaged|was repaired|chunk"),
]


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}.{seed}").randbytes(size)


OLD = content(150_001)
NEW = content(90_000)
HEAD = content(4096)
CHANGED = HEAD + OLD[len(HEAD) :]
LONGER = OLD + NEW


class Fate(random.Random):
    """The power cut that is asked for: whether changes of names survive, and what becomes of bytes."""

    def __init__(self, names: bool, data: str) -> None:
        super().__init__(7)
        self._keeps_names, self._data = names, data

    def randint(self, a: int, b: int) -> int:
        return b if self._keeps_names else a

    def choice(self, seq: Any) -> Any:
        return self._data if self._data in seq else super().choice(seq)


FATES = [
    (names, data, copy)
    for names, data, copy in itertools.product([True, False], ["synced", "whole", "torn"], [0, -1])
    if names or data == "torn" or copy
]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(tmp_path_factory.mktemp("power"))


@pytest.fixture(scope="module")
def safe_machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(tmp_path_factory.mktemp("power"), Durability.STORE)


@pytest.fixture
def machine(machines: Machines) -> Iterator[Machine]:
    with machines.machine() as made:
        yield made


Allowed = dict[str, Callable[[bytes | None], bool]]
"""Whether a name may show these bytes; None: it is not there."""


def exactly(*contents: bytes | None) -> Callable[[bytes | None], bool]:
    return lambda found: found in contents


def appended(before: bytes, after: bytes) -> Callable[[bytes | None], bool]:
    """All of `before`; what was appended and not synced may be there, or not, or be zeros."""

    def holds(found: bytes | None) -> bool:
        if found is None or len(found) not in {len(before), len(after)} or not found.startswith(before):
            return False
        return all(got in (0, wanted) for got, wanted in zip(found[len(before) :], after[len(before) :], strict=False))

    return holds


def check(life: Life, allowed: Allowed) -> None:
    """Now, and when everything has been through the store."""
    found = life.everything()
    assert set(found) <= set(allowed)
    for name, holds in allowed.items():
        assert holds(found.get(name)), f"{name}: {len(found.get(name) or b'')} bytes that cannot be"
    life.drain()
    life.evict()
    assert life.local_files() == []
    assert life.everything() == found


# ---- stories --------------------------------------------------------------------------------------------------------


def written_and_synced(life: Life) -> Allowed:
    """Still open: nobody has told the metadata its size."""
    handle = life.create("file")
    life.write(handle, OLD)
    life.sync(handle)
    return {"file": exactly(OLD)}


def opened_for_writing_again(life: Life) -> Allowed:
    """The local file has been renamed to a version that the database may have forgotten."""
    life.put("file", OLD)
    handle = life.open("file")
    life.write(handle, NEW, len(OLD))
    life.close(handle)
    return {"file": appended(OLD, LONGER)}


def drained_and_evicted(life: Life) -> Allowed:
    """Only the store has it, if the database says so."""
    life.put("file", OLD)
    life.drain()
    life.evict()
    assert life.local_files() == []
    return {"file": exactly(OLD)}


def replaced_by_renaming(life: Life) -> Allowed:
    """As careful programs replace a file: old or new, never anything else."""
    life.put("file", OLD)
    life.put("other", NEW)
    life.rename("other", "file")
    assert life.everything() == {"file": NEW}
    return {"file": exactly(OLD, NEW), "other": exactly(NEW, None)}


def deleted(life: Life) -> Allowed:
    life.put("file", OLD)
    life.unlink("file")
    return {"file": exactly(OLD, None)}


def stored_then_changed_in_place(life: Life) -> Allowed:
    """What was never synced here is torn by the power cut; what is in the store must not give way to that."""
    life.put("file", OLD, sync=False)
    life.drain()
    handle = life.open("file")
    life.write(handle, HEAD)
    life.close(handle)
    return {"file": exactly(OLD, CHANGED)}


def stored_then_changed_from_the_store(life: Life) -> Allowed:
    """The same with a copy that came from the store."""
    life.put("file", OLD)
    life.drain()
    life.evict()
    handle = life.open("file")
    life.write(handle, HEAD)
    life.close(handle)
    return {"file": exactly(OLD, CHANGED)}


def stored_then_emptied(life: Life) -> Allowed:
    """Nothing was written after that. Somebody's fsync made the names durable, not the bytes."""
    life.put("file", OLD, sync=False)
    life.put("neighbour", NEW)
    life.drain()
    life.open("file", os.O_RDWR | os.O_TRUNC)
    return {"file": exactly(OLD, b""), "neighbour": exactly(NEW)}


def stored_then_emptied_under_a_reader(life: Life) -> Allowed:
    life.put("file", OLD, sync=False)
    life.drain()
    life.open("file", os.O_RDONLY)
    life.open("file", os.O_RDWR | os.O_TRUNC)
    return {"file": exactly(OLD, b"")}


def synced_by_a_reader(life: Life) -> Allowed:
    """As `sync FILE` does when the writer has closed."""
    life.put("file", OLD, sync=False)
    handle = life.open("file", os.O_RDONLY)
    life.sync(handle)
    return {"file": exactly(OLD)}


def synced_again_after_more(life: Life) -> Allowed:
    handle = life.create("file")
    life.write(handle, OLD)
    life.sync(handle)
    life.write(handle, NEW, len(OLD))
    life.sync(handle)
    life.close(handle)
    return {"file": exactly(LONGER)}


def written_with_o_dsync(life: Life) -> Allowed:
    handle = life.operations.create(ROOT, b"file", 0o644, os.O_RDWR | os.O_DSYNC, CALLER)[1].handle
    life.write_synced(handle, OLD)
    return {"file": exactly(OLD)}


def stored_then_changed_with_o_dsync(life: Life) -> Allowed:
    life.put("file", OLD)
    life.drain()
    handle = life.open("file", os.O_RDWR | os.O_DSYNC)
    life.write_synced(handle, HEAD)
    return {"file": exactly(CHANGED)}


def written_together(life: Life) -> Allowed:
    """In a segment, behind each other, and behind them what was never acknowledged."""
    life.pack({"file": OLD, "empty": b""})
    life.pack({"other": NEW})
    life.tier.pack([LONGER], [life.metadata.new_inode_id()], 1)
    return {"file": exactly(OLD), "empty": exactly(b""), "other": exactly(NEW)}


def written_together_and_changed(life: Life) -> Allowed:
    """It has a local file of its own by then."""
    life.pack({"file": OLD, "other": NEW})
    handle = life.open("file")
    life.write(handle, NEW, len(OLD))
    life.close(handle)
    return {"file": appended(OLD, LONGER), "other": exactly(NEW)}


def written_together_where_others_were(life: Life) -> Allowed:
    """A segment is used again and again: what was there before is stored or deleted, and is not missed."""
    numbers: set[int] = set()
    for turn in range(4):
        life.pack({f"stored-{turn}": OLD, f"deleted-{turn}": LONGER})
        life.unlink(f"deleted-{turn}")
        life.drain()
        numbers |= set(life.ssd.directory.segment_numbers())
    assert len(numbers) <= 3, "four times as much was written"
    life.pack({"file": NEW})
    stored = {f"stored-{turn}": exactly(OLD) for turn in range(4)}
    return stored | {f"deleted-{turn}": exactly(None) for turn in range(4)} | {"file": exactly(NEW)}


def written_together_and_deleted(life: Life) -> Allowed:
    """One of them, and its place was given to another."""
    life.pack({"file": OLD, "other": LONGER})
    life.unlink("other")
    for turn in range(3):
        life.pack({f"more-{turn}": LONGER})
        life.unlink(f"more-{turn}")
    return {"file": exactly(OLD), "other": exactly(None)} | {f"more-{turn}": exactly(None, LONGER) for turn in range(3)}


STORIES = [
    written_together,
    written_together_and_changed,
    written_together_where_others_were,
    written_together_and_deleted,
    written_with_o_dsync,
    stored_then_changed_with_o_dsync,
    written_and_synced,
    opened_for_writing_again,
    drained_and_evicted,
    replaced_by_renaming,
    deleted,
    stored_then_changed_in_place,
    stored_then_changed_from_the_store,
    stored_then_emptied,
    stored_then_emptied_under_a_reader,
    synced_by_a_reader,
    synced_again_after_more,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_what_was_acknowledged_outlives_every_power_cut(machines: Machines, story: Callable[[Life], Allowed]) -> None:
    lost = 0
    for names, data, copy in FATES:
        with machines.machine() as machine:
            allowed = story(machine.life) | {"unsafe": lambda _: True}
            machine.life.put("unsafe", NEW, sync=False)
            before = machine.life.files
            machine.life.step_done()
            after = machine.power_cut(Fate(names, data), copy)
            lost += before.lost_changes + before.lost_bytes
            check(after, allowed)
    assert lost, "the fault happened"


@pytest.mark.parametrize("data", ["synced", "whole", "torn"])
@pytest.mark.parametrize("names", [True, False])
def test_fsync_at_durability_store_outlives_the_power_cut_too(safe_machines: Machines, names: bool, data: str) -> None:
    """The file stays open, hence staged, and recovery prefers what is staged to what is stored."""
    with safe_machines.machine() as machine:
        handle = machine.life.create("file")
        machine.life.write(handle, OLD)
        machine.life.sync(handle)
        assert machine.life.metadata.extents(machine.life.inode("file")), "it is in the store"
        machine.life.write(handle, NEW, len(OLD))
        machine.life.step_done()
        check(machine.power_cut(Fate(names=names, data=data), 0), {"file": appended(OLD, LONGER)})


def test_fsync_at_durability_store_outlives_the_ssd(safe_machines: Machines) -> None:
    with safe_machines.machine() as machine:
        handle = machine.life.create("file")
        machine.life.write(handle, OLD)
        machine.life.sync(handle)
        machine.life.local("file").unlink()
        life = machine.process_death()
        assert life.ssd.recovered.staged == 0
        check(life, {"file": exactly(OLD)})


# ---- what recovery finds ----------------------------------------------------------------------------------------------


def local_path(life: Life, name: str, version: int) -> Path:
    return Path(life.ssd.directory.content(life.inode(name), version))


@pytest.mark.parametrize("point", ["pack.written", "unpack.done"])
def test_killed_in_a_segment_or_on_the_way_out_of_it_it_is_whole(tmp_path: Path, point: str) -> None:
    """A process of its own writes two files together and takes one out; it dies at the point."""
    url = f"sqlite://{tmp_path}/volume.db"
    format_volume(url, [f"disk://{tmp_path}/d"], code=parse_code("replica:1"), durability=Durability.SSD, name="dying")
    line = [sys.executable, "-m", "tests.cache.dying", url]
    killed = subprocess.run(
        line, env=os.environ | {ENVIRONMENT: f"{point}:1"}, cwd=ROOT_FOLDER, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    with FileSystem.at(url, purpose="test") as volume:
        found = {path: get(volume, path) for path, _ in volume.walk(b"")}
        assert found == ({} if point == "pack.written" else {b"one": ONE, b"two": TWO})
        volume.flush(30)
        assert {path: get(volume, path) for path in found} == found
        segments = Path(volume._tier.part.directory.segments)
        assert [path for path in segments.iterdir() if path.stat().st_size] == []


@pytest.mark.parametrize(
    ("version", "found", "chosen"),
    [
        (3, [3], 3),
        (3, [2], 2),
        (3, [1, 2], 2),
        (3, [4], 4),
        (3, [5, 4], 4),
        (3, [2, 4], 4),
        (3, [2, 3, 4], 3),
        (3, [], None),
    ],
)
def test_which_local_file_is_the_staged_content(version: int, found: list[int], chosen: int | None) -> None:
    assert newest_of(version, found) == chosen


@pytest.mark.parametrize("change", [-1, 1, 4])
def test_a_staged_file_under_another_version_is_taken(machine: Machine, change: int) -> None:
    machine.life.put("file", OLD)
    machine.life.close(machine.life.open("file", os.O_RDWR))
    machine.life.drain()
    handle = machine.life.open("file")
    machine.life.write(handle, NEW, len(OLD))
    machine.life.sync(handle)
    path = machine.life.local("file")
    version = int(path.suffix[1:], 16)
    path.rename(local_path(machine.life, "file", version + change))
    life = machine.process_death()
    assert life.ssd.recovered.staged == 1
    assert life.local("file").suffix == f".{version:x}"
    check(life, {"file": exactly(LONGER)})


def test_of_several_versions_one_remains(machine: Machine) -> None:
    machine.life.put("file", OLD)
    for version in (2, 9):
        local_path(machine.life, "file", version).write_bytes(b"of no use")
    life = machine.process_death()
    assert len(life.local_files()) == 1
    check(life, {"file": exactly(OLD)})


def test_a_staged_file_that_is_missing_is_back_at_its_stored_content(machine: Machine) -> None:
    machine.life.put("stored", OLD)
    machine.life.drain()
    handle = machine.life.open("stored")
    machine.life.write(handle, NEW, len(OLD))
    machine.life.close(handle)
    machine.life.put("never", NEW)
    for name in ("stored", "never"):
        machine.life.local(name).unlink()
    life = machine.process_death()
    assert len(life.ssd.recovered.rolled_back) == 2
    check(life, {"stored": exactly(OLD), "never": exactly(b"")})
    assert life.metadata.staged() == []


def test_an_empty_file_needs_no_local_file(machine: Machine) -> None:
    machine.life.create("file")
    machine.life.local("file").unlink()
    life = machine.process_death()
    assert life.ssd.recovered.rolled_back == ()
    check(life, {"file": exactly(b"")})


def test_a_local_file_that_lost_its_bytes_is_what_it_is(machine: Machine) -> None:
    """Nobody synced it, and the file system kept the name only."""
    machine.life.put("file", OLD, sync=False)
    machine.life.local("file").write_bytes(b"")
    check(machine.process_death(), {"file": exactly(b"")})


def test_fills_that_were_interrupted_are_thrown_away(machine: Machine) -> None:
    machine.life.put("file", OLD)
    machine.life.drain()
    machine.life.evict()
    partial = Path(machine.life.ssd.directory.filling(machine.life.inode("file"), 1))
    partial.write_bytes(bytes(len(OLD)))
    life = machine.process_death()
    assert not partial.exists()
    check(life, {"file": exactly(OLD)})


def test_copies_stay_while_the_machine_is_up_and_go_when_it_was_down(machine: Machine) -> None:
    machine.life.put("file", OLD)
    machine.life.drain()
    life = machine.process_death()
    assert life.ssd.recovered.copies_kept == 1
    life.local("file").write_bytes(b"torn")
    life.forget_boot()
    life = machine.process_death()
    assert (life.ssd.recovered.copies_kept, life.ssd.recovered.files_removed) == (0, 1)
    check(life, {"file": exactly(OLD)})


def test_a_recovery_that_is_killed_trusts_no_copy_in_its_second_life(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.life.put("file", OLD)
    machine.life.drain()
    machine.life.local("file").write_bytes(b"torn")
    machine.life.forget_boot()
    deaths = []

    def die(*_: object) -> None:
        deaths.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tieredfs.cache.recover._sort_copies", die)
        with pytest.raises(KeyboardInterrupt):
            machine.process_death()
    assert deaths, "the recovery was killed"
    life = machine.life = Life(machine.life.root)
    check(life, {"file": exactly(OLD)})


def test_local_files_of_no_inode_or_of_another_version_go(machine: Machine) -> None:
    inode = machine.life.put("file", OLD)
    machine.life.drain()
    stale = local_path(machine.life, "file", 77)
    stale.write_bytes(b"of a version that never was")
    unknown = Path(machine.life.ssd.directory.content(type(inode)(inode + 500), 1))
    unknown.write_bytes(b"of an inode that never was")
    foreign = stale.with_name("not-ours")
    foreign.touch()
    life = machine.process_death()
    assert not stale.exists()
    assert not unknown.exists()
    assert foreign.exists(), "what is not ours is left alone"
    assert life.ssd.recovered.copies_kept == 1
    with pytest.raises(NotFoundError):
        life.metadata.attributes(type(inode)(inode + 500))
    foreign.unlink()
    check(life, {"file": exactly(OLD)})


def test_an_fsync_is_one_only_when_the_database_is_durable_too(machine: Machine) -> None:
    handle = machine.life.create("file")
    machine.life.write(handle, OLD)
    before = machine.life.durable_copies
    machine.life.sync(handle)
    assert machine.life.durable_copies == before + 1
    assert machine.life.metadata.list_blocks(BlockId(0), 10) == []
