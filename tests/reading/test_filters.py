"""Filters: what they mean (against an oracle in Python), what they complain about, and that statistics never lose a row."""

import contextlib
import datetime
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.filter_text import parse
from tieredfs_gateway.datasets.filters import Bounds, Filter
from tieredfs_gateway.datasets.schemas import Column, Path

SCHEMA = {
    "i": pa.int32(),
    "f": pa.float64(),
    "s": pa.string(),
    "b": pa.bool_(),
    "when": pa.timestamp("us", "UTC"),
    "day": pa.date32(),
    "nested": pa.struct([pa.field("x", pa.int64()), pa.field("deep", pa.struct([pa.field("y", pa.string())]))]),
    "odd name": pa.int8(),
    "list": pa.list_(pa.int64()),
}
COLUMNS = {name: Column(kind, False, "a file") for name, kind in SCHEMA.items()}


def kept(text: str, table: pa.Table) -> list[int]:
    mask = Filter(text, COLUMNS).mask(lambda path: column(table, path))
    return [row for row, value in enumerate(mask.to_pylist()) if value]


def column(table: pa.Table, path: Path) -> pa.ChunkedArray:
    found = table.column(path[0])
    for part in path[1:]:
        found = pc.struct_field(found, part)
    return found


# ---- meaning ---------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "i": st.none() | st.integers(-3, 3),
            "f": st.none() | st.sampled_from([-1.5, 0.0, 2.0, float("nan")]),
            "s": st.none() | st.sampled_from(["", "a", "b", "JFK"]),
            "b": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=12,
)
Oracle = Callable[[dict[str, Any]], bool | None]
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def literals(name: str) -> st.SearchStrategy[Any]:
    return {
        "i": st.integers(-4, 4),
        "f": st.sampled_from([-1.5, 0.0, 1.0, 2.0]),
        "s": st.sampled_from(["a", "JFK", ""]),
    }[name]


def written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def both(name: str, test: Callable[[Any], bool]) -> Oracle:
    return lambda row: None if row[name] is None else test(row[name])


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Oracle]:
    kind = draw(st.sampled_from(["compare", "reversed", "in", "null", "between", "boolean", "columns"]))
    name = draw(st.sampled_from(["i", "f", "s"]))
    if kind in {"compare", "reversed"}:
        sign, value = draw(st.sampled_from(sorted(SIGNS))), draw(literals(name))
        if kind == "compare":
            return f"{name} {sign} {written(value)}", both(name, lambda seen: SIGNS[sign](seen, value))
        return f"{written(value)} {sign} {name}", both(name, lambda seen: SIGNS[sign](value, seen))
    if kind == "in":
        values = draw(st.lists(literals(name), min_size=1, max_size=3))
        text = f"{name} in ({', '.join(written(value) for value in values)})"
        return text, both(name, lambda seen: seen in values)
    if kind == "null":
        negated = draw(st.booleans())
        return f"{name} is {'not ' * negated}null", lambda row: (row[name] is None) != negated
    if kind == "between":
        low, high = draw(literals(name)), draw(literals(name))
        return f"{name} between {written(low)} and {written(high)}", both(name, lambda seen: low <= seen <= high)
    if kind == "boolean":
        return "b", lambda row: row["b"]
    sign = draw(st.sampled_from(sorted(SIGNS)))
    return f"i {sign} f", lambda row: None if row["i"] is None or row["f"] is None else SIGNS[sign](row["i"], row["f"])


def negation(inner: tuple[str, Oracle]) -> tuple[str, Oracle]:
    text, oracle = inner

    def evaluate(row: dict[str, Any]) -> bool | None:
        value = oracle(row)
        return None if value is None else not value

    return f"not ({text})", evaluate


def junction(word: str, parts: list[tuple[str, Oracle]]) -> tuple[str, Oracle]:
    decisive = word == "or"

    def evaluate(row: dict[str, Any]) -> bool | None:
        values = [oracle(row) for _, oracle in parts]
        if decisive in values:
            return decisive
        return None if None in values else not decisive

    return f" {word} ".join(f"({text})" for text, _ in parts), evaluate


EXPRESSIONS = st.recursive(
    conditions(),
    lambda inner: (
        inner.map(negation)
        | st.builds(junction, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3))
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, ROWS)
def test_a_filter_keeps_what_sql_would_keep(expression: tuple[str, Oracle], rows: list[dict[str, Any]]) -> None:
    text, oracle = expression
    table = pa.Table.from_pylist(rows, pa.schema([pa.field(name, SCHEMA[name]) for name in ("i", "f", "s", "b")]))
    assert kept(text, table) == [at for at, row in enumerate(rows) if oracle(row)]


@given(EXPRESSIONS, ROWS)
def test_statistics_never_lose_a_row(expression: tuple[str, Oracle], rows: list[dict[str, Any]]) -> None:
    text, oracle = expression

    def bounds(path: Path) -> Bounds:
        values = [row[path[0]] for row in rows if row[path[0]] is not None]
        ordered = [
            value for value in values if not (isinstance(value, float) and math.isnan(value))
        ]  # NaN is in no statistics
        nulls = len(rows) - len(values)
        return Bounds(min(ordered, default=None), max(ordered, default=None), nulls, len(rows))

    if any(oracle(row) for row in rows):
        assert Filter(text, COLUMNS).may_match(bounds)


def test_statistics_do_prune() -> None:
    def bounds(path: Path) -> Bounds | None:
        return {"i": Bounds(10, 20, 0, 5), "s": Bounds(None, None, 5, 5)}.get(path[0])

    hopeless = [
        "i < 10",
        "i = 9",
        "i in (1, 2)",
        "not (i >= 10)",
        "i > 5 and i > 20",
        's = "a"',
        "i is null",
        "i <> 10 and i < 1",
    ]
    hopeful = ["i <= 10", "i between 20 and 30", "f > 3", "i < 10 or f > 3", "s is null", "i is not null", "i != 10"]
    assert [text for text in hopeless if Filter(text, COLUMNS).may_match(bounds)] == []
    assert [text for text in hopeful if not Filter(text, COLUMNS).may_match(bounds)] == []


def test_precedence_names_and_literals() -> None:
    table = pa.table(
        {
            "i": pa.array([1, 2, 3], pa.int32()),
            "s": pa.array(["it's", 'a "b"', "c\n"]),
            "b": pa.array([True, False, None]),
            "when": pa.array([0, 10**6, 3 * 10**6], pa.timestamp("us", "UTC")),
            "day": pa.array([0, 1, 2], pa.date32()),
            "nested": pa.array([{"x": 1, "deep": {"y": "p"}}, {"x": 2, "deep": None}, None], SCHEMA["nested"]),
            "odd name": pa.array([1, 2, 3], pa.int8()),
        }
    )
    expected = {
        "i = 1 or i = 2 and b": [0],
        "not b and i > 0": [1],
        "not not b": [0],
        """s = "it's" or s = 'a "b"' or s = "c\\n" """: [0, 1, 2],
        'when >= "1970-01-01T00:00:01"': [1, 2],
        'when = "1970-01-01T02:00:01+02:00"': [1],
        'when < "1970-01-01T00:00:00.5Z"': [0],
        'day in ("1970-01-02", "1970-01-03")': [1, 2],
        "nested.x > 1": [1],
        'nested.deep.y = "p"': [0],
        "nested.deep.y is null": [1, 2],
        "`odd name` NOT IN (1, 2,)": [2],
        "i < 1000000000000": [0, 1, 2],
        "i > 1.5 AND i BETWEEN 0 AND 2": [1],
        "b = true or b = FALSE": [0, 1],
        "i not between 2 and 9": [0],
    }
    assert {text: kept(text, table) for text in expected} == expected


# ---- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at", "problem"),
    [
        ("", 1, "nothing in it"),
        ("i >", 4, "expected"),
        ("i > 1 and", 10, "name of a column"),
        ("i > 1 i", 7, "`and`, `or` or the end"),
        ("(i > 1", 7, "`)`"),
        ("i in 3", 6, "`(`"),
        ("i in ()", 7, "expected"),
        ("i is 3", 6, "`null`"),
        ("i not 3", 7, "`in` or `between`"),
        ("i between 1 or 2", 13, "`and` was expected"),
        ('s = "open', 5, "no closing quote"),
        ("i > $", 5, "'$' means nothing"),
        ("ii > 1", 1, "no column 'ii'; did you mean i"),
        ("nested.z = 1", 1, "did you mean nested.x"),
        ("nested = 1", 1, "only its fields"),
        ("list = 1", 1, "only its fields"),
        ('i > "many"', 5, "'i' is int32, and 'many' is not a value of that type"),
        ("s > 3", 5, "put it in quotes"),
        ('when > "soon"', 8, 'write "2013-01-31T08:00:00"'),
        ('day = "2013-13-01"', 7, 'write "2013-01-31"'),
        ("i = null", 5, "`is null`"),
        ("i and b", 1, "compare it with something"),
        ("i = s", 5, "do not compare"),
        ("__import__('os')", 11, "expected"),
        ("i.__class__ = 1", 1, "no column"),
        ("not " * 200 + "b", None, "levels"),
        ("(" * 200 + "b" + ")" * 200, None, "levels"),
    ],
)
def test_a_bad_filter_is_told_where_and_why(text: str, at: int | None, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Filter(text, COLUMNS)
    message = str(caught.value)
    assert problem in message
    if at is not None:
        assert f"at character {at}:" in message
        assert message.splitlines()[2].index("^") - 2 == min(at - 1, 40)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert parse(text) is not None


def test_dates_compare_as_dates() -> None:
    table = pa.table({"day": pa.array([datetime.date(2013, 1, 1), datetime.date(2013, 6, 1)])})
    assert kept('day > "2013-03-01"', table) == [1]
