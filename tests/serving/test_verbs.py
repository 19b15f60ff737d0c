"""The command line on datasets, as it is typed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.s3.endpoint import command
from tests.serving.rig import ROWS, SOURCE, WAIT_S, Gateway


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    line, environment = command(folder, *arguments)
    ended = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == code, ended.stderr
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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("schema", "datasets/none"), "none"),
        (("head", SOURCE, "--column", "no"), "no"),
        (("stats", SOURCE, "--filter", "id >"), "filter"),
        (("bench", SOURCE, "--shuffle", "wild"), "wild"),
    ],
)
def test_what_cannot_be_is_said(served: Gateway, arguments: tuple[str, ...], reason: str) -> None:
    verb, *rest = arguments
    assert reason in run(served.root, "dataset", verb, served.meta_url, *rest, code=2)
