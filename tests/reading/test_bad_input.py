"""Bad input: every complaint names the file, the column or the place; what is skipped is counted; nothing half-right comes out."""

import gzip
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reading.files import csv_bytes, ipc_bytes, json_lines, numbered, parquet_bytes, put
from tests.reading.test_sources import tar_bytes
from tieredfs.errors import (
    ConfigurationError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    TieredError,
    TooLargeError,
)
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import DatasetReader, open_reader


def rows_of(reader: DatasetReader) -> list[int]:
    return [row for batch in reader.batches(Position(0, 0)) for row in batch.rows["row"].to_pylist()]


def refused(volume: FileSystem, kind: type[TieredError], *words: str, **spec: Any) -> None:
    """Opening, or reading to the end, raises that error with all of the words."""
    with pytest.raises(kind) as caught, open_reader(volume, DatasetSpec(**spec), OrderSpec(100)) as reader:
        list(reader.batches(Position(0, 0)))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


# ---- names, columns, filters -----------------------------------------------------------------------------------------


def test_a_source_that_names_nothing(volume: FileSystem, folder: str) -> None:
    volume.make_directories(folder.encode())
    refused(volume, NotFoundError, folder, source=folder)
    refused(volume, NotFoundError, "*.parquet", source=f"{folder}/*.parquet")
    refused(volume, NotFoundError, source=f"{folder}/none.parquet")
    refused(volume, InvalidRequestError, "..", source=f"{folder}/../secret")


@pytest.mark.parametrize(
    "source", [".tieredfs", "/.tieredfs/", ".tieredfs/s3/keys/a.jsonl", ".tieredfs/s3/keys/*", ".tieredfs//s3/**/*"]
)
def test_what_front_ends_keep_for_themselves_is_no_dataset(volume: FileSystem, source: str) -> None:
    put(volume, ".tieredfs/s3/keys/a.jsonl", json_lines([{"secret": 1}]))
    refused(volume, InvalidRequestError, source, source=source)


@pytest.mark.parametrize(
    "source", [".*", ".t*/s3/keys/*", "[.]*/**/a.jsonl", "**/.t*/s3/keys/*", "*/s3/keys/*", ".*/**"]
)
def test_no_glob_finds_what_front_ends_keep_for_themselves(volume: FileSystem, source: str) -> None:
    put(volume, ".tieredfs/s3/keys/a.jsonl", json_lines([{"secret": 1}]))
    refused(volume, NotFoundError, source, source=source)


def test_no_manifest_names_what_front_ends_keep_for_themselves(volume: FileSystem) -> None:
    put(volume, ".tieredfs/s3/keys/a.jsonl", json_lines([{"secret": 1}]))
    for name in (".tieredfs/s3/keys/a.jsonl", "/.tieredfs/s3/keys/a.jsonl"):
        put(volume, "names.jsonl", json_lines([{"file": name}]))
        refused(volume, ConfigurationError, "row 1", ".tieredfs", source="names.jsonl", format="raw")


def test_columns_that_are_not_there(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.parquet", parquet_bytes(numbered(10)))
    refused(volume, ConfigurationError, "'rows'", "did you mean row?", source=folder, columns=("rows",))
    refused(volume, ConfigurationError, "'row.x'", source=folder, columns=("row.x",))
    refused(volume, ConfigurationError, "twice", source=folder, columns=("row", "row"))
    refused(volume, ConfigurationError, "at least one", source=folder, columns=())
    refused(volume, ConfigurationError, "at character 7", "int64", source=folder, filter='row > "ten"')
    refused(volume, ConfigurationError, "parquet, ipc", source=folder, format="excel")


def test_files_of_several_formats_or_none(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.parquet", parquet_bytes(numbered(10)))
    put(volume, f"{folder}/b.csv", csv_bytes(numbered(10)))
    put(volume, f"{folder}/sub/README", b"what is this")
    refused(volume, ConfigurationError, "a.parquet is parquet", "b.csv is csv", source=f"{folder}/*.*")
    refused(volume, ConfigurationError, "README", "cannot be told", source=f"{folder}/sub")
    refused(volume, ConfigurationError, "one manifest", source=f"{folder}/sub", format="raw")


# ---- empty -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_datasets_without_rows(volume: FileSystem, folder: str, shuffle: Shuffle) -> None:
    put(volume, f"{folder}/a.parquet", parquet_bytes(numbered(0)))
    put(volume, f"{folder}/b.parquet", parquet_bytes(numbered(5)))
    for spec, rows in (
        (DatasetSpec(f"{folder}/a*"), 0),
        (DatasetSpec(folder, filter="row > 5"), 0),
        (DatasetSpec(folder), 5),
    ):
        with open_reader(volume, spec, OrderSpec(10, shuffle)) as reader:
            assert sorted(rows_of(reader)) == list(range(rows))
            assert (reader.row_count(), reader.batch_count()) == (rows, min(rows, 1))
            assert reader.schema.names == ["row", "text"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_files_without_a_byte(volume: FileSystem, folder: str, name: str) -> None:
    put(volume, f"{folder}/{name}", b"")
    put(
        volume,
        f"{folder}/b{name}",
        csv_bytes(numbered(3)) if name == "a.csv" else json_lines([{"row": n} for n in range(3)]),
    )
    with open_reader(volume, DatasetSpec(folder), OrderSpec(10)) as reader:
        assert rows_of(reader) == [0, 1, 2]


# ---- damaged ---------------------------------------------------------------------------------------------------------


def damaged(kind: str) -> bytes:
    """500 rows from 1000 on, and something wrong with them."""
    table = numbered(500, 1000)
    made: dict[str, Callable[[], bytes]] = {
        "cut.parquet": lambda: parquet_bytes(table)[:-20],
        "empty.parquet": lambda: b"",
        "text.parquet": lambda: b"not at all Parquet",
        "cut.feather": lambda: ipc_bytes(table)[:-300],
        "cut.csv": lambda: csv_bytes(table) + b"1,2,3,4\n",
        "cut.csv.gz": lambda: gzip.compress(csv_bytes(table))[:-200],
        "cut.jsonl": lambda: json_lines([{"row": row} for row in range(1000, 1500)]) + b'{"row": 15',
        "cut.tar": lambda: tar_bytes({f"{row}.cls": b"%d" % row for row in range(1000, 1500)})[:-20_000],
    }
    return made[kind]()


KINDS = ["cut.parquet", "empty.parquet", "text.parquet", "cut.feather", "cut.csv", "cut.csv.gz", "cut.jsonl", "cut.tar"]


def whole(kind: str, start: int) -> bytes:
    table = numbered(500, start)
    if kind.endswith("parquet"):
        return parquet_bytes(table)
    if kind.endswith("feather"):
        return ipc_bytes(table)
    if kind.endswith("csv"):
        return csv_bytes(table)
    if kind.endswith("csv.gz"):
        return gzip.compress(csv_bytes(table))
    if kind.endswith("jsonl"):
        return json_lines([{"row": row} for row in range(start, start + 500)])
    return tar_bytes({f"{row}.cls": b"%d" % row for row in range(start, start + 500)})


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_shards_fail_or_are_skipped(volume: FileSystem, folder: str, kind: str) -> None:
    put(volume, f"{folder}/0{kind}", whole(kind, 0))
    put(volume, f"{folder}/1{kind}", damaged(kind))
    put(volume, f"{folder}/2{kind}", whole(kind, 500))
    name = f"{folder}/1{kind}"
    refused(volume, CorruptError, name, source=folder)
    for shuffle in Shuffle:
        spec = DatasetSpec(folder, on_bad_shard=OnBadShard.SKIP)
        with open_reader(volume, spec, OrderSpec(100, shuffle)) as reader:
            column = "cls" if kind == "cut.tar" else "row"
            found = [row for batch in reader.batches(Position(0, 0)) for row in batch.rows[column].to_pylist()]
            assert sorted(found) == list(range(1000))
            assert list(reader.skipped()) == [name]
            assert reader.row_count() == 1000


def test_nothing_but_unreadable_shards(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.parquet", b"PAR1")
    refused(volume, CorruptError, "none of the 1 files", "a.parquet", source=folder, on_bad_shard=OnBadShard.SKIP)


def rotten() -> bytes:
    """500 rows in row groups of 100, the pages of the third of which are overwritten; the footer is whole."""
    data = bytearray(parquet_bytes(numbered(500, 500), 100, compression="zstd"))
    group = pq.read_metadata(io.BytesIO(data)).row_group(2)
    for number in range(group.num_columns):
        start = group.column(number).dictionary_page_offset or group.column(number).data_page_offset
        data[start : start + group.column(number).total_compressed_size] = (
            b"\xa5" * group.column(number).total_compressed_size
        )
    return bytes(data)


@pytest.mark.parametrize("shuffle", list(Shuffle))
@pytest.mark.parametrize("text", [None, "row >= 0"])
def test_a_split_that_turns_out_to_be_damaged(
    volume: FileSystem, folder: str, shuffle: Shuffle, text: str | None
) -> None:
    """Its rows are left out; batches keep their numbers, and are the same wherever reading begins."""
    put(volume, f"{folder}/a.parquet", parquet_bytes(numbered(500), 100))
    put(volume, f"{folder}/b.parquet", rotten())
    spec = DatasetSpec(folder, filter=text, on_bad_shard=OnBadShard.SKIP)
    order = OrderSpec(64, shuffle, window_rows=300)
    with open_reader(volume, spec, order) as reader:
        batches = list(reader.batches(Position(0, 0)))
        assert sorted(row for batch in batches for row in batch.rows["row"].to_pylist()) == [
            *range(700),
            *range(800, 1000),
        ]
        assert [batch.index for batch in batches] == list(range(reader.batch_count()))
        assert list(reader.skipped()) == [f"{folder}/b.parquet"]
    with open_reader(volume, spec, order, memory_bytes=5000) as reader:
        again = list(reader.batches(Position(0, 5), 2))
        assert [batch.rows.to_pylist() for batch in again] == [batch.rows.to_pylist() for batch in batches[5::2]]
    refused(volume, CorruptError, f"{folder}/b.parquet", source=folder, filter=text)


def test_a_bad_line_is_named(volume: FileSystem, folder: str) -> None:
    lines = json_lines([{"row": row} for row in range(300)]).splitlines()
    for number, line, problem in (
        (41, b'{"row": }', "not JSON"),
        (1, b"[1]", "not an object"),
        (300, b'{"row": "x"}', "row"),
    ):
        changed = [*lines]
        changed[number - 1] = line
        put(volume, f"{folder}/a.jsonl", b"\n".join(changed))
        refused(volume, CorruptError, "a.jsonl", f"line {number}", problem, source=folder)
    put(volume, f"{folder}/b.csv", b"row,text\n1,a\n2\n3,c\n")
    refused(volume, CorruptError, "b.csv", "line 3", source=f"{folder}/b.csv")


def test_fields_of_shards_that_are_not_what_they_say(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.tar", tar_bytes({"1.cls": b"7", "2.cls": b"seven"}))
    refused(volume, CorruptError, "a.tar", "'cls'", source=folder)
    put(volume, f"{folder}/a.tar", tar_bytes({"1.txt": b"\xff\xfe"}))
    refused(volume, CorruptError, "a.tar", "'txt'", source=folder)
    put(volume, f"{folder}/a.tar", tar_bytes({"1.json": b"{"}))
    with open_reader(volume, DatasetSpec(folder), OrderSpec(1)) as reader:
        assert next(reader.batches(Position(0, 0))).rows.to_pylist() == [{"__key__": "1", "json": "{"}]


def test_manifests_that_do_not_hold(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/manifest.jsonl", json_lines([{"file": "there"}, {"file": "gone"}]))
    put(volume, f"{folder}/there", b"x")
    refused(volume, NotFoundError, "manifest.jsonl, row 2", "gone", source=folder)
    put(volume, f"{folder}/manifest.jsonl", json_lines([{"file": "../secret"}]))
    refused(volume, ConfigurationError, "manifest.jsonl, row 1", source=folder)
    put(volume, f"{folder}/manifest.jsonl", json_lines([{"image": "there"}]))
    refused(volume, ConfigurationError, "a column file or path", source=folder)


# ---- files that differ -----------------------------------------------------------------------------------------------


def test_files_that_differ_are_joined_where_nothing_is_lost(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.parquet", parquet_bytes(pa.table({"n": pa.array([1], pa.int16()), "t": ["x"]})))
    put(volume, f"{folder}/b.parquet", parquet_bytes(pa.table({"u": [True], "n": pa.array([2], pa.int64())})))
    put(
        volume,
        f"{folder}/c.parquet",
        parquet_bytes(pa.table({"n": pa.nulls(1), "t": pa.array(["y"]).dictionary_encode()})),
    )
    with open_reader(volume, DatasetSpec(folder), OrderSpec(10)) as reader:
        assert next(reader.batches(Position(0, 0))).rows.to_pylist() == [
            {"n": 1, "t": "x", "u": None},
            {"n": 2, "t": None, "u": True},
            {"n": None, "t": "y", "u": None},
        ]
    with open_reader(volume, DatasetSpec(folder, ("n",), 't = "y" or u'), OrderSpec(10)) as reader:
        assert next(reader.batches(Position(0, 0))).rows["n"].to_pylist() == [2, None]


def test_files_that_do_not_fit_are_named(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.parquet", parquet_bytes(pa.table({"n": [1]})))
    put(volume, f"{folder}/b.parquet", parquet_bytes(pa.table({"n": ["one"]})))
    refused(
        volume,
        ConfigurationError,
        "'n'",
        f"{folder}/a.parquet",
        f"{folder}/b.parquet",
        "int64",
        "string",
        source=folder,
    )


# ---- large -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_rows_larger_than_the_memory_pass_alone(volume: FileSystem, folder: str, shuffle: Shuffle) -> None:
    table = pa.table({"row": range(6), "bytes": [bytes([row]) * 300_000 for row in range(6)]})
    put(volume, f"{folder}/a.parquet", parquet_bytes(table, 2))
    with open_reader(volume, DatasetSpec(folder), OrderSpec(2, shuffle, window_rows=2), memory_bytes=100_000) as reader:
        found = [row for batch in reader.batches(Position(0, 0)) for row in batch.rows.to_pylist()]
        assert sorted(row["row"] for row in found) == list(range(6))
        assert all(set(row["bytes"]) == {row["row"]} for row in found)


def test_more_bytes_than_a_column_holds(volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieredfs_gateway.datasets.sources.tar.COLUMN_BYTES_MAX", 5000)
    put(volume, f"{folder}/a.tar", tar_bytes({"1.bin": b"x" * 6000}))
    refused(volume, TooLargeError, "a.tar", "6000", source=folder)
