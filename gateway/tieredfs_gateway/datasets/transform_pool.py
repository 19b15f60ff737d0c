"""Processes that transform batches: a worker that raises, hangs or dies ends the epoch with the transform's name, not the
gateway.

As many batches are under way as there are workers; they come out in their order. A worker that is over its time limit is
killed, by its pid; one that has grown beyond `MEMORY_BYTES` is replaced by a fresh one, and the kernel refuses it more than
twice that. Workers start when they are first needed. Safe from any thread.
"""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from tieredfs.limits import GIB
from tieredfs_gateway.datasets.contract import NumberedBatch
from tieredfs_gateway.datasets.errors import Refusal
from tieredfs_gateway.datasets.transform_worker import HEAD, packed, unpacked
from tieredfs_gateway.datasets.transforms import Transform, check_names

MEMORY_BYTES: Final = 2 * GIB
START_WAIT_S: Final = 60.0
"""For a worker to come up: it imports pyarrow, and what its functions import."""
WORKER_WAIT_S: Final = 600.0
END_WAIT_S: Final = 5.0


@dataclass(slots=True)
class Timing:
    """Of one transform, all batches together, in its workers' time."""

    batches: int = 0
    seconds: float = 0.0


class TransformPool:
    """See `sessions.Transforming`."""

    def __init__(self, allowed: Mapping[str, Transform], workers: int | None = None) -> None:
        self._allowed = allowed
        self._count = workers or max(1, os.cpu_count() or 1)
        self._idle: queue.Queue[_Worker | None] = queue.Queue()
        for _ in range(self._count):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(self._count, "transform")
        self._timings: dict[str, Timing] = {}
        self._lock = threading.Lock()

    def schema(self, names: Sequence[str], before: pa.Schema) -> pa.Schema:
        """Of what comes out, found by transforming no rows."""
        check_names(names, self._allowed)
        return self.run(
            names, pa.RecordBatch.from_arrays([pa.array([], field.type) for field in before], schema=before)
        ).schema

    def apply(self, names: Sequence[str], batches: Iterator[NumberedBatch]) -> Iterator[NumberedBatch]:
        """In order. Raises Refusal `transform_failed`, and what `batches` raises."""
        under_way: deque[tuple[int, Future[pa.RecordBatch]]] = deque()
        try:
            for batch in batches:
                under_way.append((batch.index, self._threads.submit(self.run, names, batch.rows)))
                if len(under_way) > self._count:
                    yield _finished(*under_way.popleft())
            while under_way:
                yield _finished(*under_way.popleft())
        finally:
            for _, future in under_way:
                future.cancel()
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def run(self, names: Sequence[str], rows: pa.RecordBatch) -> pa.RecordBatch:
        """Raises Refusal."""
        try:
            worker = self._idle.get(timeout=WORKER_WAIT_S)
        except queue.Empty:
            raise Refusal("busy", "all transform workers are busy") from None
        try:
            worker = worker or _Worker(self._allowed)
            made, seconds = worker.run(names, rows)
            self._note(seconds)
            if worker.memory_bytes > MEMORY_BYTES:
                worker.end()
        finally:
            self._idle.put(worker if worker is not None and worker.is_alive() else None)
        return made

    def _note(self, seconds: Mapping[str, float]) -> None:
        with self._lock:
            for name, spent in seconds.items():
                timing = self._timings.setdefault(name, Timing())
                timing.batches += 1
                timing.seconds += spent

    def timings(self) -> dict[str, Timing]:
        with self._lock:
            return {name: Timing(timing.batches, timing.seconds) for name, timing in self._timings.items()}

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for _ in range(self._count):
            with contextlib.suppress(queue.Empty):
                worker = self._idle.get(timeout=END_WAIT_S)
                if worker is not None:
                    worker.end()


def _finished(index: int, future: "Future[pa.RecordBatch]") -> NumberedBatch:
    return NumberedBatch(index, future.result(WORKER_WAIT_S))


class _Worker:
    """One process. For one thread at a time."""

    def __init__(self, allowed: Mapping[str, Transform]) -> None:
        self._allowed = allowed
        self.memory_bytes = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tieredfs_gateway.datasets.transform_worker"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        setup = {
            "transforms": [one.document() for one in allowed.values()],
            "path": [entry for entry in sys.path if entry],
            "memory_bytes": 2 * MEMORY_BYTES,
        }
        self._is_new = True
        try:
            self._write(json.dumps(setup).encode() + b"\n", "the first transform", time.monotonic() + START_WAIT_S)
        except BaseException:
            self.end()
            raise

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, names: Sequence[str], rows: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, float]]:
        body = packed(rows)
        text = json.dumps({"names": list(names)}).encode()
        deadline_s = time.monotonic() + self._limit_s(names[0])
        try:
            self._write(HEAD.pack(len(text), len(body)) + text, names[0], deadline_s)
            self._write(body, names[0], deadline_s)
            return self._answer(names[0])
        except BaseException:
            self.end()
            raise

    def _limit_s(self, name: str) -> float:
        return self._allowed[name].time_limit_s + (START_WAIT_S if self._is_new else 0.0)

    def _answer(self, at: str) -> tuple[pa.RecordBatch, dict[str, float]]:
        while True:
            document, body = self._read(at, time.monotonic() + self._limit_s(at))
            self._is_new = False
            if "at" in document:
                at = document["at"]
            elif "failed" in document:
                raise Refusal("transform_failed", f"transform {document['failed']}: {document['error']}")
            else:
                self.memory_bytes = document["memory_bytes"]
                return unpacked(body), document["seconds"]

    def _read(self, at: str, deadline_s: float) -> tuple[dict[str, Any], bytearray]:
        text_bytes, body_bytes = HEAD.unpack(self._exactly(HEAD.size, at, deadline_s))
        document: dict[str, Any] = json.loads(self._exactly(text_bytes, at, deadline_s))
        return document, self._exactly(body_bytes, at, deadline_s)

    def _exactly(self, count: int, at: str, deadline_s: float) -> bytearray:
        assert self._process.stdout is not None
        data, view_at = bytearray(count), 0
        descriptor = self._process.stdout.fileno()
        while view_at < count:
            wait_s = deadline_s - time.monotonic()
            if wait_s <= 0 or not select.select([descriptor], [], [], wait_s)[0]:
                raise self._over_its_limit(at)
            with memoryview(data) as view:
                got = os.readv(descriptor, [view[view_at:]])
            if not got:
                raise Refusal("transform_failed", f"transform {at}: its process died ({self._ended()})")
            view_at += got
        return data

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"exit code {self._process.wait(END_WAIT_S)}"
        return "it closed its output"

    def _over_its_limit(self, at: str) -> Refusal:
        limit = f"its limit of {self._allowed[at].time_limit_s} s" if at in self._allowed else "the limit to start"
        return Refusal("transform_failed", f"transform {at}: over {limit}")

    def _write(self, data: Any, at: str, deadline_s: float) -> None:
        """A worker that takes nothing, stopped or on a machine that is out of memory, is over its limit, too."""
        assert self._process.stdin is not None
        descriptor, left = self._process.stdin.fileno(), memoryview(data).cast("B")
        while left:
            wait_s = deadline_s - time.monotonic()
            if wait_s <= 0 or not select.select([], [descriptor], [], wait_s)[1]:
                raise self._over_its_limit(at)
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Refusal("transform_failed", f"transform {at}: its process died ({self._ended()})") from error

    def end(self) -> None:
        """With the processes that its functions started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_WAIT_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
