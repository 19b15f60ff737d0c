"""Real data through a real gateway: digits and photographs of scikit-learn as WebDataset shards, the documentation of Python as
JSON Lines, flights as Parquet; with the transforms that trainers ask for, and a training run that is interrupted and resumed.
"""

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reading.files import flights, json_lines, put
from tests.serving.rig import WAIT_S, Gateway, gateway
from tieredfs.volume import FileSystem

SHARDS = 4
TRANSFORMS = """
[transforms.pixels]
kind = "image"
column = "png"
width = 8
height = 8
mode = "L"
[transforms.thumbnail]
kind = "image"
column = "jpg"
width = 160
height = 107
[transforms.words]
kind = "tokenize"
column = "text"
into = "tokens"
pattern = "[a-z]+"
vocabulary = 5000
[transforms.tokens]
kind = "project"
columns = ["topic", "tokens"]
"""


def package(name: str) -> Path:
    """Where its files are; without importing it."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def digits() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]:
    """1,797 images of 8 x 8, as bytes; and what they show."""
    with gzip.open(package("sklearn") / "datasets" / "data" / "digits.csv.gz") as file:
        values = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return (values[:, :-1] * 15).astype(np.uint8).reshape(-1, 8, 8), values[:, -1].tolist()


def photographs() -> dict[str, bytes]:
    folder = package("sklearn") / "datasets" / "images"
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}


def topics() -> dict[str, str]:
    """The chapters of Python's reference that `help()` shows."""
    from pydoc_data.topics import topics as found

    return dict(found)


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "png")
    return sink.getvalue()


def shard(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def write_all(volume: FileSystem) -> None:
    images, labels = digits()
    for number in range(SHARDS):
        members: dict[str, bytes] = {}
        for at in range(number, len(labels), SHARDS):
            members[f"{at:04d}.png"] = png(images[at])
            members[f"{at:04d}.cls"] = str(labels[at]).encode()
        put(volume, f"digits/train-{number}.tar", shard(members))
    put(volume, "photos/all.tar.gz", gzip.compress(shard({f"{name}.jpg": raw for name, raw in photographs().items()})))
    lines = [{"topic": topic, "text": text, "length": len(text)} for topic, text in sorted(topics().items())]
    put(volume, "docs/a.jsonl", json_lines(lines[::2]))
    put(volume, "docs/b.jsonl.gz", gzip.compress(json_lines(lines[1::2])))
    sink = io.BytesIO()
    pq.write_table(flights(), sink, row_group_size=20_000)
    put(volume, "flights/2013.parquet", sink.getvalue())
    volume.flush(WAIT_S)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    file = tmp_path_factory.mktemp("real") / "transforms.toml"
    file.write_text(TRANSFORMS)
    with gateway("--transforms", str(file)) as made:
        with made.volume() as volume:
            write_all(volume)
        yield made


def table(batches: Any) -> pa.Table:
    return pa.Table.from_batches(list(batches))


@pytest.mark.parametrize("transport", ["http", "shared"])
def test_digits_are_decoded_on_the_gateway(real: Gateway, transport: str) -> None:
    images, labels = digits()
    data = real.dataset(
        "digits/*.tar", shuffle="full", seed=3, batch_size=100, transforms=["pixels"], transport=transport
    )
    found = table(data)
    keys = [int(key) for key in found["__key__"].to_pylist()]
    assert sorted(keys) == list(range(len(labels)))
    assert keys[:100] != sorted(keys[:100])
    pixels = np.array(found["png"].to_pylist(), np.uint8).reshape(-1, 8, 8)
    assert np.array_equal(pixels, images[keys])
    assert found["cls"].to_pylist() == [labels[key] for key in keys]


def test_photographs_are_decoded_and_resized(real: Gateway) -> None:
    from PIL import Image

    found = table(real.dataset("photos", transforms=["thumbnail"]))
    assert found["__key__"].to_pylist() == sorted(photographs())
    for name, pixels in zip(found["__key__"].to_pylist(), found["jpg"].to_pylist(), strict=True):
        with Image.open(io.BytesIO(photographs()[name])) as image:
            assert image.size == (640, 427)
            smaller = np.asarray(image.convert("RGB").resize((160, 107), Image.Resampling.BOX), np.int16)
        difference = np.abs(np.array(pixels, np.int16).reshape(107, 160, 3) - smaller)
        assert difference.mean() < 5, "the same picture, by another filter"


def test_documentation_becomes_tokens(real: Gateway) -> None:
    data = real.dataset("docs/*", transforms=["words", "tokens"], filter="length > 1000", batch_size=10)
    found = {row["topic"]: row["tokens"] for batch in data for row in batch.to_pylist()}
    wanted = {topic: text for topic, text in topics().items() if len(text) > 1000}
    assert found.keys() == wanted.keys()
    assert len(found) > 40
    for topic, text in wanted.items():
        assert found[topic] == [zlib.crc32(word.encode()) % 5000 for word in re.findall("[a-z]+", text)]


def test_documentation_is_text_that_can_be_filtered(real: Gateway) -> None:
    data = real.dataset("docs", columns=["topic", "text"], filter='topic in ("lambda", "while")')
    assert {row["topic"]: row["text"] for batch in data for row in batch.to_pylist()} == {
        topic: topics()[topic] for topic in ("lambda", "while")
    }


def test_training_on_digits_is_interrupted_and_resumed_exactly(real: Gateway) -> None:
    """Softmax regression, one pass: weights of a run that was cut in the middle are those of one that was not, to the bit."""

    def train(data: Any, weights: np.ndarray[Any, Any], steps: int | None = None) -> int:
        done = 0
        for batch in data:
            inputs = np.array(batch.column("png").to_pylist(), np.float64) / 240
            scores = inputs @ weights
            chances = np.exp(scores - scores.max(1, keepdims=True))
            chances /= chances.sum(1, keepdims=True)
            chances[np.arange(len(inputs)), batch.column("cls").to_numpy()] -= 1
            weights -= 0.5 * inputs.T @ chances / len(inputs)
            done += 1
            if done == steps:
                break
        return done

    options: dict[str, Any] = {"shuffle": "full", "seed": 1, "batch_size": 32, "transforms": ["pixels"]}
    whole, parts = np.zeros((64, 10)), np.zeros((64, 10))
    steps = train(real.dataset("digits", **options), whole)
    first = real.dataset("digits", **options)
    assert train(first, parts, 20) == 20
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = real.dataset("digits", **options)
    second.load_state_dict(state)
    assert train(second, parts) == steps - 20
    assert np.array_equal(whole, parts)
    images, labels = digits()
    right = (images.reshape(-1, 64) / 240 @ whole).argmax(1) == np.array(labels)
    assert right.mean() > 0.85, "and it has learned"


def test_flights_are_those_of_the_package(real: Gateway) -> None:
    data = real.dataset(
        "flights/*.parquet", columns=["flight", "dep_delay", "origin"], filter="dep_delay > 600", shuffle="shards"
    )
    late = flights().filter(pa.compute.greater(flights()["dep_delay"], 600))
    assert sorted(map(str, table(data).to_pylist())) == sorted(map(str, late.select(data.schema.names).to_pylist()))


def test_the_command_line_knows_what_is_there(real: Gateway) -> None:
    from tests.serving.test_verbs import as_json

    kinds = {one["dataset"]: one["format"] for one in as_json(real, "ls")}
    assert {name: kinds[name] for name in ("digits", "photos", "docs", "flights")} == {
        "digits": "tar",
        "photos": "tar",
        "docs": "jsonl",
        "flights": "parquet",
    }
    for source, columns in (("digits", ["__key__", "png", "cls"]), ("docs", ["topic", "text", "length"])):
        assert [one["column"] for one in as_json(real, "schema", source)["columns"]] == columns
    assert as_json(real, "stats", "digits")["rows"] == len(digits()[1])
    (row,) = as_json(real, "head", "docs", "--column", "topic", "--filter", 'topic = "lambda"')
    assert row == {"topic": "lambda"}
    measured = as_json(real, "bench", "digits", "--shuffle", "full", "--epochs", "1")
    assert [one["rows"] for one in measured] == [len(digits()[1])]
