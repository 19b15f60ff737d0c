"""How saves behave from 16 to 4096 ranks: `python -m bench.ranks [--processes 4] [--only save,metadata,plan]`.

Ranks are spread over a bounded number of processes, each of which carries its share of them; every rank has a piece of one
sharded tensor and a tree of its own. Two states per number of ranks: 1 MiB each, and 64 MiB in all. All start at once; a save ends
for a rank when its call returns, hence when all is committed. Each checkpoint is deleted, and what it left synced, before
the next one, so that no drain runs beside a save. One save in the background each says what training waits for, when the
checkpoint is committed, and when all of it is in the store.

What must not grow with ranks is counted, not timed: transactions on the metadata, of all processes together.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import machine, picture
from bench.report import Bound, Row, Series, Target, alternate, document, failures, print_table, write_json
from bench.workspace import workspace
from tieredfs.config import parse_code
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume

RESULTS: Final = Path(__file__).parent / "results"
ROOT: Final = Path(__file__).parents[1]
KEYS: Final = ("save", "metadata", "plan")
COUNTS: Final = (16, 64, 256, 1024, 4096)
MIB: Final = 1 << 20
GB: Final = 1e9
IN_ALL_BYTES: Final = 64 * MIB
TENSORS: Final = 1000
DCP_RANKS_MAX: Final = 256
"""DCP's plan of 4096 x 1000 tensors takes minutes and over 10 GB; its cost per tensor is known long before."""
WAIT_S: Final = 300.0


# ---- a process that carries ranks ------------------------------------------------------------------------------------


class Carrier:
    """In a process of its own: told by lines of JSON what to save, answers with one each."""

    def __init__(self, url: str, number: int, process_count: int, buffer_bytes: int) -> None:
        import numpy as np

        self._number = number
        self._process_count = process_count
        self._transactions = {"write": 0, "read": 0}
        self._count_transactions()
        self._memory = np.random.default_rng(number).integers(0, 256, buffer_bytes, dtype=np.uint8)
        self._volume = FileSystem.at(url, purpose="bench")
        self._managers: dict[tuple[int, int], Any] = {}
        self._step = 0
        self._prepared: Any = None

    def _count_transactions(self) -> None:
        for kind in self._transactions:
            plain = getattr(SqliteEngine, kind)

            def counting(engine: SqliteEngine, function: Any, kind: str = kind, plain: Any = plain) -> Any:
                self._transactions[kind] += 1
                return plain(engine, function)

            setattr(SqliteEngine, kind, counting)

    def _manager(self, ranks: int, hosts: int) -> Any:
        from tieredfs_client.checkpoint import CheckpointManager

        place = f"host-{self._number % hosts}"
        manager = self._managers.get((ranks, hosts))
        if manager is None:
            run = f"runs/bench-{ranks}-{hosts}"
            own = range(self._number * ranks // self._process_count, (self._number + 1) * ranks // self._process_count)
            settings = {"ranks": own, "world_size": ranks, "job": "bench", "place": place, "deadline_s": WAIT_S}
            manager = CheckpointManager(self._volume, run, **settings)  # type: ignore[arg-type]
            self._managers[ranks, hosts] = manager
        return manager

    def prepare(self, ranks: int, hosts: int, rank_bytes: int) -> dict[str, Any]:
        """What the ranks of this process have, for the save that follows: before any of them starts."""
        self._prepared = self._state(self._manager(ranks, hosts).group.ranks, ranks, rank_bytes)
        return {}

    def save(self, ranks: int, hosts: int) -> dict[str, Any]:
        manager, state = self._manager(ranks, hosts), self._prepared
        before = dict(self._transactions)
        start = time.perf_counter()
        saved = manager.save(self._step, state)
        seconds = time.perf_counter() - start
        counted = {kind: self._transactions[kind] - before[kind] for kind in before}
        return {"seconds": seconds, "commit_s": saved.commit_seconds, "ranks": len(state.trees), **counted}

    def save_async(self, ranks: int, hosts: int, stored: bool) -> dict[str, Any]:
        """Seconds from the call. `stored`: wait for that, too."""
        manager, state = self._manager(ranks, hosts), self._prepared
        start = time.perf_counter()
        pending = manager.save_async(self._step, state)
        times = {"returned": time.perf_counter() - start}
        pending.result()
        times["committed"] = time.perf_counter() - start
        if stored:
            self._volume.flush(WAIT_S)
            times["stored"] = time.perf_counter() - start
        return times

    def _state(self, own: Sequence[int], ranks: int, rank_bytes: int) -> Any:
        """What the ranks of this process have now, one training step on."""
        from tieredfs_client.checkpoint import PerRank, Shard

        trees = {}
        for position, rank in enumerate(own):
            piece = self._memory[position * rank_bytes : (position + 1) * rank_bytes]
            piece[:1] += 1
            trees[rank] = {"weight": Shard(piece, (ranks * rank_bytes,), (rank * rank_bytes,)), "rank": rank}
        self._step += 1
        return PerRank(trees)

    def forget(self, ranks: int, hosts: int) -> dict[str, Any]:
        """Delete what was saved last; on the process of rank 0."""
        manager = self._manager(ranks, hosts)
        for summary in manager.checkpoints():
            manager.delete(summary.step, force=True)
        return {}

    def warm(self, size_bytes: int) -> dict[str, Any]:
        """See `machine.warm_memory`. Here, because what a process once had counts as the peak of all that it starts."""
        machine.warm_memory(size_bytes)
        return {}

    def close(self) -> None:
        for manager in self._managers.values():
            manager.close()
        self._volume.close()


def carry(settings: dict[str, Any]) -> None:
    carrier = Carrier(**settings)
    say = sys.stdout.write
    try:
        say("{}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            asked = json.loads(line)
            answer = getattr(carrier, asked.pop("do"))(**asked)
            say(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        carrier.close()


# ---- the processes together ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one save by all."""

    seconds: float
    slowest_over_median: float
    commit_s: float
    writes: int
    reads: int


@dataclass(frozen=True, slots=True)
class Background:
    """Of one `save_async` by all, the last of them: seconds until its call returned, from then until all was committed, and from
    the call until all was in the store, at full redundancy."""

    stall_s: float
    background_s: float
    stored_s: float


class Fleet:
    """Carriers, and what they are told together."""

    def __init__(self, url: str, directory: Path, count: int, ranks_max: int) -> None:
        self._directory = directory
        buffer_bytes = max(-(-ranks_max // count) * MIB, IN_ALL_BYTES)
        self._processes = []
        for number in range(count):
            settings = {"url": url, "number": number, "process_count": count, "buffer_bytes": buffer_bytes}
            command = [sys.executable, "-m", "bench.ranks", "--carry", json.dumps(settings)]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._processes.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        self._answers()

    def _answers(self, count: int | None = None) -> list[dict[str, Any]]:
        answers = []
        for process in self._processes[:count]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("a process of the benchmark has ended")
            answers.append(json.loads(line))
        return answers

    def _tell(self, message: dict[str, Any], count: int | None = None) -> list[dict[str, Any]]:
        for process in self._processes[:count]:
            assert process.stdin is not None
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        return self._answers(count)

    def warm(self, size_bytes: int) -> None:
        """The pages that the next save goes through must not have to come from the host first."""
        self._tell({"do": "warm", "size_bytes": size_bytes}, 1)

    def save(self, ranks: int, rank_bytes: int, hosts: int = 1) -> Outcome:
        where = {"ranks": ranks, "hosts": hosts}
        self._tell({"do": "prepare", **where, "rank_bytes": rank_bytes})
        answers = self._tell({"do": "save", **where})
        self._tell({"do": "forget", **where}, 1)
        os.sync()
        machine.await_quiet_disk(self._directory)
        times = [answer["seconds"] for answer in answers for _ in range(answer["ranks"])]
        slowest = max(times)
        return Outcome(
            slowest,
            slowest / statistics.median(times),
            max(answer["commit_s"] for answer in answers),
            sum(answer["write"] for answer in answers),
            sum(answer["read"] for answer in answers),
        )

    def save_async(self, ranks: int, rank_bytes: int, hosts: int = 1) -> Background:
        """The second of two: the first makes the staging buffers, and is deleted before it is in the store."""
        where = {"ranks": ranks, "hosts": hosts}
        for stored in (False, True):
            self._tell({"do": "prepare", **where, "rank_bytes": rank_bytes})
            answers = self._tell({"do": "save_async", **where, "stored": stored})
            self._tell({"do": "forget", **where}, 1)
            os.sync()
        returned, committed, kept = (max(one[key] for one in answers) for key in ("returned", "committed", "stored"))
        return Background(returned, committed - returned, kept)

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


@contextlib.contextmanager
def fleet_on(directory: Path, count: int, ranks_max: int) -> Iterator[Fleet]:
    url = f"sqlite://{directory}/volume.db"
    disks = [f"disk://{directory}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="bench")
    fleet = Fleet(url, directory, count, ranks_max)
    try:
        yield fleet
    finally:
        fleet.close()


# ---- the rows --------------------------------------------------------------------------------------------------------


def save_rows(fleet: Fleet, counts: Sequence[int], repeats: int, say: Callable[[str], None]) -> list[Row]:
    rows = []
    for title, size_of in (
        ("1 MiB each", lambda _: MIB),
        ("64 MiB in all", lambda ranks: IN_ALL_BYTES // ranks),
    ):
        outcomes: dict[int, list[Outcome]] = {ranks: [] for ranks in counts}

        def measure(ranks: int, size: int, kept: list[Outcome]) -> Callable[[], float]:
            def run() -> float:
                fleet.warm(ranks * size * 5 // 4)
                kept.append(fleet.save(ranks, size))
                return ranks * size / kept[-1].seconds / GB

            return run

        sides = {f"{ranks} ranks": measure(ranks, size_of(ranks), outcomes[ranks]) for ranks in counts}
        series = alternate(sides, repeats, 1, say)
        targets = tuple(Target(f"{ranks} ranks", "64 ranks", 0.8) for ranks in counts if ranks > 64)
        note = f"{title}: all ranks together, until the checkpoint is committed on the SSD"
        rows.append(Row(f"save, {title}", f"save, {title}", "GB/s", series, targets, note))
        rows += _within(title, outcomes, repeats)
        rows += _background(title, {ranks: fleet.save_async(ranks, size_of(ranks)) for ranks in counts})
    return rows


def _background(title: str, outcomes: dict[int, Background]) -> list[Row]:
    """What training waits for, and how long it is until nothing can be lost with the SSD: of one save each."""
    rows = []
    for name, field, note in (
        ("stall", "stall_s", "until save_async has returned on all ranks"),
        ("background", "background_s", "from then until the checkpoint is committed on the SSD"),
        ("stored", "stored_s", "from the call until all of it is in the store, at full redundancy"),
    ):
        series = tuple(Series(f"{ranks} ranks", (getattr(one, field) * 1e3,)) for ranks, one in outcomes.items())
        rows.append(Row(f"{name}, {title}", f"{name}, {title}", "ms", series, (), note))
    return rows


def _within(title: str, outcomes: dict[int, list[Outcome]], repeats: int) -> list[Row]:
    """How even the ranks are, and what the commit takes of the save, at the largest number of ranks."""
    ranks = max(outcomes)
    kept = outcomes[ranks][-repeats:]
    slowest = Series("slowest / median", tuple(each.slowest_over_median for each in kept))
    share = Series("commit / save", tuple(each.commit_s / each.seconds for each in kept))
    one = Series("1", (1.0,) * len(kept))
    return [
        Row(
            f"even, {title}",
            f"{ranks} ranks, {title}",
            "ratio",
            (slowest, share, one),
            (Target("slowest / median", "1", 2.0, Bound.AT_MOST), Target("commit / save", "1", 0.1, Bound.AT_MOST)),
            "time of a rank: until its call returns; commit: manifest, checks and rename",
        )
    ]


def metadata_rows(fleet: Fleet, counts: Sequence[int], processes: int) -> list[Row]:
    """Transactions of all processes for one save; the second save of each, so that nothing is done for the first time."""
    few, many = min(counts), max(counts)
    sides: dict[str, float] = {}
    for ranks, hosts in ((few, 1), (many, 1), (few, processes), (many, processes)):
        fleet.save(ranks, 4096, hosts)
        outcome = fleet.save(ranks, 4096, hosts)
        name = f"{ranks} ranks, {hosts} host{'s' if hosts > 1 else ''}"
        sides[name] = float(outcome.writes)
        sides[f"{name}, reads"] = float(outcome.reads)
    series = tuple(Series(name, (value,)) for name, value in sides.items())
    targets = (
        Target(f"{many} ranks, 1 host", f"{few} ranks, 1 host", 2.0, Bound.AT_MOST),
        Target(f"{many} ranks, {processes} hosts", f"{few} ranks, {processes} hosts", 2.0, Bound.AT_MOST),
    )
    note = "of all processes together; 256 times the ranks cost a few more while they are waited for, not one each"
    return [Row("metadata", "transactions per save", "count", series, targets, note)]


# ---- planning --------------------------------------------------------------------------------------------------------


def plan_ours(ranks: int) -> tuple[float, float]:
    """Seconds, and bytes of memory that the plan took at its peak, beyond what was to be planned."""
    from tieredfs_client.checkpoint.plan import Offer, assign_writers

    offers = [
        Offer(
            [f"layer.{number}" for number in range(TENSORS)],  # of its own for each rank, as they come in messages
            [os.urandom(16) for _ in range(TENSORS)],
            [4096] * TENSORS,
        )
        for _ in range(ranks)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    chosen = assign_writers(offers)
    seconds = time.perf_counter() - start
    assert sum(map(len, chosen)) == ranks * TENSORS
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0


def plan_dcp(ranks: int) -> tuple[float, float]:
    import torch
    from torch.distributed.checkpoint import default_planner
    from torch.distributed.checkpoint._dedup_save_plans import dedup_save_plans
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    def item(rank: int, number: int) -> WriteItem:
        offset, size = torch.Size([rank * 1024]), torch.Size([1024])
        data = TensorWriteData(
            ChunkStorageMetadata(offset, size), TensorProperties(torch.float32), torch.Size([ranks * 1024])
        )
        return WriteItem(MetadataIndex(f"layer.{number}", offset), WriteItemType.SHARD, tensor_data=data)

    plans = [SavePlan([item(rank, number) for number in range(TENSORS)]) for rank in range(ranks)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    default_planner.create_default_global_save_plan(dedup_save_plans(plans))
    seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0


PLANNERS: Final = {"tieredfs": plan_ours, "dcp": plan_dcp}


def planned(side: str, ranks: int) -> tuple[float, float]:
    """In a process of its own: microseconds and bytes per tensor."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.ranks", "--plan", f"{side}:{ranks}"]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600).stdout
    seconds, peak_bytes = json.loads(answer)
    return seconds / (ranks * TENSORS) * 1e6, peak_bytes / (ranks * TENSORS)


def plan_rows(counts: Sequence[int], repeats: int, say: Callable[[str], None]) -> list[Row]:
    counts = [ranks for ranks in counts if ranks >= 64]
    figures: dict[str, list[tuple[float, float]]] = {}

    def measure(side: str, ranks: int) -> Callable[[], float]:
        def run() -> float:
            figures.setdefault(f"{side}, {ranks} ranks", []).append(planned(side, ranks))
            return figures[f"{side}, {ranks} ranks"][-1][0]

        return run

    sides = {f"tieredfs, {ranks} ranks": measure("tieredfs", ranks) for ranks in counts}
    dcp = [ranks for ranks in counts if ranks <= DCP_RANKS_MAX]
    sides |= {f"dcp, {ranks} ranks": measure("dcp", ranks) for ranks in dcp}
    series = alternate(sides, repeats, 0, say)
    targets = [
        Target(f"tieredfs, {ranks} ranks", f"tieredfs, {counts[0]} ranks", 1.5, Bound.AT_MOST) for ranks in counts[1:]
    ]
    targets += [Target(f"tieredfs, {ranks} ranks", f"dcp, {ranks} ranks", 0.2, Bound.AT_MOST) for ranks in dcp]
    memory = tuple(
        Series(name, tuple(peak for _, peak in kept)) for name, kept in figures.items() if name.startswith("tieredfs")
    )
    note = (
        f"{TENSORS} sharded tensors per rank, who writes what; DCP: dedup_save_plans, create_default_global_save_plan"
    )
    return [
        Row("plan", "planning", "us/tensor", series, tuple(targets), note),
        Row("plan-memory", "memory of the plan", "bytes/tensor", memory, (), "peak beyond what was planned"),
    ]


# ---- the program -----------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Checkpoints of many ranks.")
    parser.add_argument("--processes", type=int, default=4, help="over which the ranks are spread")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of ranks, 64 among them")
    parser.add_argument("--repeat", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--only", default=",".join(KEYS), help=f"comma-separated: {', '.join(KEYS)}")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is measured")
    parser.add_argument("--name", default="ranks", help="of the files in bench/results")
    parser.add_argument("--carry", help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    unknown = set(chosen.only.split(",")) - set(KEYS)
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(KEYS)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    if chosen.carry:
        carry(json.loads(chosen.carry))
        return 0
    if chosen.plan:
        side, _, ranks = chosen.plan.partition(":")
        sys.stdout.write(json.dumps(PLANNERS[side](int(ranks))))
        return 0
    counts = [int(count) for count in chosen.counts.split(",")]
    only = chosen.only.split(",")

    def say(line: str) -> None:
        sys.stderr.write(f"  {line}\n")

    rows: list[Row] = []
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, stack):
        found = machine.facts(directory)
        if {"save", "metadata"} & set(only):
            fleet = stack.enter_context(fleet_on(directory, chosen.processes, max(counts)))
            rows += save_rows(fleet, counts, chosen.repeat, say) if "save" in only else []
            rows += metadata_rows(fleet, counts, chosen.processes) if "metadata" in only else []
    rows += plan_rows(counts, chosen.repeat, say) if "plan" in only else []
    settings = {"processes": chosen.processes, "counts": counts, "repeats": chosen.repeat, "code": "rs:2+1"}
    write_json(RESULTS / f"{chosen.name}.json", document(chosen.name, found, settings, rows))
    caption = f"{found['cpu']}, {found['cores']} cores, {chosen.processes} processes, {found['date']}"
    picture.draw(RESULTS / f"{chosen.name}.png", "Checkpoints of many ranks", rows, caption)
    print_table(f"{min(counts)} to {max(counts)} ranks in {chosen.processes} processes, {chosen.repeat} round(s)", rows)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
