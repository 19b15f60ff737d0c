"""Memory for large buffers, used again and again: what was touched before costs nothing to touch.

The first write to 100 MB costs 35 ms in pages of 4 KiB and 5 to 160 ms in large ones, by where the host has them from, while
reading 100 MB from the page cache takes 8 ms. Arrow's allocator finds touched memory again by chance: reading pictures of 100 KB,
two buckets at a time, every second epoch of 4,000 paid 60 to 150 ms for it. So buffers come from mappings that are kept when the
last user of a buffer lets go of it, whoever that is and whenever: an array that a consumer keeps is never written to again.

One pool serves the process. What it keeps is bounded by those who take: with what is in use, as much as the last one allows.
"""

import mmap
import threading
import weakref
from collections import deque
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tieredfs.limits import MIB

SMALL_BYTES_MAX: Final = 4 * MIB
"""Arrow's allocator has these at hand."""


class WarmMemory:
    """Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[mmap.mmap] = []
        """The longest idle first."""
        self._returned: deque[tuple[mmap.mmap, int]] = deque()
        """Mappings whose users are gone, and what may be kept. A buffer may end while this thread has the lock: garbage is
        collected anywhere."""
        self._used_bytes = 0
        self.made = 0
        """Mappings whose memory is touched for the first time."""

    def take(self, length: int, keep_bytes: int) -> pa.Buffer:
        """A mutable buffer of that length; its bytes are anything. Once it is gone its memory is kept, while all memory of the pool
        is at most `keep_bytes`."""
        if length <= SMALL_BYTES_MAX:
            return pa.allocate_buffer(length)
        with self._lock:
            self._settle()
            mapping = self._fitting(length)
            if mapping is None:
                mapping = self._made(length, keep_bytes)
            self._used_bytes += len(mapping)
        owner: np.ndarray[Any, Any] = np.frombuffer(mapping, np.uint8, length)
        weakref.finalize(owner, self._give_back, mapping, keep_bytes).atexit = False
        return pa.py_buffer(owner)

    def _fitting(self, length: int) -> mmap.mmap | None:
        """The smallest that is large enough, but for one of twice the length."""
        fitting = [each for each in self._idle if length <= len(each) <= 2 * length]
        found = min(fitting, key=len, default=None)
        if found is not None:
            self._idle.remove(found)
        return found

    def _made(self, length: int, keep_bytes: int) -> mmap.mmap:
        step = 1 << max(21, length.bit_length() - 4)  # 2 MiB, or at most an eighth: lengths of batches vary
        capacity = -(-length // step) * step
        while self._idle and self._used_bytes + self._idle_bytes() + capacity > keep_bytes:
            self._idle.pop(0)
        mapping = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapping.madvise(mmap.MADV_HUGEPAGE)
        self.made += 1
        return mapping

    def _give_back(self, mapping: mmap.mmap, keep_bytes: int) -> None:
        """Its last user is gone. If the lock is taken, whoever has it or takes it next goes on."""
        self._returned.append((mapping, keep_bytes))
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Under the lock."""
        while self._returned:
            mapping, keep_bytes = self._returned.popleft()
            self._used_bytes -= len(mapping)
            self._idle.append(mapping)
            while self._idle and self._used_bytes + self._idle_bytes() > keep_bytes:
                self._idle.pop(0)  # the mapping goes with its last view

    def _idle_bytes(self) -> int:
        return sum(map(len, self._idle))

    def usage(self) -> dict[str, int]:
        """Bytes in buffers that somebody has, and bytes kept."""
        with self._lock:
            self._settle()
            return {"used_bytes": self._used_bytes, "idle_bytes": self._idle_bytes()}


MEMORY: Final = WarmMemory()
"""Of this process."""
