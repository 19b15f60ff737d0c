"""How fast metadata is: operations per second on one SQLite file, by one thread and by several processes.

    python bench/metadata.py [--files 20000] [--processes 4] [--directory /tmp] [--json out.json]

One table for people, and with `--json` the same numbers for programs. Each figure is the median of `--rounds` rounds,
each on a fresh volume. A create is what the mount does for a small file: `create` and then `publish`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier

from rich.console import Console
from rich.table import Table

from tieredfs.host import SystemClock
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.limits import PACK_FILES_MAX
from tieredfs.meta.metadata import Creation, Metadata, format_volume
from tieredfs.model import (
    NOBODY,
    ROOT,
    Block,
    CacheId,
    ChunkLocation,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    Extent,
    FileKind,
    InodeId,
    SessionId,
    StoredContent,
    VolumeConfig,
)

CODE = Code(CodeKind.REED_SOLOMON, 4, 2)
FILE_BYTES = 4096


def make_volume(path: str) -> Metadata:
    engine = SqliteEngine(path, create=True)
    disks = [Disk(DiskId(n), f"u{n}", f"disk:///d{n}", f"domain-{n}", DiskState.ACTIVE) for n in range(1, 7)]
    format_volume(engine, VolumeConfig("uuid", "bench", 1, 1, CODE, 64 << 20, Durability.SSD), disks)
    metadata = Metadata(engine, SystemClock())
    metadata.register_cache("cache", "host", "/cache")
    return metadata


def create(metadata: Metadata, directory: InodeId, names: Sequence[bytes]) -> list[InodeId]:
    creation = Creation(FileKind.REGULAR, 0o644, 0, 0, staged_in=CacheId(1))
    inodes = []
    for name in names:
        inode = metadata.create(directory, name, creation).inode
        metadata.publish(inode, 1, FILE_BYTES, time.time_ns())
        inodes.append(inode)
    return inodes


def store(metadata: Metadata, inodes: Sequence[InodeId], session: SessionId) -> None:
    """Drain everything in blocks of as many small files as one holds."""
    chunks = tuple(ChunkLocation(index, DiskId(index + 1), 0) for index in range(CODE.width))
    for start in range(0, len(inodes), PACK_FILES_MAX):
        batch = inodes[start : start + PACK_FILES_MAX]
        number = metadata.reserve_block(session)
        contents = [
            StoredContent(inode, 1, FILE_BYTES, 0, (Extent(0, FILE_BYTES, number, place * FILE_BYTES),), True)
            for place, inode in enumerate(batch)
        ]
        size = len(batch) * FILE_BYTES
        metadata.commit_stored(contents, [Block(number, CODE, size, size // 4, chunks)])


def one_thread(path: str, count: int) -> dict[str, float]:
    """Operations per second of each kind."""
    metadata = make_volume(path)
    session = metadata.open_session("host", os.getpid(), "bench").session
    directory = metadata.create(ROOT, b"directory", Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
    names = [b"file-%06d" % number for number in range(count)]
    rates: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], operations: int = count) -> None:
        start = time.perf_counter()
        work()
        rates[name] = operations / (time.perf_counter() - start)

    inodes: list[InodeId] = []
    timed("create + publish", lambda: inodes.extend(create(metadata, directory, names)))
    timed("lookup", lambda: [metadata.lookup(directory, name) for name in names])
    timed("attributes", lambda: [metadata.attributes(inode) for inode in inodes])
    timed("list_directory_plus, entries", lambda: metadata.list_directory_plus(directory, b"", count))
    timed("commit_stored, files", lambda: store(metadata, inodes, session))
    timed("unlink", lambda: [metadata.unlink(directory, name, NOBODY) for name in names])
    timed("sync after one change", lambda: change_and_sync(metadata, 100), 100)
    return rates


def change_and_sync(metadata: Metadata, times: int) -> None:
    for _ in range(times):
        metadata.set_xattr(ROOT, b"user.bench", b"x")
        metadata.sync()


def _create_in_process(path: str, number: int, count: int, ready: Barrier) -> None:
    metadata = Metadata(SqliteEngine(path), SystemClock())
    directory = metadata.create(ROOT, b"directory-%d" % number, Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
    ready.wait(60)
    create(metadata, directory, [b"file-%06d" % file for file in range(count)])
    ready.wait(600)


def several_processes(path: str, processes: int, count: int) -> dict[str, float]:
    """Creates per second by all of them together, each in a directory of its own."""
    make_volume(path)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    workers = [
        context.Process(target=_create_in_process, args=(path, number, count // processes, ready))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    ready.wait(60)
    start = time.perf_counter()
    ready.wait(600)
    elapsed = time.perf_counter() - start
    for worker in workers:
        worker.join(60)
    return {f"create + publish, {processes} processes": count // processes * processes / elapsed}


def measured(directory: str, count: int, processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tieredfs-bench-", dir=directory) as place:
        alone = one_thread(os.path.join(place, "one.db"), count)
        together = several_processes(os.path.join(place, "many.db"), processes, count)
    return alone | together


def main() -> None:
    parser = argparse.ArgumentParser(description="Operations per second of TieredFS metadata on SQLite.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where the database files are made")
    parser.add_argument("--json", help="write the medians here, too")
    options = parser.parse_args()
    rounds = [measured(options.directory, options.files, options.processes) for _ in range(options.rounds)]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}

    table = Table(
        "operation", "per second", "us each", title=f"{options.files} files, {options.rounds} rounds, medians"
    )
    for name, rate in medians.items():
        table.add_row(name, f"{rate:,.0f}", f"{1e6 / rate:,.1f}")
    Console().print(table)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"files": options.files, "rounds": options.rounds, "per_second": medians}, file, indent=1)


if __name__ == "__main__":
    main()
