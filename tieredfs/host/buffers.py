"""Reused, page-aligned buffers under one ceiling.

Memory that is touched for the first time costs a page fault per 4 KiB (about 4x the time of the copy itself on the
machines measured), so buffers are made once, kept, and lent. The pool is also where the memory ceiling is enforced:
whoever wants a buffer when all are lent waits, and that wait is the back-pressure.
"""

import contextlib
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tieredfs.errors import DeadlineError


class BufferPool:
    """`count` buffers at most, of `size_bytes` each, made when first needed. Safe from any thread."""

    def __init__(self, size_bytes: int, count: int) -> None:
        assert size_bytes > 0
        assert count > 0
        self.size_bytes = size_bytes
        self.count = count
        self._made = 0
        self._idle: list[mmap.mmap] = []
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, timeout_s: float) -> Iterator[memoryview]:
        """A writable view of `size_bytes`, page-aligned, contents undefined. Raises DeadlineError after `timeout_s`."""
        buffer = self._take(timeout_s)
        view = memoryview(buffer)
        try:
            yield view
        finally:
            view.release()
            with self._changed:
                self._idle.append(buffer)
                self._drop_surplus()
                self._changed.notify()

    def grow(self, count: int) -> None:
        """Change the number of buffers that may exist; with fewer, surplus ones go as they come back."""
        with self._changed:
            self.count += count
            self._drop_surplus()
            self._changed.notify_all()

    def _drop_surplus(self) -> None:
        while self._made > self.count and self._idle:
            self._idle.pop()
            self._made -= 1

    def _take(self, timeout_s: float) -> mmap.mmap:
        with self._changed:
            ready = self._changed.wait_for(lambda: self._idle or self._made < self.count, timeout_s)
            if not ready:
                raise DeadlineError(
                    f"no buffer of {self.size_bytes} bytes came free in {timeout_s:.0f} s ({self.count} lent)"
                )
            if self._idle:
                return self._idle.pop()
            self._made += 1
        return _memory(self.size_bytes)


def _memory(size_bytes: int) -> mmap.mmap:
    """Huge pages where the kernel has them: I/O past the page cache pays per piece of physical memory.

    Reading 16 MiB files past the cache, four at a time: 2.4 GB/s into huge pages, 1.5 GB/s into small ones.
    """
    buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer
