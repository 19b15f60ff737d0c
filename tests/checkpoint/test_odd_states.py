"""What training scripts hand over by mistake is told by its path, before anything changes; a save saves what it was given."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tieredfs.errors import InvalidRequestError, StateMismatchError, UnstorableError
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager

RUN = "runs/odd"


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        torch.nn.parameter.UninitializedParameter,
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["nested", "jagged", "uninitialized", "sparse", "meta"],
)
def test_tensors_of_other_kinds_are_refused_by_their_path(make: Callable[[], torch.Tensor], volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN) as manager:
        with pytest.raises(UnstorableError, match=r"model\.odd: .* cannot be stored"):
            manager.save(1, {"model": {"odd": make()}})
        manager.save(1, {"model": {"odd": torch.ones(3)}})
        with pytest.raises(StateMismatchError, match=r"model\.odd: "):
            manager.load(into={"model": {"odd": make()}})


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("saved", "target"),
    [(torch.ones(3), torch.zeros(1).expand(3)), (np.ones(3), read_only(np.zeros(3)))],
    ids=["one element thrice", "read-only"],
)
def test_targets_that_cannot_be_filled_are_told_before_anything_is(
    saved: object, target: object, volume: FileSystem
) -> None:
    first = torch.zeros(3)
    with CheckpointManager(volume, RUN) as manager:
        manager.save(1, {"first": torch.ones(3), "odd": saved})
        with pytest.raises(StateMismatchError, match="odd: cannot be filled in place"):
            manager.load(into={"first": first, "odd": target})
        assert first.tolist() == [0, 0, 0]
        assert manager.read(into={"first": first, "odd": target}, strict=False).skipped[0].startswith("odd: ")
        assert first.tolist() == [1, 1, 1]


def test_tied_targets_of_what_was_saved_apart_are_never_a_mixture(volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN) as manager:
        manager.save(1, {"head": torch.ones(1000), "embedding": torch.zeros(1000)})
        tied = torch.full((1000,), 7.0)
        with pytest.raises(StateMismatchError, match="embedding: is the same memory as head"):
            manager.load(into={"head": tied, "embedding": tied})
        assert tied.tolist() == [7.0] * 1000
        loaded = manager.read(into={"head": tied, "embedding": tied}, strict=False)
        assert len(loaded.skipped) == 1
        assert tied.tolist() == [1.0] * 1000
        manager.save(2, {"head": torch.ones(1000), "embedding": torch.ones(1000)})
        tied.zero_()
        manager.load(into={"head": tied, "embedding": tied})
        assert tied.tolist() == [1.0] * 1000, "tools that know no ties store the value twice"


def test_metadata_is_as_it_was_at_the_call(volume: FileSystem) -> None:
    cursor = {"epoch": 1}
    with CheckpointManager(volume, RUN) as manager:
        pending = manager.save_async(1, {"x": torch.rand(4 << 20)}, metadata={"cursor": cursor})
        cursor["epoch"] = 2
        pending.result(60)
        assert manager.read(1).metadata == {"cursor": {"epoch": 1}}


@pytest.mark.parametrize("metrics", [{"loss": None}, {"loss": "low"}, {"loss": torch.ones(2)}])
def test_metrics_are_numbers(metrics: Any, volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN) as manager, pytest.raises(UnstorableError, match="metrics must be numbers"):
        manager.save(1, {"x": 1}, metrics=metrics)


def test_steps_are_whole_numbers_of_any_library(volume: FileSystem) -> None:
    with CheckpointManager(volume, RUN) as manager:
        steps: tuple[Any, ...] = (np.int64(3), torch.tensor(4))
        for step in steps:
            saved = manager.save(step, {"x": int(step)})
            assert type(saved.step) is int
            assert manager.load(int(step)) == {"x": int(step)}
        for wrong in (1.5, "5", None):
            with pytest.raises(InvalidRequestError, match="a step is a whole number"):
                manager.save(wrong, {"x": 1})  # type: ignore[arg-type]


def test_a_deadline_and_a_buffer_that_make_no_sense_are_refused(volume: FileSystem) -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"deadline_s": 0.0}, {"staging_bytes": -1})
    for wrong in wrongs:
        with pytest.raises(InvalidRequestError, match="deadline_s is above 0"):
            CheckpointManager(volume, RUN, **wrong)
