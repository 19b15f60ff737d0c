"""A filter bound to a schema: types checked, literals converted, columns found; as a mask, and against statistics.

Null is as in SQL: a comparison with it is neither true nor false, and only rows whose filter is true are kept.
`may_match` looks at what is known of a part of a file (least, greatest, count of nulls) and says no only where no row can match.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets import schemas
from tieredfs_gateway.datasets.filter_literals import Bound, bound
from tieredfs_gateway.datasets.filter_text import (
    And,
    Compare,
    Comparison,
    IsIn,
    IsNull,
    IsTrue,
    Literal,
    Name,
    Node,
    Not,
    Or,
    bad_filter,
    parse,
)
from tieredfs_gateway.datasets.schemas import Column, Path

_KERNELS: Final[dict[Comparison, Callable[[Any, Any], Any]]] = {
    Comparison.EQUAL: pc.equal,
    Comparison.DIFFERENT: pc.not_equal,
    Comparison.LESS: pc.less,
    Comparison.AT_MOST: pc.less_equal,
    Comparison.GREATER: pc.greater,
    Comparison.AT_LEAST: pc.greater_equal,
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a column in a part of a file. `least`, `greatest` None: not known. `nulls` None: not known; `rows`: all of them."""

    least: Any
    greatest: Any
    nulls: int | None
    rows: int


Statistics = Callable[[Path], Bounds | None]


@dataclass(frozen=True, slots=True)
class _Set:
    """The values of an `in`: for kernels, and as statistics have theirs."""

    array: pa.Array
    values: tuple[Any, ...]
    has_null: bool

    @classmethod
    def of(cls, equal: Sequence[Bound], kind: pa.DataType, *, has_null: bool) -> "_Set":
        """Without those that no value of the column equals."""
        there = [one for one in equal if one.how is Comparison.EQUAL and one.scalar.type == kind]
        return cls(pa.array([one.scalar for one in there], kind), tuple(one.value for one in there), has_null)


class Filter:
    """Immutable. Safe from any thread."""

    def __init__(self, text: str, columns: dict[str, Column]) -> None:
        """Raises ConfigurationError: what is wrong, where, and what may be meant."""
        self._text = text
        self._columns = columns
        self._paths: dict[str, Path] = {}
        self._bounds: dict[int, Bound] = {}
        self._sets: dict[int, _Set] = {}
        self._node = parse(text)
        self._bind(self._node)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The columns and fields that it looks at."""
        return tuple(dict.fromkeys(self._paths.values()))

    # ---- binding ----------------------------------------------------------------------------------------------------

    def _bind(self, node: Node) -> None:
        if isinstance(node, And | Or):
            for part in node.parts:
                self._bind(part)
        elif isinstance(node, Not):
            self._bind(node.inner)
        elif isinstance(node, Compare):
            self._bind_compare(node)
        elif isinstance(node, IsIn):
            kind = self._type(node.name)
            there = [literal for literal in node.values if literal.value is not None]
            equal = [self._bound(Comparison.EQUAL, literal, kind, node.name) for literal in there]
            self._sets[id(node)] = _Set.of(equal, _compared_as(kind), has_null=len(there) < len(node.values))
        elif isinstance(node, IsTrue):
            kind = self._type(node.name)
            if not pa.types.is_boolean(kind):
                problem = f"{node.name.text!r} is {kind}; alone it must be a boolean: compare it with something"
                raise bad_filter(self._text, node.name.at, problem)
        else:
            self._type(node.name)

    def _bind_compare(self, node: Compare) -> None:
        kind = self._type(node.left)
        if isinstance(node.right, Literal):
            if node.right.value is None:
                problem = "nothing equals null: `is null` and `is not null` ask for it"
                raise bad_filter(self._text, node.right.at, problem)
            self._bounds[id(node)] = self._bound(node.how, node.right, kind, node.left)
            return
        other = self._type(node.right)
        try:
            schemas.common_type(kind, other)
        except schemas.TypesDifferError:
            if not (_is_number(kind) and _is_number(other)):
                problem = f"{node.left.text!r} is {kind} and {node.right.text!r} is {other}: they do not compare"
                raise bad_filter(self._text, node.right.at, problem) from None

    def _type(self, name: Name) -> pa.DataType:
        path = schemas.find_path(self._columns, name.text)
        if path is None:
            near = difflib.get_close_matches(name.text, list(schemas.all_names(self._columns)), 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise bad_filter(self._text, name.at, f"there is no column {name.text!r}{hint}")
        kind = schemas.type_at(self._columns, path)
        if pa.types.is_nested(kind):
            raise bad_filter(self._text, name.at, f"{name.text!r} is {kind}: only its fields can be compared")
        self._paths[name.text] = path
        return kind

    def _bound(self, how: Comparison, literal: Literal, kind: pa.DataType, name: Name) -> Bound:
        found = bound(how, literal, kind)
        if found is None:
            problem = f"{name.text!r} is {kind}, and {literal.value!r} is not a value of that type{_hint(kind)}"
            raise bad_filter(self._text, literal.at, problem)
        return found

    # ---- rows -------------------------------------------------------------------------------------------------------

    def mask(self, column: Callable[[Path], pa.ChunkedArray]) -> pa.ChunkedArray:
        """True, false or null for each row; `column` gives the columns of `paths`, in the types of the schema.

        Raises ConfigurationError where values of two columns do not compare.
        """
        try:
            return self._mask(self._node, lambda name: _comparable(column(self._paths[name.text])))
        except pa.ArrowException as error:
            raise ConfigurationError(f"the filter {self._text[:200]!r} cannot be applied: {error}") from error

    def _mask(self, node: Node, column: Callable[[Name], Any]) -> Any:
        if isinstance(node, And | Or):
            join = pc.and_kleene if isinstance(node, And) else pc.or_kleene
            result = self._mask(node.parts[0], column)
            for part in node.parts[1:]:
                result = join(result, self._mask(part, column))
            return result
        if isinstance(node, Not):
            return pc.invert(self._mask(node.inner, column))
        if isinstance(node, Compare):
            if not isinstance(node.right, Literal):
                return _KERNELS[node.how](*_alike(column(node.left), column(node.right)))
            known = self._bounds[id(node)]
            return _KERNELS[known.how](column(node.left), known.scalar)
        if isinstance(node, IsIn):
            return self._is_in(node, column(node.name))
        if isinstance(node, IsNull):
            return pc.is_null(column(node.name))
        return column(node.name)

    def _is_in(self, node: IsIn, column: Any) -> Any:
        """SQL's: null where the column is, and where nothing equals but the list has a null."""
        values = self._sets[id(node)]
        found = pc.is_in(column, value_set=values.array)
        null = pa.scalar(None, pa.bool_())
        unknown = pc.is_null(column)
        if values.has_null:
            unknown = pc.or_(unknown, pc.invert(found))
        return pc.if_else(unknown, null, found)

    # ---- statistics -------------------------------------------------------------------------------------------------

    def may_match(self, statistics: Statistics) -> bool:
        """False only where no row of the part can be kept."""
        return self._may_be_true(self._node, statistics)

    def may_refuse(self, statistics: Statistics) -> bool:
        """False only where no row of the part makes the filter false; one with a null may still not be kept."""
        return self._may_be_false(self._node, statistics)

    def _may_be_true(self, node: Node, statistics: Statistics) -> bool:
        if isinstance(node, And):
            return all(self._may_be_true(part, statistics) for part in node.parts)
        if isinstance(node, Or):
            return any(self._may_be_true(part, statistics) for part in node.parts)
        if isinstance(node, Not):
            return self._may_be_false(node.inner, statistics)
        bounds = statistics(self._paths[node.left.text if isinstance(node, Compare) else node.name.text])
        if bounds is None:
            return True
        if isinstance(node, IsNull):
            return bounds.nulls is None or bounds.nulls > 0
        if bounds.nulls == bounds.rows:
            return False
        if isinstance(node, Compare) and isinstance(node.right, Literal):
            known = self._bounds[id(node)]
            unordered = known.how is Comparison.DIFFERENT and isinstance(bounds.least, float)  # NaN differs from all
            return unordered or _may_hold(bounds, known.how, known.value)
        if isinstance(node, IsIn):
            return any(_may_hold(bounds, Comparison.EQUAL, value) for value in self._sets[id(node)].values)
        return True

    def _may_be_false(self, node: Node, statistics: Statistics) -> bool:
        """De Morgan; for one comparison its opposite, as null is neither."""
        if isinstance(node, And):
            return any(self._may_be_false(part, statistics) for part in node.parts)
        if isinstance(node, Or):
            return all(self._may_be_false(part, statistics) for part in node.parts)
        if isinstance(node, Not):
            return self._may_be_true(node.inner, statistics)
        if isinstance(node, IsNull):
            bounds = statistics(self._paths[node.name.text])
            return bounds is None or bounds.nulls is None or bounds.nulls < bounds.rows
        if isinstance(node, Compare) and isinstance(node.right, Literal):
            bounds = statistics(self._paths[node.left.text])
            if bounds is None or isinstance(
                bounds.least, float
            ):  # NaN, which is in no bounds, makes every comparison false
                return True
            if bounds.nulls == bounds.rows:
                return False
            known = self._bounds[id(node)]
            return _may_hold(bounds, _OPPOSITE[known.how], known.value)
        return True


_OPPOSITE: Final = {
    Comparison.EQUAL: Comparison.DIFFERENT,
    Comparison.DIFFERENT: Comparison.EQUAL,
    Comparison.LESS: Comparison.AT_LEAST,
    Comparison.AT_MOST: Comparison.GREATER,
    Comparison.GREATER: Comparison.AT_MOST,
    Comparison.AT_LEAST: Comparison.LESS,
}


def _may_hold(bounds: Bounds, how: Comparison, value: Any) -> bool:
    """Some value within the bounds compares so. Bounds that do not compare with the value say nothing."""
    least, greatest = bounds.least, bounds.greatest
    if least is None or greatest is None:
        return True
    try:
        return bool(_HOLDS[how](least, greatest, value))
    except TypeError:
        return True


_HOLDS: Final[dict[Comparison, Callable[[Any, Any, Any], Any]]] = {
    Comparison.EQUAL: lambda least, greatest, value: least <= value <= greatest,
    Comparison.DIFFERENT: lambda least, greatest, value: not least == value == greatest,
    Comparison.LESS: lambda least, _, value: least < value,
    Comparison.AT_MOST: lambda least, _, value: least <= value,
    Comparison.GREATER: lambda _, greatest, value: greatest > value,
    Comparison.AT_LEAST: lambda _, greatest, value: greatest >= value,
}


def _compared_as(kind: pa.DataType) -> pa.DataType:
    return pa.float32() if pa.types.is_float16(kind) else kind


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Arrow compares no half floats."""
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Two columns of numbers in a type that both go into: with doubles as the nearest double, else exactly."""
    kinds = (one.type, other.type)
    if any(map(pa.types.is_floating, kinds)) and not all(map(pa.types.is_floating, kinds)):
        return one.cast(pa.float64(), safe=False), other.cast(pa.float64(), safe=False)
    if all(map(pa.types.is_integer, kinds)) and pa.uint64() in kinds and kinds[0] != kinds[1]:
        return one.cast(_WIDE), other.cast(_WIDE)
    return one, other


_WIDE: Final = pa.decimal128(20, 0)
"""Holds signed and unsigned integers of 64 bits."""


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _hint(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        zone = "with a zone (or UTC is meant)" if kind.tz else "without a zone"
        return f': write "2013-01-31T08:00:00", {zone}'
    if pa.types.is_date(kind):
        return ': write "2013-01-31"'
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ": put it in quotes"
    return ""


def bind_filter(text: str | None, columns: dict[str, Column]) -> Filter | None:
    """None where there is none. Raises ConfigurationError."""
    return None if text is None or not text.strip() else Filter(text, columns)


def bind_columns(names: tuple[str, ...] | None, columns: dict[str, Column]) -> list[tuple[str, Path]]:
    """The columns of every batch: name and path. Raises ConfigurationError for one that is not there, or named twice."""
    if names is None:
        return [(name, (name,)) for name in columns]
    found = []
    for name in names:
        path = schemas.find_path(columns, name)
        if path is None:
            near = difflib.get_close_matches(name, list(schemas.all_names(columns)), 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(list(columns)[:20])}"
            raise ConfigurationError(f"there is no column {name!r}{hint}")
        found.append((name, path))
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"columns: {next(name for name in names if names.count(name) > 1)!r} is asked for twice"
        )
    return found
