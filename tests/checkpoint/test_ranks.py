"""Many ranks, as processes: all or nothing, whoever dies wherever."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.rank_process import ROWS, state_of
from tieredfs.errors import InvalidRequestError, RankMissingError, UnavailableError
from tieredfs.host import crash
from tieredfs.volume import FileSystem
from tieredfs.volume.volume import Volume
from tieredfs_client.checkpoint import CheckpointManager, PerRank, Shard
from tieredfs_client.checkpoint.attempt import Attempt
from tieredfs_client.checkpoint.names import attempt_name
from tieredfs_client.checkpoint.neighbours import Meeting, connect
from tieredfs_client.checkpoint.write import PartWriter

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
PATIENT_S = 60.0
IMPATIENT_S = 3.0


@dataclass(frozen=True)
class Ended:
    """How a rank ended, and what it said of each step."""

    code: int
    reports: list[dict[str, Any]]


def start(
    url: str, rank: int, world_size: int, steps: Sequence[int], *, job: str, **more: Any
) -> subprocess.Popen[str]:
    """`crash_at`: where it dies. The rest goes to the process."""
    environment = dict(os.environ)
    if more.get("crash_at"):
        environment[crash.ENVIRONMENT] = more["crash_at"]
    settings = {"url": url, "rank": rank, "world_size": world_size, "steps": list(steps), "job": job}
    settings |= {"deadline_s": PATIENT_S, **more}
    command = [sys.executable, "-m", "tests.checkpoint.rank_process", json.dumps(settings)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


def end(process: subprocess.Popen[str]) -> Ended:
    try:
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return Ended(process.returncode, [json.loads(line) for line in out.splitlines()])


def run_ranks(url: str, world_size: int, steps: Sequence[int], *, job: str, **more: Any) -> list[Ended]:
    processes = [start(url, rank, world_size, steps, job=job, **more) for rank in range(world_size)]
    return [end(process) for process in processes]


def check_state(state: dict[str, Any], step: int, rank: int, world_size: int) -> None:
    """A loaded state, sharded tensors whole, against what was saved."""
    expected = state_of(step, rank, world_size)
    assert np.array_equal(state["model"]["weight"], expected["model"]["weight"])
    assert np.array_equal(state["model"]["frozen"], expected["model"]["frozen"])
    pieces = [state_of(step, each, world_size)["model"]["table"].tensor for each in range(world_size)]
    assert np.array_equal(state["model"]["table"], np.concatenate(pieces))
    assert np.array_equal(state["rng"], expected["rng"])
    assert (state["step"], state["rank"]) == (step, rank)


def names_in(volume: FileSystem, path: bytes) -> list[bytes]:
    return [entry.name for entry, _ in volume.entries(path)]


def test_four_ranks_save_and_any_number_loads(url: str) -> None:
    ended = run_ranks(url, 4, [10, 20], job="one")
    assert [one.code for one in ended] == [0] * 4
    assert [report for one in ended for report in one.reports if "error" in report] == []
    whole = sum(one.reports[0]["written"] for one in ended)
    frozen, weight, table, rng = 8 << 20, 64 * 32 * 4, ROWS * 8 * 8, 4 * 100
    assert whole == frozen + weight + table + rng, "what all have is written once"
    assert sum(one.reports[1]["written"] for one in ended) == weight + table + rng, "what is unchanged is not"
    assert sum(one.reports[1]["reused"] for one in ended) == frozen
    with FileSystem.at(url, purpose="test") as volume:
        for rank in range(4):
            with CheckpointManager(volume, "runs/r", rank=rank, world_size=4, job="x") as manager:
                check_state(manager.load(20), 20, rank, 4)
                check_state(manager.load(10), 10, rank, 4)
        for world_size, rank in ((3, 1), (7, 6), (1, 0)):
            low, high = ROWS * rank // world_size, ROWS * (rank + 1) // world_size
            with CheckpointManager(volume, "runs/r", rank=rank, world_size=world_size, job="y") as manager:
                piece = np.zeros((high - low, 5))
                manager.load(into={"model": {"table": Shard(piece, (ROWS, 8), (low, 2))}}, strict=False)
                whole_table = manager.load(20)["model"]["table"]
                assert np.array_equal(piece, whole_table[low:high, 2:7])
        assert names_in(volume, b"runs/r/.attempts") == []
        files = [name for name in names_in(volume, b"runs/r/step-000000000010") if name.startswith(b"data-")]
        assert len(files) == 1, "ranks of one machine write into one file"


@dataclass(frozen=True)
class Death:
    """`rank` of three dies at `point`. `committed`: the checkpoint is there all the same. `alone`: on which of two machines
    rank 0 is by itself; else all are on one, where a death is noticed at once. `packed`: with compression."""

    point: str
    rank: int
    committed: bool = False
    named: str = "gone"
    alone: bool = False
    packed: bool = False

    @property
    def name(self) -> str:
        return f"{self.point}-{self.rank}{'-two' * self.alone}{'-packed' * self.packed}"


DEATHS = [
    Death("checkpoint.begun", 0, named="is"),
    Death("checkpoint.begun", 0, named="rank 0, which coordinates, is silent", alone=True),
    Death("checkpoint.rank-arrived", 1, named="have not arrived after 3 s: 1"),
    Death("checkpoint.gathered", 0),
    Death("checkpoint.planned", 0),
    Death("checkpoint.host-gathered", 1, named="have not stored its part after 6 s: 1, 2", alone=True),
    Death("checkpoint.files-made", 0),
    Death("checkpoint.files-made", 1, named="have not stored its part after 6 s: 1, 2", alone=True),
    Death("checkpoint.part-written", 0),
    Death("checkpoint.part-written", 1, named="rank 1 died"),
    Death("checkpoint.part-written", 2, named="rank 2 died", alone=True),
    Death("checkpoint.part-written", 0, packed=True),
    Death("checkpoint.part-written", 1, named="rank 1 died", packed=True),
    Death("checkpoint.packed-headed", 0, packed=True),
    Death("checkpoint.packed-headed", 1, named="have not stored its part after 6 s: 1, 2", alone=True, packed=True),
    Death("checkpoint.rank-stored", 1, committed=True),
    Death("checkpoint.host-stored", 1, committed=True, alone=True),
    Death("checkpoint.stored", 0),
    Death("checkpoint.manifest-written", 0),
    Death("checkpoint.committed", 0, committed=True),
    Death("checkpoint.committed", 0, committed=True, alone=True),
]


def start_dying(url: str, death: Death, deadline_s: float) -> list[subprocess.Popen[str]]:
    """Rank 1 leads the second machine, because it is there first."""
    processes = {}
    for rank in (1, 2, 0) if death.alone else (0, 1, 2):
        place = "first" if not death.alone or rank == 0 else "second"
        crash_at = death.point if rank == death.rank else None
        more = {"deadline_s": deadline_s, "crash_at": crash_at, "place": url + place}
        more |= {"compression": "zstd"} if death.packed else {}
        processes[rank] = start(url, rank, 3, [6], job="dying", **more)
        if rank == 1 and death.alone:
            wait_for_leader(url, url + place, "dying")
    return [processes[rank] for rank in range(3)]


def wait_for_leader(url: str, place: str, job: str) -> None:
    with Volume.open(url, purpose="test") as volume:
        meeting = Meeting(volume.config.uuid, b"runs/r", attempt_name(6, job, 1), place)
    for _ in range(600):
        found = connect(meeting, "leader")
        if found is not None:
            found.close()
            return
        time.sleep(0.05)
    raise AssertionError("nobody leads")


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.name)
def test_a_rank_dies(url: str, death: Death) -> None:
    with CheckpointManager(url, "runs/r", job="before") as manager:
        manager.save(5, state_of(5, 0, 1))
    by_deadline = "silent" in death.named or "after" in death.named or death.point == "checkpoint.begun"
    deadline_s = (2 * IMPATIENT_S if death.alone else IMPATIENT_S) if by_deadline else PATIENT_S
    processes = start_dying(url, death, deadline_s)
    ended = [end(process) for process in processes]
    assert ended[death.rank].code == -signal.SIGKILL, "it died"
    for rank in {0, 1, 2} - {death.rank}:
        (report,) = ended[rank].reports
        assert ("error" not in report) == death.committed
        if not death.committed:
            assert report["error"] in ("RankMissingError", "RankFailedError")
            assert death.named in report["text"] or (rank == 2 and "gone" in report["text"])
    with FileSystem.at(url, purpose="test") as volume:
        with CheckpointManager(volume, "runs/r", rank=2, world_size=3, job="look") as manager:
            assert [one.step for one in manager.checkpoints()] == ([5, 6] if death.committed else [5])
            assert manager.verify() == []
            if death.committed:
                check_state(manager.load(), 6, 2, 3)
        with CheckpointManager(volume, "runs/r") as manager:
            manager.save(7, {"x": np.arange(10)})
            assert manager.load()["x"].sum() == 45
        assert names_in(volume, b"runs/r/.attempts") == [], "nothing is left of the dead"
        with volume.open(b"runs/r/latest") as reading:
            name = bytearray(17)
            assert reading.read_into(0, memoryview(name)) == 17
        assert bytes(name) == b"step-000000000007"
        volume.flush(60)
        checked = volume.volume.check(repair=False, progress=lambda done, total, unit: None)
        assert checked.findings == (), "and the volume is whole"


def test_a_commit_that_cannot_be_told_is_seen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 loses the disk between the commit and saying so."""
    post = Attempt.post
    refused = []

    def refuse_outcomes(self: Attempt, name: str, body: Any) -> None:
        if name == "outcome":
            refused.append(body)
            raise UnavailableError("the SSD fails")
        post(self, name, body)

    other = start(url, 1, 2, [1], job="j", place="another machine")
    monkeypatch.setattr(Attempt, "post", refuse_outcomes)
    with CheckpointManager(url, "runs/r", rank=0, world_size=2, job="j", deadline_s=PATIENT_S) as manager:
        manager.save(1, state_of(1, 0, 2))
        assert "error" not in end(other).reports[0]
        check_state(manager.load(), 1, 0, 2)
    assert len(refused) == 1


def test_a_deletion_dies(url: str) -> None:
    process = start(url, 0, 1, [1, 2, 3], job="one", keep_last=1, crash_at="checkpoint.trashed")
    assert end(process).code == -signal.SIGKILL
    with FileSystem.at(url, purpose="test") as volume:
        assert len(names_in(volume, b"runs/r/.trash")) == 1, "it died in the middle of deleting"
        with CheckpointManager(volume, "runs/r", keep_last=1) as manager:
            check_state(manager.load(), 2, 0, 1)
            manager.save(4, {"x": 1})
            assert [one.step for one in manager.checkpoints()] == [4]
        assert names_in(volume, b"runs/r/.trash") == []


def test_ranks_that_disagree_on_their_number_are_told(url: str) -> None:
    processes = [start(url, rank, size, [1], job="j", deadline_s=30) for rank, size in ((0, 3), (1, 3), (2, 4))]
    ended = [end(process) for process in processes]
    texts = [one.reports[0]["text"] for one in ended]
    for text in texts:  # told by whoever of two looked first, in his words
        assert "there are 3" in text, text
        assert "there are 4" in text, text


def test_a_straggler_of_an_earlier_job_adds_nothing(url: str) -> None:
    straggler = start(url, 1, 2, [1], job="old", deadline_s=IMPATIENT_S)
    ended = run_ranks(url, 2, [1], job="new")
    assert [one.code for one in ended] == [0, 0]
    assert end(straggler).reports[0]["error"] == "RankMissingError"
    with CheckpointManager(url, "runs/r", rank=1, world_size=2, job="look") as manager:
        check_state(manager.load(), 1, 1, 2)


def test_a_second_job_on_a_run_is_told_by_whom_it_is_held(url: str) -> None:
    holder = start(url, 0, 1, [1], job="first", waits=True)
    try:
        assert holder.stdout is not None
        assert "error" not in json.loads(holder.stdout.readline())
        (second,) = run_ranks(url, 1, [2], job="second")
        assert second.reports[0]["error"] == "BusyError"
        assert f"process {holder.pid} on" in second.reports[0]["text"]
    finally:
        end(holder)
    (third,) = run_ranks(url, 1, [2], job="third")
    assert "error" not in third.reports[0]


def test_a_process_may_carry_many_ranks(url: str) -> None:
    """Sixty-four ranks in this process, one in another: the same checkpoint as of sixty-five processes, in one file."""
    world_size = 65
    other = start(url, 64, world_size, [3, 4], job="many")
    with FileSystem.at(url, purpose="test") as volume:
        settings = {"ranks": range(64), "world_size": world_size, "job": "many", "deadline_s": PATIENT_S}
        with CheckpointManager(volume, "runs/r", **settings) as manager:  # type: ignore[arg-type]
            for step in (3, 4):
                manager.save(step, PerRank({rank: state_of(step, rank, world_size) for rank in range(64)}))
            with pytest.raises(InvalidRequestError, match="64 ranks"):
                manager.save(5, {"not": "per rank"})
        assert [report for report in end(other).reports if "error" in report] == []
        for rank in (0, 17, 63, 64):
            with CheckpointManager(volume, "runs/r", rank=rank, world_size=world_size, job="look") as manager:
                check_state(manager.load(3), 3, rank, world_size)
                check_state(manager.load(4), 4, rank, world_size)
        listed = names_in(volume, b"runs/r/step-000000000004")
        assert listed == [b"data-r00000-000.safetensors", b"manifest.json", b"same-r00000.safetensors"]


def test_a_process_may_carry_all_ranks(volume: FileSystem) -> None:
    """What ranks have under one name is told apart by its content, also where nobody else is asked."""
    settings = {"ranks": range(3), "world_size": 3, "job": "all", "deadline_s": PATIENT_S}
    with CheckpointManager(volume, "runs/r", **settings) as manager:  # type: ignore[arg-type]
        manager.save(1, PerRank({rank: state_of(1, rank, 3) for rank in range(3)}))
    for rank in range(3):
        with CheckpointManager(volume, "runs/r", rank=rank, world_size=3, job="look") as manager:
            check_state(manager.load(1), 1, rank, 3)


def test_ranks_pack_into_a_file_each_and_any_number_loads(url: str) -> None:
    ended = run_ranks(url, 3, [10, 20], job="one", compression="zstd")
    assert [report for one in ended for report in one.reports if "error" in report] == []
    for one in ended:
        assert one.reports[1]["stored"] < 0.9 * one.reports[1]["written"]
    with FileSystem.at(url, purpose="test") as volume:
        for world_size in (3, 5):
            for rank in range(3):
                with CheckpointManager(volume, "runs/r", rank=rank, world_size=world_size, job="x") as manager:
                    for step in (10, 20):
                        state = manager.load(step)
                        check_state(state, step, rank, 3)
                        assert np.array_equal(state["own"], state_of(step, rank, 3, weights=True)["own"])
        assert manager.verify() == []
        assert names_in(volume, b"runs/r/.attempts") == []
        assert names_in(volume, b"runs/r/step-000000000020") == [
            b"data-r00000-000.safetensors",
            b"manifest.json",
            *(b"packed-r%05d-000.safetensors" % rank for rank in range(3)),
            b"same-r00000.safetensors",
        ]


def test_processes_that_carry_many_ranks_pack_into_a_file_each(url: str) -> None:
    """Each fills its own in the order in which it was laid out, whoever laid it out."""
    with FileSystem.at(url, purpose="test") as first, FileSystem.at(url, purpose="test") as second:

        def save(volume: FileSystem, ranks: range) -> None:
            settings = {"ranks": ranks, "world_size": 7, "job": "many", "deadline_s": PATIENT_S, "compression": "zstd"}
            with CheckpointManager(volume, "runs/r", **settings) as manager:  # type: ignore[arg-type]
                for step in (3, 4):
                    manager.save(step, PerRank({rank: state_of(step, rank, 7, weights=True) for rank in ranks}))

        with ThreadPoolExecutor(2) as pool:
            for saved in [pool.submit(save, first, range(4)), pool.submit(save, second, range(4, 7))]:
                saved.result(2 * PATIENT_S)
        for rank in range(7):
            with CheckpointManager(first, "runs/r", rank=rank, world_size=7, job="look") as manager:
                for step in (3, 4):
                    state = manager.load(step)
                    check_state(state, step, rank, 7)
                    assert np.array_equal(state["own"], state_of(step, rank, 7, weights=True)["own"])
        listed = names_in(first, b"runs/r/step-000000000004")
        assert [name for name in listed if name.startswith(b"packed")] == [
            b"packed-r00000-000.safetensors",
            b"packed-r00004-000.safetensors",
        ]


def test_two_machines_say_the_same_with_a_file_each(url: str) -> None:
    places = {0: "a", 1: "a", 2: "b", 3: "b", 4: "b"}
    processes = [start(url, rank, 5, [1, 2], job="two", place=url + place) for rank, place in places.items()]
    assert [report for process in processes for report in end(process).reports if "error" in report] == []
    with FileSystem.at(url, purpose="test") as volume:
        for rank in range(5):
            with CheckpointManager(volume, "runs/r", rank=rank, world_size=5, job="look") as manager:
                check_state(manager.load(2), 2, rank, 5)
        data = [name for name in names_in(volume, b"runs/r/step-000000000002") if name.startswith(b"data-")]
        assert len(data) == 2, "one of each machine"


def test_a_rank_that_wakes_up_late_adds_nothing(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the descriptors of the machine's files when the others give it up, and writes into them all the same."""
    settings: dict[str, Any] = {"world_size": 2, "job": "j", "deadline_s": IMPATIENT_S}
    go, late = threading.Event(), list[bool]()
    write = PartWriter.write
    with (
        CheckpointManager(volume, "runs/r", rank=0, **settings) as first,
        CheckpointManager(volume, "runs/r", rank=1, **settings) as second,
        ThreadPoolExecutor(1) as other,
    ):

        def sleep_once(self: PartWriter, *given: Any) -> Any:
            if self is second._writer and not late:
                late.append(True)
                assert go.wait(60)
            return write(self, *given)

        monkeypatch.setattr(PartWriter, "write", sleep_once)
        sleeper = other.submit(second.save, 1, state_of(1, 1, 2))
        with pytest.raises(RankMissingError, match="have not stored its part after 3 s: 1"):
            first.save(1, state_of(1, 0, 2))
        go.set()
        with pytest.raises(RankMissingError):
            sleeper.result(60)
        assert late
        assert first.checkpoints() == []
        again = other.submit(second.save, 1, state_of(2, 1, 2))
        first.save(1, state_of(2, 0, 2))
        again.result(60)
        assert first.verify() == []
        check_state(second.load() | {"step": 2}, 2, 1, 2)
