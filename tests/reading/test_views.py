"""Values that are shown where they lie: the same values as those that are read, counted, and the files that they are in."""

import errno
import gzip
import io
import mmap
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.reading.files import numbered, parquet_bytes, put
from tieredfs.errors import CorruptError, NotSupportedError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets import lending, row_index, shuffling, versions
from tieredfs_gateway.datasets import reader as reading
from tieredfs_gateway.datasets.contract import (
    DatasetSpec,
    LentFile,
    OnBadShard,
    OrderSpec,
    Position,
    Reader,
    Shuffle,
)
from tieredfs_gateway.datasets.order import Permutation
from tieredfs_gateway.datasets.reader import open_reader
from tieredfs_gateway.datasets.shelf import Shelf
from tieredfs_gateway.datasets.sources import tar
from tieredfs_gateway.datasets.sources.indexes import IndexCache
from tieredfs_gateway.datasets.sources.protocol import Places
from tieredfs_gateway.datasets.sources.tar import TarSource
from tieredfs_gateway.datasets.sources.viewed import VIEW_BYTES_MIN, ViewedSource, viewed_column
from tieredfs_gateway.datasets.threads import Threads

LARGE, SMALL = 20_000, VIEW_BYTES_MIN - 1
SHARDS, EACH = 3, 20
FLUSH_S = 30.0


def picture(number: int) -> bytes:
    """Every seventh is small, and every fifth that is not is missing."""
    size = SMALL if number % 7 == 0 else LARGE + number
    return np.random.default_rng(number).bytes(size)


def is_missing(number: int) -> bool:
    return number % 5 == 4 and number % 7 != 0


def shard(first: int, count: int = EACH) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number in range(first, first + count):
            members = {"cls": b"%d" % number} | ({} if is_missing(number) else {"jpg": picture(number)})
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


ALL = {number: None if is_missing(number) else picture(number) for number in range(SHARDS * EACH)}
VIEWED_BYTES = sum(len(content) for content in ALL.values() if content and len(content) >= VIEW_BYTES_MIN)
CARRIED_BYTES = sum(len(content) for content in ALL.values() if content and len(content) < VIEW_BYTES_MIN)


@pytest.fixture
def shards(volume: FileSystem, folder: str) -> str:
    for number in range(SHARDS):
        put(volume, f"{folder}/{number}.tar", shard(number * EACH))
    volume.flush(FLUSH_S)
    return folder


def seen(reader: Reader) -> Iterator[tuple[int, bytes | None, bool]]:
    """Of each row in its order: which it is, its value, and whether that is shown where it lies."""
    views = reader.views
    files: dict[int, LentFile] = {}
    for batch in reader.batches(Position(0, 0)):
        values: Any = batch.rows.column("jpg")
        if views is None:
            yield from ((row, value, False) for row, value in zip(classes(batch.rows), values.to_pylist(), strict=True))
            continue
        with views.files.beyond(set()) as found:
            files = {file.number: file for file in found}
            for row, value in zip(classes(batch.rows), values.to_pylist(), strict=True):
                if value is None or value["file"] < 0:
                    yield row, value and value["bytes"], False
                else:
                    assert value["bytes"] == b""
                    yield row, os.pread(files[value["file"]].descriptor, value["length"], value["offset"]), True


def classes(rows: pa.RecordBatch) -> list[int]:
    found: list[int] = rows.column("cls").to_pylist()
    return found


def opened(volume: FileSystem, source: str, shuffle: Shuffle = Shuffle.FULL, *, views: bool = True) -> Any:
    return open_reader(volume, DatasetSpec(source, views=views), OrderSpec(8, shuffle, 3, window_rows=25))


@pytest.mark.parametrize("shuffle", [*Shuffle])
def test_rows_are_the_same_in_the_same_order_and_large_values_are_not_read(
    volume: FileSystem, shards: str, shuffle: Shuffle
) -> None:
    with opened(volume, shards, shuffle, views=False) as reader:
        wanted = [(row, value) for row, value, _ in seen(reader)]
        assert reader.counters()["bytes_viewed"] == 0
    assert dict(wanted) == ALL
    with opened(volume, shards, shuffle) as reader:
        assert reader.views.columns == ("jpg",)
        before = reader.counters()["bytes_read"]
        found = list(seen(reader))
        counters = reader.counters()
    assert [(row, value) for row, value, _ in found] == wanted
    assert [is_shown for _, value, is_shown in found] == [
        value is not None and len(value) >= VIEW_BYTES_MIN for _, value in wanted
    ]
    assert counters["bytes_viewed"] == VIEWED_BYTES
    assert counters["bytes_read"] - before == CARRIED_BYTES


# ---- what is known of all rows ---------------------------------------------------------------------------------------


class Calls:
    """How often methods were called, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *watched: tuple[type[Any], str]) -> None:
        self.of: dict[str, int] = {name: 0 for _, name in watched}
        for owner, name in watched:
            monkeypatch.setattr(owner, name, self._counting(name, getattr(owner, name)))

    def _counting(self, name: str, plain: Any) -> Any:
        def counting(*given: Any) -> Any:
            self.of[name] += 1
            return plain(*given)

        return counting


def rows_of_epochs(reader: Reader, count: int) -> list[list[int]]:
    return [
        [row for batch in reader.batches(Position(epoch, 0)) for row in classes(batch.rows)] for epoch in range(count)
    ]


def test_the_indexes_of_files_are_put_together_once_and_no_file_is_asked_for_its_rows(
    volume: FileSystem, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Calls(monkeypatch, (ViewedSource, "layout"), (ViewedSource, "places"), (TarSource, "take"))
    orders = Calls(monkeypatch, (Permutation, "__init__"))
    with opened(volume, shards, views=False) as reader:
        wanted = rows_of_epochs(reader, 3)
    assert len({tuple(rows) for rows in wanted}) == 3
    assert asked.of["take"] > 0, "without views files are asked"
    asked.of["take"] = orders.of["__init__"] = 0
    with opened(volume, shards) as reader:
        assert rows_of_epochs(reader, 3) == wanted
    assert asked.of == {"layout": SHARDS, "places": 0, "take": 0}
    assert orders.of["__init__"] == 3, "one order an epoch"


def put_large(volume: FileSystem, folder: str, *counts: int) -> None:
    """A shard for each count, of so many rows, all of which can be shown."""
    first = 0
    for count in counts:
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as archive:
            for number in range(first, first + count):
                for suffix, content in (("cls", b"%d" % number), ("jpg", np.random.default_rng(number).bytes(LARGE))):
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        put(volume, f"{folder}/{first:04d}.tar", sink.getvalue())
        first += count
    volume.flush(FLUSH_S)


def test_where_all_values_are_shown_they_are_laid_out_once_for_all_epochs(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_large(volume, folder, 30, 1, 29)
    laid_out: list[int] = []

    def counting(places: Places, carried: pa.BinaryArray) -> pa.StructArray:
        laid_out.append(len(carried))
        return viewed_column(places, carried)

    monkeypatch.setattr(row_index, "viewed_column", counting)
    monkeypatch.setattr(shuffling, "BUCKET_ROWS_MAX", 24)
    with opened(volume, folder, views=False) as reader:
        wanted = list(seen(reader))
        orders = rows_of_epochs(reader, 4)
        assert not reader.is_at_hand, "without views every value is read"
    with opened(volume, folder) as reader:
        assert not reader.is_at_hand, "nothing is known before the first epoch"
        found = list(seen(reader))
        assert reader.is_at_hand
        assert [(row, value) for row, value, _ in found] == [(row, value) for row, value, _ in wanted]
        assert all(is_shown for *_, is_shown in found)
        assert reader.counters()["bytes_viewed"] == 60 * LARGE
        assert rows_of_epochs(reader, 4) == orders
        assert reader.counters()["bytes_viewed"] == 5 * 60 * LARGE
        assert laid_out[-1] == 60
        assert sum(laid_out[:-1]) <= 60, "of the first epoch, until a bucket has met every file"


@pytest.mark.parametrize(("stride", "together"), [(1, [3 * 4, 3 * 3 - 1]), (2, [6, 4]), (5, [3, 1])])
def test_batches_of_neighbouring_buckets_are_at_hand_together(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch, stride: int, together: list[int]
) -> None:
    """Of seven buckets, of three batches each but the last: four at a time."""
    put_large(volume, folder, 60, 100)
    monkeypatch.setattr(shuffling, "BUCKET_ROWS_MAX", 24)
    with opened(volume, folder) as reader:
        assert reader.batch_count() == 20
        rows_of_epochs(reader, 1)
        counts = [0]
        for batch in reader.batches(Position(1, 0), stride):
            counts[-1] += 1
            if not batch.is_followed:
                counts.append(0)
        assert counts == [*together, 0]


def test_nothing_is_made_ahead_where_nothing_has_to_be_read(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_large(volume, folder, 40)
    ahead = Calls(monkeypatch, (Shelf, "borrow_ahead"))
    monkeypatch.setattr(shuffling, "BUCKET_ROWS_MAX", 8)
    with opened(volume, folder) as reader:
        wanted = rows_of_epochs(reader, 2)
        assert reader.counters()["segments_built"] == 10
    assert ahead.of["borrow_ahead"] == 0
    monkeypatch.setattr(lending, "OPEN_SHARE", 0.0)
    with opened(volume, folder) as reader:
        assert rows_of_epochs(reader, 2) == wanted
    assert ahead.of["borrow_ahead"] > 0, "what has to be read is read ahead"


@pytest.mark.parametrize(
    ("module", "name", "limit"), [(reading, "INDEX_BYTES_MAX", 0), (row_index, "CARRIED_BYTES_MAX", 0)]
)
def test_what_is_too_much_to_know_or_to_carry_is_asked_file_by_file(
    volume: FileSystem, shards: str, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, limit: int
) -> None:
    with opened(volume, shards) as reader:
        wanted = list(seen(reader))
    monkeypatch.setattr(module, name, limit)
    asked = Calls(monkeypatch, (ViewedSource, "places"))
    with opened(volume, shards) as reader:
        assert list(seen(reader)) == wanted
        assert reader.counters()["bytes_viewed"] == VIEWED_BYTES
    assert asked.of["places"] > 0


def test_what_cannot_be_read_at_once_is_asked_for_file_by_file(
    volume: FileSystem, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(volume, shards) as reader:
        wanted = list(seen(reader))
    plain = ViewedSource.fill
    failed: list[object] = []

    def failing(*given: Any) -> None:
        if not failed:
            failed.append(given)
            raise CorruptError("once")
        plain(*given)

    monkeypatch.setattr(ViewedSource, "fill", failing)
    with opened(volume, shards) as reader:
        assert list(seen(reader)) == wanted
        assert reader.skipped() == {}
        assert reader.counters()["bytes_viewed"] == VIEWED_BYTES
    assert failed


@pytest.mark.parametrize(("cached", "told"), [(True, False), (False, True), (None, True)])
def test_the_kernel_is_told_of_what_will_be_looked_at_and_is_not_there(
    volume: FileSystem, shards: str, monkeypatch: pytest.MonkeyPatch, cached: bool | None, told: bool
) -> None:
    """None: of a kernel that does not say what is there."""

    def cached_bytes(descriptor: int, length: int) -> int:
        assert os.fstat(descriptor).st_size == length
        if cached is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return length if cached else length - 1

    def at_once(_: Threads, work: Any) -> Any:
        done: Future[Any] = Future()
        done.set_result(work())
        return done

    advised: list[int] = []
    monkeypatch.setattr(row_index, "cached_bytes", cached_bytes)
    monkeypatch.setattr(Threads, "submit", at_once)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, __, length, ___: advised.append(length))
    with opened(volume, shards) as reader:
        assert len(list(seen(reader))) == len(ALL)
    assert sum(advised) == (VIEWED_BYTES if told else 0)


@pytest.mark.parametrize("shuffle", [Shuffle.FULL, Shuffle.SHARDS])
@pytest.mark.parametrize(("name", "limit", "lent"), [("FILES_MAX", 1, 1), ("OPEN_SHARE", 0.0, 0)])
def test_what_may_not_be_lent_is_carried_among_what_is_shown(
    volume: FileSystem,
    shards: str,
    monkeypatch: pytest.MonkeyPatch,
    shuffle: Shuffle,
    name: str,
    limit: float,
    lent: int,
) -> None:
    monkeypatch.setattr(lending, name, limit)
    with opened(volume, shards, shuffle) as reader:
        found = list(seen(reader))
        assert len(reader.views.files.numbers()) == lent
    assert {row: value for row, value, _ in found} == ALL
    in_shards = {row // EACH for row, _, is_shown in found if is_shown}
    assert len(in_shards) == lent


def test_a_file_that_is_not_on_the_ssd_is_carried_until_it_is(volume: FileSystem, folder: str) -> None:
    """20 MiB: more than is filled before an opening returns."""
    count = (20 << 20) // LARGE
    seen_file = put(volume, f"{folder}/large.tar", shard(0, count))
    volume.flush(FLUSH_S)
    wanted = {number: None if is_missing(number) else picture(number) for number in range(count)}
    assert volume.evict(f"{folder}/large.tar".encode())
    with opened(volume, folder) as reader:
        assert {row: value for row, value, _ in seen(reader)} == wanted
        with volume.open_version(volume.attributes(seen_file.inode)) as reading:
            reading.read_into(0, memoryview(bytearray(8)))
    with opened(volume, folder) as reader:
        found = list(seen(reader))
    assert {row: value for row, value, _ in found} == wanted
    assert any(is_shown for _, _, is_shown in found)


def test_what_is_damaged_is_left_out_with_views_as_without(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that is none, in one of several parts of a file."""
    monkeypatch.setattr(tar, "PART_BYTES", 5 * LARGE)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number in range(40):
            text = b"\xff" if number == 17 else b"text"
            for suffix, content in (("cls", b"%d" % number), ("txt", text), ("jpg", picture(number + 1000))):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    put(volume, f"{folder}/0.tar", sink.getvalue())
    put(volume, f"{folder}/1.tar", sink.getvalue().replace(b"\xff", b"t"))
    volume.flush(FLUSH_S)
    found = []
    for views in (False, True):
        spec = DatasetSpec(folder, on_bad_shard=OnBadShard.SKIP, views=views)
        with open_reader(volume, spec, OrderSpec(80, Shuffle.FULL, 3), indexes=IndexCache()) as reader:
            found.append([(row, value) for row, value, _ in seen(reader)])
            assert [*reader.skipped()] == [f"{folder}/0.tar"]
    assert found[0] == found[1]
    assert 60 < len(found[0]) < 80, "a part is left out, and not the file"


def test_a_compressed_archive_is_carried(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/0.tar.gz", gzip.compress(shard(0)))
    volume.flush(FLUSH_S)
    with opened(volume, folder) as reader:
        found = list(seen(reader))
        assert reader.views.files.numbers() == set()
    assert {row: value for row, value, _ in found} == {row: ALL[row] for row in range(EACH)}
    assert not any(is_shown for _, _, is_shown in found)


def test_a_lent_file_stays_on_the_ssd_while_it_is_lent_and_what_is_mapped_outlives_it(
    volume: FileSystem, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "OPEN_FILES_MAX", 0)  # what is only read does not stay open
    with opened(volume, shards, views=False) as reader:
        assert len(list(seen(reader))) == len(ALL)
        assert volume.open_bytes() == 0
    with opened(volume, shards) as reader:
        assert len(list(seen(reader))) == len(ALL)
        assert volume.open_bytes() >= sum(len(shard(number * EACH)) for number in range(SHARDS))
        assert [volume.evict(f"{shards}/{number}.tar".encode()) for number in range(SHARDS)] == [False] * SHARDS
        with reader.views.files.beyond(set()) as files:
            maps = [mmap.mmap(file.descriptor, file.size_bytes, prot=mmap.PROT_READ) for file in files]
    assert [volume.evict(f"{shards}/{number}.tar".encode()) for number in range(SHARDS)] == [True] * SHARDS
    put(volume, f"{shards}/0.tar", b"something else")
    assert sorted(bytes(each) for each in maps) == sorted(shard(number * EACH) for number in range(SHARDS))


def test_nobody_can_write_through_what_is_lent(volume: FileSystem, shards: str) -> None:
    with opened(volume, shards) as reader:
        assert len(list(seen(reader))) == len(ALL)
        with reader.views.files.beyond(set()) as files:
            assert len(files) == SHARDS
            for file in files:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.pwrite(file.descriptor, b"x", 0)
                with pytest.raises(PermissionError):
                    mmap.mmap(file.descriptor, file.size_bytes)


def test_a_closed_reader_holds_no_descriptor(volume: FileSystem, shards: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with opened(volume, shards, views=False) as reader:
        assert len(list(seen(reader))) == len(ALL)
    before = descriptors()
    for _ in range(3):
        with opened(volume, shards) as reader:
            assert len(list(seen(reader))) == len(ALL)
            assert descriptors() > before
        assert descriptors() == before


@pytest.mark.parametrize("filter_", [None, "row > 3"])
def test_formats_without_values_to_look_at_say_so(volume: FileSystem, folder: str, filter_: str | None) -> None:
    put(volume, f"{folder}/a.parquet", parquet_bytes(numbered(10)))
    with pytest.raises(NotSupportedError):
        open_reader(volume, DatasetSpec(folder, filter=filter_, views=True), OrderSpec(8))
