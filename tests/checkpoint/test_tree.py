"""Trees survive the way to JSON and back, bit for bit; what cannot is refused by its path."""

import json
import math
import struct
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError, UnstorableError
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.dtypes import code_of_torch, torch_of_code
from tieredfs_client.checkpoint.tree import Shard, fit, flatten, merge, restore

FLOATS = st.floats() | st.binary(min_size=8, max_size=8).map(lambda data: struct.unpack("<d", data)[0])
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text() | st.binary()
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=20,
)
EVERY_DTYPE = sorted(
    {
        getattr(torch, name)
        for name in dir(torch)
        if isinstance(getattr(torch, name), torch.dtype) and not name.startswith(("q", "bit", "int", "uint"))
    }
    | {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64},
    key=str,
)


def through_json(tree: object) -> Any:
    flat = flatten(tree)
    return restore(json.loads(json.dumps(flat.skeleton)), lambda index: flat.leaves[index].value)


def identical(one: Any, other: Any) -> bool:
    """Equal with equal types, and floats by their bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            identical(key, other_key) and identical(item, other_item)
            for (key, item), (other_key, other_item) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(identical(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@given(TREES)
def test_plain_trees_come_back_bit_for_bit(tree: object) -> None:
    assert identical(through_json(tree), tree)


def test_nan_payloads_and_huge_ints() -> None:
    payload = struct.unpack("<d", bytes.fromhex("0100000000dcf87f"))[0]
    tree = {"nan": payload, "minus zero": -0.0, "huge": -(1 << 4000), "edge": (1 << 53) + 1, "inf": math.inf}
    assert identical(through_json(tree), tree)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
def test_every_torch_dtype_has_its_bytes_and_comes_back(dtype: torch.dtype) -> None:
    item = torch.empty(0, dtype=dtype).element_size()
    tensor = torch.arange(6 * item, dtype=torch.uint8).view(dtype)
    (leaf,) = flatten([tensor]).leaves
    assert leaf.size_bytes == 6 * item
    made = memory.make("torch", leaf.dtype, leaf.shape)
    view = memory.in_place(made)
    assert view is not None
    view[:] = memory.bytes_of(tensor)
    assert made.dtype is dtype
    assert torch.equal(made.view(torch.uint8), tensor.view(torch.uint8))
    assert torch_of_code(code_of_torch(leaf.dtype)) == code_of_torch(leaf.dtype) or torch_of_code(leaf.dtype)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(20)[::3],
        np.array(["a", "long"], dtype="U9"),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros((0, 3), dtype=np.complex64),
        np.array(7, dtype=np.longdouble),
    ],
    ids=lambda array: f"{array.dtype.str}-{array.shape}",
)
def test_numpy_arrays_keep_type_and_elements(array: np.ndarray) -> None:
    (leaf,) = flatten([array]).leaves
    made = memory.make("numpy", leaf.dtype, leaf.shape)
    view = memory.in_place(made)
    assert view is not None
    view[:] = memory.bytes_of(array)
    assert made.dtype == array.dtype
    assert np.array_equal(made, array)


def test_numpy_scalars_come_back_as_numpy_scalars() -> None:
    back = through_json([np.float32(0.1), np.int64(-5), np.bool_(True), np.float64(2.5), np.str_("x")])
    assert [type(one) for one in back] == [np.float32, np.int64, np.bool_, np.float64, np.str_]
    assert back == [np.float32(0.1), -5, True, 2.5, "x"]


def test_strided_and_conjugated_tensors_give_their_elements_in_row_major_order() -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    for tensor in (
        base.t(),
        base[:, 1:3],
        base[::2],
        torch.view_as_complex(torch.rand(3, 2)).conj(),
        torch.empty(0, 3),
    ):
        assert bytes(memory.bytes_of(tensor)) == tensor.resolve_conj().contiguous().numpy().tobytes()


def test_tied_tensors_are_one_and_views_are_their_own() -> None:
    weight = torch.rand(4, 4)
    flat = flatten({"encoder": weight, "decoder": weight.view(4, 4), "part": weight[:2], "zero": weight[:0]})
    assert [leaf.key for leaf in flat.leaves] == ["encoder", "part", "zero"]
    back = restore(flat.skeleton, lambda index: flat.leaves[index].value)
    assert back["encoder"] is back["decoder"]


class Sneaky(dict[str, int]):
    """A subclass that would come back as something else."""


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda: 1, "function"),
        (Sneaky(), "Sneaky"),
        (Point(1, 2), "Point"),
        (defaultdict(list), "defaultdict"),
        ({1, 2}, "set"),
        (np.array([object()]), "object"),
        (np.zeros(2, dtype=[("a", "i4")]), "cannot be stored"),
        (np.ma.zeros(2), "MaskedArray"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
        (Shard(torch.zeros(4), (6,), (3,)), "does not lie"),
        (object(), "object"),
        ({Point: 1}, "type"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_stored_is_named_by_its_path(value: object, named: str) -> None:
    with pytest.raises(UnstorableError, match=named) as caught:
        flatten({"model": [0, {"bad": value}]})
    assert str(caught.value).startswith("model.1.bad")


def test_a_tree_that_contains_itself_or_is_too_deep_is_refused() -> None:
    ring: list[object] = []
    ring.append(ring)
    with pytest.raises(UnstorableError, match="contains itself"):
        flatten(ring)
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(UnstorableError, match="levels deep"):
        flatten(deep)


def test_keys_stay_unique_whatever_dots_they_have() -> None:
    one = torch.zeros(1)
    flat = flatten({"a.b": one, "a": {"b": one + 1}, "a.b#2": one + 2})
    assert len({leaf.key for leaf in flat.leaves}) == 3


@pytest.mark.parametrize(
    "node", [["?"], ["f", "zz"], ["i"], [], ["d", [1]], 1.5, {"a": 1}, ["b", 7], ["x"], ["d", [["l"], 1]]]
)
def test_skeletons_that_make_no_sense_are_corrupt(node: object) -> None:
    with pytest.raises(CorruptError):
        restore(node, lambda index: index)


def test_merging_keeps_what_does_not_fit() -> None:
    flat = flatten({"a": 1, "b": (2, [3]), "gone": 4, "t": torch.ones(2)})
    into: dict[str, Any] = {"a": 0, "b": (0, [0]), "new": 9, "t": torch.zeros(2), "free": None}
    fitting = fit(flat.skeleton, into, lambda index: ("F32", (2,)))
    assert sorted(fitting.problems) == [
        "free: missing in the checkpoint",
        "gone: only in the checkpoint",
        "new: missing in the checkpoint",
    ]
    merged = merge(flat.skeleton, into, lambda index: None)
    assert merged is into
    assert {key: into[key] for key in ("a", "b", "new", "free")} == {"a": 1, "b": (2, [3]), "new": 9, "free": None}
