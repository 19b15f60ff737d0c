"""Arrow IPC files (Feather version 2) and streams: a part is a record batch; of a stream, the whole of it.

A file that is whole on the SSD is mapped: uncompressed columns are not copied, and columns that are not asked for are not touched.
Of one that is read past the SSD only the columns that are asked for are fetched; of a stream, all.

Arrow believes what such a file says of itself, and follows offsets out of its memory. So a column of a part is checked when it is
first read (offsets, indices of dictionaries, UTF-8); a content has one version for ever, so once is enough. For five columns of
short texts that is 15 ns a row, half as much again as to unpack all 19 with LZ4.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from tieredfs.errors import CorruptError
from tieredfs_gateway.datasets.arrow_files import ByteCount, arrow_file
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import FileIndex
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot

_HELD_BYTES: Final = 4096
_MAGIC: Final = b"ARROW1"


@dataclass(frozen=True, slots=True)
class _Detail:
    is_stream: bool
    size_bytes: int
    checked: list[int]
    """Of each part, the columns that are known to be sound: bits, by their number."""


class IpcSource:
    """See `Source`, `HasStoredBytes`."""

    columnar = True

    def __init__(self, snapshot: Snapshot, count: ByteCount) -> None:
        self._snapshot = snapshot
        self._count = count

    def look(self, file: PinnedFile) -> FileIndex:
        with _translated(file), self._opened(file) as native:
            if native.read(len(_MAGIC)) != _MAGIC:
                native.seek(0)
                with pa.ipc.open_stream(native) as stream:
                    _ = stream.schema.names  # decoded when they are asked for
                    rows = (sum(batch.num_rows for batch in stream),)
                    detail = _Detail(is_stream=True, size_bytes=file.size_bytes, checked=[0])
                    return FileIndex(stream.schema.remove_metadata(), rows, detail, _HELD_BYTES)
            native.seek(0)
            with pa.ipc.open_file(native) as opened:
                schema = opened.schema.remove_metadata()
                _ = schema.names  # decoded when they are asked for
            options = pa.ipc.IpcReadOptions(included_fields=[_narrowest(schema)] if len(schema) else [])
            with pa.ipc.open_file(native, options=options) as narrow:
                rows = tuple(narrow.get_batch(number).num_rows for number in range(narrow.num_record_batches))
            detail = _Detail(is_stream=False, size_bytes=file.size_bytes, checked=[0] * len(rows))
            return FileIndex(schema, rows, detail, _HELD_BYTES + (64 + len(schema) // 8) * len(rows))

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        names = {path[0] for path in paths}
        fields = [at for at, field in enumerate(index.schema) if field.name in names]
        if not fields and len(index.schema):  # to Arrow none is all
            fields = [_narrowest(index.schema)]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        with _translated(file), self._opened(file) as native:
            if index.detail.is_stream:
                with pa.ipc.open_stream(native, options=options) as stream:
                    table = stream.read_all()
            else:
                with pa.ipc.open_file(native, options=options) as opened:
                    table = pa.Table.from_batches([opened.get_batch(part)])
            _check(index, part, table)
            self._count.add(table.nbytes)
            return table

    def is_glance(self, file: PinnedFile) -> bool:
        """See `HasStoredBytes`. A stream has no footer."""
        return not file.path.lower().endswith(b".arrows")

    def stored_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        """See `HasStoredBytes`: a guess, by the widths of the columns."""
        detail, names = index.detail, {path[0] for path in paths}
        whole = detail.size_bytes * index.rows[part] // max(1, sum(index.rows))
        widths = {field.name: _width(field.type) for field in index.schema}
        wanted = sum(width for name, width in widths.items() if name in names)
        return int(whole if detail.is_stream else whole * wanted // max(1, sum(widths.values())))

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        rows, names = index.rows[part], {path[0] for path in paths}
        return sum(rows * _width(field.type) for field in index.schema if field.name in names)

    @contextmanager
    def _opened(self, file: PinnedFile) -> Iterator[pa.NativeFile]:
        with self._snapshot.reading(file) as reading:
            descriptor = reading.descriptor
            if descriptor is not None and file.size_bytes:
                with pa.memory_map(f"/proc/self/fd/{descriptor}", "r") as mapped:
                    yield mapped
            else:
                with arrow_file(reading, self._count, 0) as native:
                    yield native


def _check(index: FileIndex, part: int, table: pa.Table) -> None:
    """Raises ArrowInvalid."""
    for at, field in enumerate(index.schema):
        if field.name in table.schema.names and not index.detail.checked[part] >> at & 1:
            table.column(field.name).validate(full=True)
            index.detail.checked[part] |= 1 << at
    if table.num_rows != index.rows[part]:
        raise pa.ArrowInvalid(f"part {part} has {table.num_rows} rows, not {index.rows[part]}")


def _narrowest(schema: pa.Schema) -> int:
    """The column that costs least to read: batches have their number of rows beside their columns only."""
    return min(range(len(schema)), key=lambda at: _width(schema.field(at).type))


def _width(kind: pa.DataType) -> int:
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 64  # a guess: a footer does not say how long texts are


@contextmanager
def _translated(file: PinnedFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptError(f"{file.name}: not readable as Arrow IPC: {error}") from error
