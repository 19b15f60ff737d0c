"""How fast metadata is: operations per second on one SQLite file, by one thread and by several processes; and, with
`--server`, in a PostgreSQL database, round by round in turn with it.

    python bench/metadata.py [--files 20000] [--processes 4] [--directory /tmp] [--json out.json]
                             [--server postgresql://user@host/database]

One table for people, and with `--json` the same numbers for programs. Each figure is the median of `--rounds` rounds,
each on a fresh volume (in the database: in a schema of its own, which is dropped). A create is what the mount does for a
small file: `create` and then `publish`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Barrier

from rich.console import Console
from rich.table import Table

from tieredfs.config import PostgresUrl, SqliteUrl, parse_meta_url
from tieredfs.errors import ConfigurationError
from tieredfs.host import SystemClock
from tieredfs.kv.databases import create_engine, open_engine, remove_database
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


def make_volume(url: str) -> Metadata:
    engine = create_engine(parse_meta_url(url))
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


def one_thread(url: str, count: int) -> dict[str, float]:
    """Operations per second of each kind."""
    metadata = make_volume(url)
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


def _create_in_process(url: str, number: int, count: int, ready: Barrier) -> None:
    metadata = Metadata(open_engine(parse_meta_url(url)), SystemClock())
    directory = metadata.create(ROOT, b"directory-%d" % number, Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
    ready.wait(60)
    create(metadata, directory, [b"file-%06d" % file for file in range(count)])
    ready.wait(600)


def several_processes(url: str, processes: int, count: int) -> dict[str, float]:
    """Creates per second by all of them together, each in a directory of its own."""
    make_volume(url)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    workers = [
        context.Process(target=_create_in_process, args=(url, number, count // processes, ready))
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


def on_file(directory: str, count: int, processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tieredfs-bench-", dir=directory) as place:
        alone = one_thread(str(SqliteUrl(os.path.join(place, "one.db"))), count)
        together = several_processes(str(SqliteUrl(os.path.join(place, "many.db"))), processes, count)
    return alone | together


def on_server(server: PostgresUrl, count: int, processes: int) -> dict[str, float]:
    with schema_of(server, "one") as one, schema_of(server, "many") as many:
        return one_thread(one, count) | several_processes(many, processes, count)


@contextmanager
def schema_of(server: PostgresUrl, name: str) -> Iterator[str]:
    """The URL of a schema for one volume."""
    url = replace(server, schema=f"bench_{name}_{os.getpid()}")
    try:
        yield str(url)
    finally:
        remove_database(url)


def parse_server(text: str) -> PostgresUrl:
    url = parse_meta_url(text)
    if not isinstance(url, PostgresUrl):
        raise ConfigurationError(f"--server {text}: a postgresql:// URL")
    return url


def show(console: Console, title: str, sides: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By side, the median rate of each operation."""
    medians = {
        side: {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
        for side, rounds in sides.items()
    }
    table = Table(
        "operation", *(f"{side}, {unit}" for side in sides for unit in ("per second", "us each")), title=title
    )
    for name in next(iter(medians.values())):
        rates = [found[name] for found in medians.values()]
        table.add_row(name, *(text for rate in rates for text in (f"{rate:,.0f}", f"{1e6 / rate:,.1f}")))
    console.print(table)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description="Operations per second of TieredFS metadata.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where the database files are made")
    parser.add_argument("--server", type=parse_server, help="a PostgreSQL database to measure, too (postgresql://...)")
    parser.add_argument("--json", help="write the medians here, too")
    options = parser.parse_args()
    sides: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        sides.setdefault("SQLite", []).append(on_file(options.directory, options.files, options.processes))
        if options.server is not None:
            sides.setdefault("PostgreSQL", []).append(on_server(options.server, options.files, options.processes))
    title = f"{options.files} files, {options.rounds} rounds, medians"
    medians = show(Console(), title, sides)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"files": options.files, "rounds": options.rounds, "per_second": medians}, file, indent=1)


if __name__ == "__main__":
    main()
