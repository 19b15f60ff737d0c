"""Files of the volume as Arrow sees files.

A file that is whole on the SSD is opened by its descriptor: C++ reads it, and no byte passes through Python. One that is still
coming from the store is read through `Reading.read_into`, which waits, bounded, for the ranges that are asked for and has
them fetched first. Every byte that is handed to a decoder this way is counted.
"""

import io
import threading
from typing import TYPE_CHECKING

import pyarrow as pa

from tieredfs.volume.contract import Reading

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ByteCount:
    """Bytes that were read. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.total += count


class SeekableFile(io.RawIOBase):
    """A position in a file of some size; who derives says what is read there. For one thread at a time; Arrow locks."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        return self._at


class _Arriving(SeekableFile):
    """Over a `Reading` that is not whole yet."""

    def __init__(self, reading: Reading, count: ByteCount) -> None:
        super().__init__(reading.attributes.size_bytes)
        self._reading = reading
        self._count = count

    def readinto(self, target: "Buffer", /) -> int:
        with memoryview(target) as view:
            done = self._reading.read_into(self._at, view.cast("B"))
        self._at += done
        self._count.add(done)
        return done

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._reading.attributes.size_bytes - self._at)
        target = bytearray(left if size < 0 else min(size, left))
        done = self.readinto(target)
        return bytes(memoryview(target)[:done])


def arrow_file(reading: Reading, count: ByteCount, planned: int) -> pa.NativeFile:
    """For as long as the reading is open; close it after use. Of a whole file `planned` bytes are counted, as C++ reads it
    unseen."""
    descriptor = reading.descriptor
    if descriptor is not None:
        count.add(planned)
        return pa.OSFile(f"/proc/self/fd/{descriptor}", "rb")
    return pa.PythonFile(_Arriving(reading, count), mode="r")


def read_range(reading: Reading, offset: int, length: int, count: ByteCount) -> pa.Buffer:
    """`length` bytes at `offset`, or as many as there are, in memory of Arrow's."""
    buffer = pa.allocate_buffer(length, resizable=True)
    done = reading.read_into(offset, memoryview(buffer).cast("B")) if length else 0
    count.add(done)
    if done < length:
        buffer.resize(done)
    return buffer
