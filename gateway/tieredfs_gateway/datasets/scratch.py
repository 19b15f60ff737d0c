"""Room on the local SSD for what does not fit memory: a file without a name, which is only appended to.

Nothing is left of it when the process ends, however it ends. Room in it is taken under a lock, bytes are written outside of it.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from tieredfs.errors import NoSpaceError

_ALIGNMENT: Final = 64


class Scratch:
    """Made when the first bytes come. Safe from any thread; `close` when nobody writes or reads any more."""

    def __init__(self, directory: str | None, limit_bytes: int, count: Callable[[int], None]) -> None:
        """`directory` None: that of temporary files. `count` is told how many bytes were written."""
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._count = count
        self._lock = threading.Lock()
        self._end = 0
        self._file = -1

    def append(self, data: memoryview) -> int:
        """Where it is. Raises NoSpaceError."""
        with self._lock:
            if self._file < 0:
                self._file = _nameless(self._directory)
            offset = self._end
            if offset + len(data) > self._limit_bytes:
                raise NoSpaceError(
                    f"reading this dataset in this order needs more than {self._limit_bytes} bytes of scratch space"
                )
            self._end += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file, data[done:], offset + done)
        except OSError as error:
            raise NoSpaceError(f"the scratch file cannot be written: {error}") from error
        self._count(done)
        return offset

    def read(self, offset: int, length: int) -> pa.Buffer:
        """What was appended there."""
        buffer = pa.allocate_buffer(length)
        view, done = memoryview(buffer), 0
        while done < length:
            count = os.preadv(self._file, [view[done:]], offset + done)
            assert count, "the scratch file has what was written to it"
            done += count
        return buffer

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _nameless(directory: str | None) -> int:
    try:
        descriptor, path = tempfile.mkstemp(prefix="tieredfs-scratch-", dir=directory)
        os.unlink(path)
    except OSError as error:
        raise NoSpaceError(f"no scratch file can be made: {error}") from error
    return descriptor
