"""The staging buffer: the values of a state at the moment of a call, so that training may go on while they are written.

One buffer, made once and used again, never larger than its limit; its pages are touched when it is made, so that a copy
costs a copy. One save at a time is in it: the next waits for it, or is refused, as its caller chose. CPU tensors are
copied by several threads without the GIL; where the program uses CUDA, the buffer is page-locked.
"""

import ctypes
import mmap
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from tieredfs.host.memory import advise_huge_pages
from tieredfs_client.checkpoint import memory
from tieredfs_client.checkpoint.layout import ALIGNMENT_BYTES
from tieredfs_client.checkpoint.memory import Staged
from tieredfs_client.checkpoint.tree import Flat, Leaf

STAGING_BYTES_DEFAULT: Final = 8 << 30
THREADS: Final = 2
SLICE_BYTES: Final = 64 << 20


class StagingBuffer:
    """Used by one save at a time; that is the caller's to see to."""

    def __init__(self, limit_bytes: int = STAGING_BYTES_DEFAULT) -> None:
        self.limit_bytes = limit_bytes
        self._memory: mmap.mmap | None = None
        self._pinned_at: int | None = None
        self._pool = ThreadPoolExecutor(THREADS, "tieredfs-ckpt-stage")

    def close(self) -> None:
        self._pool.shutdown()
        self._drop()

    def _drop(self) -> None:
        if self._pinned_at is not None:
            memory.unpin(self._pinned_at)
        self._memory = self._pinned_at = None

    def fits(self, flats: Mapping[int, Flat]) -> bool:
        return _staged_bytes(flats) <= self.limit_bytes

    def stage(self, flats: Mapping[int, Flat]) -> dict[int, Flat]:
        """The same trees, by rank, with the bytes of their tensors in the buffer."""
        assert self.fits(flats)
        view = self._view(_staged_bytes(flats))
        found: dict[int, Flat] = {}
        jobs = []
        at = 0
        for rank, flat in flats.items():
            staged: list[Leaf] = []
            for leaf in flat.leaves:
                target = view[at : at + leaf.size_bytes]
                jobs += self._copy(leaf, target)
                staged.append(leaf._replace(value=Staged(target)))
                at += _aligned(leaf.size_bytes)
            found[rank] = flat._replace(leaves=tuple(staged))
        for job in jobs:
            job.result()
        return found

    def _copy(self, leaf: Leaf, target: memoryview) -> list[Future[None]]:
        """In slices where the bytes are in place; in one job where they must be gathered."""
        source = memory.in_place(leaf.value)
        if source is None:
            return [self._pool.submit(memory.copy_into, leaf.value, target)]
        starts = range(0, len(source), SLICE_BYTES)
        return [self._pool.submit(_move, target[at : at + SLICE_BYTES], source[at : at + SLICE_BYTES]) for at in starts]

    def _view(self, size: int) -> memoryview:
        if self._memory is None or len(self._memory) < size:
            self._drop()  # the old one goes before the new one comes
            self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE)
            address = memory.address_of(memoryview(self._memory))
            advise_huge_pages(address, size)
            ctypes.memset(address, 0, size)  # every page is there before the first copy
            self._pinned_at = address if memory.pin(address, size) else None
        return memoryview(self._memory)


def _move(target: memoryview, source: memoryview) -> None:
    ctypes.memmove(memory.address_of(target), memory.address_of(source), len(source))


def _staged_bytes(flats: Mapping[int, Flat]) -> int:
    """What a state takes in the buffer."""
    return sum(_aligned(leaf.size_bytes) for flat in flats.values() for leaf in flat.leaves)


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT_BYTES
