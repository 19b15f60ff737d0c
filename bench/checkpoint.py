"""How fast checkpoints are, beside what bounds them and beside what people use: `python -m bench.checkpoint [--size 2GiB]`.

The state is what training has: large fp32 and bf16 tensors, some small ones. It changes before every save, so nothing is reused,
but for the row where nothing changed. Every side makes its bytes durable before its clock stops; what a side leaves to be
done in the background (the drain, write-back) is waited for before the next one starts.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from bench import machine, picture
from bench.report import Bound, Row, Series, Target, alternate, document, failures, print_table, write_json
from bench.workspace import workspace
from tieredfs.config import parse_code, parse_size
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_client.checkpoint import CheckpointManager
from tieredfs_client.checkpoint.checksums import digest_of
from tieredfs_client.checkpoint.memory import bytes_of

RESULTS: Final = Path(__file__).parent / "results"
ROOT: Final = Path(__file__).parents[1]
KEYS: Final = ("save", "stall", "background", "load", "cold", "unchanged", "once")
RAW, OURS, TORCH, DCP, MEMCPY, HASHING = "raw", "tieredfs", "torch.save", "dcp", "memcpy", "hashing + 0.2 s"
WRITE_BYTES: Final = 16 << 20
SLICES: Final = 16
FLUSH_S: Final = 600.0
STORED_FACTOR: Final = 1.5
"""rs:4+2. Every save of a changed state is another set of blocks."""
GB: Final = 1e9
MIB: Final = 1 << 20

State = dict[str, torch.Tensor]


def make_state(size_bytes: int) -> State:
    """Two thirds fp32, one third bf16, in tensors of up to 32 MiB, and a hundred small ones."""
    state: State = {f"norm.{number}": torch.rand(4096) for number in range(100)}
    left, number = size_bytes - 100 * 4096 * 4, 0
    while left > 0:
        dtype = torch.bfloat16 if number % 3 == 2 else torch.float32
        length = min(left, 32 * MIB) // dtype.itemsize
        state[f"layer.{number}.weight"] = torch.rand(length).to(dtype)
        left -= max(length, 1) * dtype.itemsize
        number += 1
    return state


def total_bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def change(state: State) -> None:
    """As a training step does: every tensor."""
    for tensor in state.values():
        tensor.add_(0.001)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ---- the sides -------------------------------------------------------------------------------------------------------


def save_raw(state: State, path: Path) -> None:
    """The limit: preallocate, write from the tensors' memory, sync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(descriptor, 0, total_bytes(state))
        at = 0
        for tensor in state.values():
            view = bytes_of(tensor)
            for start in range(0, len(view), WRITE_BYTES):
                at += os.pwrite(descriptor, view[start : start + WRITE_BYTES], at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_torch(state: State, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def save_dcp(state: State, path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, storage_writer=dcp.FileSystemWriter(path, sync_files=True, thread_count=2), no_dist=True)


def load_dcp(state: State, path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    warnings.simplefilter("ignore", UserWarning)  # that there is no process group
    dcp.load(state, storage_reader=dcp.FileSystemReader(path), no_dist=True)


def read_raw(state: State, path: Path) -> None:
    """Straight into the tensors' memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        at = 0
        for tensor in state.values():
            view = bytes_of(tensor)
            for start in range(0, len(view), WRITE_BYTES):
                at += os.preadv(descriptor, [view[start : start + WRITE_BYTES]], at)
    finally:
        os.close(descriptor)


# ---- the rows --------------------------------------------------------------------------------------------------------


class Bench:
    """One volume, one state, and a plain directory beside it on the same disk."""

    def __init__(self, directory: Path, size_bytes: int, repeats: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self.plain = directory / "plain"
        self.plain.mkdir()
        url = f"sqlite://{directory}/volume.db"
        disks = [f"disk://{directory}/d{number}" for number in range(6)]
        format_volume(url, disks, code=parse_code("rs:4+2"), durability=Durability.SSD, name="bench")
        self.url = url
        self.volume = FileSystem.at(url, purpose="bench")
        self.state = make_state(size_bytes)
        self.size = total_bytes(self.state)
        self.manager = CheckpointManager(self.volume, "runs/bench", keep_last=1, staging_bytes=2 * size_bytes)
        self._repeats = repeats
        self._say = say
        self._step = 0

    def close(self) -> None:
        self.manager.close()
        self.volume.close()

    def settle(self) -> None:
        """Nothing runs in the background any more, nothing is left to write back, and there is memory for the next side."""
        self.manager.wait()
        self.volume.flush(FLUSH_S)
        shutil.rmtree(self.plain)
        self.plain.mkdir()
        os.sync()
        machine.warm_memory(self.size * 5 // 4)

    def alternate(self, sides: dict[str, Callable[[], float]]) -> tuple[Series, ...]:
        def quiet(measure: Callable[[], float]) -> Callable[[], float]:
            def run() -> float:
                self.settle()
                return measure()

            return run

        return alternate({name: quiet(measure) for name, measure in sides.items()}, self._repeats, 1, self._say)

    def _rate(self, work: Callable[[], object]) -> float:
        return self.size / timed(work) / GB

    def _save(self) -> None:
        self._step += 1
        self.manager.save(self._step, self.state)

    def save(self) -> Row:
        def changed(work: Callable[[], object]) -> Callable[[], float]:
            def measure() -> float:
                change(self.state)
                return self._rate(work)

            return measure

        series = self.alternate(
            {
                RAW: changed(lambda: save_raw(self.state, self.plain / "raw")),
                OURS: changed(self._save),
                TORCH: changed(lambda: save_torch(self.state, self.plain / "state.pt")),
                DCP: changed(lambda: save_dcp(self.state, self.plain / "dcp")),
            }
        )
        targets = (Target(OURS, RAW, 0.9), Target(OURS, TORCH, 1.4), Target(OURS, DCP, 1.4))
        note = "until the bytes are durable on the SSD; ours with checksums and content hashes; raw: preallocated pwrite, fsync"
        return Row("save", "save", "GB/s", series, targets, note)

    def stall(self) -> Row:
        touched = {key: torch.zeros_like(tensor) for key, tensor in self.state.items()}

        def copy() -> None:
            for key, tensor in self.state.items():
                touched[key].copy_(tensor)

        def stage() -> None:
            self._step += 1
            self.manager.save_async(self._step, self.state)

        def changed_stage() -> float:
            change(self.state)
            return timed(stage)

        series = self.alternate({MEMCPY: lambda: timed(copy), OURS: changed_stage})
        target = Target(OURS, MEMCPY, 1.15, Bound.AT_MOST)
        return Row(
            "stall",
            "save_async until it returns",
            "s",
            series,
            (target,),
            "memcpy: copy_ of every tensor into touched memory",
        )

    def load(self) -> Row:
        change(self.state)
        self.settle()
        self._save()
        self.settle()
        kept = Path(tempfile.mkdtemp(dir=self.plain.parent))
        save_raw(self.state, kept / "raw")
        save_dcp(self.state, kept / "dcp")
        series = self.alternate(
            {
                RAW: lambda: self._rate(lambda: read_raw(self.state, kept / "raw")),
                OURS: lambda: self._rate(lambda: self.manager.load(into=self.state)),
                f"{OURS}, verify=False": lambda: self._rate(lambda: self.manager.load(into=self.state, verify=False)),
                DCP: lambda: self._rate(lambda: load_dcp(self.state, kept / "dcp")),
            }
        )
        shutil.rmtree(kept)
        targets = (Target(OURS, RAW, 0.8), Target(OURS, DCP, 4.0), Target(f"{OURS}, verify=False", RAW, 0.8))
        note = "page cache warm, into existing tensors; ours verifies every checksum unless it says not to"
        return Row("load", "load", "GB/s", series, targets, note)

    def background(self) -> Row:
        """From the call of `save_async`: until it returns, until the checkpoint is committed, until all of it is in the store."""
        times: dict[str, list[float]] = {"returns": [], "committed": [], "stored": []}
        for _ in range(self._repeats):
            self.settle()
            change(self.state)
            self._step += 1
            start = time.perf_counter()
            pending = self.manager.save_async(self._step, self.state)
            times["returns"].append(time.perf_counter() - start)
            pending.result()
            times["committed"].append(time.perf_counter() - start)
            self.volume.flush(FLUSH_S)
            times["stored"].append(time.perf_counter() - start)
        series = tuple(Series(name, tuple(values)) for name, values in times.items())
        return Row("background", "save_async", "s", series, (), "stored: at full redundancy, durable there")

    def cold(self) -> Row:
        """Resident on the SSD, page cache dropped."""
        change(self.state)
        self._save()
        self.volume.flush(FLUSH_S)
        kept = Path(tempfile.mkdtemp(dir=self.plain.parent))
        save_raw(self.state, kept / "raw")

        def dropped(work: Callable[[], object]) -> Callable[[], float]:
            def measure() -> float:
                machine.drop_page_cache(path for path in self._directory.rglob("*") if path.is_file())
                return self._rate(work)

            return measure

        series = self.alternate(
            {
                RAW: dropped(lambda: read_raw(self.state, kept / "raw")),
                OURS: dropped(lambda: self.manager.load(into=self.state)),
            }
        )
        shutil.rmtree(kept)
        note = "page cache dropped, every file on the SSD"
        return Row("cold", "load, cold", "GB/s", series, (Target(OURS, RAW, 0.9),), note)

    def once(self) -> Row:
        """Sixteen processes of this machine, with SSD directories of their own, load a sixteenth of every tensor each."""
        change(self.state)
        self._save()
        self.volume.flush(FLUSH_S)
        for path, _ in self.volume.walk(b"runs/bench"):
            if path.endswith(b".safetensors"):
                self.volume.evict(path)
        settings = {"url": self.url, "world_size": SLICES}
        command = [sys.executable, "-W", "ignore", "-m", "bench.slice_rank"]
        processes = [
            subprocess.Popen(
                [*command, json.dumps({**settings, "rank": rank})], stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            for rank in range(SLICES)
        ]
        fetched = 0
        try:
            for process in processes:
                out, _ = process.communicate(timeout=FLUSH_S)
                fetched += json.loads(out)["fetched_bytes"]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        whole = self.manager.checkpoints()[-1].size_bytes
        series = (Series("fetched", (fetched / MIB,)), Series("checkpoint", (whole / MIB,)))
        target = Target("fetched", "checkpoint", 1.05, Bound.AT_MOST)
        note = f"bytes asked of the block layer by {SLICES} processes together; 1/{SLICES} of each tensor for each"
        return Row("once", f"1/{SLICES} for each of {SLICES} ranks", "MiB", series, (target,), note)

    def unchanged(self) -> Row:
        self._save()

        def hashing() -> float:
            return 0.2 + timed(lambda: [digest_of(bytes_of(tensor)) for tensor in self.state.values()])

        written: list[int] = []

        def again() -> float:
            self._step += 1
            start = time.perf_counter()
            written.append(self.manager.save(self._step, self.state).written_bytes)
            return time.perf_counter() - start

        series = self.alternate({HASHING: hashing, OURS: again})
        note = f"most bytes written by one of them: {max(written)} of {self.size}"
        return Row(
            "unchanged", "save again, nothing changed", "s", series, (Target(OURS, HASHING, 1.0, Bound.AT_MOST),), note
        )


# ---- the program -----------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Checkpoints beside raw files, torch.save and DCP.")
    parser.add_argument("--size", type=parse_size, default=2 << 30, help="of the state (default 2GiB)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--only", default=",".join(KEYS), help=f"comma-separated: {', '.join(KEYS)}")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is measured")
    parser.add_argument("--name", default="checkpoint", help="of the files in bench/results")
    chosen = parser.parse_args(argv)
    needed = int((2 * chosen.repeat + 6) * STORED_FACTOR * chosen.size)
    if shutil.disk_usage(chosen.dir).free < needed:
        parser.error(
            f"{chosen.dir} needs {needed >> 30} GiB free: what is deleted is kept in the store for ten minutes"
        )
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    unknown = set(chosen.only.split(",")) - set(KEYS)
    if unknown:
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(KEYS)}")
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, stack):
        found = machine.facts(directory)
        bench = Bench(directory, chosen.size, chosen.repeat, lambda line: print(f"  {line}", file=sys.stderr))
        stack.callback(bench.close)
        rows = [getattr(bench, key)() for key in KEYS if key in chosen.only.split(",")]
    settings: dict[str, Any] = {"size_bytes": chosen.size, "repeats": chosen.repeat, "code": "rs:4+2"}
    write_json(RESULTS / f"{chosen.name}.json", document(chosen.name, found, settings, rows))
    caption = f"{found['cpu']}, {found['cores']} cores, {chosen.size >> 20} MiB, {found['date']}"
    picture.draw(RESULTS / f"{chosen.name}.png", "Checkpoints beside what bounds them", rows, caption)
    print_table(f"State of {chosen.size >> 20} MiB, {chosen.repeat} round(s), alternating", rows)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
