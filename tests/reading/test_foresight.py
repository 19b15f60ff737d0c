"""The SSD tier knows the coming order: fewer bytes from the store than with any policy that does not, and nearly as few as can be.

32 files, and a tier that holds a quarter of them. What leaves the store is counted where the tier asks the store for it.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.reading.conftest import new_volume
from tests.reading.files import parquet_bytes, put
from tieredfs.block.loans import BlockLoans
from tieredfs.errors import UnavailableError
from tieredfs.limits import KIB
from tieredfs.model import Block
from tieredfs.volume import FileSystem, SsdTier, Volume
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.order import split_order
from tieredfs_gateway.datasets.reader import open_reader

FILES = 32
ROWS = 256 * KIB // 8
EPOCHS = 3
MEMORY_BYTES = 1 << 20


class CountingBlocks:
    """The store, and how many bytes were asked of it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.read_bytes = 0
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def reading(
        self, block: Block, offset: int, length: int, loans: BlockLoans, timeout_s: float
    ) -> Iterator[memoryview]:
        if self.fails:
            raise UnavailableError("the store is away")
        with self._lock:
            self.read_bytes += length
        with self._inner.reading(block, offset, length, loans, timeout_s) as content:
            yield content


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`whole/`: a file is one split; `parts/`: a file is eight."""
    root = tmp_path_factory.mktemp("foresight")
    url = new_volume(root)
    chance = np.random.default_rng(1)
    with FileSystem.at(url, purpose="test") as volume:
        for number in range(FILES):
            table = pa.table({"value": chance.integers(0, 1 << 62, ROWS), "file": np.full(ROWS, number, np.int8)})
            put(volume, f"whole/{number:02d}.parquet", parquet_bytes(table, ROWS, use_dictionary=["file"]))
            put(volume, f"parts/{number:02d}.parquet", parquet_bytes(table, ROWS // 8, use_dictionary=["file"]))
        volume.flush(60)
    return url


@contextmanager
def tier_of(url: str, path: Path, capacity: int) -> Iterator[tuple[FileSystem, CountingBlocks]]:
    """A volume over an empty SSD of that size."""
    volume = Volume.open(url, purpose="test")
    counting = CountingBlocks(volume.blocks)
    volume.blocks = counting  # type: ignore[assignment]
    ssd = SsdTier(volume, str(path), capacity)
    ssd.start()
    with FileSystem(volume, ssd) as opened:
        yield opened, counting


def sizes_of(volume: FileSystem, folder: str) -> list[int]:
    return [found.size_bytes for _, found in volume.entries(folder.encode())]


def read_epochs(url: str, path: Path, folder: str, *, announce: bool) -> int:
    """What leaves the store, in bytes, while every value is read once an epoch."""
    with FileSystem.at(url, purpose="test") as plain:
        sizes = sizes_of(plain, folder)
    with tier_of(url, path, sum(sizes) // 4) as (volume, counting):
        order = OrderSpec(4096, Shuffle.SHARDS, seed=5)
        spec = DatasetSpec(folder)
        with open_reader(volume, spec, order, memory_bytes=MEMORY_BYTES, threads=2, announce=announce) as reader:
            counting.read_bytes = 0  # looking into the files has read the end of each
            for epoch in range(EPOCHS):
                counts = np.zeros(FILES, np.int64)
                for batch in reader.batches(Position(epoch, 0)):
                    counts += np.bincount(batch.rows["file"].to_numpy(), minlength=FILES)
                assert counts.tolist() == [ROWS] * FILES
            held = volume._ssd.evictor.clean_bytes()
            assert held <= volume.cache_bytes
        return counting.read_bytes


def visits(splits: int) -> list[int]:
    """Files in the order of the reader, all epochs."""
    return [
        int(split) // splits
        for epoch in range(EPOCHS)
        for split in split_order(FILES * splits, 5, epoch, shuffled=True)
    ]


def lru_bytes(order: Sequence[int], sizes: Sequence[int]) -> int:
    """Whole files come and go as with the tier, the least recently used first."""
    here: OrderedDict[int, None] = OrderedDict()
    fetched = held = 0
    for file in order:
        if file in here:
            here.move_to_end(file)
            continue
        fetched += sizes[file]
        held += sizes[file]
        here[file] = None
        while held > sum(sizes) // 4:
            held -= sizes[here.popitem(last=False)[0]]
    return fetched


def least_bytes(sizes: Sequence[int]) -> int:
    """No policy does better: everything once, and of every later epoch what cannot have been on the SSD when it began."""
    return EPOCHS * sum(sizes) - (EPOCHS - 1) * (sum(sizes) // 4)


def test_files_of_several_splits_leave_the_store_much_less_often_than_with_lru(url: str, tmp_path: Path) -> None:
    with FileSystem.at(url, purpose="test") as plain:
        sizes = sizes_of(plain, "parts")
    read = read_epochs(url, tmp_path / "ssd", "parts", announce=True)
    assert read <= 0.6 * lru_bytes(visits(8), sizes)
    assert read <= 1.1 * least_bytes(sizes)


def test_files_of_one_split_leave_the_store_as_often_as_they_must(url: str, tmp_path: Path) -> None:
    """Each file is needed once an epoch: only what is on the SSD when an epoch begins can be saved, by whatever policy."""
    with FileSystem.at(url, purpose="test") as plain:
        sizes = sizes_of(plain, "whole")
    read = read_epochs(url, tmp_path / "ssd", "whole", announce=True)
    kept_decoded = (EPOCHS - 1) * MEMORY_BYTES  # by the reader, if what it read last comes first in the next epoch
    assert least_bytes(sizes) - kept_decoded <= 1.001 * read
    assert read <= 1.1 * least_bytes(sizes)
    assert read < 0.95 * lru_bytes(visits(1), sizes)


@pytest.mark.parametrize("shuffle", list(Shuffle))
def test_every_order_reads_the_same_whether_announced_or_not(url: str, tmp_path: Path, shuffle: Shuffle) -> None:
    order = OrderSpec(10_000, shuffle, seed=1, window_rows=50_000)
    spec = DatasetSpec("parts/0*.parquet", columns=("value",), filter="file > 3")
    found = []
    for announce in (True, False):
        with (
            tier_of(url, tmp_path / f"{announce}", 1 << 20) as (volume, _),
            open_reader(volume, spec, order, memory_bytes=1 << 20, announce=announce) as reader,
        ):
            found.append([batch.rows for start in (0, 3) for batch in reader.batches(Position(1, start), 2)])
    assert found[0]
    assert found[0] == found[1]


def test_a_store_that_is_away_while_files_are_fetched_ahead_is_an_error_of_the_reader_only(
    url: str, tmp_path: Path
) -> None:
    with tier_of(url, tmp_path / "ssd", 4 << 20) as (volume, counting):
        order = OrderSpec(4096, Shuffle.SHARDS, seed=5)
        with open_reader(volume, DatasetSpec("parts"), order, memory_bytes=1 << 20) as reader:
            counting.fails = True
            with pytest.raises(UnavailableError):
                list(reader.batches(Position(0, 0)))
        counting.fails = False
        with open_reader(volume, DatasetSpec("parts"), order, memory_bytes=1 << 20) as reader:
            assert sum(batch.rows.num_rows for batch in reader.batches(Position(0, 0))) == FILES * ROWS
