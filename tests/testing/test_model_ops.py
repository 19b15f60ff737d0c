"""The model test itself: it agrees with itself, and it notices a difference."""

import os
from pathlib import Path

import pytest

from tieredfs.testing import model_ops
from tieredfs.testing.features import PLAIN_EXT4


@pytest.mark.parametrize("seed", range(5))
def test_two_plain_directories_agree(seed: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert model_ops.check(seed, tmp_path / "a", tmp_path / "b", PLAIN_EXT4) > len(model_ops.FURNITURE) + 5


def test_a_plan_follows_from_its_seed() -> None:
    assert model_ops.plan(3, 50, PLAIN_EXT4) == model_ops.plan(3, 50, PLAIN_EXT4)
    assert model_ops.plan(3, 50, PLAIN_EXT4) != model_ops.plan(4, 50, PLAIN_EXT4)


def test_every_planned_call_exists_and_is_drawn() -> None:
    drawn = {step.call for seed in range(20) for step in model_ops.plan(seed, 60, PLAIN_EXT4)}
    assert drawn == set(model_ops.CALLS)


def test_a_difference_is_told_with_its_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    os.mkdir(tmp_path / "a" / "surplus")
    with pytest.raises(AssertionError, match=r"(?s)seed 1: .*surplus.*replay: .*--seed 1 "):
        model_ops.check(1, tmp_path / "a", tmp_path / "b", PLAIN_EXT4)


def test_replay_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    arguments = ["--seed", "2", "--without", "fallocate,punch_hole", str(tmp_path / "a"), str(tmp_path / "b")]
    assert model_ops.main(arguments) == 0
    assert "seed 2: the same" in capsys.readouterr().out
