"""Memory that trainers of this host map: slabs, each a memfd that holds one batch at a time, used again and again.

Why again and again: the first write to a page of fresh shared memory costs eight times what the next ones cost (1.4 against
11.7 GB/s, 64 MiB), and a reader that keeps its mapping pays for its page table once. So slabs come in sizes of powers of two,
and a released one is the next one taken.

Who holds a slab: the window that it was made for, and every trainer that has it on loan (`retain`, `release`). A slab without
holders is free. One that a trainer may still see though it cannot be asked any more is *abandoned*: never written again.
A memfd has no name: when gateway and trainers are gone, however they went, the memory is gone.

A trainer can neither write to a slab nor change its size (seals), whatever it does with the descriptor. Safe from any thread.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

from tieredfs.errors import TooLargeError
from tieredfs.limits import KIB

SLAB_BYTES_MIN: Final = 256 * KIB
F_SEAL_FUTURE_WRITE: Final = 0x10
"""Linux 5.1: no new writable mapping; the gateway's own goes on. Not yet in Python's `fcntl`."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE


class Slab:
    """`capacity_bytes` of memory, the first `length` of which are in use. Made by a `SlabPool`."""

    def __init__(self, pool: "SlabPool", number: int, capacity_bytes: int) -> None:
        self.number = number
        self.capacity_bytes = capacity_bytes
        self.length = 0
        self.descriptor = os.memfd_create("tieredfs-slab", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, capacity_bytes)
            self._map = mmap.mmap(self.descriptor, capacity_bytes)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        except OSError:
            os.close(self.descriptor)
            raise
        self._pool = pool
        self.holders = 0

    def writable(self) -> memoryview:
        return memoryview(self._map)[: self.length]

    def retain(self) -> None:
        self._pool.retain(self)

    def release(self) -> None:
        self._pool.release(self)

    def destroy(self) -> None:
        """Trainers that mapped it keep what they have mapped."""
        os.close(self.descriptor)
        try:
            self._map.close()
        except BufferError:
            return  # a view of it is alive; the mapping goes with that


class SlabPool:
    """At most `limit_bytes` of slabs, but for what trainers wait for: one each. `make_room` lets go of what
    nobody needs: for who got none to call, with no lock held. Nobody waits here: who has to, listens to its trainer
    meanwhile, who may have what is missing."""

    def __init__(self, limit_bytes: int, make_room: Callable[[], None] = lambda: None) -> None:
        self.limit_bytes = limit_bytes
        self.make_room = make_room
        self.made = 0
        """Slabs whose memory was touched for the first time; all other batches used old ones."""
        self.beyond = 0
        """Slabs that were made beyond the limit, because a trainer waited."""
        self._free: dict[int, list[Slab]] = {}
        self._live: dict[int, Slab] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, length: int, *, is_needed: bool = False) -> Slab | None:
        """A slab with one holder; None when there is no room. What `is_needed` is given beyond the limit, and its memory goes with
        its last holder. Raises TooLargeError."""
        capacity = max(SLAB_BYTES_MIN, 1 << (length - 1).bit_length())
        if capacity > self.limit_bytes:
            raise TooLargeError(f"a batch of {length} bytes is more than the shared memory of {self.limit_bytes} bytes")
        with self._lock:
            waiting = self._free.get(capacity)
            slab = waiting.pop() if waiting else self._made(capacity, is_needed=is_needed)
            if slab is not None:
                slab.holders = 1
                slab.length = length
            return slab

    def _made(self, capacity: int, *, is_needed: bool) -> Slab | None:
        while self._bytes + capacity > self.limit_bytes and self._drop_free():
            pass
        if self._bytes + capacity > self.limit_bytes:
            if not is_needed:
                return None
            self.beyond += 1
        slab = Slab(self, self.made, capacity)
        self.made += 1
        self._live[slab.number] = slab
        self._bytes += capacity
        return slab

    def _drop_free(self) -> bool:
        for waiting in self._free.values():
            if waiting:
                self._forget(waiting.pop(0))
                return True
        return False

    def _forget(self, slab: Slab) -> None:
        del self._live[slab.number]
        self._bytes -= slab.capacity_bytes
        slab.destroy()

    def retain(self, slab: Slab) -> None:
        with self._lock:
            assert slab.holders > 0, "a free slab is nobody's"
            slab.holders += 1

    def release(self, slab: Slab) -> None:
        with self._lock:
            assert slab.holders > 0, "released more often than taken"
            slab.holders -= 1
            self._settle(slab)

    def abandon(self, slab: Slab) -> None:
        """A holder may see it for ever: when the others are done it is not used again."""
        with self._lock:
            slab.holders -= 1
            if self._live.pop(slab.number, None) is not None:
                self._bytes -= slab.capacity_bytes
            self._settle(slab)

    def _settle(self, slab: Slab) -> None:
        if slab.holders:
            return
        if slab.number not in self._live:
            slab.destroy()
        elif self._bytes > self.limit_bytes:
            self._forget(slab)
        else:
            self._free.setdefault(slab.capacity_bytes, []).append(slab)

    def is_live(self, number: int) -> bool:
        return number in self._live

    def usage(self) -> dict[str, int]:
        """Numbers of slabs and bytes: held and all."""
        with self._lock:
            free = sum(len(waiting) for waiting in self._free.values())
            return {"slabs": len(self._live), "slabs_held": len(self._live) - free, "slab_bytes": self._bytes}

    def close(self) -> None:
        with self._lock:
            for waiting in self._free.values():
                for slab in waiting:
                    self._forget(slab)
            self._free.clear()
            self._bytes -= sum(slab.capacity_bytes for slab in self._live.values())
            self._live.clear()  # the others go when their last holder lets go
