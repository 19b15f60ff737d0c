"""CSV (and TSV) with a header line: a part is a run of lines. Types are those that hold for every line of a file.

Where lines of one file disagree, numbers become floats, and anything else text: text loses nothing. What is not UTF-8 is bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.csv

from tieredfs.errors import CorruptError
from tieredfs_gateway.datasets import schemas
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import FileIndex
from tieredfs_gateway.datasets.sources.text import (
    Stretch,
    TextFiles,
    as_file,
    bare_name,
    end_of_quoted_lines,
    held_bytes,
    unreadable,
)
from tieredfs_gateway.datasets.versions import PinnedFile


@dataclass(frozen=True, slots=True)
class _Parts:
    stretches: tuple[Stretch, ...]
    sizes: tuple[int, ...]
    """Decoded."""


class CsvSource:
    """See `Source`."""

    columnar = False

    def __init__(self, files: TextFiles) -> None:
        self._files = files

    def look(self, file: PinnedFile) -> FileIndex:
        names: list[str] | None = None
        kinds: dict[str, pa.DataType] = {}
        rows, stretches, sizes = [], [], []
        ends = partial(end_of_quoted_lines, delimiter=_delimiter(file))
        for stretch, text in self._files.stretches(file, ends):
            table = self._parsed(file, stretch, text, names, None)
            with unreadable(file, "CSV"):
                names = table.schema.names
            for field in table.schema:
                kinds[field.name] = _joined(kinds.get(field.name, pa.null()), field.type)
            rows.append(table.num_rows)
            stretches.append(stretch)
            sizes.append(table.nbytes)
        if names is not None and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise CorruptError(f"{file.name}: two columns are named {twice!r}")
        schema = pa.schema([pa.field(name, kinds[name]) for name in names or ()])
        return FileIndex(schema, tuple(rows), _Parts(tuple(stretches), tuple(sizes)), held_bytes(stretches))

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        stretch = index.detail.stretches[part]
        wanted = {path[0] for path in paths}
        schema = pa.schema([field for field in index.schema if field.name in wanted])
        names = index.schema.names if part else None
        return self._parsed(file, stretch, self._files.read(file, stretch), names, schema)

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        share = len({path[0] for path in paths}) / max(1, len(index.schema))
        return int(index.detail.sizes[part] * min(1.0, share))

    def _parsed(
        self, file: PinnedFile, stretch: Stretch, text: pa.Buffer, names: list[str] | None, schema: pa.Schema | None
    ) -> pa.Table:
        """`names` None: the first line has them. `schema` None: types are guessed, of all columns."""
        with unreadable(file, "CSV", stretch.line - 1):
            return pa.csv.read_csv(
                as_file(text),
                pa.csv.ReadOptions(use_threads=False, block_size=max(1, text.size + 1), column_names=names),
                pa.csv.ParseOptions(delimiter=_delimiter(file).decode(), newlines_in_values=True),
                pa.csv.ConvertOptions(column_types=schema, include_columns=None if schema is None else schema.names),
            )


def _delimiter(file: PinnedFile) -> bytes:
    return b"\t" if bare_name(file.path).lower().endswith(b".tsv") else b","


def _joined(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    try:
        return schemas.common_type(one, other)
    except schemas.TypesDifferError:
        numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other))
        if numbers:
            return pa.float64()
        return pa.binary() if pa.binary() in (one, other) else pa.string()
