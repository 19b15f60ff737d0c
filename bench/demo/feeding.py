"""The last step of the demo: a gateway beside the trainers, an epoch that is interrupted, and every sample once.

A corpus is written as Parquet through the mount; a gateway serves it, shuffled; a trainer is killed in the middle of the
epoch; two ranks go on from its checkpoint. Gateway and trainers are children of this process and end with it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

SCRIPT: Final = Path(__file__).with_name("feed.py")
SOURCE: Final = "datasets/corpus"
SAMPLE_BYTES: Final = 128
SAMPLES: Final = 16_384
FILES: Final = 4
KILL_AT_STEP: Final = 25
SAVE_EVERY: Final = 10
RANKS: Final = 2
WAIT_S: Final = 60.0
STOP_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank saw in one step."""

    step: int
    ids: tuple[int, ...]


def write_dataset(text: Path, folder: Path) -> int:
    """Samples of `SAMPLE_BYTES` bytes, numbered, in several Parquet files; how many."""
    content = text.read_bytes()[: SAMPLES * SAMPLE_BYTES]
    count = len(content) // SAMPLE_BYTES
    cut = [content[at * SAMPLE_BYTES : (at + 1) * SAMPLE_BYTES] for at in range(count)]
    folder.mkdir(parents=True)
    each = -(-count // FILES)
    for number in range(FILES):
        ids = list(range(number * each, min(count, (number + 1) * each)))
        table = pa.table({"id": ids, "text": pa.array([cut[at] for at in ids], pa.binary())})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=1024)
    return count


@contextlib.contextmanager
def gateway(meta_url: str, log: Path) -> Iterator[str]:
    """`tieredfs gateway`, ready; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "tieredfs", "gateway", meta_url, "--listen", f"127.0.0.1:{port}"]
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise LookupError(f"the gateway did not come up: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def batches_made(url: str) -> int:
    """How many batches the gateway has decoded, for whomever. Waits until nobody is being served."""
    deadline_s = time.monotonic() + WAIT_S
    while _metric(url, "streams"):
        if time.monotonic() > deadline_s:
            raise LookupError("the gateway still serves somebody")
        time.sleep(0.05)
    return _metric(url, "batches_made_total")


def _metric(url: str, name: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=WAIT_S) as answer:
        found = re.search(rf"^tieredfs_gateway_{name} ([0-9.e+]+)$", answer.read().decode(), re.MULTILINE)
    return int(float(found[1])) if found else -1


def start(
    url: str, checkpoints: Path, seen: Path, rank: int, world_size: int, pause_s: float
) -> "subprocess.Popen[str]":
    options = ["--url", url, "--source", SOURCE, "--checkpoints", checkpoints, "--seen", seen, "--rank", rank]
    options += ["--world-size", world_size, "--save-every", SAVE_EVERY, "--pause", pause_s]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_and_kill(url: str, checkpoints: Path, seen: Path) -> int:
    """SIGKILL at `KILL_AT_STEP`; the step that it had reached."""
    with start(url, checkpoints, seen, 0, 1, 0.01) as trainer:
        try:
            assert trainer.stdout is not None
            reached = 0
            for line in trainer.stdout:
                found = re.match(r"step (\d+) ", line)
                reached = int(found[1]) if found else reached
                if reached >= KILL_AT_STEP:
                    break
            trainer.send_signal(signal.SIGKILL)
            trainer.wait(STOP_S)
        finally:
            trainer.kill()
    return reached


def resume(url: str, checkpoints: Path, seen: Sequence[Path]) -> list[int]:
    """All ranks to the end of the epoch; their exit codes."""
    trainers = [start(url, checkpoints, path, rank, len(seen), 0.0) for rank, path in enumerate(seen)]
    try:
        for trainer in trainers:
            trainer.communicate(timeout=WAIT_S)
        return [trainer.returncode for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()


def read_seen(path: Path) -> list[Step]:
    """What a rank wrote down; a last line that is cut does not count."""
    steps = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            steps.append(Step(found["step"], tuple(found["ids"])))
    return steps


def checkpoint_step(checkpoints: Path) -> int:
    return max(int(path.stem.removeprefix("feed-")) for path in checkpoints.glob("feed-*.pt"))
