"""Saves that follow one another: what is remembered of a layout is used again where it is the same, and never where it is not."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager, PerRank, Shard, assemble, hostfiles, machine, remembered
from tieredfs_client.checkpoint.layout import data_header
from tieredfs_client.checkpoint.remembered import Once, Remembered

pytestmark = pytest.mark.timeout(180)

RANKS = 4
PLACES = ([0, 1], [2, 3])
ROWS = 64


def split(rank: int, step: int, dtype: str = "<f4", first: int = ROWS // RANKS) -> Shard:
    """Rows of a table that grows by rank, the first rank with another number of them."""
    ends = [0, first, first + (ROWS - first) // 3, first + (ROWS - first) // 3 * 2, ROWS]
    low, high = ends[rank], ends[rank + 1]
    return Shard(np.full((high - low, 3), step * 10 + rank, dtype), (ROWS, 3), (low, 0))


def sharded(rank: int, step: int) -> dict[str, Any]:
    return {"table": split(rank, step), "rank": rank, "on": True, "deep": {"also": [split(rank, step + 1, "<i8")]}}


def with_number(rank: int, step: int) -> dict[str, Any]:
    return sharded(rank, step) | ({"on": 1} if rank == 3 else {})


def of_other_type(rank: int, step: int) -> dict[str, Any]:
    return sharded(rank, step) | {"table": split(rank, step, "<i4")}


def otherwise_split(rank: int, step: int) -> dict[str, Any]:
    return sharded(rank, step) | {"table": split(rank, step, first=1)}


def with_own(rank: int, step: int) -> dict[str, Any]:
    return sharded(rank, step) | {"own": np.arange(5.0) + 100 * rank + step}


def with_common(rank: int, step: int) -> dict[str, Any]:
    return sharded(rank, step) | {"own": np.arange(5.0) + 100 * (rank % 2) + step}


def renamed(rank: int, step: int) -> dict[str, Any]:
    return {("table2" if key == "table" else key): item for key, item in sharded(rank, step).items()}


Saver = Callable[[int, Callable[[int, int], dict[str, Any]]], None]


@pytest.fixture
def save(volume: FileSystem) -> Iterator[Saver]:
    """By two managers that meet, each with two ranks."""
    managers = [
        CheckpointManager(volume, "runs/r", ranks=own, world_size=RANKS, job="one", deadline_s=30.0) for own in PLACES
    ]
    with ThreadPoolExecutor(len(PLACES)) as pool:

        def all_save(step: int, state: Callable[[int, int], dict[str, Any]]) -> None:
            trees = [PerRank({rank: state(rank, step) for rank in own}) for own in PLACES]
            list(pool.map(lambda both: both[0].save(step, both[1]), zip(managers, trees, strict=True)))

        yield all_save
        list(pool.map(CheckpointManager.close, managers))


def check(volume: FileSystem, step: int, state: Callable[[int, int], dict[str, Any]]) -> None:
    for rank in range(RANKS):
        with CheckpointManager(volume, "runs/r", rank=rank, world_size=RANKS, job="x") as manager:
            assert same(manager.load(step), state(rank, step), lambda path: whole_of(path, step, state))
            assert manager.verify(step) == []


def whole_of(path: tuple[Any, ...], step: int, state: Callable[[int, int], dict[str, Any]]) -> Any:
    pieces = []
    for rank in range(RANKS):
        found: Any = state(rank, step)
        for key in path:
            found = found[key]
        pieces.append(found.tensor)
    return np.concatenate(pieces)


def same(found: Any, expected: Any, whole: Callable[[tuple[Any, ...]], Any], path: tuple[Any, ...] = ()) -> bool:
    if isinstance(expected, Shard):
        expected = whole(path)
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    if isinstance(expected, dict):
        keys = list(found) == list(expected)
        return keys and all(same(found[key], expected[key], whole, (*path, key)) for key in expected)
    if isinstance(expected, list):
        both = zip(found, expected, strict=True)
        return all(same(one, other, whole, (*path, at)) for at, (one, other) in enumerate(both))
    return type(found) is type(expected) and bool(found == expected)


def test_each_save_has_its_own_layout_whatever_the_one_before_it_had(save: Saver, volume: FileSystem) -> None:
    layouts = [
        sharded, sharded, with_number, sharded, of_other_type, sharded, otherwise_split, otherwise_split, with_own,
        with_own, with_common, with_common, with_own, renamed, sharded,
    ]  # fmt: skip
    for step, state in enumerate(layouts):
        save(step, state)
        check(volume, step, state)


def test_what_follows_from_the_layout_is_worked_out_once(save: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"headers": 0, "shares": 0, "tables": 0}

    def counted(module: Any, function: str, kind: str) -> None:
        plain = getattr(module, function)

        def counting(*arguments: Any) -> Any:
            counts[kind] += 1
            return plain(*arguments)

        monkeypatch.setattr(module, function, counting)

    counted(hostfiles, "data_header", "headers")
    counted(machine, "decode_share", "shares")
    counted(assemble, "tensor_rows", "tables")
    save(0, sharded)
    assert counts == {"headers": 1, "shares": 1, "tables": 1}
    save(1, sharded)
    save(2, sharded)
    assert counts == {"headers": 1, "shares": 1, "tables": 1}
    save(3, otherwise_split)
    assert counts == {"headers": 2, "shares": 2, "tables": 2}


def test_of_very_many_tensors_nothing_is_kept(save: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "TENSORS_MAX", 7)
    made: list[int] = []
    monkeypatch.setattr(hostfiles, "data_header", counting_header(made))
    save(0, sharded)
    save(1, sharded)
    assert len(made) == 2


def counting_header(made: list[int]) -> Callable[..., bytes]:
    def counting(items: Any, room_bytes: int) -> bytes:
        made.append(len(items))
        return data_header(items, room_bytes)

    return counting


def test_once_is_for_the_very_same_objects() -> None:
    once: Once[int] = Once()
    made = iter(range(10))
    one, other = [1], [1]
    assert [once.of(lambda: next(made), one, 5), once.of(lambda: next(made), one, 5)] == [0, 0]
    assert once.of(lambda: next(made), other, 5) == 1, "equal is not the same"
    assert once.of(lambda: next(made), other, 6) == 2
    assert once.of(lambda: next(made), other) == 3
    kept = Remembered()
    kept.heard["text"] = one
    kept.bound(remembered.TENSORS_MAX)
    assert kept.heard
    kept.bound(remembered.TENSORS_MAX + 1)
    assert not kept.heard
