"""Buffers lent to writers and readers of blocks, and kept from everybody while a call that was left behind still uses them.

A put or a read that does not end can't be taken back: the kernel may use the memory minutes later. Were that memory lent again,
the late write would store another block's bytes under a checksum that they don't match, and the late read would overwrite
another block's bytes after they were verified. So the buffer stays out until the call has ended, and one more may be made
meanwhile. That is bounded: a disk with a stalled call gets no other.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from tieredfs.host.buffers import BufferPool


class BlockLoans:
    """Safe from any thread."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._stalled: dict[int, list[Future[Any]]] = {}

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

    def stalled(self, whole: memoryview, call: "Future[Any]") -> None:
        """`call` still uses `whole`, a view that `lend` gave."""
        with self._lock:
            self._stalled.setdefault(id(whole), []).append(call)

    def _end(self, loan: ExitStack, calls: "list[Future[Any]]") -> None:
        if not calls:
            loan.close()
            return
        self._pool.grow(1)
        waiting = threading.Semaphore(len(calls) - 1)

        def ended(_: "Future[Any]") -> None:
            if not waiting.acquire(blocking=False):  # the last of them
                loan.close()
                self._pool.grow(-1)

        for call in calls:
            call.add_done_callback(ended)
