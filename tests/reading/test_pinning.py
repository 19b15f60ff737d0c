"""A version is pinned: whatever happens to the names, an epoch goes on with the files and the contents that it began with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.volumes import Lab, lab
from tests.reading.conftest import new_volume
from tests.reading.files import json_lines, numbered, parquet_bytes, put
from tieredfs.errors import NotFoundError
from tieredfs.model import Attributes, SessionId
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import DatasetReader, open_reader

ROOT = Path(__file__).parent.parent.parent
FILES = 4


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_volume(tmp_path)


@pytest.fixture
def volume(url: str) -> Iterator[FileSystem]:
    with FileSystem.at(url, purpose="test") as opened:
        yield opened


def fill(volume: FileSystem, offset: int = 0) -> None:
    for number in range(FILES):
        put(volume, f"data/{number}.parquet", parquet_bytes(numbered(500, offset + number * 500), 100))


def rows_of(reader: DatasetReader, epoch: int = 0) -> list[int]:
    return sorted(row for batch in reader.batches(Position(epoch, 0)) for row in batch.rows["row"].to_pylist())


def await_no_orphans(volume: FileSystem) -> None:
    """What a process removed it buries a moment later, in a thread of its own."""
    for _ in range(1000):
        if not volume.volume.metadata.orphans():
            return
        time.sleep(0.01)
    assert volume.volume.metadata.orphans() == []


def disturb(volume: FileSystem) -> None:
    """Overwritten, deleted, replaced by rename, added."""
    put(volume, "data/0.parquet", parquet_bytes(numbered(300, 9000)))
    volume.remove(b"data/1.parquet")
    put(volume, "elsewhere", parquet_bytes(numbered(10, 8000)))
    volume.rename(b"elsewhere", b"data/2.parquet")
    put(volume, "data/9.parquet", parquet_bytes(numbered(10, 7000)))
    volume.flush(30)


@pytest.mark.parametrize("by_another", [False, True], ids=["same process", "another cache"])
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_running_epoch_does_not_see_changes(
    volume: FileSystem, url: str, by_another: bool, opened_before: bool
) -> None:
    fill(volume)
    with open_reader(volume, DatasetSpec("data"), OrderSpec(64), threads=1, memory_bytes=10_000) as reader:
        batches = reader.batches(Position(0, 0))
        seen = next(batches).rows["row"].to_pylist() if opened_before else []
        if by_another:
            with FileSystem.at(url, purpose="other") as other:
                disturb(other)
        else:
            disturb(volume)
        seen += [row for batch in batches for row in batch.rows["row"].to_pylist()]
        assert seen == list(range(FILES * 500))
        assert rows_of(reader, 1) == list(range(FILES * 500)), "nor does the next one"
        with open_reader(volume, DatasetSpec("data"), OrderSpec(64)) as later:
            assert later.version != reader.version
            assert rows_of(later) == sorted(
                [*range(9000, 9300), *range(8000, 8010), *range(1500, 2000), *range(7000, 7010)]
            )


def test_blocks_are_held_and_let_go(volume: FileSystem) -> None:
    """With every name gone, nothing but the hold refers to the blocks; closing leaves no orphan behind."""
    fill(volume)
    metadata = volume.volume.metadata
    with open_reader(volume, DatasetSpec("data"), OrderSpec(64)) as reader:
        volume.remove_tree(b"data")
        assert rows_of(reader) == list(range(FILES * 500))
        assert metadata.orphans() != []
    await_no_orphans(volume)


def test_files_of_a_manifest_are_pinned_with_it(volume: FileSystem) -> None:
    put(volume, "raw/manifest.jsonl", json_lines([{"file": f"{n}.bin"} for n in range(10)]))
    for number in range(10):
        put(volume, f"raw/{number}.bin", b"old %d" % number)
    with open_reader(volume, DatasetSpec("raw"), OrderSpec(8, Shuffle.FULL)) as reader:
        version = reader.version
        for number in range(0, 10, 2):
            put(volume, f"raw/{number}.bin", b"new!! %d" % number)
        volume.remove(b"raw/1.bin")
        found = [value for batch in reader.batches(Position(0, 0)) for value in batch.rows["bytes"].to_pylist()]
        assert sorted(found) == sorted(b"old %d" % number for number in range(10))
    put(volume, "raw/1.bin", b"old 1")
    with open_reader(volume, DatasetSpec("raw"), OrderSpec(8)) as reader:
        assert reader.version != version, "a version is of the contents, too"


def test_versions_are_equal_for_equal_contents(volume: FileSystem, url: str) -> None:
    fill(volume)
    with open_reader(volume, DatasetSpec("data/*.parquet"), OrderSpec(64)) as reader:
        version = reader.version
        volume.flush(30)
        with (
            FileSystem.at(url, purpose="other") as other,
            open_reader(other, DatasetSpec("data"), OrderSpec(7)) as same,
        ):
            assert same.version == version
            assert rows_of(same) == rows_of(reader)
    with open_reader(volume, DatasetSpec("data/[012]*"), OrderSpec(64)) as fewer:
        assert fewer.version != version
    put(volume, "data/3.parquet", parquet_bytes(numbered(500, 1500), 100))
    with open_reader(volume, DatasetSpec("data"), OrderSpec(64)) as reader:
        assert reader.version != version


def test_what_a_killed_reader_held_is_reclaimed_with_its_session(volume: FileSystem, url: str) -> None:
    fill(volume)
    with open_reader(volume, DatasetSpec("data"), OrderSpec(10)) as reader:
        version = reader.version
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gateway")])}
    line = [sys.executable, str(Path(__file__).with_name("pinning_process.py")), url, "data"]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            session, theirs = process.stdout.readline().split()
            assert theirs == version
            held = [inode for holder, inode in volume.volume.metadata.orphans() if holder == int(session)]
            assert held
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    volume.remove_tree(b"data")
    metadata = volume.volume.metadata
    assert metadata.end_session(SessionId(int(session))) == held, "as garbage collection does when its heartbeat is old"
    await_no_orphans(volume)
    with pytest.raises(NotFoundError):
        metadata.attributes(held[0])


def test_a_file_that_changes_while_it_is_pinned_is_looked_at_again(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(volume)
    volume.flush(30)
    splice = volume.splice
    changes: list[Attributes] = []

    def spliced(parts: object) -> object:
        made = splice(parts)  # type: ignore[arg-type]
        if not changes:
            changes.append(put(volume, "data/0.parquet", parquet_bytes(numbered(500, 20_000), 100)))
        return made

    monkeypatch.setattr(volume, "splice", spliced)
    with open_reader(volume, DatasetSpec("data"), OrderSpec(64)) as reader:
        assert len(changes) == 1
        assert rows_of(reader) in (list(range(2000)), [*range(500, 2000), *range(20_000, 20_500)])
        volume.remove_tree(b"data")
        assert len(rows_of(reader, 1)) == 2000


# ---- through a mount -------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted() -> Iterator[Lab]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
        pytest.skip("no usable /dev/fuse")
    with lab() as made:
        made.format("rs:2+1", 3)
        made.mount()
        yield made


@pytest.mark.mount
def test_changes_through_the_mount_are_not_seen(mounted: Lab) -> None:
    data = mounted.mnt / "data"
    data.mkdir()
    for number in range(FILES):
        (data / f"{number}.parquet").write_bytes(parquet_bytes(numbered(500, number * 500), 100))
    spec, order = DatasetSpec("data"), OrderSpec(64)
    with (
        FileSystem.at(mounted.url, purpose="test") as volume,
        open_reader(volume, spec, order, threads=1, memory_bytes=10_000) as reader,
    ):
        batches = reader.batches(Position(0, 0))
        seen = next(batches).rows["row"].to_pylist()
        with (data / "0.parquet").open("r+b") as file:  # in place, the same inode
            file.write(b"\0" * 10_000)
        with (data / "1.parquet").open("ab") as file:
            file.truncate(100)
        (data / "2.parquet").unlink()
        (data / "3.parquet").replace(data / "2.parquet")
        seen += [row for batch in batches for row in batch.rows["row"].to_pylist()]
        assert seen == list(range(FILES * 500))
