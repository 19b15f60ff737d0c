"""JSON Lines: a part is a run of lines, a row is an object. Types are those that hold for every line of a file.

What looks like a time is one if all values of the column do; else it is text. Other disagreements are errors with the line, and
so are integers that neither 64 bits nor a float hold as they are.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.json

from tieredfs.errors import CorruptError
from tieredfs_gateway.datasets import schemas
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import FileIndex
from tieredfs_gateway.datasets.sources.text import (
    Stretch,
    TextFiles,
    as_file,
    end_of_lines,
    has_large_numbers,
    held_bytes,
    loses_digits,
    unreadable,
)
from tieredfs_gateway.datasets.versions import PinnedFile

_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")


@dataclass(frozen=True, slots=True)
class _Parts:
    stretches: tuple[Stretch, ...]
    sizes: tuple[int, ...]
    """Decoded."""


class JsonLinesSource:
    """See `Source`."""

    columnar = False

    def __init__(self, files: TextFiles) -> None:
        self._files = files

    def look(self, file: PinnedFile) -> FileIndex:
        kinds: dict[str, pa.DataType] = {}
        rows, stretches, sizes = [], [], []
        for stretch, text in self._files.stretches(file, end_of_lines):
            _check_text(file, stretch, text)
            table = parsed(file, stretch, text, None)
            _check_integers(file, stretch, text, table)
            for field in table.schema:
                kinds[field.name] = _joined(file, stretch, field, kinds.get(field.name, pa.null()))
            rows.append(table.num_rows)
            stretches.append(stretch)
            sizes.append(table.nbytes)
        schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
        return FileIndex(schema, tuple(rows), _Parts(tuple(stretches), tuple(sizes)), held_bytes(stretches))

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        stretch = index.detail.stretches[part]
        wanted = {path[0] for path in paths}
        schema = pa.schema([field for field in index.schema if field.name in wanted])
        return parsed(file, stretch, self._files.read(file, stretch), schema)

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        share = len({path[0] for path in paths}) / max(1, len(index.schema))
        return int(index.detail.sizes[part] * min(1.0, share))


def _check_text(file: PinnedFile, stretch: Stretch, text: pa.Buffer) -> None:
    """Arrow's parser takes any bytes for texts."""
    whole = [None, pa.py_buffer(np.array([0, text.size], np.int64)), text]
    try:
        pa.Array.from_buffers(pa.large_binary(), 1, whole).cast(pa.large_string())
    except pa.ArrowInvalid:
        for number, line in enumerate(bytes(memoryview(text)).split(b"\n"), stretch.line):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise CorruptError(f"{file.name}, line {number}: not UTF-8: {error}") from error


def lost_integer(document: bytes) -> str | None:
    """An integer of the JSON document that no number of 64 bits holds, and where it is. None: there is none, or it is no one
    document."""
    if not _LONG_INTEGER.search(document):
        return None
    try:
        value = json.loads(document, parse_int=_Raw)
    except (ValueError, RecursionError):
        return None
    columns = value.items() if isinstance(value, dict) else ()
    return next((f"column {name!r} has the integer {one}" for name, part in columns for one in _lost(part)), None)


class _Raw(str):
    """An integer as it is written."""

    __slots__ = ()


def _lost(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _lost(each)
    elif isinstance(value, _Raw) and loses_digits(value):
        yield value


def _check_integers(file: PinnedFile, stretch: Stretch, text: pa.Buffer, table: pa.Table) -> None:
    """Arrow takes integers of more than 64 bits for floats. Raises CorruptError where they are not what they were."""
    if not any(map(has_large_numbers, table.columns)):
        return
    for number, line in enumerate(bytes(memoryview(text)).split(b"\n"), stretch.line):
        lost = lost_integer(line)
        if lost is not None:
            raise CorruptError(f"{file.name}, line {number}: {lost}: no number of 64 bits holds it")


def parsed(file: PinnedFile, stretch: Stretch, text: pa.Buffer, schema: pa.Schema | None) -> pa.Table:
    """`schema` None: types are guessed, of all columns. Raises CorruptError with the line."""
    options = pa.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )
    if not bytes(memoryview(text)).strip():
        return pa.table({})
    try:
        with unreadable(file, "JSON Lines", stretch.line):
            return pa.json.read_json(
                as_file(text), pa.json.ReadOptions(use_threads=False, block_size=text.size + 1), options
            )
    except CorruptError as error:
        raise _with_line(file, stretch, text) or error from error


def _with_line(file: PinnedFile, stretch: Stretch, text: pa.Buffer) -> CorruptError | None:
    """The first line that is no JSON object; None: each is one."""
    for number, line in enumerate(bytes(memoryview(text)).split(b"\n"), stretch.line):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as problem:
                return CorruptError(f"{file.name}, line {number}: not JSON: {problem}")
            if not isinstance(value, dict):
                return CorruptError(f"{file.name}, line {number}: not an object")
    return None


def _joined(file: PinnedFile, stretch: Stretch, field: pa.Field, seen: pa.DataType) -> pa.DataType:
    found = _common(seen, field.type)
    if found is None:
        raise CorruptError(
            f"{file.name}: column {field.name!r} is {seen} at first and {field.type} after line {stretch.line}"
        )
    return found


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """As Arrow joins the types of lines that it parses together, at any depth."""
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        kinds = {field.name: field.type for field in one}
        for field in other:
            kind = _common(kinds.get(field.name, pa.null()), field.type)
            if kind is None:
                return None
            kinds[field.name] = kind
        return pa.struct([pa.field(name, kind) for name, kind in kinds.items()])
    if pa.types.is_list(one) and pa.types.is_list(other):
        kind = _common(one.value_type, other.value_type)
        return None if kind is None else pa.list_(kind)
    pair = {one, other}
    if any(map(pa.types.is_timestamp, pair)) and any(map(pa.types.is_string, pair)):
        return pa.string()
    if any(map(pa.types.is_floating, pair)) and any(map(pa.types.is_integer, pair)):
        return pa.float64()
    try:
        return schemas.common_type(one, other)
    except schemas.TypesDifferError:
        return None
