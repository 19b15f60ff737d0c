"""One schema for many files: what is joined without loss, and what is refused with both names."""

import itertools

import pyarrow as pa
import pytest

from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.schemas import TypesDifferError, common_type, conform, find_path, unify

JOINED = [
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.uint8(), pa.int8(), pa.int16()),
    (pa.uint32(), pa.int8(), pa.int64()),
    (pa.int32(), pa.float32(), pa.float64()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.null(), pa.string(), pa.string()),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.binary(), pa.large_binary(), pa.large_binary()),
    (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ns")),
    (pa.list_(pa.int8()), pa.list_(pa.int16()), pa.list_(pa.int16())),
    (
        pa.struct([pa.field("a", pa.int8()), pa.field("b", pa.string())]),
        pa.struct([pa.field("c", pa.bool_()), pa.field("a", pa.int32())]),
        pa.struct([pa.field("a", pa.int32()), pa.field("b", pa.string()), pa.field("c", pa.bool_())]),
    ),
]
REFUSED = [
    (pa.int64(), pa.string()),
    (pa.int64(), pa.float64()),
    (pa.uint64(), pa.int64()),
    (pa.timestamp("s"), pa.timestamp("s", "UTC")),
    (pa.bool_(), pa.int8()),
    (pa.struct([pa.field("a", pa.int8())]), pa.struct([pa.field("a", pa.string())])),
    (pa.list_(pa.int8()), pa.int8()),
]


@pytest.mark.parametrize(("one", "other", "joined"), JOINED, ids=str)
def test_types_are_joined_either_way(one: pa.DataType, other: pa.DataType, joined: pa.DataType) -> None:
    assert common_type(one, other) == joined
    assert pa.types.is_struct(one) or common_type(other, one) == joined


@pytest.mark.parametrize(("one", "other"), REFUSED, ids=str)
def test_types_that_would_lose_something_are_refused(one: pa.DataType, other: pa.DataType) -> None:
    for pair in itertools.permutations((one, other)):
        with pytest.raises(TypesDifferError):
            common_type(*pair)


def test_a_column_that_does_not_fit_names_both_files() -> None:
    with pytest.raises(ConfigurationError, match=r"'x' is int64 in a\.parquet and string in b\.parquet"):
        unify([("a.parquet", pa.schema([("x", pa.int64())])), ("b.parquet", pa.schema([("x", pa.string())]))])


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two columns named 'x'"):
        unify([("a", pa.schema([pa.field("x", pa.int8()), pa.field("x", pa.int8())]))])


def test_names_find_columns_before_fields() -> None:
    columns = unify([("a", pa.schema([("a.b", pa.int8()), ("a", pa.struct([("b", pa.int8()), ("c", pa.int8())]))]))])
    assert find_path(columns, "a.b") == ("a.b",)
    assert find_path(columns, "a.c") == ("a", "c")
    assert find_path(columns, "a.d") is None


def test_structs_are_filled_up_with_nulls() -> None:
    wanted = pa.struct([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.int64()))])
    table = pa.table({"s": pa.array([{"a": 1}, None, {"a": 3}], pa.struct([pa.field("a", pa.int8())]))}).slice(1)
    found = conform(table, [("s", ("s",), wanted)], {})
    assert found.column("s").to_pylist() == [None, {"a": 3, "b": None}]
    assert found.schema.field("s").type == wanted
