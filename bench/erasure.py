"""Our encoder against the bare ISA-L call and PyEClib, and blocks on disks against plain files.

    python bench/erasure.py [--rounds 9] [--folder /tmp] [--no-save]

Writes bench/results/erasure.json and erasure.png. Everything compared runs alternately in one process, after a warm-up,
on memory that was touched before; numbers are medians. Cold reads drop the page cache first (needs root; else warm).

PyEClib allocates its fragments with malloc. Nothing else being kept, the heap is given back to the kernel and touched
anew with each call ("PyEClib encode"); while other fragments are kept, as they are for decoding, it is recycled, and
the same call is two to three times as fast ("heap kept").
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from pyeclib.ec_iface import ECDriver

from tieredfs.block.loans import BlockLoans
from tieredfs.block.store import BlockStore
from tieredfs.chunk.directory import DiskIdentity, chunk_path, format_disk
from tieredfs.chunk.disk import open_store
from tieredfs.chunk.store import ChunkName
from tieredfs.host import isal, local_host
from tieredfs.host.buffers import BufferPool
from tieredfs.limits import CHUNK_HEADER_BYTES, MIB
from tieredfs.meta.metadata import Metadata
from tieredfs.model import (
    Block,
    BlockId,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    SessionId,
    VolumeConfig,
)

BLOCK_BYTES = 64 * MIB
BLOCK_COUNT = 8
READ_WAIT_S = 60.0
RESULTS = Path(__file__).parent / "results"
CODES = ((4, 2), (9, 6))


@dataclass
class Measure:
    """Seconds of each contender, per round, for `size_bytes` of content."""

    title: str
    size_bytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    """Contender: the least that ours may be of it (speed over speed)."""

    def gb_per_s(self, name: str) -> float:
        return self.size_bytes / statistics.median(self.seconds[name]) / 1e9

    def spread(self, name: str) -> tuple[float, float]:
        rates = sorted(self.size_bytes / seconds / 1e9 for seconds in self.seconds[name])
        return rates[0], rates[-1]

    def ratio(self, name: str) -> float:
        return self.gb_per_s("tieredfs") / self.gb_per_s(name)


def alternate(measure: Measure, contenders: dict[str, Callable[[], float | None]], rounds: int) -> Measure:
    """Run all contenders in turn, one warm-up round first. A contender that returns seconds has timed itself."""
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            own = run()
            taken = time.perf_counter() - start if own is None else own
            if turn:
                measure.seconds.setdefault(name, []).append(taken)
    return measure


# ---- codes in memory -------------------------------------------------------------------------------------------------


class Stripe:
    """A 64 MiB block's chunks in touched, page-aligned memory, and their addresses."""

    def __init__(self, whole: memoryview, k: int, m: int) -> None:
        self.k, self.m = k, m
        self.length = BLOCK_BYTES // k // 4096 * 4096
        self.content = random.Random(1).randbytes(k * self.length)
        whole[:] = bytes(len(whole))
        whole[: k * self.length] = self.content
        start = isal.address_of(whole)
        self.pointers = [start + at * self.length for at in range(k + m)]
        self.encoder = isal.encoder(k, m)
        self.sources = list(range(m, k + m))
        """What is left after the loss of the first m chunks."""
        self.wanted = list(range(min(k, m)))
        self.encoder.encode(self.pointers[:k], self.pointers[k:], self.length)

    def encode(self) -> None:
        self.encoder.encode(self.pointers[: self.k], self.pointers[self.k :], self.length)

    def decode(self) -> None:
        sources = [self.pointers[index] for index in self.sources]
        targets = [self.pointers[index] for index in self.wanted]
        self.encoder.decode(self.sources, sources, self.wanted, targets, self.length)

    def bare(self, tables: ctypes.Array[ctypes.c_char], inputs: list[int], outputs: list[int]) -> Callable[[], None]:
        """The C call alone, with everything it takes prepared."""
        call = ctypes.CDLL(isal.library_path()).ec_encode_data
        call.restype = None
        sources, targets = (ctypes.c_void_p * len(inputs))(*inputs), (ctypes.c_void_p * len(outputs))(*outputs)
        arguments = (self.length, len(inputs), len(outputs), tables, sources, targets)
        return lambda: call(*arguments)


def measure_code(k: int, m: int, rounds: int) -> Iterator[Measure]:
    pool = BufferPool((k + m) * (BLOCK_BYTES // k + 4096), 1)
    driver = ECDriver(k=k, m=m, ec_type="isa_l_rs_cauchy")
    with pool.lend(1) as whole:
        stripe = Stripe(whole, k, m)
        tables = stripe.encoder._encode.tables  # noqa: SLF001 - the bare call is measured with our own tables
        encode = partial_encode(driver, stripe.content)
        bare = stripe.bare(tables, stripe.pointers[:k], stripe.pointers[k:])
        yield alternate(
            Measure(f"encode {k}+{m}", len(stripe.content), targets={"bare ISA-L": 0.85, "PyEClib encode": 15}),
            {"tieredfs": stripe.encode, "bare ISA-L": bare, "PyEClib encode": encode},
            rounds,
        )
        lost = [stripe.pointers[index] for index in stripe.wanted]
        left = [stripe.pointers[index] for index in stripe.sources]
        decoder = stripe.encoder._decoder(tuple(stripe.sources), tuple(stripe.wanted))  # noqa: SLF001
        fragments = driver.encode(stripe.content)[m:]
        yield alternate(
            Measure(
                f"decode {k}+{m}, {m} lost",
                len(stripe.content),
                targets={"bare ISA-L": 0.85, "PyEClib encode, heap kept": 15},
            ),
            {
                "tieredfs": stripe.decode,
                "bare ISA-L": stripe.bare(decoder.tables, left, lost),
                "PyEClib decode": lambda: void(driver.decode(fragments)),
                "PyEClib encode, heap kept": encode,
            },
            rounds,
        )
        assert bytes(whole[: k * stripe.length]) == stripe.content, "what was decoded is what was encoded"


def partial_encode(driver: ECDriver, content: bytes) -> Callable[[], None]:
    return lambda: void(driver.encode(content))


def void(_: object) -> None:
    return None


# ---- blocks on disks -------------------------------------------------------------------------------------------------


class OneSession:
    """The few methods of metadata that the block store uses, in memory."""

    def __init__(self, code: Code) -> None:
        self._config = VolumeConfig("bench", "bench", 1, 0, code, BLOCK_BYTES, Durability.STORE)
        self._next = 0
        self._lock = threading.Lock()

    def config(self) -> VolumeConfig:
        return self._config

    def code(self) -> Code:
        return self._config.code

    def reserve_block(self, session: SessionId) -> BlockId:
        del session
        with self._lock:
            self._next += 1
            return BlockId(self._next)

    def release_reservation(self, block: BlockId) -> None:
        del block


class Bench:
    """Six disks in directories of one file system, and plain files beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = local_host()
        self.disks = {}
        for number in range(1, 7):
            path = folder / f"d{number}"
            format_disk(host, str(path), DiskIdentity("bench", str(number)))
            disk = Disk(DiskId(number), str(number), f"disk://{path}", f"d{number}", DiskState.ACTIVE)
            self.disks[disk.disk] = disk, open_store(disk, "bench", host)
        metadata = cast(Metadata, OneSession(Code(CodeKind.REED_SOLOMON, 4, 2)))
        self.store = BlockStore(metadata, SessionId(1), dict(self.disks), host, buffer_count=2)
        self.data = random.Random(1).randbytes(BLOCK_BYTES)
        self._lent = BufferPool(BLOCK_BYTES, 1).lend(1)
        self.target = self._lent.__enter__()
        self.loans = BlockLoans(BufferPool(BLOCK_BYTES, 1))
        self.source = folder / "source"
        self.source.write_bytes(self.data + self.data[: BLOCK_BYTES // 2])

    def close(self) -> None:
        self._lent.__exit__(None, None, None)
        self.store.close()
        for _, store in self.disks.values():
            store.close()

    def write_blocks(self, threads: int, count: int = BLOCK_COUNT) -> list[Block]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda _: self.write_block(), range(count)))

    def write_block(self) -> Block:
        with self.store.lend(60) as buffer:
            buffer.data[:] = self.data  # the copy stands for the drain's read of the staged file
            return self.store.write(buffer, BLOCK_BYTES)

    def timed_write(self, threads: int) -> float:
        start = time.perf_counter()
        blocks = self.write_blocks(threads)
        taken = time.perf_counter() - start
        for block in blocks:
            self.store.delete(block)
        return taken

    def timed_copy(self) -> float:
        """`cp` and fsync of the same 1.5 x bytes, one file after another."""
        start = time.perf_counter()
        for at in range(BLOCK_COUNT):
            path = self.folder / f"copy{at}"
            shutil.copyfile(self.source, path)
            sync(path)
        taken = time.perf_counter() - start
        for at in range(BLOCK_COUNT):
            (self.folder / f"copy{at}").unlink()
        return taken

    def paths(self, block: Block) -> list[str]:
        """Of the data chunks."""
        return [
            chunk_path(str(self.folder / f"d{location.disk}"), ChunkName(block.block, location.index))
            for location in block.chunks[:4]
        ]

    def timed_read(self, blocks: list[Block], *, cold: bool) -> float:
        prepare(cold)
        start = time.perf_counter()
        for block in blocks:
            with self._reading(block):
                pass
        taken = time.perf_counter() - start
        with self._reading(blocks[-1]) as content:
            assert content == self.data
        return taken

    def _reading(self, block: Block) -> AbstractContextManager[memoryview]:
        return self.store.reading(block, 0, block.size_bytes, self.loans, READ_WAIT_S)

    def timed_preads(self, blocks: list[Block], threads: int, *, cold: bool) -> float:
        """The same bytes with preads of 1 MiB into the same memory; `threads` files at a time."""
        prepare(cold)
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for block in blocks:
                length = block.chunk_bytes
                parts = [self.target[at * length : (at + 1) * length] for at in range(4)]
                list(pool.map(preads, self.paths(block), parts))
        return time.perf_counter() - start


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def preads(path: str, target: memoryview) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    for at in range(0, len(target), MIB):
        os.preadv(descriptor, [target[at : at + MIB]], CHUNK_HEADER_BYTES + at)
    os.close(descriptor)


def prepare(cold: bool) -> None:
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")


def measure_store(folder: Path, rounds: int) -> Iterator[Measure]:
    bench = Bench(folder)
    size = BLOCK_COUNT * BLOCK_BYTES
    plain = "cp + fsync of 1.5 x bytes"
    yield alternate(
        Measure("write blocks 4+2, two at a time", size, targets={plain: 0.6}),
        {
            "tieredfs": lambda: bench.timed_write(2),
            "tieredfs, one at a time": lambda: bench.timed_write(1),
            plain: bench.timed_copy,
        },
        rounds,
    )
    cold = os.access("/proc/sys/vm/drop_caches", os.W_OK)
    blocks = bench.write_blocks(2)
    yield measure_read(bench, f"read blocks 4+2, {'cold' if cold else 'warm'}", blocks, 0.6, rounds, cold=cold)
    lose(bench, blocks)
    title = f"read blocks 4+2, {'cold' if cold else 'warm'}, two data chunks lost"
    yield measure_read(bench, title, blocks, 0.4, rounds, cold=cold)
    bench.close()


def measure_read(bench: Bench, title: str, blocks: list[Block], target: float, rounds: int, *, cold: bool) -> Measure:
    """Against plain preads of four chunks of the same size: those of a healthy copy where some are lost."""
    healthy = blocks if all(os.path.exists(path) for path in bench.paths(blocks[0])) else bench.write_blocks(2)
    measure = Measure(title, len(blocks) * BLOCK_BYTES, targets={"plain preads": target})
    contenders: dict[str, Callable[[], float | None]] = {
        "tieredfs": lambda: bench.timed_read(blocks, cold=cold),
        "plain preads": lambda: bench.timed_preads(healthy, 1, cold=cold),
        "plain preads, 4 threads": lambda: bench.timed_preads(healthy, 4, cold=cold),
    }
    return alternate(measure, contenders, rounds)


def lose(bench: Bench, blocks: list[Block]) -> None:
    for block in blocks:
        for path in bench.paths(block)[:2]:
            os.unlink(path)
    for _, store in bench.disks.values():
        store.close()  # descriptors of deleted files would still read them


# ---- report ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "?")  # noqa: SIM115
    packages = {name: importlib.metadata.version(name) for name in ("pyeclib", "google-crc32c")}
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        **packages,
    }


def print_table(measures: list[Measure]) -> None:
    print(f"{'measure':44} {'contender':28} {'GB/s':>7} {'spread':>13} {'ours/it':>8} {'target':>7}")
    for measure in measures:
        for name in measure.seconds:
            low, high = measure.spread(name)
            target = measure.targets.get(name)
            verdict = "" if target is None else f"{target:7.2f} {'ok' if measure.ratio(name) >= target else 'MISSED'}"
            rate = f"{measure.gb_per_s(name):7.2f} {low:6.2f}-{high:<6.2f}"
            print(f"{measure.title:44} {name:28} {rate} {measure.ratio(name):8.2f} {verdict}")


def save(measures: list[Measure]) -> None:
    RESULTS.mkdir(exist_ok=True)
    report = {
        "machine": machine(),
        "measures": [
            {
                **asdict(measure),
                "gb_per_s": {name: measure.gb_per_s(name) for name in measure.seconds},
                "ratio": {name: measure.ratio(name) for name in measure.seconds},
            }
            for measure in measures
        ],
    }
    (RESULTS / "erasure.json").write_text(json.dumps(report, indent=1) + "\n")


def draw(measures: list[Measure]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = -(-len(measures) // 2)
    figure, axes = pyplot.subplots(2, columns, figsize=(3.4 * columns, 7), layout="constrained")
    for axis in axes.flat[len(measures) :]:
        axis.remove()
    for axis, measure in zip(axes.flat, measures, strict=False):
        names = list(measure.seconds)
        rates = [measure.gb_per_s(name) for name in names]
        errors = [[rate - measure.spread(name)[0] for name, rate in zip(names, rates, strict=True)]]
        errors.append([measure.spread(name)[1] - rate for name, rate in zip(names, rates, strict=True)])
        axis.bar(names, rates, yerr=errors, color=["#c2452d", "#3b6ea5", "#7f8c8d", "#b0b7bc"][: len(names)], capsize=3)
        axis.set_title(measure.title, fontsize=9, wrap=True)
        axis.set_ylabel("GB/s of content")
        axis.tick_params(axis="x", rotation=30, labelsize=8)
    figure.savefig(RESULTS / "erasure.png", dpi=110)


@contextmanager
def scratch_folder(parent: str) -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="tieredfs-erasure-", dir=parent)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the six disks are made")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    measures = [measure for k, m in CODES for measure in measure_code(k, m, 3 * options.rounds)]
    with scratch_folder(options.folder) as folder:
        measures.extend(measure_store(folder, max(3, options.rounds // 2)))
    print_table(measures)
    if not options.no_save:
        save(measures)
        draw(measures)


if __name__ == "__main__":
    main()
