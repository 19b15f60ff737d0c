"""What compression of checkpoints makes of a trained state, and at what speed: `python -m bench.compression`.

The state is real: the demo's transformer, trained for a while on the sources of Python's library, with the moments of Adam. Each
kind of tensor is packed and unpacked beside zstd of the same bytes as they lie there, levels 1 and 3, on one thread, by
CPU time; the same pieces of 4 MiB on all sides. Then the whole state is saved and loaded, with and without.
"""

import argparse
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import zstandard
from torch.nn import functional

from bench import machine
from bench.demo.train import Model, batch
from bench.report import Bound, Row, Series, Target, alternate, document, failures, print_table, write_json
from bench.workspace import workspace
from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_client.checkpoint import CheckpointManager
from tieredfs_client.checkpoint.codec import Packer, Unpacker
from tieredfs_client.checkpoint.layout import PIECE_BYTES
from tieredfs_client.checkpoint.memory import bytes_of

RESULTS: Final = Path(__file__).parent / "results"
OURS, LEVELS = "tieredfs", (1, 3)
WAYS: Final = ("none", "auto", "zstd", "zstd:9")
GB, MIB = 1e9, 1 << 20
STATE_BYTES_MIN: Final = 64 << 20

State = dict[str, torch.Tensor]
Pieces = list[memoryview]


def trained(steps: int, say: Callable[[str], None]) -> dict[str, State]:
    """By kind: weights as they are trained and as they are shipped, and both moments."""
    torch.manual_seed(0)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)
    model, sampler = Model(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for step in range(steps):
        tokens, following = batch(text, sampler)
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 20 == 0:
            say(f"training, step {step} of {steps}, loss {loss.item():.2f}")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = [optimizer.state[parameter] for parameter in model.parameters()]
    return {
        "weights, fp32": weights,
        "weights, bf16": {name: value.to(torch.bfloat16) for name, value in weights.items()},
        "Adam, first moment, fp32": {name: one["exp_avg"] for name, one in zip(weights, moments, strict=True)},
        "Adam, second moment, fp32": {name: one["exp_avg_sq"] for name, one in zip(weights, moments, strict=True)},
    }


def pieces_of(state: State) -> Pieces:
    views = [bytes_of(tensor) for tensor in state.values()]
    return [view[at : at + PIECE_BYTES] for view in views for at in range(0, len(view), PIECE_BYTES)]


# ---- the codec alone -------------------------------------------------------------------------------------------------


class Kind:
    """One kind of tensor on all sides; every side is checked to give the bytes back."""

    def __init__(self, state: State, repeats: int) -> None:
        self._pieces = pieces_of(state)
        self._width = next(iter(state.values())).itemsize
        self._repeats = repeats
        self._size = sum(map(len, self._pieces))
        self._packer, self._unpacker = Packer(), Unpacker()
        self._scratch = memoryview(bytearray(PIECE_BYTES))
        self._target = memoryview(bytearray(PIECE_BYTES))
        self._zstd = {f"zstd -{level}": zstandard.ZstdCompressor(level=level) for level in LEVELS}
        self._back = zstandard.ZstdDecompressor()
        self._packed = [memoryview(b"".join(self._pack(piece))) for piece in self._pieces]
        self._frames = {
            side: [compressor.compress(piece) for piece in self._pieces] for side, compressor in self._zstd.items()
        }
        for piece, packed in zip(self._pieces, self._packed, strict=True):
            self._unpacker.unpack(packed, self._width, self._target[: len(piece)])
            assert self._target[: len(piece)] == piece, "what was packed comes back"

    def _pack(self, piece: memoryview) -> list[Any]:
        return self._packer.pack(piece, self._width, self._scratch[: len(piece)])

    def rows(self, number: int, title: str) -> list[Row]:
        sides = (OURS, *self._zstd)
        stored = {side: sum(map(len, frames)) for side, frames in self._frames.items()}
        stored[OURS] = sum(map(len, self._packed))
        ratio = Row(
            f"ratio-{number}",
            f"{title}: what is left",
            "%",
            tuple(Series(side, (100 * stored[side] / self._size,)) for side in sides),
            tuple(Target(OURS, side, 1.0, Bound.AT_MOST) for side in self._zstd),
        )
        note = "one thread, by its CPU time"
        wanted = tuple(Target(OURS, side) for side in self._zstd)
        packing = {
            OURS: self._rate(lambda: [self._pack(piece) for piece in self._pieces]),
            **{side: self._rate(_each(one.compress, self._pieces)) for side, one in self._zstd.items()},
        }
        unpacking = {
            OURS: self._rate(self._unpack),
            **{side: self._rate(_each(self._back.decompress, frames)) for side, frames in self._frames.items()},
        }
        return [
            ratio,
            Row(f"pack-{number}", f"{title}: packing", "GB/s", alternate(packing, self._repeats), wanted, note),
            Row(f"unpack-{number}", f"{title}: unpacking", "GB/s", alternate(unpacking, self._repeats), wanted, note),
        ]

    def _unpack(self) -> None:
        for piece, packed in zip(self._pieces, self._packed, strict=True):
            self._unpacker.unpack(packed, self._width, self._target[: len(piece)])

    def _rate(self, work: Callable[[], object]) -> Callable[[], float]:
        def measured() -> float:
            start = time.thread_time()
            work()
            return self._size / GB / (time.thread_time() - start)

        return measured


def _each(work: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], object]:
    return lambda: [work(item) for item in items]


# ---- whole checkpoints -----------------------------------------------------------------------------------------------


def whole_rows(directory: Path, state: Mapping[str, State], repeats: int) -> list[Row]:
    """Save and load, by wall time: each save is of values that no earlier one had."""
    flat = {f"{kind}.{name}": value for kind, tensors in state.items() for name, value in tensors.items()}
    url = f"sqlite://{directory}/volume.db"
    disks = [f"disk://{directory}/disk{number}" for number in range(6)]
    format_volume(url, disks, code=parse_code("rs:4+2"), durability=Durability.SSD, name="bench")
    size = sum(value.nbytes for value in flat.values())
    step = 0
    stored: dict[str, list[float]] = {way: [] for way in WAYS}
    with FileSystem.at(url, purpose="bench") as volume:
        managers = {way: CheckpointManager(volume, f"runs/{way}", compression=way, keep_last=1) for way in WAYS}

        def saving(way: str) -> float:
            nonlocal step
            step += 1
            changed = {name: value.roll(step) for name, value in flat.items()}
            start = time.perf_counter()
            saved = managers[way].save(step, changed)
            seconds = time.perf_counter() - start
            stored[way].append(100 * saved.stored_bytes / size)
            return size / GB / seconds

        def loading(way: str) -> float:
            start = time.perf_counter()
            managers[way].load(into=flat)
            return size / GB / (time.perf_counter() - start)

        try:
            saves = alternate({way: lambda way=way: saving(way) for way in WAYS}, repeats)  # type: ignore[misc]
            loads = alternate({way: lambda way=way: loading(way) for way in WAYS}, repeats)  # type: ignore[misc]
        finally:
            for manager in managers.values():
                manager.close()
    against = tuple(Target(way, "none") for way in WAYS if way != "none")
    left = tuple(Series(way, tuple(stored[way][-repeats:])) for way in WAYS)
    note = "sync, durability ssd; of the state's bytes, whatever is stored of them"
    return [
        Row("stored", "the whole state: what is left", "%", left, against),
        Row("save", "the whole state: save", "GB/s", saves, against, note),
        Row("load", "the whole state: load, verified, page cache warm", "GB/s", loads, against),
    ]


# ---- the program -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compression of a trained state beside plain zstd.")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--repeat", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is measured")
    parser.add_argument("--name", default="compression", help="of the file in bench/results")
    chosen = parser.parse_args(argv)
    state = trained(chosen.steps, lambda line: print(f"  {line}", file=sys.stderr))
    size = sum(value.nbytes for tensors in state.values() for value in tensors.values())
    assert size >= STATE_BYTES_MIN, "enough for `auto` to learn the pace"
    rows = [
        row
        for number, (kind, tensors) in enumerate(state.items())
        for row in Kind(tensors, chosen.repeat).rows(number, kind)
    ]
    with workspace(chosen.dir, "tieredfs-bench-") as (directory, _):
        found = machine.facts(directory)
        rows += whole_rows(directory, state, chosen.repeat)
    settings: dict[str, Any] = {"steps": chosen.steps, "repeats": chosen.repeat, "size_bytes": size, "code": "rs:4+2"}
    write_json(RESULTS / f"{chosen.name}.json", document(chosen.name, found, settings, rows))
    print_table(f"State of {size // MIB} MiB after {chosen.steps} steps, {chosen.repeat} round(s), alternating", rows)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
