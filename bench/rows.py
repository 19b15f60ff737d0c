"""The rows of the mount's benchmark: which workload runs on which sides, and what ratio is wanted.

A group is a function that makes one or more rows from one preparation. Its files are deleted before it returns, because
the disk is shared and thirty GiB are the most that a run may hold at once. Rates are of the file's bytes (GB/s = 10^9).
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import machine, workloads
from bench.report import Bound, Row, Series, Target, alternate
from bench.targets import MountedTarget, TieredTarget

GB: Final = 1e9
MIB: Final = 1 << 20
EXT4, OURS, RIVAL, DISKS, CEILING = "plain", "tieredfs", "juicefs", "six disks", "ceiling"
SMALL_OPERATIONS: Final = {
    "create": workloads.create_small,
    "stat": workloads.stat_small,
    "read": workloads.read_small,
    "readdir": workloads.list_small,
    "unlink": workloads.unlink_small,
}
SMALL_TITLES: Final = {
    "create": "create + write 4 KiB",
    "stat": "stat",
    "read": "open + read 4 KiB",
    "readdir": "readdir",
    "unlink": "unlink",
}


class RowError(Exception):
    """The row could not be measured as it promises; it is reported and the run goes on."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every group works with. `targets` are started, `plain` is always the first."""

    targets: tuple[MountedTarget, ...]
    directory: Path
    size_bytes: int
    small_count: int
    random_count: int
    stream_bytes: int
    memory_bytes: int
    repeats: int
    say: Callable[[str], None]
    make_tiered: Callable[[Path, str], TieredTarget]
    """A further TieredFS volume below a directory, with a cache of that size."""
    workers: list[workloads.Workers] = field(default_factory=list)

    def sides(self, *names: str) -> list[MountedTarget]:
        return [target for target in self.targets if target.name in names]

    def crew(self) -> workloads.Workers:
        """The worker processes: made when first needed, ended with the run."""
        if not self.workers:
            self.workers.append(workloads.Workers())
        return self.workers[0]

    def dismiss(self) -> None:
        for crew in self.workers:
            crew.close()
        self.workers.clear()

    def series(self, targets: Sequence[MountedTarget], measure: Callable[[MountedTarget], float]) -> tuple[Series, ...]:
        """`measure` in turn on every target; each begins and ends with nothing going on behind it."""

        def quiet(target: MountedTarget) -> Callable[[], float]:
            def run() -> float:
                os.sync()
                value = measure(target)
                target.settle()
                return value

            return run

        return alternate({target.name: quiet(target) for target in targets}, self.repeats, progress=self.say)


def against_both(ratio: float) -> tuple[Target, ...]:
    return (Target(OURS, EXT4, ratio), Target(OURS, RIVAL, 5.0), Target(RIVAL, EXT4))


def against_plain(ratio: float) -> tuple[Target, ...]:
    return (Target(OURS, EXT4, ratio),)


# ---- one large file ----------------------------------------------------------------------------------------------


def write_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    def measure(target: MountedTarget, until_on_disk: bool) -> float:
        path = target.root / "write.bin"
        seconds = workloads.write_file(path, bench.size_bytes) + (workloads.sync_all() if until_on_disk else 0.0)
        path.unlink()
        return bench.size_bytes / seconds / GB

    sides = bench.sides(EXT4, OURS, RIVAL)
    if "write" in wanted:
        series = bench.series(sides, lambda target: measure(target, False))
        note = "new file, 1 MiB writes, fsync and close counted"
        yield Row("write", "sequential write + fsync", "GB/s", series, against_both(0.95), note)
    if "write-disk" in wanted:
        series = bench.series(sides, lambda target: measure(target, True))
        yield Row("write-disk", "the same until it is on the disk", "GB/s", series, against_both(0.95), ON_DISK_NOTE)


ON_DISK_NOTE: Final = (
    "sync(2) after the fsync is counted: JuiceFS does not fsync its objects in file storage, "
    "so that its fsync returns while they are in memory only"
)


@contextlib.contextmanager
def prepared(targets: Sequence[MountedTarget], name: str, size_bytes: int) -> Iterator[None]:
    """The same file on each target, written, stored and at rest; removed in the end."""
    try:
        for target in targets:
            workloads.write_file(target.root / name, size_bytes)
            target.settle()
        yield
    finally:
        for target in targets:
            (target.root / name).unlink(missing_ok=True)


def read_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    rate = bench.size_bytes / GB

    def cold(target: MountedTarget) -> float:
        path = target.root / "read.bin"
        machine.drop_page_cache([path])
        return rate / workloads.read_file(path)

    def warm(target: MountedTarget) -> float:
        path = target.root / "read.bin"
        workloads.read_file(path)
        return rate / workloads.read_file(path)

    def mapped(target: MountedTarget) -> float:
        path = target.root / "read.bin"
        workloads.read_file(path)
        return rate / workloads.read_mapped(path)

    both, all_sides = bench.sides(EXT4, OURS), bench.sides(EXT4, OURS, RIVAL)
    with prepared(all_sides, "read.bin", bench.size_bytes):
        if "cold" in wanted:
            series = bench.series(all_sides, cold)
            yield Row(
                "cold", "sequential read, page cache cold", "GB/s", series, against_both(0.95), "resident on the SSD"
            )
        if "warm" in wanted:
            yield Row("warm", "sequential read, warm", "GB/s", bench.series(all_sides, warm), against_both(0.95))
        if "mmap" in wanted:
            yield Row(
                "mmap",
                "mmap read, warm",
                "GB/s",
                bench.series(both, mapped),
                against_plain(0.95),
                "copied out of the mapping",
            )


RANDOM_NOTES: Final = {
    "random-read-buffered": "page cache warm: the cost of the call",
    "random-write-buffered": "fdatasync at the end is counted",
    "random-write-direct": "fdatasync at the end is counted",
}


def random_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    targets = bench.sides(EXT4, OURS)
    with prepared(targets, "random.bin", bench.size_bytes):
        for key in (key for key in RANDOM_KEYS if key in wanted):
            yield _random_row(bench, key, targets)


def _random_row(bench: Bench, key: str, targets: Sequence[MountedTarget]) -> Row:
    work = workloads.read_randomly if "read" in key else workloads.write_randomly
    direct = key.endswith("direct")
    # A call that the page cache answers takes a microsecond: more of them, or the clock is what is measured.
    count = bench.random_count * (5 if key == "random-read-buffered" else 1)

    def measure(target: MountedTarget) -> float:
        path = target.root / "random.bin"
        if not direct:
            workloads.read_file(path)
        return count / work(path, count, direct)

    title = f"4 KiB random {'read' if 'read' in key else 'write'}, {'O_DIRECT' if direct else 'buffered'}"
    return Row(key, title, "op/s", bench.series(targets, measure), against_plain(0.9), RANDOM_NOTES.get(key, ""))


RANDOM_KEYS: Final = ("random-read-direct", "random-read-buffered", "random-write-direct", "random-write-buffered")


# ---- eight processes ---------------------------------------------------------------------------------------------


def parallel_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    targets, crew = bench.sides(EXT4, OURS), bench.crew()
    each = bench.size_bytes // crew.count
    rate = each * crew.count / GB

    def paths(target: MountedTarget) -> list[Path]:
        return [target.root / f"parallel-{index}.bin" for index in range(crew.count)]

    def remove(target: MountedTarget) -> None:
        for path in paths(target):
            path.unlink(missing_ok=True)

    def write(target: MountedTarget) -> float:
        seconds = crew.run(workloads.write_file, paths(target), each)
        remove(target)
        return rate / seconds

    def read(target: MountedTarget) -> float:
        machine.drop_page_cache(paths(target))
        return rate / crew.run(workloads.read_whole, paths(target), each)

    try:
        if "parallel-write" in wanted:
            yield Row(
                "parallel-write", "8 processes write 8 files", "GB/s", bench.series(targets, write), against_plain(0.9)
            )
        if "parallel-read" in wanted:
            for target in targets:
                crew.run(workloads.write_file, paths(target), each)
                target.settle()
            series = bench.series(targets, read)
            yield Row(
                "parallel-read", "8 processes read them back", "GB/s", series, against_plain(0.9), "page cache cold"
            )
    finally:
        for target in targets:
            remove(target)


# ---- torch -------------------------------------------------------------------------------------------------------


def torch_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    targets, size = bench.sides(EXT4, OURS), bench.size_bytes // 2
    workloads.tensors(size)

    def save(target: MountedTarget) -> float:
        path = target.root / "state.pt"
        seconds = workloads.torch_save(path, size)
        path.unlink()
        return size / seconds / GB

    def load(target: MountedTarget) -> float:
        path = target.root / "loaded.pt"
        machine.drop_page_cache([path])
        return size / workloads.torch_load(path) / GB

    if "torch-save" in wanted:
        note = "half the size of the other files; fsync counted"
        yield Row("torch-save", "torch.save + fsync", "GB/s", bench.series(targets, save), against_plain(0.9), note)
    if "torch-load" in wanted:
        try:
            for target in targets:
                workloads.torch_save(target.root / "loaded.pt", size)
                target.settle()
            yield Row(
                "torch-load", "torch.load", "GB/s", bench.series(targets, load), against_plain(0.9), "page cache cold"
            )
        finally:
            for target in targets:
                (target.root / "loaded.pt").unlink(missing_ok=True)
    workloads.tensors.cache_clear()


# ---- the store below ---------------------------------------------------------------------------------------------


def tiered(bench: Bench) -> TieredTarget:
    for target in bench.targets:
        if isinstance(target, TieredTarget):
            return target
    raise RowError("needs tieredfs")


def nonresident_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    target = tiered(bench)
    path = target.root / "stored.bin"
    with prepared([target], path.name, bench.size_bytes):
        if "nonresident" in wanted:
            series = _from_store(bench, target, path)
            yield Row(
                "nonresident",
                "read of a file that is not resident",
                "GB/s",
                series,
                (Target(OURS, DISKS, 0.6),),
                STORE_NOTE,
            )
        if "degraded" in wanted:
            # Resident again before the disks go: what is measured must be the read, not an open that fails.
            with target.disks_away(1, 4):
                series = _from_store(bench, target, path)
            yield Row("degraded", "the same, two disks gone", "GB/s", series, (Target(OURS, DISKS, 0.4),), STORE_NOTE)


STORE_NOTE: Final = (
    "SSD tier and page cache empty; against plain preads of as many bytes from the disk directories' files"
)


def _from_store(bench: Bench, target: TieredTarget, path: Path) -> tuple[Series, ...]:
    rate = bench.size_bytes / GB
    chunks = [file for files in target.chunk_files() for file in files]
    if sum(file.stat().st_size for file in chunks) < bench.size_bytes:
        raise RowError(f"the disks hold less than the file: {len(chunks)} chunk files")

    def through_mount() -> float:
        target.evict(path)
        held = machine.held_bytes(target.directory / "cache")
        if held > bench.size_bytes // 2:
            raise RowError(f"evicted, but the SSD tier still holds {held} bytes")
        machine.drop_page_cache([path, *chunks])
        return rate / workloads.read_file(path)

    def from_disks() -> float:
        machine.drop_page_cache(chunks)
        return rate / workloads.read_spread(chunks, bench.size_bytes)

    return alternate({OURS: through_mount, DISKS: from_disks}, bench.repeats, progress=bench.say)


def drain_rows(bench: Bench, _wanted: frozenset[str]) -> Iterator[Row]:
    target, plain = tiered(bench), bench.sides(EXT4)[0]
    rate = bench.size_bytes / GB
    path, source = target.root / "staged.bin", plain.root / "source.bin"
    copies = [plain.root / f"copy-{index}.bin" for index in range(6)]

    def idle() -> float:
        started = time.perf_counter()
        target.drain(target.root)
        return time.perf_counter() - started

    def drain() -> float:
        path.unlink(missing_ok=True)
        target.settle()
        overhead = idle()
        workloads.write_file(path, bench.size_bytes)  # by itself the mount would begin a second after this close
        started = time.perf_counter()
        target.drain(target.root)
        seconds = time.perf_counter() - started - overhead
        if seconds <= 0:
            raise RowError("the drain ended as soon as one with nothing to do: nothing was staged")
        return rate / seconds

    def copy() -> float:
        workloads.write_file(source, bench.size_bytes)
        seconds = workloads.copy_spread(source, copies, bench.size_bytes // 4)
        for file in (source, *copies):
            file.unlink()
        os.sync()
        return rate / seconds

    try:
        series = alternate({OURS: drain, "copy": copy}, bench.repeats, progress=bench.say)
    finally:
        for file in (path, source, *copies):
            file.unlink(missing_ok=True)
    note = (
        "staged bytes per second; against a copy of 1.5 x the bytes into six files with fsync; "
        "the time of a drain with nothing to do is subtracted"
    )
    yield Row("drain", "drain into the store", "GB/s", series, (Target(OURS, "copy", 0.6),), note)


# ---- small files -------------------------------------------------------------------------------------------------


def small_rows(bench: Bench, wanted: frozenset[str]) -> Iterator[Row]:
    targets = bench.sides(EXT4, OURS, RIVAL)
    rates: dict[str, dict[str, list[float]]] = {
        key: {target.name: [] for target in targets} for key in SMALL_OPERATIONS
    }
    # No warm-up, and two rounds for three: a round is 100,000 operations, and takes JuiceFS three minutes.
    rounds = (bench.repeats + 1) // 2
    for round_index in range(rounds):
        for target in targets:
            bench.say(f"{target.name}, round {round_index + 1} of {rounds}")
            for operation, rate in _small_round(bench, target).items():
                rates[operation][target.name].append(rate)
    names = "dentries and inodes dropped before stat" if machine.can_drop_caches() else "not root: names stay cached"
    note = f"{bench.small_count:,} files in one directory; {names}"
    wants = (Target(OURS, RIVAL, 3.0), Target(OURS, EXT4), Target(RIVAL, EXT4))
    for operation, sides in rates.items():
        series = tuple(Series(side, tuple(values)) for side, values in sides.items())
        row = Row(f"small-{operation}", f"small files: {SMALL_TITLES[operation]}", "op/s", series, wants, note)
        if row.key in wanted:
            yield row


def _small_round(bench: Bench, target: MountedTarget) -> dict[str, float]:
    directory, rates = target.root / "small", {}
    directory.mkdir()
    try:
        for operation, work in SMALL_OPERATIONS.items():
            rates[operation] = bench.small_count / work(directory, bench.small_count)
            if operation == "create":
                target.settle()
                machine.drop_page_cache([], names_too=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return rates


# ---- memory ------------------------------------------------------------------------------------------------------


def memory_rows(bench: Bench, _wanted: frozenset[str]) -> Iterator[Row]:
    """A volume of its own with a cache smaller than what is alive, so that drain, eviction and fill all run at once."""
    tiered(bench)
    crew = bench.crew()
    each = bench.stream_bytes // crew.count
    target = bench.make_tiered(bench.directory / "memory", f"{max(256 * MIB, bench.stream_bytes // 10) // MIB}MiB")
    try:
        target.start()
        roots = target.daemons()
        if not roots:
            raise RowError("no process of the mount was found")
        bench.say(f"8 processes, {bench.stream_bytes / 2**30:.1f} GiB")
        with machine.watch_memory(roots) as peak:
            seconds = crew.run(workloads.stream, [target.root / f"rank-{index}" for index in range(crew.count)], each)
    finally:
        target.stop()
    note = (
        f"anonymous and shared-memory pages of {len(roots)} process(es) and their children, each page once (PSS); "
        f"peak of {peak.samples} samples. RSS with libraries and mapped files: {peak.peak.resident / MIB:.0f} MiB. "
        f"Streamed at {bench.stream_bytes / seconds / GB:.2f} GB/s"
    )
    series = (Series(OURS, (peak.peak.own / MIB,)), Series(CEILING, (bench.memory_bytes / MIB,)))
    yield Row(
        "memory",
        "daemon memory, 8 processes streaming",
        "MiB",
        series,
        (Target(OURS, CEILING, 1.0, Bound.AT_MOST),),
        note,
    )


@dataclass(frozen=True, slots=True)
class Group:
    """`run` yields the rows among `keys` that are wanted."""

    keys: tuple[str, ...]
    run: Callable[[Bench, frozenset[str]], Iterator[Row]]


GROUPS: Final = (
    Group(("write", "write-disk"), write_rows),
    Group(("cold", "warm", "mmap"), read_rows),
    Group(RANDOM_KEYS, random_rows),
    Group(("parallel-write", "parallel-read"), parallel_rows),
    Group(("torch-save", "torch-load"), torch_rows),
    Group(("nonresident", "degraded"), nonresident_rows),
    Group(("drain",), drain_rows),
    Group(tuple(f"small-{operation}" for operation in SMALL_OPERATIONS), small_rows),
    Group(("memory",), memory_rows),
)
KEYS: Final = tuple(key for group in GROUPS for key in group.keys)
