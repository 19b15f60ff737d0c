"""Several gateways on one job: leases decide who serves what, and a death loses nothing; tables against a model, then processes."""

import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.job_worker import BATCH
from tests.serving.rig import numbers, put_table
from tieredfs.config import parse_code
from tieredfs.errors import ConflictError, CorruptError, InvalidRequestError, StateMismatchError
from tieredfs.host import SystemClock
from tieredfs.limits import MIB
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs.volume.register import Register
from tieredfs_gateway.datasets import job_leases
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec
from tieredfs_gateway.datasets.job_leases import Lease, Table, Watch
from tieredfs_gateway.datasets.jobs import JobShare, register_of
from tieredfs_gateway.datasets.reader import open_reader

ROWS = 20_000
WAIT_S = 60.0
SOURCE = "jobs/numbers"


# ---- decisions -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(0, 9), st.integers(1, 4), st.integers(1, 4))
def test_whatever_holders_do_every_batch_is_acknowledged_before_the_epoch_is_done(
    data: st.DataObject, batch_count: int, range_batches: int, holder_count: int
) -> None:
    table = job_leases.empty("v", 0, batch_count, range_batches)
    acknowledged: set[int] = set()
    held: dict[str, dict[int, int]] = {f"h{number}": {} for number in range(holder_count)}
    for _ in range(60):
        if table.is_done:
            break
        holder = data.draw(st.sampled_from(sorted(held)))
        mine = held[holder]
        match data.draw(st.sampled_from(["claim", "serve", "renew", "die", "leave"])):
            case "claim":
                dead = data.draw(st.sets(st.sampled_from(sorted(table.leases)))) if table.leases else set()
                found = job_leases.claim(table, holder, dead)
                if found is not None:
                    table, number = found
                    mine[number] = table.leases[number].acknowledged
                    served = range(number * range_batches, number * range_batches + mine[number])
                    assert acknowledged >= set(served), "who goes on leaves out nothing that is not acknowledged"
            case "serve" if mine:
                number = data.draw(st.sampled_from(sorted(mine)))
                if mine[number] < table.length(number):
                    acknowledged.add(number * range_batches + mine[number])
                    mine[number] += 1
            case "renew":
                table, lost = job_leases.renew(table, holder, mine)
                held[holder] = (
                    {number: count for number, count in mine.items() if number in table.leases}
                    if not lost
                    else {
                        number: count for number, count in mine.items() if number not in lost and number in table.leases
                    }
                )
            case "die":
                held[holder] = {}
            case "leave":
                table, _ = job_leases.renew(table, holder, mine)
                table, held[holder] = job_leases.give_back(table, holder), {}
        assert Table.unpacked(table.packed()) == table
        assert {each.holder for each in table.leases.values()} <= {*held, job_leases.NOBODY}
    if table.is_done:
        assert acknowledged == set(range(batch_count))


def test_a_lease_expires_when_its_beat_stands_still_by_the_clock_of_who_watches() -> None:
    watch, table = Watch(10.0), Table("v", 0, 10, 1, 2, {0: Lease("a", 0, 0), 1: Lease("b", 0, 0)})
    assert watch.expired(table, 100.0) == set()
    beaten = Table("v", 0, 10, 1, 2, {0: Lease("a", 1, 0), 1: Lease("b", 0, 0)})
    assert watch.expired(beaten, 109.0) == set()
    assert watch.expired(beaten, 110.0) == {1}
    assert watch.expired(beaten, 119.0) == {0, 1}
    taken, number = job_leases.claim(beaten, "c", {1}) or pytest.fail("it may be taken")
    assert number == 1
    assert watch.expired(taken, 119.5) == {0}
    assert job_leases.claim(beaten, "b", {1}) == (Table("v", 0, 10, 1, 3, {**beaten.leases, 2: Lease("b", 0, 0)}), 2)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'[2,"v",0,1,1,0,[]]', b'[1,"v",0,1,0,0,[]]', b'[1,"v",0,1,1,0,[[1]]]']
)
def test_what_is_no_table_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        Table.unpacked(data)


# ---- on a volume -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("jobs")
    url = f"sqlite://{root}/volume.db"
    disks = [f"disk://{root}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 * MIB)
    with FileSystem.at(url, purpose="test") as volume:
        put_table(volume, f"{SOURCE}/a.parquet", numbers(ROWS // 2))
        put_table(volume, f"{SOURCE}/b.parquet", numbers(ROWS // 2, ROWS // 2))
        volume.flush(60)
    return url


def test_of_two_that_change_a_register_at_once_one_wins(url: str) -> None:
    with FileSystem.at(url, purpose="test") as one, FileSystem.at(url, purpose="test") as other:
        ours, theirs = Register(one, b"registers/a"), Register(other, b"registers/a")
        assert ours.read() == (None, None)
        first = ours.swap(None, b"1")
        with pytest.raises(ConflictError):
            theirs.swap(None, b"2")
        assert theirs.read() == (first, b"1")
        second = theirs.swap(first, b"2")
        with pytest.raises(ConflictError):
            ours.swap(first, b"3")
        assert ours.read() == (second, b"2")
        ours.clear(second)
        assert theirs.read() == (None, None)


def test_a_share_that_leaves_gives_its_ranges_back_at_once(url: str) -> None:
    with FileSystem.at(url, purpose="test") as volume:
        spec, order, longer = DatasetSpec(SOURCE), OrderSpec(BATCH), OrderSpec(BATCH + 1)
        with open_reader(volume, spec, order) as reader:
            register, clock = register_of(volume, "leaving", 0), SystemClock()
            with JobShare(register, clock, reader, (spec, order), 0, range_batches=8, lease_s=600) as leaving:
                batches = leaving.batches()
                for _ in range(3):
                    leaving.acknowledge(next(batches).index)
            with JobShare(register, clock, reader, (spec, order), 0, range_batches=8, lease_s=600) as staying:
                seen = []
                for batch in staying.batches():
                    seen.append(batch.index)
                    staying.acknowledge(batch.index)
            assert seen == list(range(3, ROWS // BATCH))
        with (
            open_reader(volume, spec, longer) as other,
            pytest.raises(StateMismatchError),
        ):
            JobShare(register, clock, other, (spec, longer), 0)
        with pytest.raises(InvalidRequestError):
            register_of(volume, "a/b", 0)


# ---- processes -------------------------------------------------------------------------------------------------------


class Worker:
    """A gateway's part of the job in a process of its own."""

    def __init__(self, url: str, job: str, lines: "queue.Queue[tuple[Worker, str]]") -> None:
        line = [sys.executable, "-m", "tests.serving.job_worker", url, SOURCE, job, "2"]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.delivered: list[int] = []
        self._lines = lines
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put((self, line))
        self._lines.put((self, ""))

    def acknowledge(self, batch: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batch}\n")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self._thread.join(WAIT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


@pytest.fixture
def workers(url: str, tmp_path: Path) -> Iterator[tuple[list[Worker], "queue.Queue[tuple[Worker, str]]"]]:
    lines: queue.Queue[tuple[Worker, str]] = queue.Queue()
    started = [Worker(url, tmp_path.name, lines) for _ in range(3)]
    yield started, lines
    for worker in started:
        worker.end()


def test_a_gateway_that_is_killed_loses_no_batch_and_the_consumer_has_each_once(
    workers: tuple[list[Worker], "queue.Queue[tuple[Worker, str]]"],
) -> None:
    """The victim is killed with a range that it has begun: its last two batches were delivered, and nobody acknowledged them."""
    started, lines = workers
    victim: Worker | None = None
    rows: dict[int, list[int]] = {}
    times: Counter[int] = Counter()
    ended: set[Worker] = set()
    while len(ended) < len(started):
        worker, line = lines.get(timeout=WAIT_S)
        if not line or line == "done\n":
            ended.add(worker)
            continue
        index, ids = json.loads(line)
        times[index] += 1
        worker.delivered.append(index)
        assert rows.setdefault(index, ids) == ids, "a batch that comes again is the same"
        if victim is None and len(worker.delivered) == 6:
            victim = worker
            victim.process.kill()
        if worker is not victim:
            worker.acknowledge(index)
    assert victim is not None
    assert sorted(rows) == list(range(ROWS // BATCH))
    assert sorted(id_ for ids in rows.values() for id_ in ids) == list(range(ROWS))
    again = {index for index, count in times.items() if count > 1}
    assert again, "what the victim delivered last came again"
    assert again <= set(victim.delivered)
    assert max(times.values()) == 2
    assert [worker.process.wait(WAIT_S) for worker in started if worker is not victim] == [0, 0]
