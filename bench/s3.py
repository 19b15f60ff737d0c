"""The S3 endpoint against what lies below it and against other servers, in one run.

    python -m bench.s3 [--rounds 3] [--rows get,put,small,list,copy,memory] [--size 256M] [--keys 100000] [--folder /tmp]

Large transfers are curl's, small ones wrk's, both with requests that were signed before; contenders alternate, and ratios are
formed round by round. Client and server share the machine. What cannot run here is named, and its rows are without it.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import machine, picture
from bench.mount import RESULTS, parse_size
from bench.report import Bound, Row, Series, Target, alternate, document, failures, print_table, write_json
from bench.s3_clients import BUCKET, CONNECTIONS, SMALL_BYTES, Client, Upload, fetch, need
from bench.s3_servers import Server, juicefs, moto, new_volume, plain, tieredfs
from bench.targets import UnavailableTargetError
from bench.workspace import workspace
from tieredfs.config import parse_meta_url
from tieredfs.limits import MIB
from tieredfs.meta.metadata import Creation
from tieredfs.model import FileKind
from tieredfs.volume import FileSystem
from tieredfs.volume.contract import Part
from tieredfs_gateway.s3 import record
from tieredfs_gateway.s3.keystore import AccessKey
from tieredfs_gateway.s3.record import Record

OURS: Final = "tieredfs"
ROWS: Final = ("get", "put", "small", "list", "copy", "memory")
COPIED_BYTES: Final = 5 << 30
COPY_BLOCK_BYTES: Final = 64 * MIB
TRANSFERS: Final = 64
Rate = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rows share."""

    folder: Path
    url: str
    key: AccessKey
    client: Client
    chosen: argparse.Namespace
    stack: ExitStack
    missing: list[str]

    def start(self, opened: "Callable[[], Server]") -> Server | None:
        """A contender, or None and a line that says why not."""
        try:
            return opened()
        except UnavailableTargetError as error:
            self.missing.append(str(error))
            return None

    def measured(self, key: str, title: str, unit: str, sides: dict[str, Rate], targets: tuple[Target, ...]) -> Row:
        return Row(key, title, unit, alternate(sides, self.chosen.rounds, progress=say), targets)


def say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K  {line}", end="\r", file=sys.stderr, flush=True)


def rate(amount: float, work: Callable[[], object]) -> float:
    """Of `amount`, a second."""
    started_s = time.monotonic()
    work()
    return amount / (time.monotonic() - started_s)


def took_ms(work: Callable[[], object]) -> float:
    started_s = time.monotonic()
    work()
    return (time.monotonic() - started_s) * 1e3


# ---- large objects ---------------------------------------------------------------------------------------------------


def get_rows(bench: Bench) -> list[Row]:
    size, big = bench.chosen.size, bench.folder / "big"
    bench.client.put_file(big, "big")
    links = {OURS: bench.client.link("get_object", Key="big")}
    for name in ("granian", "uvicorn"):
        workers = bench.chosen.workers
        server = bench.start(partial(bench.stack.enter_context, plain(bench.folder, name, big, workers)))
        if server is not None:
            links[f"{name}, plain file"] = f"{server.address}/file"
    for _ in range(2):  # into the page cache, and into whichever worker's hands
        fetch(links[OURS], 8)
    targets = (Target(OURS, "granian, plain file", 0.9), Target(OURS, "uvicorn, plain file", 3.0))
    rows = []
    for times in (1, 8):
        sides: dict[str, Rate] = {
            name: partial(rate, times * size / 1e6, partial(fetch, link, times)) for name, link in links.items()
        }
        title = f"GET {size >> 20} MiB, {times} client{'s' if times > 1 else ''}"
        rows.append(bench.measured(f"get-{times}", title, "MB/s", sides, targets))
    return rows


def put_rows(bench: Bench) -> list[Row]:
    size, big = bench.chosen.size, bench.folder / "big"
    sha256 = hashlib.sha256(big.read_bytes()).hexdigest()
    rows = []
    for name, given in (("unsigned", ""), ("signed", sha256)):
        below = f"write + fsync{' + SHA-256' if given else ''}"
        sides: dict[str, Rate] = {
            OURS: partial(rate, size / 1e6, partial(bench.client.put_file, big, "put", given)),
            below: partial(rate, size / 1e6, partial(write_and_hash, big, bench.folder / "written", bool(given))),
        }
        title = f"PUT {size >> 20} MiB, {name} payload"
        rows.append(bench.measured(f"put-{name}", title, "MB/s", sides, (Target(OURS, below, 0.6),)))
    return rows


def write_and_hash(path: Path, target: Path, hashed: bool) -> None:
    """The bytes on the disk, then the checksum that the client asked for. (Ours makes an MD5 too, for the ETag.)"""
    content = path.read_bytes()
    with open(target, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if hashed:
        hashlib.sha256(content).digest()


# ---- small objects and listings --------------------------------------------------------------------------------------


def rivals(bench: Bench, *, with_moto: bool) -> tuple[dict[str, Client], Path | None]:
    """Clients by server, and where JuiceFS's volume is mounted."""
    found, root = {OURS: bench.client}, None
    if with_moto:
        server = bench.start(partial(bench.stack.enter_context, moto(bench.folder, bench.key)))
        if server is not None:
            found["moto"] = Client(server)
    try:
        server, target = bench.stack.enter_context(juicefs(bench.folder, bench.key))
        found["juicefs gateway"], root = Client(server), target.root
    except UnavailableTargetError as error:
        bench.missing.append(str(error))
    return found, root


def small_rows(bench: Bench) -> list[Row]:
    try:
        need("wrk")
    except UnavailableTargetError as error:
        bench.missing.append(str(error))
        return []
    clients, _ = rivals(bench, with_moto=True)
    keys = [f"small/{number:05d}" for number in range(bench.chosen.objects)]
    for name, client in clients.items():
        say(f"{len(keys)} small objects into {name}")
        client.put_small(keys)
    targets = (Target(OURS, "moto", 5.0), Target(OURS, "juicefs gateway", 2.0))
    rows = []
    for method in ("GET", "PUT"):
        sides: dict[str, Rate] = {
            name: partial(client.small, method, keys, bench.folder, bench.chosen.seconds)
            for name, client in clients.items()
        }
        title = f"{method} {SMALL_BYTES} bytes, {CONNECTIONS} connections"
        rows.append(bench.measured(f"small-{method.lower()}", title, "requests/s", sides, targets))
    return rows


def list_rows(bench: Bench) -> list[Row]:
    clients, root = rivals(bench, with_moto=False)
    count = bench.chosen.keys
    make_objects(bench.url, count)
    if root is not None:
        (root / "list").mkdir()
        for number in range(count):
            if number % 1000 == 0:
                say(f"{number} of {count} files into JuiceFS")
            os.close(os.open(root / "list" / f"{number:06d}", os.O_CREAT | os.O_WRONLY))
    sides: dict[str, Rate] = {}
    for name, client in clients.items():
        found = client.count_keys("list/")
        if found != count:
            bench.missing.append(f"{name} lists {found} of {count} keys")
            continue
        sides[name] = partial(rate, count, partial(client.count_keys, "list/"))
    target = Target(OURS, "juicefs gateway", 2.0)
    return [bench.measured("list", f"list {count:,} keys", "keys/s", sides, (target,))]


def make_objects(url: str, count: int) -> None:
    """Empty objects, as the endpoint makes them but for the syncs."""
    described = record.encode(Record(hashlib.md5(b"", usedforsecurity=False).hexdigest(), record.SPLICED_VERSION))
    with FileSystem.at(str(parse_meta_url(url)), purpose="bench") as volume:
        parent = volume.make_directories(f"{BUCKET}/list".encode()).inode
        metadata = volume.volume.metadata
        for number in range(count):
            made = metadata.create(parent, b"%06d" % number, Creation(FileKind.REGULAR, 0o644, 0, 0))
            metadata.set_xattr(made.inode, record.ATTRIBUTE, described)


# ---- by reference ----------------------------------------------------------------------------------------------------


def copy_rows(bench: Bench) -> list[Row]:
    """5 GiB made of one block, 80 times; what the server reads meanwhile is counted."""
    block = bench.folder / "block"
    block.write_bytes(os.urandom(MIB) * (COPY_BLOCK_BYTES // MIB))
    bench.client.put_file(block, "block")
    large = repeat_object(bench.url, "block", "large", COPIED_BYTES // COPY_BLOCK_BYTES)
    sides: dict[str, Rate] = {
        f"{COPIED_BYTES >> 30} GiB": lambda: took_ms(lambda: copy(bench.client, "large")),
        f"{COPY_BLOCK_BYTES >> 20} MiB": lambda: took_ms(lambda: copy(bench.client, "block")),
    }
    before = bytes_read(bench.client.server.pid)
    whole, small = sides
    rows = [bench.measured("copy", "server copy", "ms", sides, (Target(whole, small, 5.0, Bound.AT_MOST),))]
    sides = {
        f"{COPIED_BYTES >> 30} GiB in 5 parts": lambda: complete(bench.client, "large", 1 << 30),
        f"{5 * COPY_BLOCK_BYTES >> 20} MiB in 5 parts": lambda: complete(bench.client, "large", COPY_BLOCK_BYTES),
    }
    whole, small = sides
    rows.append(
        bench.measured("complete", "multipart complete", "ms", sides, (Target(whole, small, 5.0, Bound.AT_MOST),))
    )
    read = (bytes_read(bench.client.server.pid) - before) / MIB
    target = Target("read by the server", "size of one", 0.05, Bound.AT_MOST)
    series = (Series("read by the server", (read,)), Series("size of one", (large / MIB,)))
    rows.append(Row("copy-bytes", "bytes read during all of these", "MiB", series, (target,)))
    return rows


def repeat_object(url: str, source: str, key: str, times: int) -> int:
    """An object that is another one several times over, by reference; its size."""
    with FileSystem.at(str(parse_meta_url(url)), purpose="bench") as volume:
        found = volume.stat(f"{BUCKET}/{source}".encode())
        parts = [Part(found.inode, 0, found.size_bytes)] * times
        with volume.splice(parts) as writing:
            return writing.commit(f"{BUCKET}/{key}".encode()).size_bytes


def copy(client: Client, source: str) -> None:
    client.s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/{source}")


def complete(client: Client, source: str, part_bytes: int) -> float:
    """Milliseconds of the completion alone."""
    named = {"Bucket": BUCKET, "Key": "completed"}
    named["UploadId"] = client.s3.create_multipart_upload(**named)["UploadId"]
    parts = []
    for number in range(5):
        span = f"bytes={number * part_bytes}-{(number + 1) * part_bytes - 1}"
        made = client.s3.upload_part_copy(
            **named, PartNumber=number + 1, CopySource=f"{BUCKET}/{source}", CopySourceRange=span
        )
        parts.append({"PartNumber": number + 1, "ETag": made["CopyPartResult"]["ETag"]})
    return took_ms(lambda: client.s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts}))


def bytes_read(pid: int) -> int:
    """By the server's processes, from files and sockets."""
    total = 0
    for process in machine.process_tree([pid]):
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("rchar"))
    return total


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory_rows(bench: Bench) -> list[Row]:
    """Half of the transfers read, half write, all at once. The uploads stay until the downloads are over, then their clients go:
    what a transfer holds does not grow with what it has brought, and the disk need not take all of it."""
    size, sent, link = bench.chosen.transfer, bench.chosen.uploaded, bench.client.link
    source = bench.folder / "transfer"
    write_repeated(source, size)
    bench.client.put_file(source, "transfer")
    source.unlink()
    server, half = bench.client.server, TRANSFERS // 2
    with machine.watch_memory([server.pid]) as peak, ExitStack() as clients, ThreadPoolExecutor(half) as pool:
        uploads = [
            Upload(server.port, link("put_object", Key=f"up-{n}")[len(server.address) :], size) for n in range(half)
        ]
        for upload in uploads:
            clients.callback(upload.close)
        sending = [pool.submit(upload.send, sent) for upload in uploads]
        fetch(link("get_object", Key="transfer"), half)
        for sends in sending:
            sends.result()
    ceiling = bench.chosen.memory * bench.chosen.workers
    series = (Series("peak", (peak.peak.own / MIB,)), Series("ceiling", (ceiling / MIB,)))
    note = f"{TRANSFERS} transfers of {size >> 20} MiB at once, half of them PUT, which end after {sent >> 20} MiB"
    note += "; memory that the processes asked for (PSS)"
    return [Row("memory", "memory", "MiB", series, (Target("peak", "ceiling", 1.0, Bound.AT_MOST),), note)]


def write_repeated(path: Path, size: int) -> None:
    piece = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(max(1, size // MIB)):
            file.write(piece)


# ---- the run ---------------------------------------------------------------------------------------------------------

MEASURES: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "get": get_rows,
    "put": put_rows,
    "small": small_rows,
    "list": list_rows,
    "copy": copy_rows,
    "memory": memory_rows,
}


def parse_rows(text: str) -> tuple[str, ...]:
    """Raises ArgumentTypeError."""
    chosen = tuple(text.split(","))
    if not set(chosen) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"no such row; there are {', '.join(ROWS)}")
    return chosen


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=parse_rows, default=ROWS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--size", type=parse_size, default=256 * MIB, help="of a large object")
    parser.add_argument("--objects", type=int, default=500, help="small ones")
    parser.add_argument("--seconds", type=int, default=5, help="of wrk, each time")
    parser.add_argument("--keys", type=int, default=100_000, help="that are listed")
    parser.add_argument("--transfer", type=parse_size, default=1 << 30, help="size of each of the 64 at once")
    parser.add_argument("--uploaded", type=parse_size, default=64 * MIB, help="what of it each upload sends")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of the endpoint")
    parser.add_argument("--memory", type=parse_size, default=512 * MIB, help="ceiling of each")
    parser.add_argument("--name", default="s3", help="of the file in bench/results")
    return parser.parse_args(argv)


def run(chosen: argparse.Namespace) -> tuple[list[Row], list[str], dict[str, str]]:
    with workspace(chosen.folder, "tieredfs-bench-s3-") as (folder, stack):
        write_repeated(folder / "big", chosen.size)
        url, key = new_volume(folder)
        server = stack.enter_context(tieredfs(folder, url, key, chosen.workers, chosen.memory))
        bench = Bench(folder, url, key, Client(server), chosen, stack, [])
        rows: list[Row] = []
        for name in chosen.rows:
            with ExitStack() as own:  # one measure's contenders are gone before the next begins
                rows += MEASURES[name](Bench(folder, url, key, bench.client, chosen, own, bench.missing))
            print(f"  measured: {name}", file=sys.stderr, flush=True)
        return rows, bench.missing, machine.facts(folder)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    try:
        rows, missing, found = run(chosen)
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    except UnavailableTargetError as error:
        print(error, file=sys.stderr)
        return 1
    settings = {name: str(value) for name, value in vars(chosen).items()} | {"not_measured": missing}
    write_json(RESULTS / f"{chosen.name}.json", document(chosen.name, found, settings, rows))
    caption = (
        f"{found['cpu']}, {found['cores']} cores, {chosen.workers} processes, {chosen.rounds} rounds, {found['date']}"
    )
    picture.draw(RESULTS / f"{chosen.name}.png", "The S3 endpoint beside other servers", rows, caption)
    for name, value in found.items():
        print(f"{name:>13}: {value}")
    print_table(f"{chosen.workers} processes, {chosen.rounds} round(s), alternating, client on the same machine", rows)
    for line in missing:
        print(f"missing: {line}")
    return 1 if failures(rows) or missing else 0


if __name__ == "__main__":
    sys.exit(main())
