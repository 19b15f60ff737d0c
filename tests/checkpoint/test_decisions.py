"""Small decisions: who this rank is, what is kept, and waiting for a file that is just moving."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import ConfigurationError, InvalidRequestError, UnavailableError
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint.documents import open_steady
from tieredfs_client.checkpoint.group import Group, detect_group
from tieredfs_client.checkpoint.names import attempt_name
from tieredfs_client.checkpoint.retention import KeepBest, Retention, to_delete

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "TORCHELASTIC_RUN_ID": "abc",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_a_process_alone_is_a_job_of_its_own() -> None:
    one, other = detect_group(environment={}), detect_group(environment={})
    assert (one.rank, one.world_size) == (0, 1)
    assert one.job != other.job


def test_torchrun_and_slurm_say_who_is_who() -> None:
    group = detect_group(environment=TORCHRUN)
    assert (group.rank, group.world_size) == (3, 8)
    restarted = detect_group(environment=TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert restarted.job != group.job, "a restart is another job"
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    assert detect_group(environment=slurm) == Group(1, 2, "77/0//", (1,), "")


def test_arguments_come_first() -> None:
    assert detect_group(1, 4, "mine", TORCHRUN) == Group(1, 4, "mine", (1,), "")


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((0, None, None), {}, "come together"),
        ((4, 4, "j"), {}, "ranks count from 0"),
        ((0, 2, None), {}, "need a job"),
        ((None, None, None), {"RANK": "x", "WORLD_SIZE": "2"}, "must be numbers"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: tuple[Any, Any, Any], environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        detect_group(*arguments, environment=environment)


def test_attempts_of_different_jobs_saves_and_steps_never_meet() -> None:
    names = {attempt_name(step, job, sequence) for step in (1, 2) for job in ("a", "b") for sequence in (1, 2)}
    assert len(names) == 8


RETENTIONS = st.builds(
    Retention,
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 5),
    st.none() | st.builds(KeepBest, st.just("loss"), st.integers(1, 3), st.sampled_from(["min", "max"])),
)


@given(
    RETENTIONS,
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
    st.dictionaries(st.integers(0, 30), st.floats()),
)
def test_no_rule_is_broken_by_what_is_deleted(
    retention: Retention, steps: set[int], tagged: set[int], losses: dict[int, float]
) -> None:
    deleted = set(to_delete(retention, list(steps), tagged, {step: {"loss": loss} for step, loss in losses.items()}))
    assert deleted <= steps - tagged
    if not retention.deletes:
        assert deleted == set()
    if steps:
        assert max(steps) not in deleted
    if retention.keep_last:
        assert not deleted & set(sorted(steps)[-retention.keep_last :])
    if retention.keep_every:
        assert all(step % retention.keep_every for step in deleted)
    if retention.keep_best:
        rated = sorted(losses[step] for step in steps if step in losses and losses[step] == losses[step])
        best = (
            rated[: retention.keep_best.count]
            if retention.keep_best.mode == "min"
            else rated[-retention.keep_best.count :]
        )
        left = [losses[step] for step in steps - deleted if step in losses]
        assert all(left.count(value) >= best.count(value) for value in best)


def test_bad_rules() -> None:
    rules: list[Callable[[], Retention]] = [
        lambda: Retention(keep_last=0),
        lambda: Retention(keep_best=KeepBest("x", 1, cast(Any, "most"))),
    ]
    for rule in rules:
        with pytest.raises(InvalidRequestError):
            rule()


class Clock:
    """Counts sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)


class Moving:
    """Files that are away for the first opens."""

    def __init__(self, away: int) -> None:
        self.away = away

    def open(self, path: bytes) -> str:
        self.away -= 1
        if self.away >= 0:
            raise UnavailableError("just moving")
        return "open"


def test_a_file_that_is_just_moving_is_waited_for_and_not_for_ever() -> None:
    clock = Clock()
    volume = cast(FileSystem, Moving(3))
    assert open_steady(volume, cast(Any, clock), b"x") == cast(Any, "open")
    assert len(clock.slept) == 3
    with pytest.raises(UnavailableError):
        open_steady(cast(FileSystem, Moving(100)), cast(Any, clock), b"x")
    assert sum(clock.slept) < 2
