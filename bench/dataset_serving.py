"""The rows of the dataset benchmark that serve: trainers that are processes, a gateway that is one, pyarrow in as many
processes.

Everybody reads the same files, whose bytes are in memory: ours as resident files of the gateway's SSD tier, pyarrow's on
ext4. Trainers are started and imported before the clock runs; it ends with the last batch of the last of them.
"""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.dataset_reading import ARROW, OURS, SCAN_BATCH, Bench, flights_files
from bench.report import Bound, Row, Series, Target
from tieredfs.volume.contract import Part

BATCH: Final = 4096
TRAINERS: Final = 4
START_S: Final = 60.0
EPOCH_S: Final = 600.0
STALL_PACE: Final = 0.8
STALL_FILES: Final = 100
"""At scale 1: 34 million rows, 514 steps. An epoch begins with nothing read ahead, and at this pace that takes a few steps to
change; of an epoch of half a second they would be all that is measured."""
ROOT: Final = Path(__file__).parents[1]
BLOCKING: Final = ("none", "lz4", "zstd")


class Gateway:
    """`tieredfs gateway` over the volume of the benchmark."""

    def __init__(self, meta_url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        line = [sys.executable, "-m", "tieredfs", "gateway", meta_url, "--listen", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, "the gateway ended"
            assert time.monotonic() < deadline_s, "the gateway does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.url}/healthz", timeout=2).status == 200)
        return False

    def metric(self, name: str) -> float:
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=START_S).read().decode()
        return sum(
            map(float, re.findall(rf"^tieredfs_gateway_{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE))
        )

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(START_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(START_S)


class Trainers:
    """Processes that read an epoch each, all at once, when they are told."""

    def __init__(self, count: int, side: str, place: str, options: dict[str, Any]) -> None:
        line = [sys.executable, "-m", "bench.dataset_trainer", side, place, json.dumps(options)]
        self._processes = [
            subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def epoch(self) -> list[dict[str, Any]]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = []
        for process in self._processes:
            assert process.stdout is not None
            found.append(json.loads(process.stdout.readline()))
        return found

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(EPOCH_S)


def rate_of(found: Sequence[dict[str, Any]], rows: int) -> float:
    """Rows per second of all together, from the first that began to the last that ended."""
    assert [one["rows"] for one in found] == [rows] * len(found)
    spent_s = max(one["ended_s"] for one in found) - min(one["began_s"] for one in found)
    return len(found) * rows / float(spent_s)


@contextlib.contextmanager
def gateway(bench: Bench) -> Iterator[Gateway]:
    made = Gateway(bench.meta_url)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def trainers(count: int, side: str, place: str, **options: Any) -> Iterator[Trainers]:
    made = Trainers(count, side, place, options)
    try:
        yield made
    finally:
        made.close()


# ---- rows ------------------------------------------------------------------------------------------------------------


def one_trainer(bench: Bench) -> Iterator[Row]:
    rows = flights_files(bench)
    with (
        gateway(bench) as served,
        trainers(1, "gateway", served.url, source="flights", batch_size=BATCH, transport="shared") as ours,
        trainers(1, "pyarrow", str(bench.plain / "flights"), batch_size=BATCH) as plain,
    ):
        series = bench.alternate(
            {ARROW: lambda: rate_of(plain.epoch(), rows), OURS: lambda: rate_of(ours.epoch(), rows)}
        )
    note = f"batches of {BATCH}, through shared memory; pyarrow.dataset in the trainer's process"
    yield Row("one_trainer", "scan by one trainer", "rows/s", series, (Target(OURS, ARROW, 0.9),), note)


def four_trainers(bench: Bench) -> Iterator[Row]:
    rows = flights_files(bench)
    with (
        gateway(bench) as served,
        trainers(TRAINERS, "gateway", served.url, source="flights", batch_size=BATCH, transport="shared") as ours,
        trainers(TRAINERS, "pyarrow", str(bench.plain / "flights"), batch_size=BATCH) as plain,
    ):
        made, epochs = [], []

        def through_gateway() -> float:
            before = served.metric("batches_made_total")
            found = ours.epoch()
            made.append(served.metric("batches_made_total") - before)
            epochs.append(found[0]["steps"])
            return rate_of(found, rows)

        series = bench.alternate({ARROW: lambda: rate_of(plain.epoch(), rows), OURS: through_gateway})
    times = sum(made) / sum(epochs)
    note = f"same epoch, all of it each, batches of {BATCH}; the gateway made each batch {times:.2f} times"
    yield Row(
        "four_trainers", f"{TRAINERS} trainers, rows/s together", "rows/s", series, (Target(OURS, ARROW, 2.5),), note
    )


def wire(bench: Bench) -> Iterator[Row]:
    """HTTP as a trainer on another host sees it, but for the link: loopback."""
    rows = flights_files(bench)
    bytes_of: dict[str, list[float]] = {codec: [] for codec in BLOCKING}
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(gateway(bench))
        common = {"source": "flights", "batch_size": BATCH, "transport": "http"}
        with trainers(1, "gateway", served.url, sized=True, **common) as looking:
            arrow = looking.epoch()[0]["arrow_bytes"] / rows
        sides = {
            codec: stack.enter_context(trainers(1, "gateway", served.url, codec=codec, **common)) for codec in BLOCKING
        }

        def measured(codec: str) -> float:
            found = sides[codec].epoch()
            bytes_of[codec].append(found[0]["received_bytes"] / rows)
            return rate_of(found, rows)

        series = bench.alternate({codec: partial(measured, codec) for codec in BLOCKING})
    targets = tuple(Target(codec, "none", 0.8) for codec in BLOCKING[1:])
    yield Row(
        "wire_rate", "HTTP on loopback, by codec", "rows/s", series, targets, f"batches of {BATCH}, uncompressed is 1"
    )
    sizes = (
        Series("arrow", (arrow,) * len(bytes_of["none"])),
        *(Series(codec, tuple(found)) for codec, found in bytes_of.items()),
    )
    ceilings = tuple(Target(codec, "arrow", 0.4, Bound.AT_MOST) for codec in BLOCKING[1:])
    yield Row("wire_bytes", "bytes on the wire", "B/row", sizes, ceilings, "against the batches in memory")


def long_epoch(bench: Bench) -> int:
    """Flights many times over, by reference; the number of rows."""
    copies = max(2, round(STALL_FILES * bench.scale))
    rows_of_file = flights_files(bench) // max(1, round(10 * bench.scale))

    def make() -> None:
        seen = bench.volume.stat(b"flights/000.parquet")
        for number in range(copies):
            with bench.volume.splice([Part(seen.inode, 0, seen.size_bytes)]) as made:
                made.commit(b"long/%03d.parquet" % number)

    bench.once("long", make)
    return rows_of_file * copies


def stall(bench: Bench) -> Iterator[Row]:
    rows = long_epoch(bench)
    with gateway(bench) as served:
        common = {"source": "long", "batch_size": SCAN_BATCH, "transport": "shared"}
        with trainers(1, "gateway", served.url, **common) as fast:
            fast.epoch()
            free = rate_of(fast.epoch(), rows)
        step_s = SCAN_BATCH / (STALL_PACE * free)
        with trainers(1, "gateway", served.url, step_s=step_s, **common) as paced:
            found = [paced.epoch()[0] for _ in range(max(1, bench.repeats))]
    shares = tuple(100.0 * len(one["waits"]) / one["steps"] for one in found)
    series = (Series("limit", (1.0,) * len(shares)), Series(OURS, shares))
    pace = f"batches of {SCAN_BATCH}, steps of {step_s * 1e3:.2f} ms, {STALL_PACE:.0%} of the scan rate"
    which = "; ".join(", ".join(map(str, one["waits"])) or "none" for one in found)
    note = f"{pace}; a wait: asleep until a batch came, for more than a tenth of a step; which of {found[0]['steps']}: {which}"
    yield Row("stall", "steps that wait", "%", series, (Target(OURS, "limit", 1.0, Bound.AT_MOST),), note)


GROUPS: Final = {"one_trainer": one_trainer, "four_trainers": four_trainers, "wire": wire, "stall": stall}
