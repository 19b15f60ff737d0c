"""Parquet: a part is a row group; only the column chunks that are asked for are read, in coalesced ranges.

Statistics of row groups prune. Page indexes are not used: Arrow's reader decodes whole column chunks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from tieredfs.errors import CorruptError
from tieredfs_gateway.datasets.arrow_files import ByteCount, arrow_file
from tieredfs_gateway.datasets.filters import Bounds
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import FileIndex
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot

_TEXT_BYTES_LEAST: Final = 12
"""An offset, and a few characters: dictionary pages hide how often a text is repeated."""


FOOTER_BYTES: Final = 64 << 10
"""What Arrow's reader reads from the end of a file at first."""


class ParquetSource:
    """See `Source`."""

    columnar = True

    def __init__(self, snapshot: Snapshot, count: ByteCount) -> None:
        self._snapshot = snapshot
        self._count = count

    def look(self, file: PinnedFile) -> FileIndex:
        with _translated(file), self._opened(file, None, min(FOOTER_BYTES, file.size_bytes)) as opened:
            metadata = opened.metadata
            rows = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
            return FileIndex(opened.schema_arrow.remove_metadata(), rows, metadata, 4 * metadata.serialized_size)

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        names = [".".join(path) for path in paths]
        planned = sum(size for size, _ in _chunks(index, part, names))
        with _translated(file), self._opened(file, index.detail, planned) as opened:
            table = opened.read_row_group(part, columns=names, use_threads=True)
        if table.num_rows != index.rows[part]:
            raise CorruptError(f"{file.name}: row group {part} has {table.num_rows} rows, not {index.rows[part]}")
        return table

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        rows, total = index.rows[part], 0
        wanted = {path[0] for path in paths}
        for field in index.schema:
            if field.name in wanted and _width(field.type):
                total += rows * _width(field.type)
        texts = [".".join(path) for path in paths if not _width(_field_type(index.schema, path))]
        for _, unpacked in _chunks(index, part, texts) if texts else ():
            total += max(unpacked, rows * _TEXT_BYTES_LEAST)
        return total

    def stored_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        return sum(size for size, _ in _chunks(index, part, [".".join(path) for path in paths]))

    def bounds(self, index: FileIndex, part: int, path: Path) -> Bounds | None:
        group = index.detail.row_group(part)
        name = ".".join(path)
        for number in range(group.num_columns):
            chunk = group.column(number)
            if chunk.path_in_schema == name and chunk.is_stats_set:
                found = chunk.statistics
                known = found.has_min_max
                nulls = found.null_count if found.has_null_count else None
                return Bounds(found.min if known else None, found.max if known else None, nulls, index.rows[part])
        return None

    @contextmanager
    def _opened(self, file: PinnedFile, metadata: pq.FileMetaData | None, planned: int = 0) -> Iterator[pq.ParquetFile]:
        """`planned`: bytes that will be read; C++ reads a whole file unseen."""
        with (
            self._snapshot.reading(file) as reading,
            arrow_file(reading, self._count, planned) as native,
            pq.ParquetFile(native, metadata=metadata, pre_buffer=True) as opened,
        ):
            yield opened


def _chunks(index: FileIndex, part: int, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Stored and decoded bytes of the column chunks that have those names, or lie below them."""
    group = index.detail.row_group(part)
    for number in range(group.num_columns):
        chunk = group.column(number)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(name + ".") for name in names):
            yield chunk.total_compressed_size, chunk.total_uncompressed_size


def _width(kind: pa.DataType) -> int:
    """Bytes of a value; 0 where that varies."""
    if pa.types.is_boolean(kind):
        return 1
    try:
        return int(kind.byte_width)
    except ValueError:
        return 0


def _field_type(schema: pa.Schema, path: Path) -> pa.DataType:
    at = schema.get_field_index(path[0])
    return schema.field(at).type if at >= 0 else pa.null()


@contextmanager
def _translated(file: PinnedFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{file.name}: not readable as Parquet: {error}") from error
