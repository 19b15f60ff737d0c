"""Every format gives the rows that were written, whatever the threads, with projection, nested fields, filter and partitions."""

import gc
import gzip
import io
import shutil
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.reading.conftest import new_volume
from tests.reading.files import (
    csv_bytes,
    flights,
    ipc_bytes,
    json_lines,
    numbered,
    parquet_bytes,
    put,
    stream_bytes,
)
from tieredfs.errors import CorruptError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader
from tieredfs_gateway.datasets.sources import parquet
from tieredfs_gateway.datasets.sources.indexes import IndexCache
from tieredfs_gateway.datasets.warm_memory import MEMORY

SOME = 20_000


def read(volume: FileSystem, source: str, order: OrderSpec | None = None, **spec: Any) -> pa.Table:
    with open_reader(volume, DatasetSpec(source, **spec), order or OrderSpec(1000), threads=2) as reader:
        batches = [batch.rows for batch in reader.batches(Position(0, 0))]
        assert reader.row_count() == sum(batch.num_rows for batch in batches)
        return pa.Table.from_batches(batches, reader.schema)


def zst(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)  # type: ignore[no-any-return]


def some_flights() -> pa.Table:
    return flights().slice(0, SOME)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", lambda: parquet_bytes(some_flights())),
        ("a.feather", lambda: ipc_bytes(some_flights())),
        ("a.arrow", lambda: ipc_bytes(some_flights(), compression="uncompressed")),
        ("a.arrows", lambda: stream_bytes(some_flights())),
        ("a.csv", lambda: csv_bytes(some_flights())),
        ("a.csv.gz", lambda: gzip.compress(csv_bytes(some_flights()))),
        ("a.csv.zst", lambda: zst(csv_bytes(some_flights()))),
    ],
)
def test_flights_come_back_in_every_format(volume: FileSystem, folder: str, name: str, data: Any) -> None:
    put(volume, f"{folder}/{name}", data())
    expected = some_flights()
    found = read(volume, f"{folder}/{name}")
    assert found.schema.names == expected.schema.names
    assert found.cast(expected.schema).equals(expected)
    narrow = read(volume, folder, columns=("dest", "dep_delay"), filter='dep_delay > 60 and origin = "JFK"')
    mask = pc.and_(pc.greater(expected["dep_delay"], 60), pc.equal(expected["origin"], "JFK"))
    assert narrow.cast(pa.schema([("dest", pa.string()), ("dep_delay", pa.int64())])).equals(
        expected.filter(mask).select(["dest", "dep_delay"])
    )


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_json_lines(volume: FileSystem, folder: str, ending: str) -> None:
    rows = [{"n": n, "t": f"é{n}" * (n % 5), "deep": {"x": n / 2, "l": [n, None]}, "none": None} for n in range(5000)]
    data = json_lines(rows).replace(b'{"n": 7,', b'\n  \n{"n": 7,')  # blank lines are no rows
    packers: dict[str, Callable[[bytes], bytes]] = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zst}
    put(volume, f"{folder}/a.{ending}", packers[ending](data))
    assert read(volume, folder).to_pylist() == rows
    found = read(volume, folder, columns=("deep.x", "n"), filter="deep.x >= 2400 and n is not null")
    assert found.to_pylist() == [{"deep.x": n / 2, "n": n} for n in range(4800, 5000)]


def test_text_files_of_many_parts(volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts end at the end of records, also where texts have line ends in quotes; types hold for all parts."""
    monkeypatch.setattr("tieredfs_gateway.datasets.sources.text.PART_BYTES", 1000)
    rows = [{"n": n if n < 900 else n + 0.5, "t": f'line\n"{n}",' if n % 3 else ""} for n in range(1000)]
    table = pa.Table.from_pylist([{"n": float(row["n"]), "t": row["t"]} for row in rows])
    put(volume, f"{folder}/a.csv", csv_bytes(pa.table({"n": [str(row["n"]) for row in rows], "t": table["t"]})))
    put(volume, f"{folder}/b.csv.gz", gzip.compress(csv_bytes(table)))
    put(volume, f"{folder}/c.jsonl", json_lines(rows))
    for name in ("a.csv", "b.csv.gz", "c.jsonl"):
        with open_reader(volume, DatasetSpec(f"{folder}/{name}"), OrderSpec(64), threads=2) as reader:
            assert len(reader._dataset.splits) > 10
            found = pa.Table.from_batches([batch.rows for batch in reader.batches(Position(0, 0))])
            assert found.equals(table), name


def test_nested_dictionaries_nulls_and_bytes(volume: FileSystem, folder: str) -> None:
    table = pa.table(
        {
            "word": pa.array(["a", None, "b", "a"] * 50).dictionary_encode(),
            "picture": pa.array([b"\x00\xff", b"", None, b"x" * 1000] * 50),
            "point": pa.array(
                [{"x": 1, "p": {"q": "r"}}, None, {"x": None, "p": None}, {"x": 2, "p": {"q": None}}] * 50
            ),
            "tags": pa.array([["a"], [], None, ["b", None]] * 50),
            "nothing": pa.nulls(200),
            "a.b": pa.array(range(200), pa.uint8()),
        }
    )
    for name, data in (("a.parquet", parquet_bytes(table, 30)), ("b.feather", ipc_bytes(table, 30))):
        put(volume, f"{folder}/{name}", data)
        found = read(volume, f"{folder}/{name}", OrderSpec(70))
        assert found.to_pylist() == table.to_pylist()
        assert found.schema.field("word").type == pa.dictionary(pa.int32(), pa.string())
        fields = read(volume, f"{folder}/{name}", columns=("point.p.q", "point.x", "a.b"), filter="point.x is null")
        assert fields.to_pylist() == [
            row for at in range(200) for row in [{"point.p.q": None, "point.x": None, "a.b": at}] if at % 4 in (1, 2)
        ]


@pytest.mark.parametrize("most", [2**31 - 1, 100])
def test_texts_stored_by_dictionary(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """They are read as dictionaries; what comes are texts, whatever else a file has, and however many fit an array."""
    seen: set[str] = set()

    def written_out(table: pa.Table, repeated: Collection[str]) -> pa.Table:
        seen.update(repeated)
        return original(table, repeated)

    original = parquet._written_out
    monkeypatch.setattr(parquet, "_written_out", written_out)
    monkeypatch.setattr(parquet, "_TEXT_BYTES_MAX", most)
    words = [None if n % 7 == 0 else f"é{n % 11}" for n in range(SOME)]
    table = pa.table(
        {
            "t": words,
            "b": pa.array([b"\0" * (n % 3) for n in range(SOME)], pa.binary()),
            "same": [f"é{n % 9}" for n in range(SOME)],
            "two": pa.array([b"\0%d" % (n % 2) for n in range(SOME)], pa.binary()),
            "none": pa.nulls(SOME, pa.string()),
            "all": [f"{n:06d}" for n in range(SOME)],
            "large": pa.array(words, pa.large_string()),
            "p.q": words,
            "x": pa.array([{"y": word} for word in words]),
            "d": pa.array(words).dictionary_encode(),
        }
    )
    put(volume, f"{folder}/a.parquet", parquet_bytes(table, rows=6000))
    found = read(volume, folder)
    assert found.to_pylist() == table.to_pylist()
    assert found.schema.field("t").type == pa.string()
    assert seen == {"t", "b", "same", "two", "none"}
    found.validate(full=True)


def test_hive_directories_are_columns_and_prune(volume: FileSystem, folder: str) -> None:
    for year in (2012, 2013):
        for place in ("New York", None):
            value = "__HIVE_DEFAULT_PARTITION__" if place is None else "New%20York"
            table = numbered(100, year * 1000)
            put(volume, f"{folder}/year={year}/place={value}/a.parquet", parquet_bytes(table, 50))
    put(volume, f"{folder}/_SUCCESS", b"")
    put(volume, f"{folder}/.hidden/a.parquet", b"no data")
    found = read(volume, folder)
    assert found.schema.names == ["row", "text", "year", "place"]
    assert found.schema.field("year").type == pa.int64()
    assert sorted(set(zip(found["year"].to_pylist(), found["place"].to_pylist(), strict=True)), key=str) == [
        (2012, "New York"),
        (2012, None),
        (2013, "New York"),
        (2013, None),
    ]
    with open_reader(
        volume, DatasetSpec(folder, ("row",), "year = 2013 and place is not null"), OrderSpec(10), threads=1
    ) as reader:
        assert sum(batch.rows.num_rows for batch in reader.batches(Position(0, 0))) == 100
        assert reader.counters()["rows_decoded"] == 400  # splits are looked at, not read:
        assert reader.counters()["bytes_decoded"] == 800
    assert (
        read(volume, folder, columns=("year",), filter='place = "New York"')["year"].to_pylist()
        == [2012] * 100 + [2013] * 100
    )


def test_only_what_is_needed_is_read(volume: FileSystem, folder: str) -> None:
    """3 of 50 columns, and of them only the row groups that statistics do not rule out."""
    columns = {f"c{number}": pa.array(range(40_000), pa.int64()) for number in range(50)}
    data = parquet_bytes(pa.table(columns), 10_000, compression="none", use_dictionary=False)
    put(volume, f"{folder}/a.parquet", data)
    spec = DatasetSpec(folder, ("c1", "c2"), "c3 >= 35000 and c3 < 36000")
    with open_reader(volume, spec, OrderSpec(100), threads=1) as reader:
        opened = reader.counters()["bytes_read"]
        assert sum(batch.rows.num_rows for batch in reader.batches(Position(0, 0))) == 1000
        assert reader.counters()["bytes_read"] - opened < 3 * 10_000 * 8 * 1.05
        assert opened <= 64 << 10


@pytest.mark.parametrize("pattern", ["{}/*.parquet", "{}/**/*.parquet", "{}/**", "{}/?.parq[a-z]et", "{}/x/*", "{}/x"])
def test_globs(volume: FileSystem, folder: str, pattern: str) -> None:
    for number, name in enumerate(["b.parquet", "a.parquet", "x/c.parquet", "x/y/d.parquet"]):
        put(volume, f"{folder}/{name}", parquet_bytes(pa.table({"n": [number]})))
    expected = {
        "{}/*.parquet": [1, 0],
        "{}/**/*.parquet": [1, 0, 2, 3],
        "{}/**": [1, 0, 2, 3],
        "{}/?.parq[a-z]et": [1, 0],
        "{}/x/*": [2, 3],
        "{}/x": [2, 3],
    }
    assert read(volume, pattern.format(folder))["n"].to_pylist() == expected[pattern]


def test_names_that_are_not_utf8(volume: FileSystem, folder: str) -> None:
    put(volume, folder.encode() + b"/k=\xff\xfe/\xe9.parquet", parquet_bytes(numbered(10)))
    found = read(volume, f"{folder}/*/*.parquet", columns=("row",))
    assert found["row"].to_pylist() == list(range(10))
    exact = (folder.encode() + b"/k=\xff\xfe/\xe9.parquet").decode("utf-8", "surrogateescape")
    assert read(volume, exact, columns=("row",)).equals(found)


def test_a_format_is_told_by_content_or_by_name(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/one", parquet_bytes(numbered(5)))
    put(volume, f"{folder}/two", ipc_bytes(numbered(5)))
    put(volume, f"{folder}/three.txt", csv_bytes(numbered(5)))
    for name, kind in (("one", None), ("two", None), ("three.txt", "csv")):
        assert read(volume, f"{folder}/{name}", format=kind)["row"].to_pylist() == list(range(5))


# ---- tar -------------------------------------------------------------------------------------------------------------


def tar_bytes(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def shard(start: int, count: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number in range(start, start + count):
        members[f"train/{number:05d}.jpg"] = bytes([number % 256]) * (number % 300)
        members[f"train/{number:05d}.cls"] = f"{number % 10}\n".encode()
        if number % 2:
            members[f"train/{number:05d}.json"] = f'{{"n": {number}, "who": {{"name": "x{number}"}}}}'.encode()
        members[f"train/{number:05d}.seg.TXT"] = f"é{number}".encode()
    return members


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_webdataset_shards(volume: FileSystem, folder: str, ending: str, shuffle: Shuffle) -> None:
    for at in range(3):
        data = tar_bytes(shard(at * 100, 100))
        put(volume, f"{folder}/{at}.{ending}", data if ending == "tar" else gzip.compress(data))
    found = read(volume, folder, OrderSpec(32, shuffle, window_rows=64)).to_pylist()
    expected = [
        {
            "__key__": f"train/{number:05d}",
            "jpg": bytes([number % 256]) * (number % 300),
            "cls": number % 10,
            "seg.txt": f"é{number}",
            "json": {"n": number, "who": {"name": f"x{number}"}} if number % 2 else None,
        }
        for number in range(300)
    ]
    assert (found == expected) == (shuffle is Shuffle.NONE)
    assert sorted(found, key=lambda row: row["__key__"]) == expected
    some = read(
        volume, folder, OrderSpec(32, shuffle), columns=("json.who.name", "__key__"), filter="cls = 3 and json.n > 200"
    )
    assert sorted(row["json.who.name"] for row in some.to_pylist()) == [f"x{n}" for n in range(203, 300, 10)]


def test_a_sample_of_a_shard_costs_its_own_bytes(volume: FileSystem, folder: str) -> None:
    members = {f"{number:05d}.bin": bytes([number % 256]) * 50_000 for number in range(200)}
    put(volume, f"{folder}/a.tar", tar_bytes(members))
    with open_reader(
        volume, DatasetSpec(folder), OrderSpec(2, Shuffle.FULL), memory_bytes=2 << 20, threads=1
    ) as reader:
        batches = reader.batches(Position(0, 0))
        first = next(batches).rows
        batches.close()  # type: ignore[attr-defined]
        assert [set(value) for value in first["bin"].to_pylist()] == [
            {int(key) % 256} for key in first["__key__"].to_pylist()
        ]
        assert reader.counters()["rows_decoded"] < 20


def test_integers_of_a_shard_are_read_with_its_headers(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.tar", tar_bytes({f"{number:05d}.cls": b"%d" % number for number in range(100)}))
    with open_reader(volume, DatasetSpec(folder), OrderSpec(10, Shuffle.FULL)) as reader:
        opened = reader.counters()["bytes_read"]
        rows = [row for batch in reader.batches(Position(0, 0)) for row in batch.rows.to_pylist()]
        assert sorted((row["__key__"], row["cls"]) for row in rows) == [(f"{n:05d}", n) for n in range(100)]
        assert reader.counters()["bytes_read"] == opened


def test_an_integer_that_is_none_is_an_error_where_it_is_asked_for(volume: FileSystem, folder: str) -> None:
    members = {f"{number}.{field}": b"7" for number in range(4) for field in ("bin", "cls")} | {"2.cls": b"cat"}
    put(volume, f"{folder}/a.tar", tar_bytes(members))
    assert read(volume, folder, OrderSpec(4), columns=("bin",)).num_rows == 4
    for shuffle in (Shuffle.NONE, Shuffle.FULL):
        with pytest.raises(CorruptError, match=r"a\.tar: not readable as field 'cls'"):
            read(volume, folder, OrderSpec(4, shuffle))


def test_pictures_that_are_kept_stay_what_they_are(volume: FileSystem, folder: str) -> None:
    """Their memory is used again, but not while anybody has them; and what is kept of it afterwards has a limit."""
    size, memory = 1 << 20, 128 << 20
    for shard_number in range(3):
        first = shard_number * 30
        members = {f"{n:03d}.bin": bytes([n]) * (size + n) for n in range(first, first + 30)}
        put(volume, f"{folder}/{shard_number}.tar", tar_bytes(members))
    del members
    gc.collect()
    used = MEMORY.usage()["used_bytes"]
    with open_reader(volume, DatasetSpec(folder), OrderSpec(8, Shuffle.FULL), memory_bytes=memory, threads=2) as reader:
        kept = [batch.rows for batch in reader.batches(Position(0, 0))]
        assert sum(batch.rows.num_rows for batch in reader.batches(Position(1, 0))) == 90
        for rows in kept:
            for key, value in zip(rows["__key__"].to_pylist(), rows["bin"].to_pylist(), strict=True):
                assert value == bytes([int(key)]) * (size + int(key))
        assert sorted(key for rows in kept for key in rows["__key__"].to_pylist()) == [f"{n:03d}" for n in range(90)]
        del kept, rows, value
        gc.collect()
        assert sum(batch.rows.num_rows for batch in reader.batches(Position(2, 0))) == 90
        made = MEMORY.made
        assert sum(batch.rows.num_rows for batch in reader.batches(Position(3, 0))) == 90
        assert MEMORY.made == made, "an epoch finds the memory of the one before"
    gc.collect()
    found = MEMORY.usage()
    assert found["used_bytes"] == used
    assert found["idle_bytes"] <= memory


# ---- raw files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", ["manifest.jsonl", "manifest.csv"])
@pytest.mark.parametrize("shuffle", [Shuffle.NONE, Shuffle.FULL])
def test_raw_files_of_a_manifest(volume: FileSystem, folder: str, manifest: str, shuffle: Shuffle) -> None:
    rows = [{"file": f"d{n % 2}/{n}.bin", "label": n} for n in range(60)]
    for row in rows:
        put(volume, f"{folder}/{row['file']}", str(row["label"]).encode() * 7)
    table = pa.Table.from_pylist(rows)
    put(volume, f"{folder}/{manifest}", json_lines(rows) if manifest.endswith("jsonl") else csv_bytes(table))
    expected = [row | {"bytes": str(row["label"]).encode() * 7} for row in rows]
    found = read(volume, folder, OrderSpec(8, shuffle)).to_pylist()
    assert sorted(found, key=lambda row: row["label"]) == expected
    assert (found == expected) == (shuffle is Shuffle.NONE)
    with open_reader(volume, DatasetSpec(folder, ("label",)), OrderSpec(8)) as reader:
        opened = reader.counters()["bytes_read"]
        assert sum(batch.rows.num_rows for batch in reader.batches(Position(0, 0))) == 60
        assert reader.counters()["bytes_read"] == opened, "no file is read for a label"


# ---- files that are not on the SSD yet -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrows", "a.csv", "a.csv.gz", "a.tar"])
def test_files_that_are_still_arriving(
    volume: FileSystem, folder: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor every byte comes through the reading, which waits for it."""
    table = numbered(5000)
    made = {
        "a.parquet": lambda: parquet_bytes(table),
        "a.feather": lambda: ipc_bytes(table),
        "a.arrows": lambda: stream_bytes(table),
        "a.csv": lambda: csv_bytes(table.select(["row"])),
        "a.csv.gz": lambda: gzip.compress(csv_bytes(table.select(["row"]))),
        "a.tar": lambda: tar_bytes({f"{row:06d}.cls": b"%d" % row for row in range(5000)}),
    }
    put(volume, f"{folder}/{name}", made[name]())
    monkeypatch.setattr("tieredfs.volume.open_files.TierReading.descriptor", None)
    spec = DatasetSpec(folder)
    with open_reader(volume, spec, OrderSpec(1000, Shuffle.FULL), threads=2, indexes=IndexCache()) as reader:
        column = "cls" if name == "a.tar" else "row"
        found = [row for batch in reader.batches(Position(0, 0)) for row in batch.rows[column].to_pylist()]
        assert sorted(found) == list(range(5000))
        assert reader.counters()["bytes_read"] > 10_000


def test_files_that_are_not_on_the_ssd(tmp_path: Path) -> None:
    """Larger than what an opening waits for; damaged on one disk of three."""
    url = new_volume(tmp_path)
    random = np.random.default_rng(0).integers(0, 1 << 62, 3 << 20)
    with FileSystem.at(url, purpose="writer") as writer:
        put(writer, "data/a.parquet", parquet_bytes(pa.table({"n": random}), 1 << 18))
        writer.flush(60)
    shutil.rmtree(tmp_path / "clients")
    chunks = [path for path in (tmp_path / "d0").rglob("*") if path.is_file()]
    max(chunks, key=lambda path: path.stat().st_size).unlink()
    with FileSystem.at(url, purpose="reader") as volume:
        assert volume.stat(b"data/a.parquet").size_bytes > 20 << 20
        assert read(volume, "data", OrderSpec(100_000))["n"].to_numpy().tolist() == random.tolist()
