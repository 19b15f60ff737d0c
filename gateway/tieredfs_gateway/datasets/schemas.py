"""One schema for many files, and one selection of it. Pure: types in, types out.

Files of a dataset may differ where nothing is lost: a column that one of them lacks is null there, integers and floats widen,
timestamps take the finer unit, fields of structs are joined. Anything else is an error that names both files and the
column. Dictionaries are values here: encoding is what a batch is given at its end.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tieredfs.errors import ConfigurationError

_UNITS: Final = ("s", "ms", "us", "ns")
_EXACT_IN_DOUBLE_BITS: Final = 32
_VIEWS: Final = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
"""Arrow has no `take` of views, hence no shuffling."""


class TypesDifferError(Exception):
    """Two types have no common one that loses nothing."""


# ---- common types ----------------------------------------------------------------------------------------------------


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, where `kind` is how they are encoded."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if kind in _VIEWS:
        return _VIEWS[kind]
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(plain(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type), kind.keys_sorted)
    return kind


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Raises TypesDifferError."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for rule in (_common_number, _common_text, _common_time, _common_nested):
        found = rule(one, other)
        if found is not None:
            return found
    raise TypesDifferError(f"{one} and {other}")


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return _common_integer(one, other)
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return one if one.bit_width >= other.bit_width else other
    if pa.types.is_floating(one) and pa.types.is_integer(other):
        return pa.float64() if other.bit_width <= _EXACT_IN_DOUBLE_BITS else None
    if pa.types.is_integer(one) and pa.types.is_floating(other):
        return _common_number(other, one)
    return None


def _common_integer(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return one if one.bit_width >= other.bit_width else other
    signed, unsigned = (one, other) if pa.types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _common_text(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (one, other)):
        return pa.large_string()
    if all(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in (one, other)):
        return pa.large_binary()
    return None


def _common_time(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz == other.tz:
        return one if _UNITS.index(one.unit) >= _UNITS.index(other.unit) else other
    return None


def _common_nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        names = dict.fromkeys(field.name for field in [*one, *other])
        return pa.struct([pa.field(name, _field_type(one, other, name)) for name in names])
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(common_type(one.value_type, other.value_type))
    if pa.types.is_large_list(one) and pa.types.is_large_list(other):
        return pa.large_list(common_type(one.value_type, other.value_type))
    return None


def _field_type(one: pa.DataType, other: pa.DataType, name: str) -> pa.DataType:
    in_one, in_other = one.get_field_index(name), other.get_field_index(name)
    if in_one < 0:
        return other.field(in_other).type
    return one.field(in_one).type if in_other < 0 else common_type(one.field(in_one).type, other.field(in_other).type)


@dataclass(frozen=True, slots=True)
class Column:
    """A top-level column of the dataset. `encoded`: some file has it as a dictionary, and batches give it as one."""

    kind: pa.DataType
    encoded: bool
    file: str
    """One that has this type, for messages."""


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> dict[str, Column]:
    """The columns of all files, in the order of their first appearance. Raises ConfigurationError naming files and column."""
    columns: dict[str, Column] = {}
    before: pa.Schema | None = None
    for file, schema in schemas:
        if before is not None and schema.equals(before):
            continue
        before = schema
        if len(set(schema.names)) < len(schema.names):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            raise ConfigurationError(f"{file}: it has two columns named {twice!r}")
        for field in schema:
            seen = columns.get(field.name)
            kind = _plain_of(file, field)
            encoded = pa.types.is_dictionary(field.type) and not pa.types.is_nested(
                kind
            )  # Arrow encodes no nested values
            if seen is None:
                columns[field.name] = Column(kind, encoded, file)
            elif seen.kind != kind or (encoded and not seen.encoded):
                columns[field.name] = _joined(field.name, seen, Column(kind, encoded, file))
    return columns


def _plain_of(file: str, field: pa.Field) -> pa.DataType:
    try:
        return plain(field.type)
    except RecursionError:
        raise ConfigurationError(f"{file}: column {field.name!r} is nested too deeply to be read") from None


def _joined(name: str, seen: Column, new: Column) -> Column:
    try:
        kind = common_type(seen.kind, new.kind)
    except TypesDifferError as differ:
        raise ConfigurationError(
            f"column {name!r} is {seen.kind} in {seen.file} and {new.kind} in {new.file}: no type holds {differ} without loss"
        ) from None
    return Column(kind, seen.encoded or new.encoded, new.file if kind == new.kind else seen.file)


# ---- paths into a schema ---------------------------------------------------------------------------------------------

Path = tuple[str, ...]
"""A column, or a field of a struct: ("a", "b") is `a.b`."""


def find_path(columns: dict[str, Column], name: str) -> Path | None:
    """What `name` means: a column of that name before a field of a struct. None: nothing."""
    if name in columns:
        return (name,)
    parts = name.split(".")
    for count in range(1, len(parts)):
        head = ".".join(parts[:count])
        if head in columns:
            kind = columns[head].kind
            for part in parts[count:]:
                if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
                    break
                kind = kind.field(kind.get_field_index(part)).type
            else:
                return (head, *parts[count:])
    return None


def type_at(columns: dict[str, Column], path: Path) -> pa.DataType:
    kind = columns[path[0]].kind
    for part in path[1:]:
        kind = kind.field(kind.get_field_index(part)).type
    return kind


def all_names(columns: dict[str, Column]) -> Iterator[str]:
    """Every name that `find_path` knows, for hints."""

    def walk(name: str, kind: pa.DataType) -> Iterator[str]:
        yield name
        if pa.types.is_struct(kind):
            for field in kind:
                yield from walk(f"{name}.{field.name}", field.type)

    for name, column in columns.items():
        yield from walk(name, column.kind)


# ---- giving a file's table the dataset's types -----------------------------------------------------------------------


def column_at(table: pa.Table, path: Path) -> pa.ChunkedArray | None:
    """The column or struct field; None where this file does not have it."""
    at = table.schema.get_field_index(path[0])
    if at < 0:
        return None
    column = table.column(at)
    for part in path[1:]:
        if pa.types.is_null(column.type):
            return None
        if column.type.get_field_index(part) < 0:
            return None
        column = pc.struct_field(column, part)
    return column


Wanted = Sequence[tuple[str, Path, pa.DataType]]


def conform(table: pa.Table, wanted: Wanted, constants: Mapping[str, object | None]) -> pa.Table:
    """The columns `wanted` (name, path, type), with these types; `constants` are what hive directories give.

    Raises pyarrow.ArrowInvalid where a value does not fit, which types that `unify` joined cannot cause.
    """
    columns = []
    for _, path, kind in wanted:
        column = None if path[0] in constants else column_at(table, path)
        if column is None:
            value = constants.get(path[0])
            array = (
                pa.nulls(table.num_rows, kind) if value is None else pa.repeat(pa.scalar(value, kind), table.num_rows)
            )
            column = pa.chunked_array([array], kind)
        elif column.type != kind:
            column = cast(column, kind)
        columns.append(column)
    schema = pa.schema([pa.field(name, kind) for name, _, kind in wanted])
    if not wanted:
        return table.select([])
    return pa.Table.from_arrays(columns, schema=schema)


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """To a type that `unify` or `plain` made of the column's own."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        values = _VIEWS.get(column.type.value_type, column.type.value_type)
        column = pa.chunked_array([_written_out(chunk, values) for chunk in column.chunks], values)
    if pa.types.is_run_end_encoded(column.type):
        column = pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], column.type.value_type)
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        return pa.chunked_array([_struct(chunk, kind) for chunk in column.chunks], kind)
    return column.cast(kind)


def _written_out(chunk: pa.DictionaryArray, values: pa.DataType) -> pa.Array:
    if chunk.type.value_type != values:
        chunk = pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(values))
    return chunk.dictionary_decode()


def _struct(array: pa.StructArray, kind: pa.DataType) -> pa.StructArray:
    """Fields joined by name; one that is not there is null. A slice keeps its offset: `field` gives whole children."""
    children = []
    for field in kind:
        at = array.type.get_field_index(field.name)
        if at < 0:
            children.append(pa.nulls(len(array), field.type))
        else:
            child = pa.chunked_array([pc.struct_field(array, [at])])
            children.append(cast(child, field.type).combine_chunks())
    children = [child.combine_chunks() if isinstance(child, pa.ChunkedArray) else child for child in children]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null() if array.null_count else None)
