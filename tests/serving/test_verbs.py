"""The command line on datasets, as it is typed."""

import datetime
import decimal
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.reading.files import put
from tests.s3.endpoint import command
from tests.serving.rig import ROWS, SOURCE, WAIT_S, Gateway, put_table


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    line, environment = command(folder, *arguments)
    ended = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout if code == 0 else ended.stderr


def as_json(served: Gateway, verb: str, *arguments: str) -> Any:
    return json.loads(run(served.root, "dataset", verb, served.meta_url, *arguments, "--json"))


def test_what_is_there(served: Gateway) -> None:
    found = as_json(served, "ls", "datasets")
    mine = next(one for one in found if one["dataset"] == SOURCE)
    assert (mine["format"], mine["files"]) == ("parquet", 2)
    assert "numbers" in run(served.root, "dataset", "ls", served.meta_url)


def test_columns_and_first_rows(served: Gateway) -> None:
    found = as_json(served, "schema", SOURCE)
    assert [one["column"] for one in found["columns"]] == ["id", "half", "word", "maybe"]
    assert len(found["version"]) == 32
    rows = as_json(served, "head", SOURCE, "--column", "id", "--column", "maybe", "--filter", "id > 4", "-n", "3")
    assert rows == [{"id": 5, "maybe": None}, {"id": 6, "maybe": 6}, {"id": 7, "maybe": 7}]


def test_statistics(served: Gateway) -> None:
    found = as_json(served, "stats", SOURCE)
    assert found["rows"] == ROWS
    columns = {one["column"]: one for one in found["columns"]}
    assert columns["id"] == {"column": "id", "nulls": 0, "least": 0, "greatest": ROWS - 1, "mean": (ROWS - 1) / 2}
    assert columns["maybe"]["nulls"] == ROWS / 5
    assert columns["word"]["least"] == "word 0"
    assert columns["word"]["mean"] is None


def test_a_measurement(served: Gateway) -> None:
    found = as_json(served, "bench", SOURCE, "--shuffle", "window", "--epochs", "2")
    assert [one["rows"] for one in found] == [ROWS, ROWS]
    assert found[0]["read_bytes"] > 0


def every_type() -> pa.Table:
    moment = datetime.datetime(2013, 1, 1, 5, 6, 7)
    return pa.table(
        {
            "date": [moment.date(), None],
            "moment": [moment, None],
            "nanos": pa.array([1356998400000000001, None], pa.timestamp("ns")),
            "span": [datetime.timedelta(seconds=1), None],
            "clock": [moment.time(), None],
            "money": [decimal.Decimal("1.50"), None],
            "odd": [float("nan"), float("inf")],
            "nothing": pa.nulls(2),
            "raw": [b"abc", None],
            "list": [[1, 2], None],
            "who": [{"name": "a", "born": moment.date()}, None],
            "code": pa.array(["x", None]).dictionary_encode(),
            "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
            "half": pa.array([1.5, None], pa.float32()).cast(pa.float16()),
        }
    )


@pytest.mark.parametrize("pandas", [True, False])
def test_every_type_is_shown_with_and_without_pandas(served: Gateway, tmp_path: Path, pandas: bool) -> None:
    with served.volume() as volume:
        put_table(volume, "datasets/types/a.parquet", every_type())
        volume.flush(WAIT_S)
    if not pandas:
        (tmp_path / "pandas.py").write_text("raise ImportError('not here')")

    def shown(verb: str) -> Any:
        line, environment = command(served.root, "dataset", verb, served.meta_url, "datasets/types", "--json")
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
        ended = subprocess.run(line, env=environment, check=True, capture_output=True, text=True, timeout=WAIT_S)

        def refuse(what: str) -> None:
            raise AssertionError(f"{what} is no JSON")

        return json.loads(ended.stdout, parse_constant=refuse)

    first, second = shown("head")
    assert first == {
        "date": "2013-01-01",
        "moment": "2013-01-01 05:06:07",
        "nanos": "2013-01-01 00:00:00.000000001",
        "span": "0:00:01",
        "clock": "05:06:07",
        "money": "1.50",
        "odd": "nan",
        "nothing": None,
        "raw": "<3 bytes>",
        "list": "[1, 2]",
        "who": '{"name": "a", "born": "2013-01-01"}',
        "code": "x",
        "map": '[["a", 1]]',
        "half": 1.5,
    }
    assert second == dict.fromkeys(first) | {"odd": "inf"}
    columns = {one.pop("column"): one for one in shown("stats")["columns"]}
    assert columns["date"] == {"nulls": 1, "least": "2013-01-01", "greatest": "2013-01-01", "mean": None}
    assert columns["code"] == {"nulls": 1, "least": "x", "greatest": "x", "mean": None}
    assert {name for name, one in columns.items() if one["nulls"] != 1} == {"odd", "nothing"}


def test_moments_that_no_calendar_has_are_shown(served: Gateway) -> None:
    far, spans = pa.array([1 << 30, 0, None], pa.date32()), pa.array([1 << 62, None, 1], pa.duration("s"))
    table = pa.table({"day": far, "days": pa.ListArray.from_arrays([0, 2, 2, 3], far), "span": spans})
    with served.volume() as volume:
        put_table(volume, "datasets/far/a.parquet", table)
        volume.flush(WAIT_S)

    def shown(verb: str) -> Any:
        line, environment = command(served.root, "dataset", verb, served.meta_url, "datasets/far", "--json")
        return json.loads(subprocess.run(line, env=environment, check=True, capture_output=True, timeout=WAIT_S).stdout)

    first, second, third = shown("head")
    assert "1073741824" in first["day"]
    assert "1073741824" in first["days"]
    assert first["span"] == str(1 << 62)
    assert (second["day"], second["days"], third["day"]) == ("1970-01-01", "[]", None)
    columns = {one["column"]: one for one in shown("stats")["columns"]}
    assert (columns["day"]["nulls"], columns["day"]["least"]) == (1, None)


def test_raw_files_are_listed_with_what_names_them(served: Gateway) -> None:
    with served.volume() as volume:
        put(volume, "datasets/raw/manifest.jsonl", b'{"file": "x/a.bin"}\n{"file": "b.csv"}\n')
        put(volume, "datasets/raw/x/a.bin", b"123")
        put(volume, "datasets/raw/b.csv", b"not,read\n")
    (row,) = as_json(served, "ls", "datasets/raw")
    assert (row["dataset"], row["format"], row["files"]) == ("datasets/raw", "raw", 3)
    assert [one["bytes"] for one in as_json(served, "head", "datasets/raw")] == ["<3 bytes>", "<9 bytes>"]


def test_speeds_are_shown_as_speeds(served: Gateway) -> None:
    heading, row = run(served.root, "dataset", "bench", served.meta_url, SOURCE, "--epochs", "1").splitlines()[:2]
    assert "rows/s" in heading
    assert re.search(r" [0-9,]+  ", row)
    assert "20,000" in run(served.root, "dataset", "stats", served.meta_url, SOURCE)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("schema", "datasets/none"), "none"),
        (("head", SOURCE, "--column", "no"), "no"),
        (("stats", SOURCE, "--filter", "id >"), "filter"),
        (("bench", SOURCE, "--shuffle", "wild"), "wild"),
        (("bench", SOURCE, "--batch-size", "0"), "--batch-size"),
        (("bench", SOURCE, "--memory", "much"), "much"),
        (("head", SOURCE, "-n", "0"), "--rows"),
        (("head", SOURCE, "--format", "excel"), "parquet, ipc, csv"),
        (("stats", "datasets/*/*"), "a glob can choose"),
    ],
)
def test_what_cannot_be_is_said(served: Gateway, arguments: tuple[str, ...], reason: str) -> None:
    verb, *rest = arguments
    assert reason in run(served.root, "dataset", verb, served.meta_url, *rest, code=2)


def test_a_file_that_is_not_what_its_name_says_is_told_with_its_name(served: Gateway) -> None:
    with served.volume() as volume:
        put(volume, "datasets/damaged/a.parquet", b"not at all")
    for verb in ("schema", "head", "stats", "bench"):
        said = run(served.root, "dataset", verb, served.meta_url, "datasets/damaged", code=4)
        assert "datasets/damaged/a.parquet" in said
