"""Buffers for whole blocks, lent to writers, and kept from everybody while a stalled write still reads them.

A put that does not end can't be taken back: the kernel may read the memory minutes later. Were that memory lent again,
the late write would store another block's bytes under a checksum that they don't match, so the buffer stays out until
the put has ended, and one more may be made meanwhile. That is bounded: a disk with a stalled put gets no other.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

from tieredfs.host.buffers import BufferPool


class BlockLoans:
    """Safe from any thread."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._stalled: dict[int, list[Future[None]]] = {}

    @contextmanager
    def lend(self, timeout_s: float) -> Iterator[memoryview]:
        """Raises DeadlineError."""
        loan = ExitStack()
        whole = loan.enter_context(self._pool.lend(timeout_s))
        try:
            yield whole
        finally:
            with self._lock:
                calls = self._stalled.pop(id(whole), [])
            self._end(loan, calls)

    def stalled(self, whole: memoryview, call: "Future[None]") -> None:
        """`call` still reads from `whole`, a view that `lend` gave."""
        with self._lock:
            self._stalled.setdefault(id(whole), []).append(call)

    def _end(self, loan: ExitStack, calls: "list[Future[None]]") -> None:
        if not calls:
            loan.close()
            return
        self._pool.grow(1)
        waiting = threading.Semaphore(len(calls) - 1)

        def ended(_: "Future[None]") -> None:
            if not waiting.acquire(blocking=False):  # the last of them
                loan.close()
                self._pool.grow(-1)

        for call in calls:
            call.add_done_callback(ended)
