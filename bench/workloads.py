"""What is done to a file system and timed: plain system calls on paths, the same for every side.

Each function returns seconds (of the calls alone: buffers are made and touched before, page caches are dropped by the
caller). Data are incompressible: one buffer of random bytes, written again and again with a counter stamped into each
piece, so that nothing can be compressed, deduplicated or guessed from the piece before. This module imports nothing
heavy, because worker processes import it too.
"""

import functools
import mmap
import multiprocessing
import multiprocessing.pool
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 1 << 20
BUFFER_BYTES: Final = 64 << 20
"""Larger than any last-level cache, so that a copy from it is a copy from memory."""
PAGE_BYTES: Final = 4096
PARALLEL_PROCESSES: Final = 8


@functools.cache
def payload() -> memoryview:
    """`BUFFER_BYTES` of random bytes in touched, page-aligned memory."""
    buffer = mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(BUFFER_BYTES // PIECE_BYTES):
        buffer.write(os.urandom(PIECE_BYTES))
    return memoryview(buffer)


@functools.cache
def landing() -> memoryview:
    """Where reads go: one touched, page-aligned piece."""
    buffer = mmap.mmap(-1, PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.write(b"\1" * PIECE_BYTES)
    return memoryview(buffer)


# ---- one file, sequential ----------------------------------------------------------------------------------------


def write_file(path: Path, size_bytes: int, salt: int = 0) -> float:
    """Create, write in 1 MiB calls, fsync, close. No preallocation on any side."""
    data, pieces = payload(), BUFFER_BYTES // PIECE_BYTES
    started = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for index in range(-(-size_bytes // PIECE_BYTES)):
            begin = index % pieces * PIECE_BYTES
            data[begin : begin + 8] = (index + (salt << 32)).to_bytes(8, "little")
            _write_all(descriptor, data[begin : begin + min(PIECE_BYTES, size_bytes - index * PIECE_BYTES)])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - started


def sync_all() -> float:
    """sync(2): what is left of a write whose fsync did not reach the disk."""
    started = time.perf_counter()
    os.sync()
    return time.perf_counter() - started


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def read_file(path: Path, limit_bytes: int | None = None) -> float:
    """Open, read in 1 MiB calls into one buffer to the end (or to `limit_bytes`), close."""
    target = landing()
    left = os.stat(path).st_size if limit_bytes is None else limit_bytes
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while left > 0:
            count = os.readv(descriptor, [target])
            if count == 0:
                raise EOFError(f"{path} ended {left} bytes early")
            left -= count
    finally:
        os.close(descriptor)
    return time.perf_counter() - started


def read_mapped(path: Path) -> float:
    """Map the file and copy every byte of it out, 1 MiB at a time (slice assignment is one memcpy)."""
    target = landing()
    started = time.perf_counter()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as view,
    ):
        for begin in range(0, len(view), PIECE_BYTES):
            length = min(PIECE_BYTES, len(view) - begin)
            target[:length] = view[begin : begin + length]
    return time.perf_counter() - started


# ---- one file, at random -----------------------------------------------------------------------------------------


def random_offsets(size_bytes: int, count: int) -> list[int]:
    """Page-aligned offsets, the same for every side and round."""
    chooser = random.Random(size_bytes + count)
    return [chooser.randrange(size_bytes // PAGE_BYTES) * PAGE_BYTES for _ in range(count)]


def read_randomly(path: Path, count: int, direct: bool) -> float:
    """`count` preads of 4 KiB; O_DIRECT reads the disk, otherwise whatever the page cache holds."""
    target = [landing()[:PAGE_BYTES]]
    offsets = random_offsets(path.stat().st_size, count)
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        started = time.perf_counter()
        for offset in offsets:
            os.preadv(descriptor, target, offset)
        return time.perf_counter() - started
    finally:
        os.close(descriptor)


def write_randomly(path: Path, count: int, direct: bool) -> float:
    """`count` pwrites of 4 KiB over existing bytes, then fdatasync. The open is not counted."""
    source = [payload()[:PAGE_BYTES]]
    offsets = random_offsets(path.stat().st_size, count)
    descriptor = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
    try:
        os.pwritev(descriptor, source, 0)
        started = time.perf_counter()
        for offset in offsets:
            os.pwritev(descriptor, source, offset)
        os.fdatasync(descriptor)
        return time.perf_counter() - started
    finally:
        os.close(descriptor)


# ---- several processes -------------------------------------------------------------------------------------------


class Workers:
    """Processes that are running, with touched buffers, before any clock starts. Close it to end them."""

    def __init__(self, count: int = PARALLEL_PROCESSES) -> None:
        self.count = count
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(count)
        self._pool: multiprocessing.pool.Pool = context.Pool(count, _prepare, (self._barrier,))

    def run(
        self, work: Callable[[Path, int], object], paths: Sequence[Path], argument: int, timeout_s: float = 900
    ) -> float:
        """One path to each process, all released at once; returns the seconds from the first start to the last end."""
        assert len(paths) == self.count, "every process has one path, or the barrier would wait for ever"
        jobs = [(work, path, argument) for path in paths]
        spans = self._pool.map_async(_measured, jobs, chunksize=1).get(timeout_s)
        return max(end for _, end in spans) - min(begin for begin, _ in spans)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


_released: list[object] = []


def _prepare(barrier: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    _released.append(barrier)
    payload()
    landing()


def _measured(job: tuple[Callable[[Path, int], object], Path, int]) -> tuple[float, float]:
    """perf_counter is CLOCK_MONOTONIC on Linux: one clock for all processes of a machine."""
    work, path, argument = job
    _released[0].wait(60)  # type: ignore[attr-defined]
    begin = time.perf_counter()
    work(path, argument)
    return begin, time.perf_counter()


def read_whole(path: Path, size_bytes: int) -> None:
    read_file(path, size_bytes)


def stream(directory: Path, total_bytes: int) -> None:
    """Write files of 256 MiB, read each back twice (at once, and after the next one was written), remove: until
    `total_bytes` have gone through. At most two files of this process exist at once."""
    directory.mkdir(exist_ok=True)
    size = min(256 << 20, total_bytes // 4)
    older: Path | None = None
    moved = index = 0
    while moved < total_bytes:
        path = directory / f"stream-{index}"
        write_file(path, size, salt=index)
        read_file(path)
        moved += 2 * size
        if older is not None:
            read_file(older)
            older.unlink()
            moved += size
        older, index = path, index + 1
    if older is not None:
        older.unlink()


# ---- torch -------------------------------------------------------------------------------------------------------


@functools.cache
def tensors(size_bytes: int) -> dict[str, object]:
    """A state dict of float32 tensors of 64 MiB (at least one), in touched memory."""
    import torch

    count = max(1, size_bytes // (64 << 20))
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(size_bytes // count // 4, generator=generator) for i in range(count)}


def torch_save(path: Path, size_bytes: int) -> float:
    """`torch.save(state, path)`, then fsync: the moment at which a checkpoint may be relied on."""
    import torch

    state = tensors(size_bytes)
    started = time.perf_counter()
    torch.save(state, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - started


def torch_load(path: Path) -> float:
    import torch

    started = time.perf_counter()
    torch.load(path, weights_only=True)
    return time.perf_counter() - started


# ---- many small files --------------------------------------------------------------------------------------------


def small_names(count: int) -> list[str]:
    return [f"sample-{index:06d}.bin" for index in range(count)]


def create_small(directory: Path, count: int) -> float:
    """open(O_CREAT|O_EXCL), write 4 KiB, close; no fsync."""
    data = bytes(payload()[:PAGE_BYTES])
    paths = [f"{directory}/{name}" for name in small_names(count)]
    started = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, data)
        os.close(descriptor)
    return time.perf_counter() - started


def stat_small(directory: Path, count: int) -> float:
    paths = [f"{directory}/{name}" for name in small_names(count)]
    started = time.perf_counter()
    for path in paths:
        os.stat(path)
    return time.perf_counter() - started


def read_small(directory: Path, count: int) -> float:
    """open, read 4 KiB, close."""
    paths = [f"{directory}/{name}" for name in small_names(count)]
    started = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        length = len(os.read(descriptor, PAGE_BYTES))
        os.close(descriptor)
        if length != PAGE_BYTES:
            raise EOFError(f"{path} holds {length} bytes")
    return time.perf_counter() - started


def list_small(directory: Path, count: int) -> float:
    """One whole listing of the directory with the kind of each entry."""
    started = time.perf_counter()
    with os.scandir(directory) as entries:
        found = sum(1 for entry in entries if entry.is_file(follow_symlinks=False))
    if found != count:
        raise FileNotFoundError(f"{directory} lists {found} of {count} files")
    return time.perf_counter() - started


def unlink_small(directory: Path, count: int) -> float:
    paths = [f"{directory}/{name}" for name in small_names(count)]
    started = time.perf_counter()
    for path in paths:
        os.unlink(path)
    return time.perf_counter() - started


# ---- references below the mount ----------------------------------------------------------------------------------


def read_spread(files: Sequence[Path], size_bytes: int) -> float:
    """Plain preads, one thread: 1 MiB from each file in turn until `size_bytes` have been read."""
    target = landing()
    started = time.perf_counter()
    descriptors = [os.open(path, os.O_RDONLY) for path in files]
    try:
        left, offset = size_bytes, 0
        while left > 0:
            before = left
            for descriptor in descriptors:
                left -= os.preadv(descriptor, [target], offset)
                if left <= 0:
                    break
            if before == left:
                raise EOFError(f"{len(files)} files hold {left} bytes too few")
            offset += PIECE_BYTES
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return time.perf_counter() - started


def copy_spread(source: Path, targets: Sequence[Path], bytes_each: int) -> float:
    """Read `source` in a ring and write `bytes_each` to every target in turn, then fsync them all."""
    buffer = landing()
    started = time.perf_counter()
    descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for path in targets]
    reader = os.open(source, os.O_RDONLY)
    try:
        size, position = os.fstat(reader).st_size, 0
        for begin in range(0, bytes_each, PIECE_BYTES):
            for descriptor in descriptors:
                os.preadv(reader, [buffer], position)
                position = (position + PIECE_BYTES) % max(PIECE_BYTES, size - PIECE_BYTES)
                _write_all(descriptor, buffer[: min(PIECE_BYTES, bytes_each - begin)])
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in (*descriptors, reader):
            os.close(descriptor)
    return time.perf_counter() - started
