"""Footers of Parquet that Arrow's reader does not check: they are refused or not believed, and the process lives."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.reading.conftest import new_volume
from tests.reading.files import parquet_bytes, put
from tieredfs.errors import CorruptError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard, OrderSpec, Position
from tieredfs_gateway.datasets.reader import open_reader

ROOT = Path(__file__).parents[2]
STEP = 5
"""Before footers were checked, the 20th of these changes ended the process."""


def test_no_changed_bit_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    paths = [str(ROOT / part) for part in ("", "gateway", "clients")]
    line = [sys.executable, str(Path(__file__).with_name("damaging_process.py")), new_volume(tmp_path), str(STEP)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, read = map(int, done.stdout.split())
    assert refused > 100
    assert read > 100


def _changed(data: bytes, old: bytes, new: bytes) -> bytes:
    """With other bytes in the footer, wherever they are."""
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    assert footer.count(old) >= 1
    footer = footer.replace(old, new)
    return body + footer + len(footer).to_bytes(4, "little") + data[-4:]


def found(volume: FileSystem, spec: DatasetSpec) -> list[int]:
    with open_reader(volume, spec, OrderSpec(100)) as reader:
        return [row for batch in reader.batches(Position(0, 0)) for row in batch.rows.column(0).to_pylist()]


def test_statistics_that_are_shorter_than_their_type_are_never_decoded(volume: FileSystem, folder: str) -> None:
    """Those of the second row group. Arrow decodes them when it reads, where that is an error."""
    table = pa.table({"n": list(range(5000, 5020)), "m": list(range(20))})
    least, shortened = b"\x18\x08" + (5010).to_bytes(8, "little"), b"\x18\x02" + (10).to_bytes(2, "little")
    put(volume, f"{folder}/a.parquet", _changed(parquet_bytes(table, 10), least, shortened))
    for text in ("n >= 5013", "n < 5003", None):
        with pytest.raises(CorruptError, match="not readable as Parquet"):
            found(volume, DatasetSpec(folder, filter=text))
        assert found(volume, DatasetSpec(folder, filter=text, on_bad_shard=OnBadShard.SKIP))[:3] in (
            [5000, 5001, 5002],
            [],
        )
    assert found(volume, DatasetSpec(folder, ("m",), "m = 11")) == [11]


def test_a_name_within_a_value_is_not_taken_for_a_column(volume: FileSystem, folder: str) -> None:
    """Statistics are found in a footer by the path of their column: here another column's values look like one."""
    decoy = "\x19\x18\x01n\x15\x02"
    rows = pa.table({"n": list(range(20)), "decoy": [decoy] * 20})
    put(volume, f"{folder}/a.parquet", parquet_bytes(rows, 10, use_dictionary=False))
    assert found(volume, DatasetSpec(folder, ("n",), "n > 15")) == [16, 17, 18, 19]
