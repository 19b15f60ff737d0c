"""CSV (and TSV) with a header line: a part is a run of lines. Types are those that hold for every line of a file.

Where lines of one file disagree, numbers become floats, and anything else text: text loses nothing. What is not UTF-8 is bytes.
Integers that neither 64 bits nor a float hold as they are are an error. An empty line is nothing; in a file of one column it is a
row.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
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
    has_large_numbers,
    held_bytes,
    loses_digits,
    unreadable,
)
from tieredfs_gateway.datasets.versions import PinnedFile

_LONG_INTEGER: Final = r"^\s*[+-]?[0-9]{19,}\s*$"
"""As RE2 has it."""


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
            given = names
            table = self._parsed(file, stretch, text, given, None, has_one_column=given is not None and len(given) == 1)
            if given is None and table.num_columns == 1:  # only now is it known that empty lines are rows
                table = self._parsed(file, stretch, text, given, None, has_one_column=True)
            with unreadable(file, "CSV"):
                names = table.schema.names
            _check_names(file, names)
            self._check_integers(file, stretch, text, given, table)
            for field in table.schema:
                kinds[field.name] = _joined(kinds.get(field.name, pa.null()), field.type)
            rows.append(table.num_rows)
            stretches.append(stretch)
            sizes.append(table.nbytes)
        schema = pa.schema([pa.field(name, kinds[name]) for name in names or ()])
        return FileIndex(schema, tuple(rows), _Parts(tuple(stretches), tuple(sizes)), held_bytes(stretches))

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        stretch = index.detail.stretches[part]
        wanted = {path[0] for path in paths}
        schema = pa.schema([field for field in index.schema if field.name in wanted])
        names = index.schema.names if part else None
        has_one_column = len(index.schema) == 1
        return self._parsed(file, stretch, self._files.read(file, stretch), names, schema, has_one_column)

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        share = len({path[0] for path in paths}) / max(1, len(index.schema))
        return int(index.detail.sizes[part] * min(1.0, share))

    def _check_integers(
        self, file: PinnedFile, stretch: Stretch, text: pa.Buffer, names: list[str] | None, table: pa.Table
    ) -> None:
        """Arrow takes integers of more than 64 bits for floats. Raises CorruptError where they are not what they were."""
        large = [name for name in table.schema.names if has_large_numbers(table.column(name))]
        for name in large:
            texts = self._parsed(file, stretch, text, names, pa.schema([pa.field(name, pa.string())])).column(0)
            integers = texts.filter(pc.match_substring_regex(texts, _LONG_INTEGER))
            lost = next(filter(loses_digits, integers.to_pylist()), None)
            if lost is not None:
                raise CorruptError(
                    f"{file.name}: column {name!r} has the integer {lost.strip()}: no number of 64 bits holds it"
                )

    def _parsed(
        self,
        file: PinnedFile,
        stretch: Stretch,
        text: pa.Buffer,
        names: list[str] | None,
        schema: pa.Schema | None,
        has_one_column: bool = False,
    ) -> pa.Table:
        """`names` None: the first line has them. `schema` None: types are guessed, of all columns."""
        lines = as_file(text) if names is not None else io.BytesIO(_from_header(bytes(memoryview(text))))
        with unreadable(file, "CSV", stretch.line - 1):
            return pa.csv.read_csv(
                lines,
                pa.csv.ReadOptions(use_threads=False, block_size=max(1, text.size + 2), column_names=names),
                pa.csv.ParseOptions(
                    delimiter=_delimiter(file).decode(), newlines_in_values=True, ignore_empty_lines=not has_one_column
                ),
                pa.csv.ConvertOptions(column_types=schema, include_columns=None if schema is None else schema.names),
            )


def _from_header(text: bytes) -> bytes:
    """Without empty lines before it. Arrow takes a header without an end for nothing at all."""
    found = text.lstrip(b"\r\n")
    return found if found.endswith(b"\n") else found + b"\n"


def _check_names(file: PinnedFile, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CorruptError(f"{file.name}: two columns are named {twice!r}")


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
