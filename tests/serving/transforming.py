"""Functions that the tests' configuration allows as transforms: good ones and bad ones."""

import os
import time

import pyarrow as pa
import pyarrow.compute as pc


def double(rows: pa.RecordBatch, column: str = "id") -> pa.RecordBatch:
    at = rows.schema.names.index(column)
    return rows.set_column(at, column, pc.multiply(rows.column(at), 2))


def drift(rows: pa.RecordBatch) -> pa.RecordBatch:
    """As pandas does where a column has nulls: the same bits mean something else."""
    at = rows.schema.names.index("id")
    return rows.set_column(at, "id", rows.column(at).cast(pa.float64())) if rows.num_rows else rows


def label(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.replace_schema_metadata({"rows": str(rows.num_rows) * (rows.num_rows + 1)})


def fail_at(rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
    if number in rows.column("id").to_pylist():
        raise ValueError(f"{number} is not to my taste")
    return rows


def hang(rows: pa.RecordBatch) -> pa.RecordBatch:
    if rows.num_rows:
        time.sleep(600)
    return rows


def die(rows: pa.RecordBatch) -> pa.RecordBatch:
    if rows.num_rows:
        os._exit(7)
    return rows


def leak(rows: pa.RecordBatch) -> pa.RecordBatch:
    if rows.num_rows:
        bytearray(1 << 40)
    return rows


def say(rows: pa.RecordBatch) -> pa.RecordBatch:
    os.write(1, b"something on standard output\n")
    return rows


def wrong(rows: pa.RecordBatch) -> object:
    return rows.to_pydict() if rows.num_rows else rows


def fork(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Comes back twice."""
    os.fork()
    return rows


def fork_and_hang(rows: pa.RecordBatch, path: str) -> pa.RecordBatch:
    if rows.num_rows and (child := os.fork()):
        with open(path, "w") as file:
            file.write(str(child))
    return hang(rows)
