"""`tieredfs dataset ...`: what is in a volume that trainers could read, without a gateway. Light to import."""

import contextlib
import json
import time
from collections.abc import Iterator
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tieredfs.cli.render import emit, progress_bar, say
from tieredfs.cli.session import AsJson, MetaUrlArgument, new_verbs
from tieredfs.config import parse_meta_url
from tieredfs.config.sizes import parse_positive_size

if TYPE_CHECKING:
    import pyarrow as pa

    from tieredfs_gateway.datasets.contract import Reader

PURPOSE: Final = "dataset"
BATCH: Final = 65_536
CELL_MAX: Final = 40

dataset_verbs = new_verbs("Look at datasets: files of a volume as batches of rows.")
SourceArgument = Annotated[
    str,
    typer.Argument(metavar="SOURCE", show_default=False, help="Path, directory or glob: 'datasets/flights/*.parquet'"),
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="Only this column (may be repeated); a.b is nested.")
]
Filter = Annotated[
    str | None, typer.Option("--filter", help='Only these rows: \'dep_delay > 0 and origin in ("JFK", "LGA")\'')
]
Format = Annotated[
    str | None, typer.Option("--format", help="parquet, ipc, csv, jsonl, tar or raw; told when left out.")
]


@contextlib.contextmanager
def opened(
    meta_url: str,
    source: str,
    columns: list[str] | None = None,
    expression: str | None = None,
    kind: str | None = None,
    *,
    batch_size: int = BATCH,
    memory_bytes: int | None = None,
) -> "Iterator[Reader]":
    """A reader of its files in their order. Raises what opening raises."""
    from tieredfs.limits import MEMORY_BYTES_DEFAULT
    from tieredfs.volume import FileSystem
    from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec
    from tieredfs_gateway.datasets.reader import open_reader

    spec = DatasetSpec(source, tuple(columns) if columns else None, expression, kind)
    with (
        FileSystem.at(str(parse_meta_url(meta_url)), purpose=PURPOSE) as volume,
        open_reader(volume, spec, OrderSpec(batch_size), memory_bytes=memory_bytes or MEMORY_BYTES_DEFAULT) as reader,
    ):
        yield reader


@dataset_verbs.command("ls")
def list_datasets(
    meta_url: MetaUrlArgument,
    source: Annotated[str, typer.Argument(metavar="[SOURCE]", help="Only what is below it.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the directories that hold files of rows: how many, how large, of which format.

    Example: tieredfs dataset ls sqlite:///data/volume.db datasets
    """
    from tieredfs.errors import NotFoundError
    from tieredfs.volume import FileSystem
    from tieredfs_gateway.datasets.listing import list_source
    from tieredfs_gateway.datasets.sources.formats import MANIFESTS, by_name

    found: dict[bytes, dict[str, Any]] = {}
    with FileSystem.at(str(parse_meta_url(meta_url)), purpose=PURPOSE) as volume:
        try:
            files = list_source(volume, source).files
        except NotFoundError:
            if source.strip("/"):
                raise
            files = ()
    manifests = {path.rpartition(b"/")[0] for path, _ in files if path.rpartition(b"/")[2] in MANIFESTS}
    for path, attributes in files:
        named = next((folder for folder in _above(path) if folder in manifests), None)
        kind = by_name(path) if named is None else "raw"
        if kind is None:
            continue
        folder = path.rpartition(b"/")[0] if named is None else named
        row = found.setdefault(folder, {"dataset": folder, "format": kind, "files": 0, "size_bytes": 0})
        row["files"] += 1
        row["size_bytes"] += attributes.size_bytes
        row["format"] = kind if row["format"] == kind else "mixed"
    emit([found[folder] for folder in sorted(found)], as_json=as_json, empty="no files of rows")


def _above(path: bytes) -> Iterator[bytes]:
    """The directories that a file is in, from the nearest."""
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


@dataset_verbs.command("schema")
def show_schema(
    meta_url: MetaUrlArgument, source: SourceArgument, kind: Format = None, as_json: AsJson = False
) -> None:
    """Show the columns of a dataset, their types, and its version.

    Example: tieredfs dataset schema sqlite:///data/volume.db 'datasets/flights/*.parquet'
    """
    with opened(meta_url, source, kind=kind) as reader:
        columns = [
            {"column": field.name, "type": str(field.type), "nullable": field.nullable} for field in reader.schema
        ]
        version, skipped = reader.version, reader.skipped()
    if as_json:
        emit({"version": version, "columns": columns, "skipped": skipped}, as_json=True)
    else:
        emit(columns, as_json=False)
        say(f"version {version}")


@dataset_verbs.command("head")
def show_head(
    meta_url: MetaUrlArgument,
    source: SourceArgument,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=BATCH, help="How many.")] = 10,
    column: Columns = None,
    filter_text: Filter = None,
    kind: Format = None,
    as_json: AsJson = False,
) -> None:
    """Show the first rows, in the order of the files.

    Example: tieredfs dataset head sqlite:///data/volume.db datasets/flights --column carrier --column dep_delay -n 3
    """
    from tieredfs_gateway.datasets.contract import Position

    with opened(meta_url, source, column, filter_text, kind, batch_size=rows) as reader:
        found = []
        for batch in reader.batches(Position(0, 0)):
            found += _rows(batch.rows)
            if len(found) >= rows:
                break
    shown = [{name: _plain(value, cut=not as_json) for name, value in row.items()} for row in found[:rows]]
    emit(shown, as_json=as_json, empty="no rows")


def _rows(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    """As Python's values; what those cannot hold (nanoseconds, years past 9999) as text."""
    columns = [_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(array: "pa.Array") -> list[Any]:
    import pyarrow as pa

    try:
        return list(array.to_pylist())
    except (ValueError, OverflowError):
        pass
    try:
        return list(array.cast("string").to_pylist())
    except pa.ArrowNotImplementedError:  # nested
        ones = (array.slice(at, 1) for at in range(len(array)))
        return [None if one.null_count else one.to_string(skip_new_lines=True)[1:-1] for one in ones]


def _plain(value: object, *, cut: bool) -> object:
    """What JSON and a table can say: bytes by their length; numbers that JSON does not have, and moments, as text."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    text: object = value
    if isinstance(value, list | tuple | dict):
        text = json.dumps(value, default=str)
    elif not isinstance(value, bool | int | float | str | None) or (isinstance(value, float) and not isfinite(value)):
        text = str(value)
    if cut and isinstance(text, str) and len(text) > CELL_MAX:
        return f"{text[: CELL_MAX - 1]}…"
    return text


@dataset_verbs.command("stats")
def show_stats(
    meta_url: MetaUrlArgument,
    source: SourceArgument,
    column: Columns = None,
    filter_text: Filter = None,
    kind: Format = None,
    as_json: AsJson = False,
) -> None:
    """Read all of it and show, for each column, nulls, least, greatest and mean.

    Example: tieredfs dataset stats sqlite:///data/volume.db datasets/flights --column dep_delay --filter 'dep_delay > 0'
    """
    from tieredfs_gateway.datasets.contract import Position

    with opened(meta_url, source, column, filter_text, kind) as reader, progress_bar("rows", as_json) as progress:
        columns = {field.name: _Column() for field in reader.schema}
        rows, total = 0, reader.row_count()
        for batch in reader.batches(Position(0, 0)):
            rows += batch.rows.num_rows
            progress(rows, total, "rows")
            for name, array in zip(batch.rows.schema.names, batch.rows.columns, strict=True):
                columns[name].add(array)
        version = reader.version
    report = [{"column": name} | one.report() for name, one in columns.items()]
    if as_json:
        emit({"version": version, "rows": rows, "columns": report}, as_json=True)
    else:
        emit(report, as_json=False, empty="no columns")
        say(f"{rows:,} rows, version {version}")


class _Column:
    """What is known of a column, batch by batch."""

    def __init__(self) -> None:
        self._nulls = self._values = 0
        self._least: Any = None
        self._greatest: Any = None
        self._sum: float | None = None

    def add(self, array: "pa.Array") -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._nulls += array.null_count
        values = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        count = len(values) - values.null_count
        if not count or pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
            self._values += count
            return
        try:
            ends = pc.min_max(values)
            least, greatest = ends["min"].as_py(), ends["max"].as_py()
        except (pa.ArrowNotImplementedError, ValueError, OverflowError):  # no order, or nothing of Python's holds it
            least = greatest = None
        if least is not None:
            self._least = least if self._least is None else min(self._least, least)
            self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            self._sum = (self._sum or 0.0) + float(pc.sum(values.cast(pa.float64(), safe=False)).as_py())
        self._values += count

    def report(self) -> dict[str, object]:
        mean = _plain(self._sum / self._values, cut=True) if self._sum is not None and self._values else None
        ends = (_plain(self._least, cut=True), _plain(self._greatest, cut=True))
        return {"nulls": self._nulls, "least": ends[0], "greatest": ends[1], "mean": mean}


@dataset_verbs.command("bench")
def measure(
    meta_url: MetaUrlArgument,
    source: SourceArgument,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 4096,
    shuffle: Annotated[str, typer.Option(help="none, shards, window or full.")] = "none",
    epochs: Annotated[int, typer.Option(min=1, max=100, help="The first one also fills the SSD.")] = 2,
    column: Columns = None,
    filter_text: Filter = None,
    memory: Annotated[str, typer.Option(help="Ceiling of the reader's buffers.")] = "512MiB",
    as_json: AsJson = False,
) -> None:
    """Read whole epochs as a trainer would, and show how fast that was.

    Example: tieredfs dataset bench sqlite:///data/volume.db datasets/flights --shuffle full --epochs 3
    """
    from tieredfs.errors import ConfigurationError
    from tieredfs.volume import FileSystem
    from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
    from tieredfs_gateway.datasets.reader import open_reader

    if shuffle not in list(Shuffle):
        raise ConfigurationError(f"--shuffle {shuffle}: it is one of {', '.join(Shuffle)}")
    spec = DatasetSpec(source, tuple(column) if column else None, filter_text)
    order = OrderSpec(batch_size, Shuffle(shuffle))
    found = []
    with (
        FileSystem.at(str(parse_meta_url(meta_url)), purpose=PURPOSE) as volume,
        open_reader(volume, spec, order, memory_bytes=parse_positive_size(memory)) as reader,
    ):
        for epoch in range(epochs):
            before = reader.counters()["bytes_read"]
            row = _epoch(reader.batches(Position(epoch, 0)), epoch, time.perf_counter())
            found.append(row | {"read_bytes": reader.counters()["bytes_read"] - before})
    emit(found, as_json=as_json)


def _epoch(batches: Iterator[Any], epoch: int, began_s: float) -> dict[str, Any]:
    rows = size_bytes = 0
    first_s = None
    for batch in batches:
        first_s = first_s or time.perf_counter() - began_s
        rows += batch.rows.num_rows
        size_bytes += batch.rows.nbytes
    spent_s = time.perf_counter() - began_s
    return {
        "epoch": epoch,
        "rows": rows,
        "rows_per_s": round(rows / spent_s),
        "arrow_bytes": size_bytes,
        "first_batch_s": first_s,
        "total_s": spent_s,
    }
