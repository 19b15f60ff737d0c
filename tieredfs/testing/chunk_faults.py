"""Chunk stores and files that fail on purpose, and count it, so that a test can prove that its fault happened.

`FaultyChunkStore` wraps any chunk store; `FaultyFiles` wraps the files below a `DiskStore`. Both are safe from any
thread, and do nothing until told.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.store import ChunkInfo, ChunkName, ChunkStore, StoreSpace
from tieredfs.errors import TieredError
from tieredfs.host import LocalFiles
from tieredfs.host.files import Buffer

STALL_WAIT_S = 60.0
"""A stalled call ends after this even if the test forgot to release it."""


@dataclass(slots=True)
class _Plan:
    error: TieredError
    times: int


@dataclass(slots=True)
class Stall:
    """A call that does not end until `release`."""

    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


class FaultyChunkStore:
    """A chunk store that raises, stalls, and lies about its space."""

    def __init__(self, inner: ChunkStore) -> None:
        self.inner = inner
        self.happened: Counter[str] = Counter()
        """Faults by name of the call."""
        self.calls: Counter[str] = Counter()
        self.free_bytes: int | None = None
        self._lock = threading.Lock()
        self._plans: dict[str, _Plan] = {}
        self._stalls: dict[str, Stall] = {}

    def fail(self, call: str, error: TieredError, times: int = 1 << 30) -> None:
        """The next `times` calls of `put`, `read_into`, `info`, `delete`, `space` or `names` raise `error`."""
        with self._lock:
            self._plans[call] = _Plan(error, times)

    def stall(self, call: str) -> Stall:
        """The next call waits until it is released, and is then carried out."""
        with self._lock:
            return self._stalls.setdefault(call, Stall())

    def heal(self) -> None:
        with self._lock:
            self._plans.clear()
        self.free_bytes = None

    def _meet(self, call: str) -> None:
        with self._lock:
            self.calls[call] += 1
            stall = self._stalls.pop(call, None)
            plan = self._plans.get(call)
            fails = plan is not None and plan.times > 0
            if plan is not None and fails:
                plan.times -= 1
            if fails or stall is not None:
                self.happened[call] += 1
        if stall is not None:
            stall.arrived.set()
            stall.released.wait(STALL_WAIT_S)
        if plan is not None and fails:
            raise type(plan.error)(*plan.error.args)

    @property
    def dumps(self) -> DumpShelf:
        return self.inner.dumps

    def put(self, info: ChunkInfo, payload: memoryview, cell_crcs: memoryview) -> None:
        self._meet("put")
        self.inner.put(info, payload, cell_crcs)

    def read_into(self, name: ChunkName, offset: int, target: memoryview) -> None:
        self._meet("read_into")
        self.inner.read_into(name, offset, target)

    def info(self, name: ChunkName) -> ChunkInfo:
        self._meet("info")
        return self.inner.info(name)

    def delete(self, name: ChunkName) -> None:
        self._meet("delete")
        self.inner.delete(name)

    def names(self) -> Iterator[ChunkName]:
        self._meet("names")
        return self.inner.names()

    def space(self) -> StoreSpace:
        self._meet("space")
        space = self.inner.space()
        return space if self.free_bytes is None else StoreSpace(space.total_bytes, self.free_bytes)

    def close(self) -> None:
        self.inner.close()


class FaultyFiles(LocalFiles):
    """Local files whose calls fail with an errno: a disk that is full, read-only or dying."""

    def __init__(self) -> None:
        self.happened: Counter[str] = Counter()
        self.free: int | None = None
        self._lock = threading.Lock()
        self._plans: dict[str, tuple[int, int]] = {}

    def fail(self, call: str, number: int, times: int = 1 << 30) -> None:
        """The next `times` calls of `open_write`, `open_read`, `write`, `sync`, `rename`, `sync_directory`, `read_into`
        or `unlink` raise that errno."""
        with self._lock:
            self._plans[call] = (number, times)

    def heal(self) -> None:
        with self._lock:
            self._plans.clear()

    def _meet(self, call: str) -> None:
        with self._lock:
            number, times = self._plans.get(call, (0, 0))
            if times == 0:
                return
            self._plans[call] = (number, times - 1)
            self.happened[call] += 1
        raise OSError(number, os.strerror(number))

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._meet("open_write" if flags & os.O_ACCMODE else "open_read")
        return super().open(path, flags, mode)

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._meet("write")
        return super().write(descriptor, buffers, offset)

    def read_into(self, descriptor: int, target: memoryview, offset: int) -> int:
        self._meet("read_into")
        return super().read_into(descriptor, target, offset)

    def sync(self, descriptor: int) -> None:
        self._meet("sync")
        super().sync(descriptor)

    def sync_directory(self, path: str) -> None:
        self._meet("sync_directory")
        super().sync_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._meet("rename")
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._meet("unlink")
        super().unlink(path)

    def free_bytes(self, path: str) -> int:
        return super().free_bytes(path) if self.free is None else self.free
