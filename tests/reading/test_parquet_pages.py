"""Page indexes of Parquet: what a filter matches in part is read in part, and the rows are those of reading everything."""

import datetime
import decimal
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reading.conftest import new_volume
from tests.reading.files import flights, ipc_bytes, parquet_bytes, put
from tests.reading.test_foresight import tier_of
from tieredfs.errors import CorruptError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import DatasetReader, open_reader
from tieredfs_gateway.datasets.sources import thrift_compact as thrift
from tieredfs_gateway.datasets.sources.indexes import IndexCache
from tieredfs_gateway.datasets.sources.parquet_pages import Pages, chunks_of, excerpt, together

ROWS = 6000
DAY = datetime.datetime(2013, 1, 1)


def many_types() -> pa.Table:
    """Sorted by `row`; every type whose pages are read on their own, with nulls, and some whose order is nobody's."""
    chance = random.Random(7)
    rows = range(ROWS)
    moments = [DAY + datetime.timedelta(minutes=row, microseconds=row) for row in rows]
    some = [row % 11 == 0 for row in rows]
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "small": pa.array([row % 250 - 120 for row in rows], pa.int16()),
            "unsigned": pa.array([(1 << 31) + row * 1000 for row in rows], pa.uint32()),
            "large": pa.array([(1 << 63) + row for row in rows], pa.uint64()),
            "single": pa.array([float("nan") if row % 500 == 1 else row / 2 for row in rows], pa.float32()),
            "double": pa.array([None if none else -row / 3 for row, none in zip(rows, some, strict=True)]),
            "late": pa.array([None if row < 2500 else row for row in rows], pa.int32()),
            "date": pa.array([moment.date() for moment in moments]),
            "seconds": pa.array(moments, pa.timestamp("s")),
            "zoned": pa.array(moments, pa.timestamp("ms", "UTC")),
            "micros": pa.array(moments, pa.timestamp("us")),
            "nanos": pa.array(moments, pa.timestamp("ns")),
            "word": pa.array([None if none else f"w{row:05d}ß" for row, none in zip(rows, some, strict=True)]),
            "long": pa.array([f"{row:06d}" + "x" * chance.randrange(300) for row in rows], pa.large_string()),
            "coded": pa.array([f"c{row // 100}" for row in rows]).dictionary_encode(),
            "raw": pa.array([row.to_bytes(3, "big") for row in rows]),
            "money": pa.array([decimal.Decimal(row) / 100 for row in rows], pa.decimal128(12, 2)),
            "even": pa.array([row % 2 == 0 for row in rows]),
            "fixed": pa.array([row.to_bytes(4, "big") for row in rows], pa.binary(4)),
            "clock": pa.array([row % 86_400 for row in rows], pa.time32("s")),
            "half": pa.array([row / 8 for row in rows], pa.float64()).cast(pa.float16()),
        }
    )


FILTERS = [
    ("row >= 3000 and row < 3010", 0.2),
    ("row < 40 or row > 5980", 0.25),
    ("row = 17 or row = 3000 or row = 4999", 0.3),
    ("not (row >= 100)", 0.2),
    ("late is null", 0.55),
    ("late <= 2600", 0.55),
    ("late < 2600 and late is not null", 0.2),
    ("unsigned < 2147500000", 0.2),
    ("large >= 9223372036854781000", 0.2),
    ("single > 2950.5", 0.2),
    ("single = 100.0", 0.2),
    ("double < -1990", 0.2),
    ('date = "2013-01-03"', 0.4),
    ('seconds >= "2013-01-05T00:00:00"', 0.2),
    ('zoned < "2013-01-01T01:00:00"', 0.2),
    ('micros between "2013-01-02T00:00:00" and "2013-01-02T00:10:00"', 0.2),
    ('nanos between "2013-01-02T00:00:00" and "2013-01-02T00:10:00"', 0.2),
    ('word between "w03000" and "w03010z"', 0.2),
    ('long < "000100"', 0.2),
    ('coded = "c7"', 0.4),
    ('coded in ("c7", "c30")', 0.7),
    ("row = -1", 0.0),
    ("row >= 3000 and word is null", 1.0),
    ("even and row > 5900", 0.2),
    ("small = 5", 1.0),
    ("money < 5", 1.0),
    ("row != 5", 1.0),
]


def rows_of(reader: DatasetReader, epoch: int = 0) -> pa.Table:
    return pa.Table.from_batches([batch.rows for batch in reader.batches(Position(epoch, 0))], reader.schema)


@pytest.fixture(scope="module", params=["v1 zstd", "v2 snappy dictionaries", "v1 plain"])
def both(request: pytest.FixtureRequest, volume: FileSystem) -> tuple[str, str]:
    """The same rows with page indexes, and without: two files, row groups of 2,500, pages of 50 rows or less."""
    version, compression, *more = request.param.split()
    options: dict[str, Any] = {
        "data_page_version": {"v1": "1.0", "v2": "2.0"}[version],
        "compression": "none" if compression == "plain" else compression,
        "use_dictionary": bool(more) or ["coded"],
        "data_page_size": 2000,
        "write_batch_size": 50,
        "version": "2.6",
    }
    folder = "pages-" + request.param.replace(" ", "-")
    table = many_types()
    for kind, index in (("with", True), ("without", False)):
        for number in range(2):
            part = table.slice(number * ROWS // 2, ROWS // 2)
            put(
                volume,
                f"{folder}/{kind}/{number}.parquet",
                parquet_bytes(part, 2500, write_page_index=index, **options),
            )
    return f"{folder}/with", f"{folder}/without"


@pytest.mark.parametrize(("filter_", "most"), FILTERS)
def test_rows_are_those_of_reading_everything(
    volume: FileSystem, both: tuple[str, str], filter_: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`most`: of the bytes of the files; 1: page indexes do not help, and what they cost is little. Dictionaries are always read:
    where each value is there once, they are most of a column."""
    monkeypatch.setattr("tieredfs_gateway.datasets.sources.parquet_pages.GAP_BYTES", 16)
    found, read = [], []
    for source in both:
        with open_reader(volume, DatasetSpec(source, filter=filter_), OrderSpec(1000), threads=1) as reader:
            before = reader.counters()["bytes_read"]
            found.append(rows_of(reader))
            read.append(reader.counters()["bytes_read"] - before)
            assert reader.row_count() == found[-1].num_rows
    assert found[0].equals(found[1]) or str(found[0].to_pylist()) == str(found[1].to_pylist())  # NaN equals nothing
    if filter_ not in ("row = -1",):
        assert found[0].num_rows > 0
    whole = sum(found.size_bytes for _, found in volume.entries(both[1].encode()))
    assert read[0] <= min(1.1, 2.5 * most if "dictionaries" in both[0] else most * 1.1) * whole


@pytest.mark.parametrize("columns", [("row",), ("long", "even"), ("word", "coded", "half", "clock"), ("zoned",)])
def test_columns_whose_pages_begin_elsewhere(
    volume: FileSystem, both: tuple[str, str], columns: tuple[str, ...]
) -> None:
    spec = DatasetSpec(both[0], columns, "(row > 1234 and row < 1240) or row = 1400 or (row > 2490 and row < 2510)")
    with open_reader(volume, spec, OrderSpec(1000, Shuffle.FULL, seed=1)) as reader:
        found = rows_of(reader)
    rows = [*range(1235, 1240), 1400, *range(2491, 2510)]
    expected = many_types().select(columns).take(rows).to_pylist()
    assert sorted(map(str, found.to_pylist())) == sorted(map(str, expected))


def test_lists_and_structs_are_read_whole(volume: FileSystem, folder: str) -> None:
    rows = range(5000)
    table = pa.table(
        {"row": rows, "list": [[row] * (row % 3) for row in rows], "who": [{"name": f"n{row}"} for row in rows]}
    )
    put(volume, f"{folder}/a.parquet", parquet_bytes(table, 5000, write_page_index=True, data_page_size=500))
    for columns, filter_ in (
        (("row", "list"), "row = 77"),
        (("who.name", "row"), "row = 77"),
        (None, 'who.name = "n77"'),
        (("row",), "row = 77"),
    ):
        with open_reader(volume, DatasetSpec(folder, columns, filter_), OrderSpec(10)) as reader:
            found = rows_of(reader)
        picked = {"row": 77, "list": [77] * 2, "who.name": "n77", "who": {"name": "n77"}}
        assert found.to_pylist() == [{name: picked[name] for name in found.column_names}]


def test_hive_directories_and_columns_that_a_file_lacks(volume: FileSystem, folder: str) -> None:
    for year in (2012, 2013):
        table = pa.table({"row": range(2000)} | ({"new": range(2000)} if year == 2013 else {}))
        put(
            volume,
            f"{folder}/year={year}/a.parquet",
            parquet_bytes(table, 2000, write_page_index=True, data_page_size=100, write_batch_size=100),
        )
    spec = DatasetSpec(folder, filter="row = 500 and (new = 500 or year = 2012)")
    with open_reader(volume, spec, OrderSpec(10)) as reader:
        assert rows_of(reader).to_pylist() == [
            {"row": 500, "year": 2012, "new": None},
            {"row": 500, "year": 2013, "new": 500},
        ] or rows_of(reader).to_pylist() == [
            {"row": 500, "new": None, "year": 2012},
            {"row": 500, "new": 500, "year": 2013},
        ]


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_flights_of_one_day_cost_a_part_of_their_row_group(volume: FileSystem, folder: str) -> None:
    """336,776 flights by time in one row group, 20,000 a page, as pyarrow writes them: one day is a page or two of 17."""
    table = flights().sort_by("time_hour")
    put(volume, f"{folder}/a.parquet", parquet_bytes(table, 1 << 20, write_page_index=True))
    put(volume, f"{folder}-plain/a.parquet", parquet_bytes(table, 1 << 20))
    filter_ = "month = 6 and day = 15 and hour >= 0"
    read, found = [], []
    for source in (folder, f"{folder}-plain"):
        with open_reader(volume, DatasetSpec(source, filter=filter_), OrderSpec(512)) as reader:
            before = reader.counters()["bytes_read"]
            found.append(rows_of(reader))
            read.append(reader.counters()["bytes_read"] - before)
    assert found[0].equals(found[1])
    assert found[0].num_rows > 500
    assert read[0] < 0.25 * read[1]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    """50 columns of 60,000 numbers, sorted by `key`: six row groups, each of six pages a column. On no SSD."""
    url = new_volume(tmp_path_factory.mktemp("stored"))
    chance = random.Random(3)
    columns = {f"c{number}": [chance.getrandbits(62) for _ in range(60_000)] for number in range(49)}
    data = parquet_bytes(
        pa.table(columns | {"key": range(60_000)}),
        10_000,
        compression="none",
        use_dictionary=False,
        write_page_index=True,
        max_rows_per_page=2000,
    )
    with FileSystem.at(url, purpose="test") as volume:
        put(volume, "wide/a.parquet", data)
        put(volume, "feather/a.feather", ipc_bytes(pa.table(columns | {"key": range(60_000)}), 10_000, "uncompressed"))
        volume.flush(60)
    return url


PAGE = 2000 * 8
GROUP = 5 * PAGE
INDEX = 4 * (16 << 10)
"""What page indexes of a row group cost at most: no read past the SSD is smaller than 16 KiB."""


@pytest.mark.parametrize(
    ("columns", "filter_", "rows", "needed"),
    [
        (("c1", "c2", "key"), None, 60_000, 18 * GROUP),
        (("c1", "c2"), "key >= 30000", 30_000, 9 * GROUP),
        (("c1", "c2"), "key >= 30100 and key < 30200", 100, 3 * PAGE + INDEX),
        (None, "key >= 30100 and key < 30200", 100, 50 * PAGE + INDEX),
        (("c1",), "key < 100 or key = 42000", 101, 4 * PAGE + 2 * INDEX),
        (("c1",), "key < 0", 0, 0),
    ],
)
def test_of_a_file_that_is_not_on_the_ssd_no_more_is_fetched_than_is_needed(
    stored: str, tmp_path: Path, columns: tuple[str, ...] | None, filter_: str | None, rows: int, needed: int
) -> None:
    """Counted where the store is asked. A tenth more: headers of pages. The file has 24 MB."""
    with tier_of(stored, tmp_path / "ssd", 1 << 30) as (volume, counting):
        with open_reader(
            volume, DatasetSpec("wide", columns, filter_), OrderSpec(1000), indexes=IndexCache()
        ) as reader:
            opened = counting.read_bytes
            assert rows_of(reader).num_rows == rows
            assert counting.read_bytes - opened <= 1.1 * needed
            assert rows_of(reader, 1).num_rows == rows, "the next epoch may keep what is worth it"
        assert opened <= 2 * (64 << 10)


def test_of_arrow_files_the_columns_that_are_needed_are_fetched(stored: str, tmp_path: Path) -> None:
    """Counted where the store is asked. Each batch's description is read, too, in windows of 64 KiB: once to look, once to read."""
    with tier_of(stored, tmp_path / "ssd", 1 << 30) as (volume, counting):
        spec = DatasetSpec("feather", ("c1", "c2", "key"))
        with open_reader(volume, spec, OrderSpec(1000), threads=1, indexes=IndexCache()) as reader:
            assert rows_of(reader)["key"].to_pylist() == list(range(60_000))
            assert counting.read_bytes <= 18 * GROUP + 6 * (GROUP + 4 * (64 << 10))
            assert counting.read_bytes < 0.2 * volume.stat(b"feather/a.feather").size_bytes


# ---- files that lie --------------------------------------------------------------------------------------------------


def broken(where: str) -> bytes:
    """Sorted numbers, and page indexes that are not what they should be; the footer is whole."""
    data = bytearray(parquet_bytes(pa.table({"row": range(5000)}), 5000, write_page_index=True, data_page_size=400))
    footer = int.from_bytes(data[-8:-4], "little")
    chunk = chunks_of(bytes(data[-8 - footer : -8]))[0]["row"]
    at, length = {"offsets": chunk.offset_index, "bounds": chunk.column_index}[where]
    data[at : at + length] = b"\xff" * length
    return bytes(data)


@pytest.mark.parametrize("where", ["offsets", "bounds"])
def test_page_indexes_that_cannot_be_read_are_told_with_the_file(volume: FileSystem, folder: str, where: str) -> None:
    put(volume, f"{folder}/a.parquet", broken(where))
    put(volume, f"{folder}/b.parquet", parquet_bytes(pa.table({"row": range(5000)}), 5000, write_page_index=True))
    spec = DatasetSpec(folder, filter="row = 77")
    with open_reader(volume, spec, OrderSpec(10)) as reader, pytest.raises(CorruptError, match=r"a\.parquet"):
        rows_of(reader)
    skipping = DatasetSpec(folder, filter="row = 77", on_bad_shard=OnBadShard.SKIP)
    with open_reader(volume, skipping, OrderSpec(10)) as reader:
        assert rows_of(reader)["row"].to_pylist() == [77]
        assert list(reader.skipped()) == [f"{folder}/a.parquet"]


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_what_is_written_in_thrift_reads_back() -> None:
    numbers = [0, 1, -1, 63, 64, -65, 1 << 40, -(1 << 62), (1 << 63) - 1]
    inner = thrift.encoded({1: thrift.binary(b""), 15: thrift.i32(-7)})
    _, data = thrift.encoded(
        {
            1: thrift.listed([thrift.i64(number) for number in numbers]),
            3: thrift.listed([inner] * 20),
            16: thrift.binary(b"x" * 300),
        }
    )
    assert thrift.decode(data) == {1: numbers, 3: [{1: b"", 15: -7}] * 20, 16: b"x" * 300}
    for end in range(len(data)):
        with pytest.raises(thrift.BadThriftError):
            thrift.decode(data[:end])


@pytest.mark.parametrize("data", [b"\x19\xfc\xff\xff\xff\xff\x0f", b"\x1c" * 100, b"\x1e\x00", b"\x16" + b"\xff" * 11])
def test_thrift_that_claims_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(thrift.BadThriftError):
        thrift.decode(data)


def test_pages_over_ranges_and_their_reads() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"row": range(1000)}), sink, write_page_index=True, use_dictionary=False)
    data = sink.getvalue()
    footer = int.from_bytes(data[-8:-4], "little")
    chunk = chunks_of(data[-8 - footer : -8])[0]["row"]
    pages = Pages((0, 10, 30, 31, 50), tuple((4 + 100_000 * number, 50) for number in range(5)), 60)
    assert pages.over(((0, 60),)) == [0, 1, 2, 3, 4]
    assert pages.over(((9, 10), (10, 11))) == [0, 1]
    assert pages.over(((30, 31),)) == [2]
    assert pages.over(((29, 32), (49, 51))) == [1, 2, 3, 4]
    found = excerpt(chunk, pages, ((11, 12), (55, 56)))
    assert found.rows == ((10, 30), (50, 60))
    assert together(found.places) == [(100_004, 50), (400_004, 50)]
    assert together([(0, 10), (5, 10), (100, 1), (1 << 20, 5)]) == [(0, 101), (1 << 20, 5)]
