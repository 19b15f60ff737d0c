"""What leaves the store when a dataset is four times the SSD tier: `python -m bench.datasets_tier`.

Three shuffled epochs are read through a tier that begins empty. Counted are the bytes that the tier asks of the block store once
the files have been looked into: with the coming order announced, and with the ordinary policy (S3-FIFO). Beside them, for the same
sequence of visits and the same sizes: LRU of whole files, as the tier keeps them; and Belady with bypass of single row groups,
which no policy of whole files can beat, and none at all where row groups have one size.

With one row group a file, each file is needed once an epoch, and no policy saves more than what is on the SSD when an epoch begins:
a quarter of it. Three epochs then take 2.5 datasets at least and 3 at most: a cut of 40 % is beyond Belady, so none is asked for.
"""

import argparse
import bisect
import io
import shutil
import sys
import tempfile
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import machine, picture
from bench.report import Bound, Row, Series, Target, document, failures, print_table, write_json
from bench.workspace import workspace
from tieredfs.block.loans import BlockLoans
from tieredfs.config import parse_code
from tieredfs.limits import MIB
from tieredfs.model import Block, Durability
from tieredfs.volume import FileSystem, SsdTier, Volume, format_volume
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.order import split_order
from tieredfs_gateway.datasets.reader import open_reader

RESULTS: Final = Path(__file__).parent / "results"
TIER_SHARE: Final = 4
EPOCHS: Final = 3
OURS, ORDINARY, LRU, BELADY = "order announced", "ordinary policy", "LRU (computed)", "Belady (computed)"


class CountingBlocks:
    """The block store, and how many bytes were asked of it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.read_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def reading(
        self, block: Block, offset: int, length: int, loans: BlockLoans, timeout_s: float
    ) -> Iterator[memoryview]:
        with self._lock:
            self.read_bytes += length
        with self._inner.reading(block, offset, length, loans, timeout_s) as content:
            yield content


@dataclass(frozen=True, slots=True)
class Layout:
    """`files` files of `splits` row groups each."""

    files: int
    splits: int
    file_bytes: int


def write(volume: FileSystem, folder: str, layout: Layout) -> None:
    rows = layout.file_bytes // 8
    chance = np.random.default_rng(layout.splits)
    for number in range(layout.files):
        sink = io.BytesIO()
        table = pa.table({"value": chance.integers(0, 1 << 62, rows)})
        pq.write_table(table, sink, row_group_size=rows // layout.splits, use_dictionary=False, compression="none")
        with volume.create() as writing, open(writing.descriptor, "wb", closefd=False) as file:
            file.write(sink.getbuffer())
            file.flush()
            writing.commit(f"{folder}/{number:03d}.parquet".encode())
    volume.flush(600)


def measured(url: str, ssd_path: Path, folder: str, seed: int, *, announce: bool) -> float:
    """MB that left the store."""
    volume = Volume.open(url, purpose="bench")
    counting = CountingBlocks(volume.blocks)
    volume.blocks = counting  # type: ignore[assignment]
    with FileSystem.at(url, purpose="bench") as plain:
        total = sum(found.size_bytes for _, found in plain.entries(folder.encode()))
    ssd = SsdTier(volume, str(ssd_path), total // TIER_SHARE)
    ssd.start()
    order = OrderSpec(4096, Shuffle.SHARDS, seed)
    with (
        FileSystem(volume, ssd) as opened,
        open_reader(opened, DatasetSpec(folder), order, memory_bytes=16 * MIB, threads=2, announce=announce) as reader,
    ):
        counting.read_bytes = 0
        for epoch in range(EPOCHS):
            for _ in reader.batches(Position(epoch, 0)):
                ssd.evictor.turn()  # its thread looks four times a second: too seldom for a dataset as small as this
    shutil.rmtree(ssd_path)  # nor is what the side before has left
    return counting.read_bytes / 1e6


def visits(layout: Layout, seed: int) -> list[int]:
    """Row groups in the order of the reader, all epochs."""
    count = layout.files * layout.splits
    return [int(split) for epoch in range(EPOCHS) for split in split_order(count, seed, epoch, shuffled=True)]


def lru(order: Sequence[int], layout: Layout, sizes: Sequence[int]) -> float:
    here: OrderedDict[int, None] = OrderedDict()
    fetched = held = 0
    for split in order:
        file = split // layout.splits
        if file in here:
            here.move_to_end(file)
            continue
        fetched += sizes[file]
        held += sizes[file]
        here[file] = None
        while held > sum(sizes) // TIER_SHARE:
            held -= sizes[here.popitem(last=False)[0]]
    return fetched / 1e6


def belady(order: Sequence[int], layout: Layout, sizes: Sequence[int]) -> float:
    """Of what is here and what has just come, that which is needed last goes, until the rest fits."""
    times: defaultdict[int, list[int]] = defaultdict(list)
    for at, split in enumerate(order):
        times[split].append(at)
    here: dict[int, int] = {}
    """Row groups, and when each is needed next."""
    fetched = held = 0
    for at, split in enumerate(order):
        size = sizes[split // layout.splits] // layout.splits
        if here.pop(split, None) is None:
            fetched += size
        else:
            held -= size
        following = bisect.bisect_right(times[split], at)
        if following < len(times[split]):
            here[split] = times[split][following]
            held += size
        while held > sum(sizes) // TIER_SHARE:
            last = max(here, key=here.__getitem__)
            del here[last]
            held -= sizes[last // layout.splits] // layout.splits
    return fetched / 1e6


def row(title: str, url: str, directory: Path, layout: Layout, repeats: int) -> Row:
    folder = f"splits-{layout.splits}"
    with FileSystem.at(url, purpose="bench") as volume:
        write(volume, folder, layout)
        sizes = []
        for entry, seen in volume.entries(folder.encode()):
            sizes.append(seen.size_bytes)
            volume.evict(folder.encode() + b"/" + entry.name)  # what a neighbour has is read there, not in the store
    found: dict[str, list[float]] = {OURS: [], ORDINARY: [], LRU: [], BELADY: []}
    for seed in range(repeats):
        order = visits(layout, seed)
        for side, announce in ((OURS, True), (ORDINARY, False)):
            found[side].append(
                measured(url, directory / f"ssd-{folder}-{seed}-{announce}", folder, seed, announce=announce)
            )
        found[LRU].append(lru(order, layout, sizes))
        found[BELADY].append(belady(order, layout, sizes))
    targets = (
        Target(OURS, LRU, 0.6 if layout.splits > 1 else None, Bound.AT_MOST),
        Target(OURS, BELADY, 1.1, Bound.AT_MOST),
        Target(BELADY, LRU),
        Target(OURS, ORDINARY),
    )
    note = f"{layout.files} files of {layout.splits} row group(s), tier of a quarter, {EPOCHS} shuffled epochs"
    series = tuple(Series(side, tuple(values)) for side, values in found.items())
    return Row(folder, title, "MB from the store", series, targets, note)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A dataset of four times the SSD tier: what leaves the store.")
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--file-size", type=int, default=4, help="MiB")
    parser.add_argument("--repeat", type=int, default=3, help="seeds")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args(argv)
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, _):
        found = machine.facts(directory)
        url = f"sqlite://{directory}/volume.db"
        disks = [f"disk://{directory}/d{number}" for number in range(3)]
        format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="bench")
        rows = [
            row("8 row groups a file", url, directory, Layout(chosen.files, 8, chosen.file_size * MIB), chosen.repeat),
            row("1 row group a file", url, directory, Layout(chosen.files, 1, chosen.file_size * MIB), chosen.repeat),
        ]
    settings: dict[str, Any] = {"files": chosen.files, "file_mib": chosen.file_size, "seeds": chosen.repeat}
    write_json(RESULTS / "datasets_tier.json", document("datasets_tier", found, settings, rows))
    caption = f"{found['cpu']}, {found['cores']} cores, {found['date']}"
    picture.draw(RESULTS / "datasets_tier.png", "Bytes from the store, dataset 4x the SSD tier", rows, caption)
    print_table("Dataset of four times the SSD tier", rows)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
