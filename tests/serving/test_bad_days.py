"""Gateways that are killed, tokens that are wrong, transforms that fail: with processes of their own."""

import contextlib
import io
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.s3.endpoint import ROOT, command
from tests.serving.fakes import TableReader
from tests.serving.rig import ROWS, SOURCE, WAIT_S, Gateway, eventually, gateway, ids, numbers, put_table
from tieredfs.errors import (
    AccessDeniedError,
    ConfigurationError,
    InvalidRequestError,
    UnavailableError,
)
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import Position
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.pins import FOLDER
from tieredfs_gateway.datasets.transform_pool import TransformPool
from tieredfs_gateway.datasets.transforms import Transform, parse_transforms

ALL = list(range(ROWS))
SECRET = "a secret of more than sixteen bytes"


# ---- a gateway that is killed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mortal() -> Iterator[Gateway]:
    with gateway() as made:
        yield made


@pytest.mark.parametrize("transport", ["http", "shared"])
def test_a_gateway_that_is_killed_in_the_middle_of_an_epoch_costs_a_wait(mortal: Gateway, transport: str) -> None:
    data = mortal.dataset(transport=transport, batch_size=100, shuffle="window", seed=2)
    wanted = ids(data)
    data.set_epoch(0)
    found: list[Any] = []
    for batch in data:
        found.append(batch)
        if len(found) == 20:
            mortal.stop(signal.SIGKILL)
            threading.Timer(0.5, mortal.start).start()
    assert ids(found) == wanted, "what was mapped before the kill is still there, and nothing is lost or doubled"
    assert sorted(wanted) == ALL
    assert data.reconnects >= 1


@pytest.mark.parametrize(("transport", "number"), [("http", signal.SIGKILL), ("shared", signal.SIGTERM)])
def test_files_that_were_replaced_while_the_gateway_was_away_do_not_change_the_epoch(
    mortal: Gateway, transport: str, number: signal.Signals
) -> None:
    source = f"datasets/replaced-{transport}"
    with mortal.volume() as volume:
        for part in range(3):
            put_table(volume, f"{source}/{part}.parquet", numbers(2000, part * 2000))
        volume.flush(WAIT_S)
    options: dict[str, Any] = {"transport": transport, "batch_size": 100, "shuffle": "window", "seed": 2}
    data = mortal.dataset(source, **options)
    wanted = list(data)
    data.set_epoch(0)
    found: list[pa.RecordBatch] = []
    for batch in data:
        found.append(batch)
        if len(found) == 20:
            with mortal.volume() as volume:
                eventually(lambda: kept_versions(volume, data.version), 1)
                mortal.stop(number)
                put_table(volume, f"{source}/0.parquet", numbers(10, 70_000))
                volume.remove(f"{source}/1.parquet".encode())
                put_table(volume, f"{source}/9.parquet", numbers(10, 80_000))
                volume.flush(WAIT_S)
            mortal.start()
    assert found == wanted
    assert sorted(ids(found)) == ALL[:6000]
    data.close()
    newest = mortal.dataset(source, **options)
    assert sorted(ids(newest)) == [*range(4000, 6000), *range(70_000, 70_010), *range(80_000, 80_010)]


def kept_versions(volume: FileSystem, version: str) -> int:
    """Pins that are there to be found."""
    found = [entry.name for entry, _ in volume.entries(FOLDER)] if volume.look([FOLDER])[0] else []
    records = [FOLDER + b"/" + name + b"/pin" for name in found if name.startswith(version.encode())]
    return sum(seen is not None for seen in volume.look(records))


def test_a_gateway_that_stays_away_is_an_error_in_bounded_time(mortal: Gateway) -> None:
    data = mortal.dataset(transport="http", batch_size=10, retry_s=0.5)
    iterator = iter(data)
    next(iterator)
    state = data.state_dict()
    mortal.stop(signal.SIGKILL)
    with pytest.raises(UnavailableError):
        ids(iterator)
    mortal.start()
    again = mortal.dataset(batch_size=10)
    again.load_state_dict(state)
    assert ids(again) == ALL[10:]


def test_a_gateway_that_is_told_to_stop_leaves_nothing(mortal: Gateway) -> None:
    data = mortal.dataset(transport="shared")
    kept = [batch for batch, _ in zip(data, range(3), strict=False)]
    assert mortal.stop(signal.SIGTERM) == 0
    assert ids(kept) == ALL[: 3 * 256]
    assert "Traceback" not in mortal.log()
    mortal.start()


# ---- tokens ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Gateway]:
    with gateway(TIEREDFS_GATEWAY_SECRET=SECRET) as made:
        yield made


def token(folder: Path, *arguments: str) -> str:
    line, environment = command(folder, "gateway-token", *arguments)
    environment["TIEREDFS_GATEWAY_SECRET"] = SECRET
    return subprocess.run(
        line, env=environment, check=True, capture_output=True, text=True, timeout=WAIT_S
    ).stdout.strip()


def shown(served: Gateway, token: str) -> list[str]:
    """The sessions that who has that token sees."""
    asked = urllib.request.Request(f"{served.url}/v1/sessions", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
        return [one["session"] for one in json.load(answer)]


def test_tokens_open_their_dataset_and_no_other(guarded: Gateway, tmp_path: Path) -> None:
    good = token(tmp_path, SOURCE)
    other = token(tmp_path, "datasets/other")
    short = token(tmp_path, SOURCE, "--life", "1")
    for transport in ("http", "shared"):
        assert ids(guarded.dataset(token=good, transport=transport)) == ALL
    assert ids(guarded.dataset(token=lambda: good)) == ALL
    time.sleep(1.1)
    for bad, code in (
        (None, "missing"),
        ("x", "invalid"),
        (good[:-3] + "AAA", "invalid"),
        (short, "expired"),
        (other, "scope"),
    ):
        with pytest.raises(AccessDeniedError, match=f"token_{code}"):
            list(guarded.dataset(token=bad))
    reader = guarded.dataset(token=good)
    session = reader._session._open()["session"]
    for transport in ("http", "shared"):
        thief = guarded.dataset(token=other, transport=transport)
        thief._session._answer = reader._session._answer
        with pytest.raises(AccessDeniedError, match="token_scope"):
            next(iter(thief))
    assert session in shown(guarded, good)
    assert session not in shown(guarded, other)


def test_off_loopback_a_gateway_does_not_start_without_a_secret(tmp_path: Path) -> None:
    line, environment = command(tmp_path, "gateway", "sqlite:///none/volume.db", "--listen", "0.0.0.0:8800")
    ended = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == 2
    assert "TIEREDFS_GATEWAY_SECRET" in ended.stderr


# ---- transforms ----------------------------------------------------------------------------------------------------------

HERE = "tests.serving.transforming"
CONFIGURATION = f"""
[transforms.double]
kind = "function"
path = "{HERE}:double"
[transforms.quadruple]
kind = "function"
path = "{HERE}:double"
options = {{ column = "id" }}
[transforms.fail]
kind = "function"
path = "{HERE}:fail_at"
options = {{ number = 1500 }}
[transforms.drift]
kind = "function"
path = "{HERE}:drift"
[transforms.label]
kind = "function"
path = "{HERE}:label"
[transforms.hang]
kind = "function"
path = "{HERE}:hang"
time_limit_s = 0.5
[transforms.fork]
kind = "function"
path = "{HERE}:fork"
[transforms.die]
kind = "function"
path = "{HERE}:die"
[transforms.leak]
kind = "function"
path = "{HERE}:leak"
[transforms.say]
kind = "function"
path = "{HERE}:say"
[transforms.wrong]
kind = "function"
path = "{HERE}:wrong"
[transforms.missing]
kind = "function"
path = "no_such_module:f"
[transforms.ids]
kind = "project"
columns = ["id"]
[transforms.small]
kind = "cast"
types = {{ id = "int16" }}
[transforms.bytes]
kind = "tokenize"
column = "word"
into = "tokens"
[transforms.words]
kind = "tokenize"
column = "word"
into = "word"
pattern = "[a-z]+|[0-9]+"
vocabulary = 1000
[transforms.thumbnail]
kind = "image"
column = "png"
width = 4
height = 2
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[TransformPool]:
    made = TransformPool(parse_transforms(CONFIGURATION), workers=2)
    yield made
    made.close()


def transformed(pool: TransformPool, reader: TableReader, *names: str) -> pa.Table:
    return pa.Table.from_batches([batch.rows for batch in pool.apply(names, reader.batches(Position(0, 0)))])


def test_transforms_are_applied_in_turn_and_in_the_order_of_the_batches(pool: TransformPool) -> None:
    found = transformed(pool, TableReader(), "double", "quadruple", "ids", "say")
    assert found.column_names == ["id"]
    assert found["id"].to_pylist() == [4 * number for number in range(1000)]
    assert pool.schema(["ids", "small"], numbers(1).schema) == pa.schema({"id": pa.int16()})
    assert pool.timings()["double"].batches == 10
    assert pool.timings()["double"].seconds > 0


def test_text_becomes_tokens(pool: TransformPool) -> None:
    found = transformed(pool, TableReader(numbers(200)), "bytes", "words")
    assert bytes(found["tokens"][1].as_py()) == b"word 1"
    first, second = found["word"][1].as_py(), found["word"][2].as_py()
    assert first[0] == second[0] != first[1]


def test_images_are_decoded_and_resized(pool: TransformPool) -> None:
    from PIL import Image

    def png(colour: tuple[int, int, int]) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(sink, "png")
        return sink.getvalue()

    table = pa.table({"id": [0, 1], "png": [png((255, 0, 7)), None]})
    found = transformed(pool, TableReader(table), "thumbnail")
    assert found["png"].to_pylist() == [[255, 0, 7] * 8, None]
    with pytest.raises(Refusal, match="transform thumbnail: UnidentifiedImageError"):
        transformed(pool, TableReader(pa.table({"id": [0], "png": [b"no image"]})), "thumbnail")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fail", "ValueError: 1500 is not to my taste"),
        ("hang", "over its limit of 0.5 s"),
        ("die", "its process died .exit code 7"),
        ("leak", "MemoryError"),
        ("wrong", "gave a dict"),
        ("missing", "No module named"),
        ("small", "ArrowInvalid"),
    ],
)
def test_a_transform_that_fails_ends_the_epoch_with_its_name(pool: TransformPool, name: str, reason: str) -> None:
    reader = TableReader(numbers(2000, 32_000 if name == "small" else 0))
    with pytest.raises(Refusal, match=f"transform {name}: .*{reason}"):
        transformed(pool, reader, name)
    assert reader.open_iterators == 0
    assert transformed(pool, TableReader(numbers(10)), "ids").num_rows == 10, "the others go on"


def test_a_gateway_transforms_what_it_is_allowed_to(tmp_path: Path) -> None:
    file = tmp_path / "transforms.toml"
    file.write_text(CONFIGURATION)
    with gateway("--transforms", str(file), PYTHONPATH=str(ROOT)) as made:
        for transport in ("http", "shared"):
            data = made.dataset(transforms=["double", "ids"], transport=transport)
            assert ids(data) == [2 * number for number in ALL]
            assert data.schema.names == ["id"]
            assert ids(made.dataset(transforms=["label"], transport=transport)) == ALL
            with pytest.raises(
                InvalidRequestError, match=r"transform drift: batch 0 has \(id: double.*transform_failed"
            ):
                list(made.dataset(transforms=["drift"], transport=transport, retry_s=0.5))
        assert made.metric("transform_batches") >= 2 * (ROWS // 256)
        with pytest.raises(ConfigurationError, match="transform_unknown"):
            list(made.dataset(transforms=["os.system"]))
        with pytest.raises(InvalidRequestError, match=r"transform fail: ValueError.*transform_failed"):
            list(made.dataset(transforms=["fail"], retry_s=0.5))


def test_workers_end_with_their_pool(pool: TransformPool) -> None:
    mine = TransformPool({"ids": Transform("ids", "project", {"columns": ["id"]})}, workers=1)
    assert mine.run(["ids"], numbers(3).to_batches()[0]).num_rows == 3
    worker = mine._idle.queue[0]
    assert worker is not None
    pid = worker._process.pid
    mine.close()
    eventually(lambda: os.path.exists(f"/proc/{pid}"), False)


def test_a_transform_that_forks_answers_once(pool: TransformPool) -> None:
    for _ in range(3):
        assert transformed(pool, TableReader(), "fork")["id"].to_pylist() == list(range(1000))


def test_what_a_transform_started_ends_with_it(tmp_path: Path) -> None:
    options = {"path": f"{HERE}:fork_and_hang", "options": {"path": str(tmp_path / "pid")}}
    mine = TransformPool({"fork": Transform("fork", "function", options, time_limit_s=2.0)}, workers=1)
    with contextlib.closing(mine), pytest.raises(Refusal, match=r"over its limit of 2.0 s"):
        transformed(mine, TableReader(), "fork")
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: _is_running(pid), False)


def _is_running(pid: int) -> bool:
    """A process of nobody's may stay as a zombie, where no init reaps it."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_worker_that_takes_nothing_is_over_its_limit() -> None:
    """It is stopped, and what it is sent is more than a pipe holds."""
    mine = TransformPool({"ids": Transform("ids", "project", {"columns": ["id"]}, time_limit_s=1.0)}, workers=1)
    with contextlib.closing(mine):
        assert mine.run(["ids"], numbers(3).to_batches()[0]).num_rows == 3
        worker = mine._idle.queue[0]
        assert worker is not None
        os.kill(worker._process.pid, signal.SIGSTOP)
        with pytest.raises(Refusal, match=r"transform ids: over its limit of 1.0 s"):
            mine.run(["ids"], numbers(100_000).combine_chunks().to_batches()[0])
        assert mine.run(["ids"], numbers(3).to_batches()[0]).num_rows == 3, "another one comes"
