"""Memory has a ceiling, whatever the size of the dataset; what is kept within it is not decoded again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reading.files import flights, parquet_bytes, put
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader

ROOT = Path(__file__).parent.parent.parent
MEMORY = 16 << 20
ROW_GROUP = 8192
"""1.3 MB decoded."""


@pytest.fixture(scope="module")
def dataset(volume: FileSystem) -> str:
    """336,776 rows, 51 MB decoded, in two files."""
    table = flights()
    for number in range(2):
        piece = table.slice(number * 170_000, 170_000)
        put(volume, f"memory/{number}.parquet", parquet_bytes(piece, ROW_GROUP))
    volume.flush(60)
    return "memory"


@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_a_dataset_larger_than_the_memory(volume: FileSystem, dataset: str, shuffle: Shuffle) -> None:
    """Arrow's own count of what it had allocated at most, in a process of its own. Beside what is kept (`MEMORY`) each of two
    threads, and the consumer, has a split that it is decoding, with the pages that it decodes from, or arranging anew."""
    url = volume.volume.meta_url
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gateway")])}
    line = [
        sys.executable,
        str(Path(__file__).with_name("memory_process.py")),
        url,
        dataset,
        shuffle.value,
        str(MEMORY),
    ]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=100, check=True)
    rows, peak, decoded = (int(word) for word in done.stdout.split())
    assert rows == 2 * 336_776
    assert decoded > 3 * MEMORY
    assert peak < MEMORY + 3 * 3 * (ROW_GROUP * 160), f"{peak} bytes of {MEMORY}"


@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_what_fits_is_decoded_once_for_all_epochs(volume: FileSystem, dataset: str, shuffle: Shuffle) -> None:
    spec = DatasetSpec(dataset, ("dep_delay", "dest"))
    with open_reader(volume, spec, OrderSpec(4096, shuffle), memory_bytes=256 << 20, threads=2) as reader:
        for epoch in range(3):
            assert sum(batch.rows.num_rows for batch in reader.batches(Position(epoch, 0))) == 336_776
        assert reader.counters()["rows_decoded"] == 336_776
