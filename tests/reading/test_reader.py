"""The sequence of batches: each row once, the same whoever reads it, from wherever, with whatever memory; what reading leaves."""

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reading.files import numbered, parquet_bytes, put
from tests.reading.test_sources import tar_bytes
from tieredfs.errors import ConfigurationError, InvalidRequestError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, NumberedBatch, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import DatasetReader, open_reader

ROWS = (1000, 0, 37, 2000, 1, 900)
"""Of the files: 3,938 together, in row groups of 250."""
COUNT = sum(ROWS)
KEPT = "row between 100 and 3000 and text is not null"


@pytest.fixture(scope="module")
def dataset(volume: FileSystem) -> str:
    start = 0
    for number, rows in enumerate(ROWS):
        put(volume, f"reader/{number}.parquet", parquet_bytes(numbered(rows, start), 250))
        start += rows
    return "reader"


@pytest.fixture(scope="module")
def shards(volume: FileSystem) -> str:
    for shard in range(4):
        members = {f"{row:06d}.bin": b"%d" % row * 40 for row in range(shard * 150, shard * 150 + 150)}
        put(volume, f"shards/{shard}.tar", tar_bytes(members))
    return "shards"


def rows_of(batches: Iterator[NumberedBatch]) -> list[int]:
    return [row for batch in batches for row in batch.rows["row"].to_pylist()]


def compact(rows: pa.RecordBatch) -> bytes:
    """Every byte of it, and none of what it may be a slice of."""
    data: bytes = rows.take(pa.array(range(rows.num_rows), pa.int64())).serialize().to_pybytes()
    return data


ORDERS = st.builds(
    OrderSpec,
    batch_size=st.sampled_from([5, 64, 250, 1000, 5000]),
    shuffle=st.sampled_from(list(Shuffle)),
    seed=st.integers(0, 3),
    window_rows=st.sampled_from([60, 300, 777, 10_000]),
)
MEMORY = st.sampled_from([1, 10_000, 100_000, 1 << 30])
FILTERS = st.sampled_from([None, KEPT])
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def expected_rows(text: str | None) -> list[int]:
    return [row for row in range(COUNT) if text is None or (100 <= row <= 3000 and row % 7)]


@QUICK
@given(order=ORDERS, text=FILTERS, data=st.data())
def test_every_row_once_over_all_ranks_and_restarts(
    volume: FileSystem, dataset: str, order: OrderSpec, text: str | None, data: st.DataObject
) -> None:
    """Restarts at any position, each time with another world size, other threads and another memory."""
    seen: list[int] = []
    position, total = 0, None
    while total is None or position < total:
        memory, threads = data.draw(MEMORY), data.draw(st.integers(1, 4))
        world = data.draw(st.integers(1, 5))
        with open_reader(
            volume, DatasetSpec(dataset, filter=text), order, memory_bytes=memory, threads=threads
        ) as reader:
            total = reader.batch_count()
            left = total - position
            rounds = data.draw(st.integers(1, max(1, left // world))) if data.draw(st.booleans()) else -(-left // world)
            for rank in range(world):
                batches = reader.batches(Position(1, position + rank), world)
                for _ in range(rounds):
                    batch = next(batches, None)
                    if batch is not None:
                        assert batch.index % world == (position + rank) % world
                        seen += batch.rows["row"].to_pylist()
                batches.close()  # type: ignore[attr-defined]
            position += rounds * world
    assert sorted(seen) == expected_rows(text)


@QUICK
@given(order=ORDERS, text=FILTERS, data=st.data())
def test_a_batch_is_the_same_whoever_reads_it(
    volume: FileSystem, dataset: str, order: OrderSpec, text: str | None, data: st.DataObject
) -> None:
    spec = DatasetSpec(dataset, filter=text)
    with open_reader(volume, spec, order, threads=2) as reader:
        whole = list(reader.batches(Position(0, 0)))
        assert [batch.index for batch in whole] == list(range(reader.batch_count()))
        assert {batch.rows.num_rows for batch in whole[:-1]} <= {order.batch_size}
    with open_reader(
        volume, spec, order, threads=data.draw(st.integers(1, 4)), memory_bytes=data.draw(MEMORY)
    ) as reader:
        for _ in range(3):
            start, stride = data.draw(st.integers(0, len(whole) + 1)), data.draw(st.integers(1, 4))
            again = list(reader.batches(Position(0, start), stride))
            assert [batch.index for batch in again] == list(range(start, len(whole), stride))
            for batch in again:
                assert batch.rows.equals(whole[batch.index].rows)
                assert compact(batch.rows) == compact(whole[batch.index].rows)


@pytest.mark.parametrize("shuffle", list(Shuffle))
@pytest.mark.parametrize("source", ["reader", "shards"])
def test_epochs_and_seeds_differ_and_repeat(
    volume: FileSystem, dataset: str, shards: str, source: str, shuffle: Shuffle
) -> None:
    column = "row" if source == "reader" else "__key__"

    def order_of(seed: int, epoch: int) -> list[Any]:
        with open_reader(volume, DatasetSpec(source, (column,)), OrderSpec(64, shuffle, seed, 300)) as reader:
            return [value for batch in reader.batches(Position(epoch, 0)) for value in batch.rows[column].to_pylist()]

    orders = [order_of(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert order_of(1, 1) == orders[3]
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == (1 if shuffle is Shuffle.NONE else 4)
    if shuffle is Shuffle.NONE:
        assert orders[0] == sorted(orders[0])


def test_a_window_mixes_no_further_than_it_is_wide(volume: FileSystem, dataset: str) -> None:
    order = OrderSpec(100, Shuffle.WINDOW, seed=3, window_rows=300)
    with open_reader(volume, DatasetSpec(dataset), order) as reader:
        mixed = rows_of(reader.batches(Position(0, 0)))
    with open_reader(volume, DatasetSpec(dataset), OrderSpec(100, Shuffle.SHARDS, seed=3)) as reader:
        straight = rows_of(reader.batches(Position(0, 0)))
    assert mixed != straight
    for start in range(0, COUNT, 300):
        assert sorted(mixed[start : start + 300]) == sorted(straight[start : start + 300])


@pytest.mark.parametrize("shuffle", [Shuffle.NONE, Shuffle.SHARDS, Shuffle.WINDOW])
def test_to_resume_nothing_is_read_again(volume: FileSystem, dataset: str, shuffle: Shuffle) -> None:
    """From the middle: at most the splits of one window, and what is read ahead, are decoded for the first batch."""
    order = OrderSpec(100, shuffle, window_rows=250)
    with open_reader(volume, DatasetSpec(dataset), order, threads=1, memory_bytes=16_000) as reader:
        batches = reader.batches(Position(0, 20))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert reader.counters()["rows_decoded"] <= 4 * 250


def test_each_split_is_decoded_once_for_all_ranks(volume: FileSystem, dataset: str) -> None:
    for shuffle in Shuffle:
        with open_reader(volume, DatasetSpec(dataset), OrderSpec(50, shuffle, window_rows=500), threads=2) as reader:
            ranks = [reader.batches(Position(0, rank), 4) for rank in range(4)]
            seen: list[int] = []
            for _ in range(reader.batch_count() // 4 + 1):
                seen += [
                    row
                    for rank in ranks
                    for batch in [next(rank, None)]
                    if batch
                    for row in batch.rows["row"].to_pylist()
                ]
            assert sorted(seen) == list(range(COUNT))
            assert reader.counters()["rows_decoded"] == COUNT, shuffle


def test_concurrent_ranks_get_their_own(volume: FileSystem, dataset: str) -> None:
    order = OrderSpec(30, Shuffle.FULL, seed=5)
    with open_reader(volume, DatasetSpec(dataset), order, threads=2, memory_bytes=200_000) as reader:
        found: dict[int, list[int]] = {}

        def read(rank: int) -> None:
            found[rank] = rows_of(reader.batches(Position(0, rank), 4))

        ranks = [threading.Thread(target=read, args=(rank,)) for rank in range(4)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
        assert sorted(row for rows in found.values() for row in rows) == list(range(COUNT))


# ---- full shuffle: memory, scratch -----------------------------------------------------------------------------------


def test_a_full_shuffle_spills_what_does_not_fit(volume: FileSystem, dataset: str, tmp_path: Any) -> None:
    order = OrderSpec(64, Shuffle.FULL)
    with open_reader(volume, DatasetSpec(dataset), order) as reader:
        expected = rows_of(reader.batches(Position(0, 0)))
        assert reader.counters()["spilled_bytes"] == 0
    with open_reader(
        volume, DatasetSpec(dataset), order, memory_bytes=20_000, scratch_directory=str(tmp_path)
    ) as reader:
        assert rows_of(reader.batches(Position(0, 0))) == expected
        assert reader.counters()["spilled_bytes"] > 40_000
        assert list(tmp_path.iterdir()) == [], "the scratch file has no name"


def test_scratch_space_has_an_end(volume: FileSystem, dataset: str) -> None:
    from tieredfs.errors import NoSpaceError

    with open_reader(
        volume, DatasetSpec(dataset), OrderSpec(64, Shuffle.FULL), memory_bytes=1000, scratch_bytes=10_000
    ) as reader:
        for _ in range(2):  # a failed epoch may be tried again
            with pytest.raises(NoSpaceError, match="10000 bytes of scratch"):
                rows_of(reader.batches(Position(0, 0)))


def test_every_row_of_a_full_shuffle_comes_anywhere(volume: FileSystem, dataset: str) -> None:
    """Mean place of the first 250 rows, over epochs: they are one split, and would stay together in any other order."""
    places = []
    with open_reader(volume, DatasetSpec(dataset), OrderSpec(1000, Shuffle.FULL)) as reader:
        for epoch in range(8):
            order = rows_of(reader.batches(Position(epoch, 0)))
            places += [order.index(row) / COUNT for row in range(0, 250, 10)]
    assert abs(sum(places) / len(places) - 0.5) < 0.07
    assert min(places) < 0.05
    assert max(places) > 0.95


# ---- what it leaves --------------------------------------------------------------------------------------------------


def threads_of_readers() -> int:
    return sum(thread.name.startswith("tieredfs-dataset") for thread in threading.enumerate())


@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_closing_ends_reading_ahead_and_leaves_no_thread(volume: FileSystem, dataset: str, shuffle: Shuffle) -> None:
    before = threads_of_readers()
    reader = open_reader(volume, DatasetSpec(dataset), OrderSpec(10, shuffle, window_rows=250), threads=3)
    batches = reader.batches(Position(0, 0))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert reader._segments.on_loan() == 0
    assert reader._epochs == {}
    forgotten = reader.batches(Position(0, 0))
    next(forgotten)
    del forgotten
    gc.collect()
    assert reader._segments.on_loan() == 0
    running = reader.batches(Position(1, 0))
    next(running)
    reader.close()
    reader.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        next(running)
    with pytest.raises(InvalidRequestError, match="closed"):
        reader.batches(Position(0, 0))
    assert threads_of_readers() == before


def test_positions_and_sizes_that_cannot_be(volume: FileSystem, dataset: str) -> None:
    with open_reader(volume, DatasetSpec(dataset), OrderSpec(10)) as reader:
        assert list(reader.batches(Position(0, 10**9))) == []
        for position, stride in ((Position(-1, 0), 1), (Position(0, -1), 1), (Position(0, 0), 0)):
            with pytest.raises(ConfigurationError):
                reader.batches(position, stride)
    for order in (OrderSpec(0), OrderSpec(1, Shuffle.WINDOW, window_rows=0)):
        with pytest.raises(ConfigurationError):
            open_reader(volume, DatasetSpec(dataset), order)


def test_a_reader_is_what_the_contract_says(volume: FileSystem, dataset: str) -> None:
    from tieredfs_gateway.datasets.contract import Reader

    with open_reader(volume, DatasetSpec(dataset, ("text",)), OrderSpec(64)) as opened:
        reader: Reader = opened
        assert isinstance(opened, DatasetReader)
        assert reader.schema == pa.schema([("text", pa.string())])
        assert (reader.row_count(), reader.batch_count()) == (COUNT, -(-COUNT // 64))
        assert len(reader.version) == 32
        assert int(reader.version, 16) >= 0
        assert reader.skipped() == {}


def test_a_file_is_looked_into_once_for_each_of_its_contents(volume: FileSystem, folder: str) -> None:
    from tieredfs_gateway.datasets.sources.indexes import IndexCache

    kept, nothing = IndexCache(), IndexCache(limit_bytes=0)
    for number in range(3):
        put(volume, f"{folder}/{number}.parquet", parquet_bytes(numbered(100, number * 100)))

    def opened(cache: IndexCache) -> list[int]:
        with open_reader(volume, DatasetSpec(folder), OrderSpec(10), indexes=cache) as reader:
            return rows_of(reader.batches(Position(0, 0)))

    for cache, hits in ((kept, 3), (nothing, 0)):
        assert opened(cache) == opened(cache) == list(range(300))
        assert cache.hits == hits
    put(volume, f"{folder}/1.parquet", parquet_bytes(numbered(50, 100)))
    assert opened(kept) == [*range(150), *range(200, 300)]
    assert kept.hits == 5
