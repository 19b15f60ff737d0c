"""Values where they lie: columns of `binary_view` over mappings of the gateway's files.

The gateway sends, for each value, either its bytes or a place: file, offset, length (its `contract.Views`). Here they become
views (Arrow Columnar Format, "Variable-size Binary View Layout"): 16 bytes a value, its length, its first four bytes, and where it
is in one of many buffers: those of the mapped files, and that of the bytes that were sent. Nothing else is copied. An array keeps
the mappings of the files that it refers to; whoever has none of those arrays any more has nothing of the file.

Offsets of views have 31 bits, files may be larger: so a file is a buffer for each *window* of `WINDOW_BYTES`, and each reaches as
far as 31 bits do, over what begins in it.
"""

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tieredfs.errors import UnavailableError

WINDOW_BITS: Final = 30
WINDOW_BYTES: Final = 1 << WINDOW_BITS
_REACH: Final = (1 << 31) - 1
_VIEW: Final = np.dtype([("length", "<i4"), ("prefix", "<u4"), ("buffer", "<i4"), ("offset", "<i4")])
_PREFIX: Final = np.arange(4)


@dataclass(frozen=True, slots=True)
class MappedFile:
    """`content`: all of it, read-only. The mapping goes with the last of what refers to it."""

    content: "np.ndarray[Any, np.dtype[np.uint8]]"
    windows: tuple[pa.Buffer, ...]

    @classmethod
    def of(cls, descriptor: int, size_bytes: int) -> "MappedFile":
        """Takes the descriptor over. Raises OSError."""
        try:
            mapping = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        whole = pa.py_buffer(mapping)
        starts = range(0, size_bytes, WINDOW_BYTES)
        return cls(
            np.frombuffer(mapping, np.uint8), tuple(whole.slice(at, min(_REACH, size_bytes - at)) for at in starts)
        )


def shown(batch: pa.RecordBatch, names: Sequence[str], files: Mapping[int, MappedFile]) -> pa.RecordBatch:
    """The batch, with views in the columns of those names. Raises UnavailableError: it refers to what this process has not."""
    for name in names:
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, pa.field(name, pa.binary_view()), _views(batch.column(at), files))
    return batch


def as_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Columns of `binary` as views of what they are: no value is copied."""
    schema = viewed_schema(batch.schema)
    return batch if schema is batch.schema else batch.cast(schema)


def viewed_schema(schema: pa.Schema) -> pa.Schema:
    """The same one where there is no column of `binary`."""
    if pa.binary() not in schema.types:
        return schema
    fields = [field.with_type(pa.binary_view()) if field.type == pa.binary() else field for field in schema]
    return pa.schema(fields, schema.metadata)


def _views(column: pa.StructArray, files: Mapping[int, MappedFile]) -> pa.Array:
    numbers, offsets, lengths = (_integers(column.field(name)) for name in ("file", "offset", "length"))
    is_valid = np.asarray(column.is_valid())
    carried = column.field("bytes").cast(pa.binary_view())
    _, laid, *buffers = carried.buffers()
    found = np.frombuffer(laid, _VIEW, len(carried), carried.offset * _VIEW.itemsize).copy()
    (there,) = np.nonzero((numbers >= 0) & is_valid)
    windows = numbers[there] << 32 | offsets[there] >> WINDOW_BITS
    keys, which = np.unique(windows, return_inverse=True)
    within = offsets[there] & (WINDOW_BYTES - 1)
    found["length"][there] = lengths[there]
    found["buffer"][there] = which + len(buffers)
    found["offset"][there] = within
    for number, key in enumerate(keys.tolist()):
        rows = there[which == number]
        file = files.get(key >> 32)
        if file is None or (offsets[rows] + lengths[rows]).max() > len(file.content):
            raise UnavailableError("a batch refers to what the gateway has not shown")
        buffers.append(file.windows[key & 0xFFFFFFFF])
        starts = file.content[offsets[rows, None] + _PREFIX]
        found["prefix"][rows] = starts.view("<u4")[:, 0]
    validity = pa.array(is_valid).buffers()[1] if column.null_count else None
    return pa.Array.from_buffers(pa.binary_view(), len(column), [validity, pa.py_buffer(found), *buffers])


def _integers(column: pa.Array) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Of what is null: -1, or anything."""
    found: np.ndarray[Any, np.dtype[np.int64]] = column.fill_null(-1).to_numpy().astype(np.int64)
    return found
