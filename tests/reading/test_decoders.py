"""Decoders are kept beside the files that they read: made once for each who uses one at a time, and closed with their files."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.descriptors import open_paths
from tests.reading.conftest import new_volume
from tests.reading.files import numbered, parquet_bytes, put
from tieredfs.core.foresight import Use
from tieredfs.errors import CorruptError
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Reading
from tieredfs_gateway.datasets import versions
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position
from tieredfs_gateway.datasets.reader import open_reader
from tieredfs_gateway.datasets.versions import DECODERS_MAX, Snapshot


class Counted:
    """A decoder that says what became of it."""

    def __init__(self, reading: Reading) -> None:
        self.size_bytes = reading.attributes.size_bytes
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "closed once"
        self.is_closed = True


def snapshot_of(volume: FileSystem, folder: str, count: int = 1) -> Snapshot:
    for number in range(count):
        put(volume, f"{folder}/{number}", bytes(100 + number))
    paths = [f"{folder}/{number}".encode() for number in range(count)]
    return Snapshot(volume, [(path, volume.stat(path)) for path in paths])


def test_who_comes_later_has_the_one_that_was_made_before(volume: FileSystem, folder: str) -> None:
    snapshot = snapshot_of(volume, folder)
    file = snapshot.files[0]
    with snapshot.decoding(file, "one", Counted) as first:
        assert first.size_bytes == 100
        with snapshot.decoding(file, "one", Counted) as second:
            assert second is not first
        with snapshot.decoding(file, "other", Counted) as third:
            assert third not in (first, second)
    with snapshot.decoding(file, "one", Counted) as again, snapshot.decoding(file, "one", Counted) as too:
        assert {id(again), id(too)} == {id(first), id(second)}
    assert not any(each.is_closed for each in (first, second, third))
    snapshot.close()
    assert all(each.is_closed for each in (first, second, third))


def test_one_that_failed_is_not_used_again(volume: FileSystem, folder: str) -> None:
    snapshot = snapshot_of(volume, folder)
    with pytest.raises(CorruptError), snapshot.decoding(snapshot.files[0], "", Counted) as first:
        raise CorruptError("damaged")
    assert first.is_closed
    with snapshot.decoding(snapshot.files[0], "", Counted) as second:
        assert second is not first
    snapshot.close()
    assert second.is_closed


def test_no_more_are_kept_than_there_may_be(volume: FileSystem, folder: str) -> None:
    snapshot = snapshot_of(volume, folder)
    with ExitStack() as stack:
        made = [stack.enter_context(snapshot.decoding(snapshot.files[0], "", Counted)) for _ in range(DECODERS_MAX + 3)]
    assert sum(not each.is_closed for each in made) == DECODERS_MAX
    snapshot.close()
    assert all(each.is_closed for each in made)


def test_one_in_use_outlives_its_snapshot_and_is_closed_then(volume: FileSystem, folder: str) -> None:
    snapshot = snapshot_of(volume, folder)
    with snapshot.decoding(snapshot.files[0], "", Counted) as decoder:
        snapshot.close()
        assert not decoder.is_closed
    assert decoder.is_closed


def test_it_goes_with_its_file(volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "OPEN_FILES_MAX", 1)
    snapshot = snapshot_of(volume, folder, 2)
    with snapshot.decoding(snapshot.files[0], "", Counted) as first:
        pass
    assert not first.is_closed
    with snapshot.decoding(snapshot.files[1], "", Counted) as second:
        assert not first.is_closed
    assert (first.is_closed, second.is_closed) == (True, False)  # the file that was idle longest made room
    snapshot.close()
    assert second.is_closed


def test_of_a_file_that_is_read_past_the_ssd_none_is_kept(tmp_path: Path) -> None:
    url = new_volume(tmp_path)
    with FileSystem.at(url, purpose="test") as writer:
        put(writer, "file", bytes(100))
        writer.flush(60)
    with FileSystem.at(url, purpose="test", cache_dir=str(tmp_path / "ssd")) as volume:
        seen = volume.stat(b"file")
        with volume.expect([Use(seen.inode, seen.size_bytes, 10)]):
            snapshot = Snapshot(volume, [(b"file", seen)])
            with snapshot.reading(snapshot.files[0]) as reading:
                assert reading.descriptor is None
            with snapshot.decoding(snapshot.files[0], "", Counted) as decoder:
                pass
            assert decoder.is_closed
            snapshot.close()


def open_parquet_files() -> int:
    """Descriptors of this process that are of contents in a cache directory."""
    return sum("/content/" in path for path in open_paths())


def test_row_groups_are_read_by_few_openings_and_leave_none(tmp_path: Path) -> None:
    url = new_volume(tmp_path)
    with FileSystem.at(url, purpose="test") as volume:
        put(volume, "data/a.parquet", parquet_bytes(numbered(10_000), 100))
        volume.flush(60)
        before = open_parquet_files()
        with open_reader(volume, DatasetSpec("data", ("row",), "row >= 100"), OrderSpec(100), threads=2) as reader:
            rows, most = 0, 0
            for batch in reader.batches(Position(0, 0)):
                rows += batch.rows.num_rows
                most = max(most, open_parquet_files() - before)
            assert rows == 9900
            assert 2 <= most <= 1 + DECODERS_MAX, "the file, and its decoders"
        assert open_parquet_files() == before
