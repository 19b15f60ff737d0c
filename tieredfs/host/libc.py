"""System calls that Python's `os` lacks, through ctypes (which releases the GIL around the call)."""

import ctypes
import mmap
import os
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

SYNC_FILE_RANGE_WRITE: Final = 2

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MNT_DETACH: Final = 2

_CACHESTAT: Final = 451
"""The number of the system call, on every architecture but alpha: Linux 6.5, and no libc has it."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    """Numbers of pages."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def _check(result: int, *paths: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *paths)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    _check(_libc.fallocate(descriptor, mode, offset, length))


def begin_writing(descriptor: int, offset: int, length: int) -> None:
    """sync_file_range(2): the kernel begins to write these bytes to the disk. It promises nothing; fsync has less to do then.
    Raises OSError."""
    _check(_libc.sync_file_range(descriptor, offset, length, SYNC_FILE_RANGE_WRITE))


def cached_bytes(descriptor: int, length: int) -> int:
    """cachestat(2): how many of a file's first bytes are in the page cache, in whole pages. Raises OSError (ENOSYS before Linux
    6.5)."""
    asked, found = _Range(0, length), _CacheStat()
    _check(_libc.syscall(_CACHESTAT, descriptor, ctypes.byref(asked), ctypes.byref(found), 0))
    return int(found.cached) * mmap.PAGESIZE


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2). Raises OSError, with `target` as its file name."""
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()), target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2). Raises OSError, with `target` as its file name."""
    _check(_libc.umount2(os.fsencode(target), flags), target)
