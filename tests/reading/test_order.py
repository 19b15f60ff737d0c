"""Permutations are bijections that never change; every row may come anywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs_gateway.datasets.order import Permutation, Run, Sequence, epoch_key, split_order, window_order


@given(st.integers(0, 200_000), st.integers(0, 2**64), st.integers(0, 1000))
def test_a_permutation_is_a_bijection_and_has_an_inverse(size: int, seed: int, epoch: int) -> None:
    permutation = Permutation(size, epoch_key(seed, epoch, "rows"))
    every = np.arange(size, dtype=np.int64)
    rows = permutation.forward(every)
    assert np.array_equal(np.sort(rows), every)
    assert np.array_equal(permutation.inverse(rows), every)


@given(st.integers(2**33, 2**45), st.lists(st.integers(0, 2**33 - 1), min_size=1, max_size=50))
def test_a_permutation_of_billions_costs_no_table(size: int, positions: list[int]) -> None:
    permutation = Permutation(size, epoch_key(1, 2, "rows"))
    rows = permutation.forward(np.array(positions, np.int64))
    assert ((rows >= 0) & (rows < size)).all()
    assert permutation.inverse(rows).tolist() == positions


@pytest.mark.parametrize(
    ("size", "first"),
    [(10, [4, 6, 8, 0, 5]), (100_000, [45885, 84344, 20200, 75579, 93822])],
)
def test_an_order_is_the_same_for_ever(size: int, first: list[int]) -> None:
    """A state that was saved by an older version goes on in the same order."""
    assert Permutation(size, epoch_key(7, 3, "rows")).forward(np.arange(5, dtype=np.int64)).tolist() == first


@pytest.mark.parametrize("size", [60_000, 70_000])
def test_every_row_comes_anywhere(size: int) -> None:
    """Chi-square of (where it was, where it goes) in 16 x 16 cells: 225 degrees of freedom, 3.5 sigma."""
    for epoch in range(5):
        rows = Permutation(size, epoch_key(0, epoch, "rows")).forward(np.arange(size, dtype=np.int64))
        cells = np.zeros((16, 16))
        np.add.at(cells, (np.arange(size) * 16 // size, rows * 16 // size), 1)
        expected = size / 256
        assert ((cells - expected) ** 2 / expected).sum() < 225 + 3.5 * (2 * 225) ** 0.5


@pytest.mark.parametrize("size", [60_000, 70_000])
def test_neighbours_do_not_stay_together(size: int) -> None:
    rows = Permutation(size, epoch_key(0, 0, "rows")).forward(np.arange(size, dtype=np.int64))
    near = np.abs(np.diff(rows)) < size // 100
    assert abs(near.mean() - 0.02) < 0.004
    assert (np.diff(rows) == 1).sum() < 10


def test_epochs_seeds_and_purposes_differ() -> None:
    keys = {epoch_key(seed, epoch, what) for seed in range(3) for epoch in range(3) for what in ("rows", "splits")}
    assert len(keys) == 18
    every = np.arange(1000, dtype=np.int64)
    orders = {tuple(Permutation(1000, key).forward(every).tolist()) for key in keys}
    assert len(orders) == 18


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.data())
def test_runs_are_the_rows_between_two_places(counts: list[int], data: st.DataObject) -> None:
    order = split_order(len(counts), 5, 0, shuffled=True)
    sequence = Sequence(order, np.array(counts, np.int64))
    every = [(int(split), row) for split in order for row in range(counts[split])]
    assert sequence.size == len(every)
    start = data.draw(st.integers(0, len(every)))
    end = data.draw(st.integers(start, len(every)))
    found = [(run.split, run.first + at) for run in sequence.runs(start, end) for at in range(run.count)]
    assert found == every[start:end]
    if every:
        splits, rows = sequence.locate(np.arange(len(every), dtype=np.int64))
        assert list(zip(splits.tolist(), rows.tolist(), strict=True)) == every


def test_a_run_is_within_one_split() -> None:
    sequence = Sequence(np.array([1, 0, 2]), np.array([3, 2, 0]))
    assert sequence.runs(0, 5) == [Run(1, 0, 2), Run(0, 0, 3)]
    assert sequence.runs(1, 3) == [Run(1, 1, 1), Run(0, 0, 1)]
    assert sequence.place_of(5) == 3


def test_windows_have_orders_of_their_own() -> None:
    one, other = window_order(0, 100, 1, 0), window_order(1, 100, 1, 0)
    assert sorted(one.tolist()) == sorted(other.tolist()) == list(range(100))
    assert one.tolist() != other.tolist()
