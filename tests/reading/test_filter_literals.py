"""Literals beside columns of numbers and moments: what is kept is what exact arithmetic keeps, and is never ruled out."""

import datetime
import operator
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.filters import Bounds, Filter
from tieredfs_gateway.datasets.schemas import Column, Path

COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
KINDS: Final[dict[pa.DataType, list[Any]]] = {
    pa.int8(): [-128, -1, 0, 1, 2, 127],
    pa.int64(): [-(1 << 63), (1 << 53) + 1, 0, 1, 2, (1 << 63) - 1],
    pa.uint64(): [0, 1, 2, 1 << 63, (1 << 64) - 1],
    pa.decimal128(5, 2): [Decimal("-999.99"), Decimal("0.00"), Decimal("1.50"), Decimal("0.10"), Decimal("2.00")],
    pa.decimal256(60, 3): [Decimal(10) ** 56, Decimal("0.1"), Decimal("1.5")],
}
NUMBERS: Final = (
    "0",
    "-0.0",
    "1",
    "1.5",
    "1.501",
    "0.1",
    "-1e3",
    "1e300",
    "9007199254740993",
    "9" * 40,
    "1" + "0" * 390,
)


def kept(text: str, **columns: pa.Array) -> list[int]:
    """Asked of the statistics of each row, too."""
    table = pa.table(columns)
    asked = Filter(text, {name: Column(array.type, False, "a file") for name, array in columns.items()})
    mask = asked.mask(lambda path: table.column(path[0])).to_pylist()
    for row in range(table.num_rows):

        def bounds(path: Path, row: int = row) -> Bounds:
            value = table.column(path[0])[row].as_py()
            return Bounds(value, value, int(value is None), 1)

        assert asked.may_match(bounds) or not mask[row]
        assert asked.may_refuse(bounds) or mask[row] is not False
    return [row for row, value in enumerate(mask) if value]


@settings(deadline=None)
@given(kind=st.sampled_from(list(KINDS)), number=st.sampled_from(NUMBERS), how=st.sampled_from(list(COMPARE)))
def test_numbers_compare_exactly(kind: pa.DataType, number: str, how: str) -> None:
    values, wanted = KINDS[kind], Fraction(Decimal(number))
    expected = [row for row, value in enumerate(values) if COMPARE[how](Fraction(value), wanted)]
    array = pa.array([*values, None], kind)
    assert kept(f"a {how} {number}", a=array) == expected
    assert kept(f"not a {how} {number}", a=array) == [row for row in range(len(values)) if row not in expected]
    if how == "=":
        assert kept(f"a in ({number}, 0.25)", a=array) == expected
        others = [row for row in range(len(values)) if row not in expected]
        assert kept(f"a not in ({number}, 0.25)", a=array) == others


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_that_a_unit_does_not_have(unit: str) -> None:
    moments = [datetime.datetime(1970, 1, 1), datetime.datetime(2013, 1, 1, 8)]
    array = pa.array([*moments, None], pa.timestamp(unit))
    assert kept('a < "9999-12-31T23:59:59.999999"', a=array) == [0, 1]
    assert kept('a > "0001-01-01"', a=array) == [0, 1]
    assert kept('a > "1969-12-31T23:59:59.999999"', a=array) == [0, 1]
    assert kept('a <= "2013-01-01T07:59:59.999999"', a=array) == [0]
    assert kept('a != "1970-01-01T00:00:00.000001"', a=array) == [0, 1]
    assert kept('a in ("2013-01-01T08:00:00", "9999-01-01")', a=array) == [1]


def test_half_floats_compare() -> None:
    halves = pa.array([0.5, float("nan"), None, 70.0], pa.float16())
    assert kept("a > 0.25 and a != 70", a=halves) == [0]
    assert kept("a in (70, 1e30)", a=halves) == [3]
    assert kept("not a < 1e30", a=halves) == [1]


def test_numbers_of_floats_beyond_all_floats() -> None:
    array = pa.array([1.0, None])
    for text in ("a < 1e999", "a < " + "9" * 350, "a > -" + "9" * 5000, "a not in (1e999)"):
        assert kept(text, a=array) == [0]


def test_columns_of_different_numbers_compare() -> None:
    large = (1 << 53) + 1
    assert kept("a > b", a=pa.array([large, 1]), b=pa.array([0.5, 1.5])) == [0]
    assert kept("a < b", a=pa.array([-1, large]), b=pa.array([1 << 63, 3], pa.uint64())) == [0]
    with pytest.raises(ConfigurationError, match="cannot be applied"):
        kept("a < b", a=pa.array([Decimal(1)], pa.decimal128(38, 0)), b=pa.array([Decimal(1)], pa.decimal128(38, 30)))
