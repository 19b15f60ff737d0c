"""Footers of Parquet that Arrow's reader does not check: they are refused or not believed, and the process lives."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from tests.reading.conftest import new_volume
from tests.reading.files import parquet_bytes, put
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position
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


def _shorter(data: bytes, old: bytes, new: bytes) -> bytes:
    """With other bytes in the footer, once."""
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    assert footer.count(old) >= 1
    footer = footer.replace(old, new, 1)
    return body + footer + len(footer).to_bytes(4, "little") + data[-4:]


def test_statistics_that_are_shorter_than_their_type_are_not_believed(volume: FileSystem, folder: str) -> None:
    table = pa.table({"n": list(range(5000, 5020)), "m": list(range(20))})
    whole = parquet_bytes(table, 10)
    least, shortened = b"\x18\x08" + (5010).to_bytes(8, "little"), b"\x18\x02" + (10).to_bytes(2, "little")
    put(volume, f"{folder}/a.parquet", _shorter(whole, least, shortened))
    for text, expected in (("n >= 5013", range(5013, 5020)), ("n < 5003", range(5000, 5003)), ("m = 11", [5011])):
        with open_reader(volume, DatasetSpec(folder, filter=text), OrderSpec(100)) as reader:
            assert [n for batch in reader.batches(Position(0, 0)) for n in batch.rows["n"].to_pylist()] == list(
                expected
            )


def test_a_name_within_a_value_is_not_taken_for_a_column(volume: FileSystem, folder: str) -> None:
    """Statistics are found in a footer by the path of their column: here another column's values look like one."""
    decoy = "\x19\x18\x01n\x15\x02"
    rows = pa.table({"n": list(range(20)), "decoy": [decoy] * 20})
    put(volume, f"{folder}/a.parquet", parquet_bytes(rows, 10, use_dictionary=False))
    with open_reader(volume, DatasetSpec(folder, filter="n > 15"), OrderSpec(100)) as reader:
        assert [n for batch in reader.batches(Position(0, 0)) for n in batch.rows["n"].to_pylist()] == [16, 17, 18, 19]
        assert reader.counters()["splits_decoded"] == 2
        assert reader.counters()["bytes_decoded"] > 0
