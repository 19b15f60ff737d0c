"""Files that are valid, or nearly: every row comes once and as it is, in any order; else the file is named and can be skipped."""

import base64
import io
import itertools
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from tests.reading.files import ipc_bytes, json_lines, parquet_bytes, put, stream_bytes
from tieredfs.errors import CorruptError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader
from tieredfs_gateway.datasets.sources import text

COUNT = 20


def rows(volume: FileSystem, source: str, shuffle: Shuffle = Shuffle.NONE, **selection: Any) -> list[dict[str, Any]]:
    """Of one epoch, checked to be as many as the reader says."""
    spec = DatasetSpec(source, **selection)
    with open_reader(volume, spec, OrderSpec(3, shuffle, 1, 8)) as reader:
        found = [row for batch in reader.batches(Position(0, 0)) for row in batch.rows.to_pylist()]
        assert len(found) == reader.row_count()
        return found


def in_every_order(volume: FileSystem, source: str, expected: Sequence[dict[str, Any]], **selection: Any) -> None:
    assert rows(volume, source, **selection) == expected
    for shuffle in (Shuffle.SHARDS, Shuffle.WINDOW, Shuffle.FULL):
        assert sorted(map(repr, rows(volume, source, shuffle, **selection))) == sorted(map(repr, expected))


def refused(volume: FileSystem, source: str, reason: str, rest: int = 0) -> None:
    """With its name and a reason; where damaged files are skipped, `rest` rows are left."""
    with pytest.raises(CorruptError, match=reason):
        rows(volume, source)
    assert len(rows(volume, source, on_bad_shard=OnBadShard.SKIP)) == rest


# ---- Parquet and Arrow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("s", "s.n"), ("s.n", "s")])
def test_a_column_is_not_ruled_out_by_statistics_of_a_field_with_its_name(
    volume: FileSystem, folder: str, order: tuple[str, str]
) -> None:
    table = pa.table({"s": [{"n": number - 100} for number in range(COUNT)], "s.n": list(range(COUNT))})
    put(volume, f"{folder}/a.parquet", parquet_bytes(table.select(order), 5))
    in_every_order(volume, folder, table.slice(7).select(order).to_pylist(), filter="`s.n` >= 7")
    maps = pa.array([[("k", 1)]] * COUNT, pa.map_(pa.string(), pa.int64()))
    put(volume, f"{folder}-2/a.parquet", parquet_bytes(table.add_column(0, "map", maps), 5))  # two columns of the file
    assert len(rows(volume, f"{folder}-2", columns=("s",), filter="s.n >= 7")) == COUNT - 7


def test_statistics_that_are_nan_rule_nothing_out(volume: FileSystem, folder: str) -> None:
    written = parquet_bytes(pa.table({"x": [1.0, 2.0]}), compression="none", use_dictionary=False)
    one, two, nan = (pa.array([value]).buffers()[1].to_pybytes() for value in (1.0, 2.0, float("nan")))
    start, end = written.split(one + two)
    assert two in start + end, "there are statistics"
    put(volume, f"{folder}/a.parquet", start.replace(two, nan) + one + two + end.replace(two, nan))
    assert rows(volume, folder, filter="x > 1.5") == [{"x": 2.0}]


class _Keys(encryption.KmsClient):
    def wrap_key(self, key_bytes: bytes, _: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, _: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plain_footer", [True, False])
def test_encrypted_files_are_refused(volume: FileSystem, folder: str, *, plain_footer: bool) -> None:
    table = pa.table({"a": list(range(COUNT)), "secret": list(range(COUNT))})
    settings = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["secret"]}, plaintext_footer=plain_footer
    )
    keys = encryption.CryptoFactory(lambda _: _Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(), settings
    )
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    put(volume, f"{folder}/a.parquet", sink.getvalue())
    put(volume, f"{folder}/b.parquet", parquet_bytes(table))
    refused(volume, folder, "a.parquet: not readable as Parquet: .*crypt", rest=COUNT)


def columns() -> dict[str, pa.Array]:
    """Three rows of types that Arrow can do less with than with others."""
    words, view = pa.array(["a", "b"]), pa.string_view()
    indices = pa.array([0, 1, 0])
    return {
        "view": pa.array(["a", None, "b"], view),
        "bytes view": pa.array([b"a", None, b"b"], pa.binary_view()),
        "list": pa.array([["a"], None, ["b", "c"]], pa.list_(view)),
        "fixed list": pa.array([["a"], ["b"], ["c"]], pa.list_(view, 1)),
        "map": pa.array([[("k", "v")], None, []], pa.map_(pa.string(), view)),
        "struct": pa.array([{"x": "a"}, None, {"x": None}], pa.struct([("x", view)])),
        "dictionary": pa.DictionaryArray.from_arrays(indices, words.cast(view)),
        "dictionary of lists": pa.DictionaryArray.from_arrays(indices, pa.array([[1], [2, 3]])),
        "dictionary of structs": pa.DictionaryArray.from_arrays(indices, pa.array([{"x": 1}, {"x": 2}])),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), words),
    }


@pytest.mark.parametrize("name", columns())
def test_types_that_arrow_takes_no_rows_of(volume: FileSystem, folder: str, name: str) -> None:
    table = pa.table({"x": columns()[name]})
    put(volume, f"{folder}/1.arrow", ipc_bytes(table))
    put(volume, f"{folder}/2.arrows", stream_bytes(table))
    in_every_order(volume, folder, table.to_pylist() * 2)


def _offsets(first: int, last: int) -> bytes:
    return np.arange(first, last, dtype=np.int32).tobytes()


@pytest.mark.parametrize("made", [ipc_bytes, stream_bytes])
@pytest.mark.parametrize("wrong", [1 << 30, -1, 0])
def test_offsets_of_arrow_files_that_lead_astray(volume: FileSystem, folder: str, made: Any, wrong: int) -> None:
    """Arrow follows them: out of its memory, and the process is gone."""
    table = pa.table({"n": list(range(COUNT)), "s": ["x"] * COUNT})
    data = made(table, 10, compression="uncompressed") if made is ipc_bytes else made(table, 10)
    whole = _offsets(0, 11)
    assert data.count(whole) == 2
    cut = data.rfind(whole)
    damaged = data[:cut] + _offsets(0, 5) + np.int32(wrong).tobytes() + _offsets(6, 11) + data[cut + len(whole) :]
    put(volume, f"{folder}/a.arrow", damaged)
    with pytest.raises(CorruptError, match="not readable as Arrow IPC"):
        rows(volume, folder)
    with open_reader(volume, DatasetSpec(folder, on_bad_shard=OnBadShard.SKIP), OrderSpec(3)) as reader:
        left = sum(batch.rows.num_rows for batch in reader.batches(Position(0, 0)))
    assert left == (10 if made is ipc_bytes else 0)
    assert rows(volume, folder, columns=("n",)) == table.select(["n"]).to_pylist()


def test_arrow_files_whose_names_are_no_text(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/a.arrow", ipc_bytes(pa.table({"name": [1]})).replace(b"name", b"na\xffe"))
    put(volume, f"{folder}/b.arrow", ipc_bytes(pa.table({"name": [1]})))
    refused(volume, folder, "a.arrow: not readable as Arrow IPC", rest=1)


# ---- text ------------------------------------------------------------------------------------------------------------


def test_quotes_within_fields_do_not_hide_the_ends_of_lines(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PART_BYTES", 64)
    kinds = {'6" nail': '6" nail', '"x\ny,\n,"': "x\ny,\n,", '"say ""hi"""': 'say "hi"', '""': "", '"a"b"c': 'ab"c'}
    lines = list(zip(range(60), itertools.cycle(kinds), strict=False))
    put(volume, f"{folder}/a.csv", ("n,s\n" + "".join(f"{n},{s}\n" for n, s in lines)).encode())
    expected = [{"n": n, "s": s} for n, s in zip(range(60), itertools.cycle(kinds.values()), strict=False)]
    in_every_order(volume, folder, expected)
    with_mark = '\ufeff"n\n1"\ts\n' + "".join(f"{n}\t{s}\n" for n, s in lines)
    put(volume, f"{folder}-2/a.tsv", with_mark.encode())
    in_every_order(volume, f"{folder}-2", [{"n\n1": row["n"], "s": row["s"]} for row in expected])


def test_text_that_is_not_utf8(volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(volume, f"{folder}/a.csv", "a,b\n1,2\n".encode("utf-16"))
    put(volume, f"{folder}/b.csv", b"a,b\n1,2\n")
    refused(volume, folder, "a.csv: not readable as CSV", rest=1)
    put(volume, f"{folder}-2/a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n')
    put(volume, f"{folder}-2/b.jsonl", b'{"a": "y"}\n')
    refused(volume, f"{folder}-2", "a.jsonl, line 2: not UTF-8", rest=1)
    monkeypatch.setattr(text, "PART_BYTES", 16)
    put(volume, f"{folder}-3/a.csv", b"a\n" + b"plain\n" * 9 + b"caf\xe9\n" * 9)
    in_every_order(volume, f"{folder}-3", [{"a": b"plain"}] * 9 + [{"a": b"caf\xe9"}] * 9)


def test_json_whose_nested_values_change_between_parts(
    volume: FileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PART_BYTES", 64)
    first = {"box": {"x": 1.0, "when": "2020-01-01"}, "tags": [1.0]}
    later = {"box": {"x": 1.5, "when": "never"}, "tags": [0.5]}
    put(volume, f"{folder}/a.jsonl", json_lines([first] * 9 + [later] * 9).replace(b"1.0", b"1"))
    in_every_order(volume, folder, [first] * 9 + [later] * 9)


@pytest.mark.parametrize("integer", [2**63 + 1, -(2**63) - 1, 2**64 - 1, 10**400])
@pytest.mark.parametrize("before", ["5", "1.5"])
def test_integers_that_no_number_holds_are_told_with_their_column(
    volume: FileSystem, folder: str, integer: int, before: str
) -> None:
    put(volume, f"{folder}/a.csv", f"a,b\n1,{before}\n2, {integer}\n".encode())
    put(volume, f"{folder}/b.csv", b"a,b\n1,2\n")
    refused(volume, folder, f"a.csv: column 'b' has the integer {integer}:", rest=1)
    put(
        volume, f"{folder}-2/a.jsonl", f'{{"a": 1, "b": [{{"c": {before}}}]}}\n{{"b": [{{"c": {integer}}}]}}\n'.encode()
    )
    put(volume, f"{folder}-2/b.jsonl", b'{"a": 1}\n')
    refused(volume, f"{folder}-2", f"a.jsonl, line 2: column 'b' has the integer {integer}:", rest=1)
    document = f'{{"a": [{integer}]}}'
    put(volume, f"{folder}-3/a.tar", tar_of([("1.json", document.encode())]))
    in_every_order(volume, f"{folder}-3", [{"__key__": "1", "json": document}])


def test_large_floats_that_are_written_as_integers(volume: FileSystem, folder: str) -> None:
    """As JavaScript writes them, and C: by the fewest digits that tell them, or by all."""
    floats = ["123456789012345680000", "18446744073709551616", "1e300", "0.5"]
    expected = [{"a": float(text)} for text in floats]
    put(volume, f"{folder}/a.csv", ("a\n" + "".join(f"{one}\n" for one in floats)).encode())
    in_every_order(volume, folder, expected)
    put(volume, f"{folder}-2/a.jsonl", "".join(f'{{"a": {one}}}\n' for one in floats).encode())
    in_every_order(volume, f"{folder}-2", expected)


@pytest.mark.parametrize("part_bytes", [8, 1 << 20])
def test_an_empty_line_is_a_row_where_there_is_one_column(
    volume: FileSystem, folder: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PART_BYTES", part_bytes)
    first = b"\n\r\n" if part_bytes > 8 else b""
    put(volume, f"{folder}/a.csv", first + b"number\n1\n\n" + b"2\r\n\r\n" * 9 + b"\n")
    in_every_order(volume, folder, [{"number": n} for n in [1, None, *[2, None] * 9, None]])
    put(volume, f"{folder}-2/a.tsv", b'"a\tb"\nx\n\ny')
    in_every_order(volume, f"{folder}-2", [{"a\tb": text} for text in ("x", "", "y")])
    put(volume, f"{folder}-3/a.csv", first + b"a,b\n\n1,2\n\n" + b"\n" * 20 + b"3,4\n\n")
    in_every_order(volume, f"{folder}-3", [{"a": 1, "b": 2}, {"a": 3, "b": 4}])


@pytest.mark.parametrize("header", [b"a,b", b"a", b"a,b\n"])
def test_a_header_without_rows(volume: FileSystem, folder: str, header: bytes) -> None:
    put(volume, f"{folder}/a.csv", header)
    assert rows(volume, folder) == []
    more = b"a,b\n1,2\n" if b"b" in header else b"a\n1\n"
    put(volume, f"{folder}/b.csv", more)
    assert len(rows(volume, folder)) == 1


# ---- archives and manifests ------------------------------------------------------------------------------------------


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def test_shards_and_manifests_without_a_sample(volume: FileSystem, folder: str) -> None:
    put(volume, f"{folder}/1.tar", tar_of([]))
    put(volume, f"{folder}/2.tar", tar_of([("a.txt", b"x"), ("b.txt", b"y")]))
    put(volume, f"{folder}/3.tar", tar_of([("README", b"no field")]))
    in_every_order(volume, folder, [{"__key__": "a", "txt": "x"}, {"__key__": "b", "txt": "y"}])
    put(volume, f"{folder}-2/manifest.csv", b"file,label\n")
    put(volume, f"{folder}-2/a.png", b"x")
    in_every_order(volume, f"{folder}-2", [])


@pytest.mark.parametrize(
    "documents", [(b'{"n": 1}', b"", b'{"n": 3}'), (b'{"n": 1}{"n": 2}', b" \n", b'{"n": 3}'), (b"{}", b"{}", b"{}")]
)
def test_documents_stay_with_their_sample(volume: FileSystem, folder: str, documents: Sequence[bytes]) -> None:
    members = [(f"{number}.json", document) for number, document in enumerate(documents)]
    put(volume, f"{folder}/a.tar", tar_of(members))
    expected = [{"json": document.decode(), "__key__": str(number)} for number, document in enumerate(documents)]
    in_every_order(volume, folder, expected, columns=("json", "__key__"))
    assert rows(volume, folder, columns=("json",)) == [{"json": each["json"]} for each in expected]


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_members_with_holes_are_told(volume: FileSystem, folder: str, tmp_path: Path, form: str) -> None:
    with open(tmp_path / "1.bin", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "--sparse", f"--format={form}", "-cf", archive, "-C", tmp_path, "1.bin"], check=True)
    put(volume, f"{folder}/a.tar", archive.read_bytes())
    put(volume, f"{folder}/b.tar", tar_of([("2.bin", b"x")]))
    refused(volume, folder, "a.tar: .* stored with holes", rest=1)
