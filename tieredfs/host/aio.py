"""fdatasync of several files at once by the kernel's own threads (io_submit(2), IOCB_CMD_FDSYNC, Linux 4.18), for callers that
would need a thread of Python for each: those have to get the interpreter back one after another when the disk is done."""

import ctypes
import errno
import os
import platform
import threading
from collections.abc import Sequence
from typing import Final

TOGETHER_MAX: Final = 64
_FDSYNC: Final = 3
_NOT_TAKEN: Final = frozenset({None, errno.EINVAL})
"""What was not even begun."""
_NUMBERS: Final = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}
"""io_setup, io_submit, io_getevents of `asm/unistd.h`."""


class _Request(ctypes.Structure):
    """`struct iocb` of `include/uapi/linux/aio_abi.h`, little-endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_descriptor", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """`struct io_event`."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


assert ctypes.sizeof(_Request) == 64
assert ctypes.sizeof(_Event) == 32

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Context:
    """One of the kernel's, with its arguments. For one thread at a time."""

    def __init__(self, numbers: tuple[int, int, int]) -> None:
        """Raises OSError."""
        setup, self._submit, self._get_events = numbers
        self._id = ctypes.c_ulong(0)
        if _syscall(setup, TOGETHER_MAX, ctypes.byref(self._id)) != 0:
            raise OSError(ctypes.get_errno(), "io_setup")
        self._requests = (_Request * TOGETHER_MAX)()
        self._events = (_Event * TOGETHER_MAX)()
        size, start = ctypes.sizeof(_Request), ctypes.addressof(self._requests)
        for number, request in enumerate(self._requests):
            request.data, request.opcode = number, _FDSYNC
        self._pointers = (ctypes.c_void_p * TOGETHER_MAX)(*range(start, start + size * TOGETHER_MAX, size))

    def sync(self, descriptors: Sequence[int]) -> list[int | None]:
        """Of each the errno, 0 for success; None: the kernel did not take it."""
        for request, descriptor in zip(self._requests, descriptors, strict=False):
            request.descriptor = descriptor
        count = _syscall(self._submit, self._id, ctypes.c_long(len(descriptors)), self._pointers)
        found: list[int | None] = [None] * len(descriptors)
        left = max(0, count)
        while left:
            wanted = ctypes.c_long(left)
            ended = _syscall(self._get_events, self._id, wanted, wanted, self._events, None)
            if ended < 0:
                number = ctypes.get_errno()
                assert number == errno.EINTR, os.strerror(number)
                continue
            for event in self._events[:ended]:
                found[event.data] = -event.result
            left -= ended
        return found


class SyncsTogether:
    """The contexts of this process: as many as ever sync at the same time. Safe from any thread."""

    def __init__(self) -> None:
        self._numbers = _NUMBERS.get(platform.machine())
        self._idle: list[_Context] = []
        self._process = os.getpid()
        self._lock = threading.Lock()

    def sync(self, descriptors: Sequence[int]) -> list[OSError | None] | None:
        """What fdatasync of each would have raised. None: this system cannot, and nothing was done.

        A failure is told once, and a second fdatasync of that file would succeed: so what was submitted is answered from what
        came of it, and only what the kernel did not take is synced here."""
        context = self._take() if 0 < len(descriptors) <= TOGETHER_MAX else None
        if context is None:
            return None
        numbers = context.sync(descriptors)
        with self._lock:
            self._idle.append(context)
            if set(numbers) <= _NOT_TAKEN:  # a kernel, or a file system, without it
                self._numbers = None
        return [_failure(number, descriptor) for number, descriptor in zip(numbers, descriptors, strict=True)]

    def _take(self) -> _Context | None:
        with self._lock:
            if self._process != os.getpid():  # a child has none of its parent's
                self._process, self._idle = os.getpid(), []
            if self._numbers is None:
                return None
            if self._idle:
                return self._idle.pop()
            try:
                return _Context(self._numbers)
            except OSError:  # forbidden here, or all of /proc/sys/fs/aio-max-nr are taken
                self._numbers = None
                return None


def _failure(number: int | None, descriptor: int) -> OSError | None:
    if number is not None and number not in _NOT_TAKEN:
        return OSError(number, os.strerror(number)) if number else None
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        return error
    return None
