"""How fast DCP is on a volume, beside its own storage on the plain disk: `python -m bench.dropins [--size 2GiB]`.

The same state, the same planner, the same disk, alternating; ours goes through `TieredWriter` and `TieredReader`, the other side
through `FileSystemWriter` and `FileSystemReader` with fsync. Both sides' bytes are durable before the clock stops, and what is
left to the background is waited for before the next one starts. Bytes read are those that the process asked the kernel for
(`rchar`).
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from bench import machine, picture
from bench.report import Bound, Row, Series, Target, alternate, document, failures, print_table, write_json
from bench.workspace import workspace
from tieredfs.config import parse_code, parse_size
from tieredfs.model import Durability
from tieredfs.volume import format_volume
from tieredfs_client.dcp import TieredReader, TieredWriter
from tieredfs_client.filesystem.connections import CONNECTIONS

RESULTS: Final = Path(__file__).parent / "results"
KEYS: Final = ("save", "load", "slice", "bytes")
OURS, UNVERIFIED, DCP, IDEAL = "tieredfs", "tieredfs, verify=False", "dcp on ext4", "the slice itself"
COLUMNS: Final = 4096
ROWS: Final = 4096
PARTS: Final = 16
FLUSH_S: Final = 600.0
GB: Final = 1e9
State = dict[str, torch.Tensor]


class SlicePlanner(DefaultLoadPlanner):
    """Gives each read its place in memory that was made before the clock started."""

    def __init__(self, targets: State) -> None:
        super().__init__()
        self.targets = targets

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self.targets[read_item.dest_index.fqn]


class Bench:
    """One volume and a plain directory on the same disk, and one state."""

    def __init__(self, directory: Path, size_bytes: int, repeats: int) -> None:
        self.plain = directory / "plain"
        self.plain.mkdir()
        self.url = f"sqlite://{directory}/volume.db"
        disks = [f"disk://{directory}/d{number}" for number in range(6)]
        format_volume(self.url, disks, code=parse_code("rs:4+2"), durability=Durability.SSD, name="bench")
        count = max(1, size_bytes // (ROWS * COLUMNS * 4))
        self.state: State = {f"layer.{number}.weight": torch.rand(ROWS, COLUMNS) for number in range(count)}
        self.size = sum(tensor.nbytes for tensor in self.state.values())
        self._repeats = repeats

    def settle(self) -> None:
        CONNECTIONS.get(self.url).flush(FLUSH_S)
        os.sync()
        machine.warm_memory(self.size * 5 // 4)

    def alternate(self, sides: dict[str, Callable[[], float]]) -> tuple[Series, ...]:
        def quiet(measure: Callable[[], float]) -> Callable[[], float]:
            def run() -> float:
                self.settle()
                return measure()

            return run

        return alternate({name: quiet(measure) for name, measure in sides.items()}, self._repeats)

    # ---- saving and loading the whole --------------------------------------------------------------------------------

    def _save_ours(self) -> None:
        dcp.save(self.state, storage_writer=TieredWriter("runs/dcp", meta_url=self.url), no_dist=True)

    def _save_theirs(self) -> None:
        shutil.rmtree(self.plain / "dcp", ignore_errors=True)
        writer = dcp.FileSystemWriter(self.plain / "dcp", sync_files=True, thread_count=2)
        dcp.save(self.state, storage_writer=writer, no_dist=True)

    def _ours(self, verify: bool) -> TieredReader:
        return TieredReader("runs/dcp", meta_url=self.url, verify=verify)

    def _theirs(self) -> dcp.FileSystemReader:
        return dcp.FileSystemReader(self.plain / "dcp")

    def _rate(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return self.size / (time.perf_counter() - start) / GB

    def save(self) -> Row:
        def changed(work: Callable[[], None]) -> Callable[[], float]:
            def measure() -> float:
                for tensor in self.state.values():
                    tensor.add_(0.001)
                return self._rate(work)

            return measure

        series = self.alternate({OURS: changed(self._save_ours), DCP: changed(self._save_theirs)})
        return Row("save", "dcp.save", "GB/s", series, (Target(OURS, DCP, 1.4),), "until the bytes are durable")

    def load(self) -> Row:
        def load(reader: Callable[[], Any]) -> Callable[[], float]:
            return lambda: self._rate(lambda: dcp.load(self.state, storage_reader=reader(), no_dist=True))

        self._save_ours()
        self._save_theirs()
        sides = {OURS: lambda: self._ours(True), UNVERIFIED: lambda: self._ours(False), DCP: self._theirs}
        series = self.alternate({name: load(reader) for name, reader in sides.items()})
        targets = (Target(OURS, DCP, 4.0), Target(UNVERIFIED, DCP))
        return Row("load", "dcp.load", "GB/s", series, targets, "page cache warm, into existing tensors")

    # ---- a sixteenth of the rows of each tensor ------------------------------------------------------------------------

    def _slices(self, measure: Callable[[Any], float]) -> tuple[Series, ...]:
        self._save_ours()
        self._save_theirs()
        sides = {OURS: lambda: self._ours(True), UNVERIFIED: lambda: self._ours(False), DCP: self._theirs}

        def of(reader: Callable[[], Any]) -> Callable[[], float]:
            return lambda: measure(reader())

        return self.alternate({name: of(reader) for name, reader in sides.items()})

    def _load_slice(self, reader: Any) -> None:
        metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, True)
        wanted = ChunkStorageMetadata(torch.Size([3 * ROWS // PARTS, 0]), torch.Size([ROWS // PARTS, COLUMNS]))
        items = []
        for key, about in metadata.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)
            items += create_read_items_for_chunk_list(key, about, [wanted])
        targets = {key: torch.zeros(ROWS // PARTS, COLUMNS) for key in self.state}
        reader.read_data(reader.prepare_local_plan(LoadPlan(items)), SlicePlanner(targets)).wait()
        rows = slice(3 * ROWS // PARTS, 4 * ROWS // PARTS)
        assert all(torch.equal(targets[key], self.state[key][rows]) for key in self.state), "a wrong slice"

    def slice(self) -> Row:
        def seconds(reader: Any) -> float:
            start = time.perf_counter()
            self._load_slice(reader)
            return time.perf_counter() - start

        targets = (Target(OURS, DCP, 0.5, Bound.AT_MOST), Target(UNVERIFIED, DCP))
        return Row(
            "slice", "load 1/16 of the rows", "s", self._slices(seconds), targets, "with the comparison of the values"
        )

    def bytes(self) -> Row:
        def mebibytes(reader: Any) -> float:
            before = read_bytes()
            self._load_slice(reader)
            return (read_bytes() - before) / (1 << 20)

        series = self._slices(mebibytes)
        ideal = Series(IDEAL, tuple(self.size / PARTS / (1 << 20) for _ in range(self._repeats)))
        targets = (
            Target(OURS, IDEAL, 1.05, Bound.AT_MOST),
            Target(UNVERIFIED, IDEAL, 1.05, Bound.AT_MOST),
            Target(DCP, IDEAL),
        )
        return Row("bytes", "bytes read for 1/16 of the rows", "MiB", (*series, ideal), targets, "rchar of the process")


def read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError("the kernel counts no reads")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="torch.distributed.checkpoint on a volume beside its own storage.")
    parser.add_argument("--size", type=parse_size, default=2 << 30, help="of the state (default 2GiB)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--only", default=",".join(KEYS), help=f"comma-separated: {', '.join(KEYS)}")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is measured")
    parser.add_argument("--name", default="dropins", help="of the files in bench/results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(sys.argv[1:] if argv is None else argv)
    unknown = set(chosen.only.split(",")) - set(KEYS)
    if unknown:
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(KEYS)}")
    warnings.simplefilter("ignore", UserWarning)  # that there is no process group
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, stack):
        found = machine.facts(directory)
        stack.callback(CONNECTIONS.close_all)
        bench = Bench(directory, chosen.size, chosen.repeat)
        rows = [getattr(bench, key)() for key in KEYS if key in chosen.only.split(",")]
    settings: dict[str, Any] = {"size_bytes": chosen.size, "repeats": chosen.repeat, "code": "rs:4+2"}
    write_json(RESULTS / f"{chosen.name}.json", document(chosen.name, found, settings, rows))
    caption = f"{found['cpu']}, {found['cores']} cores, {chosen.size >> 20} MiB, {found['date']}"
    picture.draw(RESULTS / f"{chosen.name}.png", "torch.distributed.checkpoint on a volume", rows, caption)
    print_table(f"DCP, state of {chosen.size >> 20} MiB, {chosen.repeat} round(s), alternating", rows)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
