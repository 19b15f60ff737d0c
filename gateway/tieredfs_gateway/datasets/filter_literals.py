"""What a literal means beside a column: a comparison in the column's own type that every value of the column answers as it would
the literal's. Pure.

`id > 1.5` is `id >= 2` where ids are integers, `price < 0.125` is `price <= 0.12` where prices have two digits, and what lies
beyond a type's values is never equal and on one side of all. So no column is ever converted to be compared with a literal: not
rounded (integers above 2^53 are no doubles), not refused (nanoseconds end in 2262).
"""

import datetime
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pyarrow as pa

from tieredfs_gateway.datasets.filter_text import Comparison, Literal

_TICKS: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MOMENT_MAX: Final = (1 << 63) - 1
_ROUNDED: Final = {
    Comparison.LESS: Comparison.AT_MOST,
    Comparison.AT_MOST: Comparison.AT_MOST,
    Comparison.GREATER: Comparison.AT_LEAST,
    Comparison.AT_LEAST: Comparison.AT_LEAST,
}


@dataclass(frozen=True, slots=True)
class Bound:
    """Compare so, with `scalar`. `value`: it as statistics have theirs; None: Python has no such value."""

    how: Comparison
    scalar: pa.Scalar
    value: Any


@dataclass(frozen=True, slots=True)
class _Grid:
    """A type whose values are whole multiples of 1 / `per_unit`: from `least` to `greatest` of them."""

    kind: pa.DataType
    per_unit: int
    least: int
    greatest: int

    def scalar(self, steps: int) -> pa.Scalar:
        if not pa.types.is_decimal(self.kind):
            return pa.scalar(steps, self.kind)
        digits = tuple(map(int, str(abs(steps))))
        return pa.scalar(Decimal((int(steps < 0), digits, -self.kind.scale)), self.kind)


def bound(how: Comparison, literal: Literal, kind: pa.DataType) -> Bound | None:
    """None where the literal is no value that compares with a column of that type."""
    value = literal.value
    grid = _grid(kind)
    if grid is not None:
        exact = _moment(value, kind) if pa.types.is_timestamp(kind) else _number(literal)
        return None if exact is None else _on_grid(how, exact, grid)
    scalar = _float(value, kind) if pa.types.is_floating(kind) else _plain(value, kind)
    return None if scalar is None else Bound(how, scalar, scalar.as_py())


def _grid(kind: pa.DataType) -> _Grid | None:
    if pa.types.is_integer(kind):
        signed = pa.types.is_signed_integer(kind)
        bits = kind.bit_width - signed
        return _Grid(kind, 1, -(1 << bits) if signed else 0, (1 << bits) - 1)
    if pa.types.is_decimal(kind):
        most = 10**kind.precision - 1
        return _Grid(kind, 10 ** max(0, kind.scale), -most, most)
    if pa.types.is_timestamp(kind):
        return _Grid(kind, _TICKS[kind.unit], -_MOMENT_MAX, _MOMENT_MAX)
    return None


def _on_grid(how: Comparison, exact: Fraction | float, grid: _Grid) -> Bound:
    """`exact`: a float only where it is infinite."""
    if isinstance(exact, float):
        low = high = grid.greatest + 1 if exact > 0 else grid.least - 1
    else:
        low, high = math.floor(exact * grid.per_unit), math.ceil(exact * grid.per_unit)
    steps = high if how in (Comparison.GREATER, Comparison.AT_LEAST) else low
    if low != high or not grid.least <= steps <= grid.greatest:
        how, steps = _rounded(how, steps, grid)
    scalar = grid.scalar(steps)
    return Bound(how, scalar, _in_python(scalar))


def _rounded(how: Comparison, steps: int, grid: _Grid) -> tuple[Comparison, int]:
    """For a literal that no value equals. Never true is `< least`, always true `>= least`."""
    if how is Comparison.EQUAL:
        return Comparison.LESS, grid.least
    if how is Comparison.DIFFERENT:
        return Comparison.AT_LEAST, grid.least
    if grid.least <= steps <= grid.greatest:
        return _ROUNDED[how], steps
    is_true = (steps > grid.greatest) == (_ROUNDED[how] is Comparison.AT_MOST)
    return Comparison.AT_LEAST if is_true else Comparison.LESS, grid.least


def _in_python(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):  # a moment that is none of Python's
        return None


def _number(literal: Literal) -> Fraction | float | None:
    value = literal.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return Fraction(value)
    return value if math.isinf(value) else Fraction(Decimal(literal.text)) if value else Fraction(0)


def _float(value: object, kind: pa.DataType) -> pa.Scalar | None:
    """In the column's type where that has it, else as a double. Half floats are compared as floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = pa.scalar(value, kind)
    except (pa.ArrowInvalid, OverflowError):
        try:
            found = pa.scalar(float(value), pa.float64())
        except OverflowError:
            found = pa.scalar(math.inf if value > 0 else -math.inf, pa.float64())
    return found.cast(pa.float32()) if pa.types.is_float16(found.type) else found


def _plain(value: object, kind: pa.DataType) -> pa.Scalar | None:
    if pa.types.is_boolean(kind):
        return pa.scalar(value) if isinstance(value, bool) else None
    if not isinstance(value, str):
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.scalar(value, kind)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.scalar(value.encode(), kind)
    if pa.types.is_date(kind) and "T" not in value and " " not in value:
        moment = _parsed(value)
        return None if moment is None else pa.scalar(moment.date(), kind)
    return None


def _parsed(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def _moment(value: object, kind: pa.DataType) -> Fraction | None:
    """Seconds since 1970. A text without a zone is UTC where the column has one."""
    moment = _parsed(value) if isinstance(value, str) else None
    if moment is None or (kind.tz is None and moment.tzinfo is not None):
        return None
    since = moment.replace(tzinfo=moment.tzinfo or datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return Fraction(since // datetime.timedelta(microseconds=1), 10**6)
