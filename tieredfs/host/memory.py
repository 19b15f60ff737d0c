"""The allocator of a serving process."""

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_TRIM_BYTES: Final = 1 << 20


def keep_freed_memory_low() -> None:
    """Few malloc arenas, and freed memory back to the kernel: with a hundred threads glibc's defaults keep far more than
    is in use. Nothing on a C library without mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _TRIM_BYTES)
