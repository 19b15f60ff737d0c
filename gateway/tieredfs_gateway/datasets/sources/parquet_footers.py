"""What Arrow takes for granted of a Parquet footer, and ends the process without: told before it is asked.

What is wrong with a file is an error where Arrow reads data. Where Python asks about a column chunk it is not: the exceptions of
C++ that its constructor throws (level histograms of another size, encrypted columns) and those of its statistics (values that
are shorter than their type) end the process. So both are tried where they can be caught.

- `check` has Arrow's reader plan to read everything: that makes every column chunk. Its file lets nothing be read.
- `decodable` looks at the bytes of statistics, of the columns that a filter asks about. They are found in the footer by the
  path that precedes them, not by decoding what lies before: 17 us for each of all column chunks.

Source of the format: Apache Parquet, `parquet.thrift`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tieredfs_gateway.datasets.arrow_files import SeekableFile
from tieredfs_gateway.datasets.sources import thrift_compact as thrift

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PATH: Final = 3
"""Field of ColumnMetaData; its header follows that of field 2."""
_STATISTICS: Final = 12
_VALUES: Final = (1, 2, 5, 6)
"""Fields of Statistics: the old ones for most and least, and the new ones."""
_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


class _ReadError(Exception):
    """Something would be read: all is planned."""


class _Unread(SeekableFile):
    """A file that says how long it is, and nothing else."""

    def readinto(self, _: "Buffer", /) -> int:
        raise _ReadError

    def read(self, _: int = -1, /) -> bytes:
        raise _ReadError


def check(metadata: pq.FileMetaData, size_bytes: int) -> None:
    """Raises pyarrow.ArrowException or OSError when the column chunks of a file of that size are none."""
    groups = range(metadata.num_row_groups)
    for number in groups:
        columns = metadata.row_group(number).num_columns
        if columns != metadata.num_columns:
            raise pa.ArrowInvalid(f"row group {number} has {columns} columns of {metadata.num_columns}")
    file = pa.PythonFile(_Unread(size_bytes), mode="r")
    with pq.ParquetFile(file, metadata=metadata, pre_buffer=True) as planned:
        try:
            next(planned.iter_batches(1, row_groups=groups, use_threads=False), None)
        except (_ReadError, pa.ArrowNotImplementedError):  # what cannot be decoded may not be wanted
            return


def decodable(metadata: pq.FileMetaData, footer: bytes, leaf: int, path: Sequence[str]) -> tuple[bool, ...]:
    """Of each row group: whether the statistics of that column are values of its type. `footer`: as the file has it; `path`: of the
    column in the schema. Raises BadThriftError."""
    column = metadata.schema.column(leaf)
    width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS.get(column.physical_type)
    chunks = [metadata.row_group(number).column(leaf) for number in range(metadata.num_row_groups)]
    if any(chunk.physical_type != column.physical_type for chunk in chunks):
        raise thrift.BadThriftError(f"column {column.path!r} has another type than the schema says")
    if width is None:
        return (True,) * len(chunks)
    with thrift.expected():
        known = [meta.get(_STATISTICS) or {} for meta in _metas(footer, chunks, leaf, path)]
        return tuple(all(len(values[key]) in (0, width) for key in _VALUES if key in values) for values in known)


def _metas(
    footer: bytes, chunks: Sequence[pq.ColumnChunkMetaData], leaf: int, path: Sequence[str]
) -> list[dict[int, Any]]:
    """What is said of a column in each row group, from its path on."""
    kind, value = thrift.listed([thrift.binary(part.encode()) for part in path])
    ends = _ends(footer, bytes([1 << 4 | kind]) + value)
    if len(ends) == len(chunks):
        found = [thrift.decode_from(footer, at, _PATH) for at in ends]
        if all(map(_is_of, found, chunks)):
            return found
    # a value or a name looks alike, or the chunks have other paths
    return [group[1][leaf][3] for group in thrift.decode(footer)[4]]


def _is_of(meta: dict[int, Any], chunk: pq.ColumnChunkMetaData) -> bool:
    known = (chunk.num_values, chunk.total_uncompressed_size, chunk.total_compressed_size, chunk.data_page_offset)
    return known == tuple(meta.get(number) for number in (5, 6, 7, 9))


def _ends(data: bytes, wanted: bytes) -> list[int]:
    """Where each occurrence ends."""
    found, at = [], data.find(wanted)
    while at >= 0:
        found.append(at + len(wanted))
        at = data.find(wanted, at + 1)
    return found
