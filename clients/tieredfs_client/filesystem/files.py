"""Open files as Python knows them, over the volume's readings and writings.

Reading: a buffered file; once it is whole on this SSD, its `fileno` is a descriptor of the local file with an offset of its own.
Writing: bytes go to a local file without a name; `close` gives it the name, durable, replacing at once what was there. Leaving
a `with` by an exception, `discard`, or dropping the file unclosed leaves the name as it was. In a transaction, `close` only
ends the writing and `commit` gives the name. Not safe from several threads at once, as Python's own files.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tieredfs.errors import ConflictError
from tieredfs.model import Attributes
from tieredfs.volume.contract import Reading, Writing
from tieredfs.volume.open_files import Condition
from tieredfs_client.filesystem.translation import as_python

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

BUFFER_BYTES: Final = 1 << 20
_POUR_BYTES: Final = 64 << 20


class _RawReading(io.RawIOBase):
    """Positions over `read_into`."""

    def __init__(self, reading: Reading, path: str) -> None:
        self._reading = reading
        self._path = path
        self._at = 0
        self._own: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        with as_python(self._path):
            count = self._reading.read_into(self._at, memoryview(buffer).cast("B"))
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self._at, self._reading.attributes.size_bytes)[whence]
        if start + offset < 0:
            raise ValueError(f"{self._path}: no position {start + offset}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def fileno(self) -> int:
        """Opened anew: the descriptor of the tier is shared by all readers, and so would be its offset."""
        if self._own is None:
            descriptor = self._reading.descriptor
            if descriptor is None:
                raise io.UnsupportedOperation(f"{self._path} is not whole on this SSD yet")
            self._own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        return self._own

    def close(self) -> None:
        if not self.closed:
            if self._own is not None:
                os.close(self._own)
                self._own = None
            self._reading.close()
        super().close()


class ReadingFile(io.BufferedReader):
    """A file open for reading. Its content stays what it was at the opening, whatever becomes of the name."""

    def __init__(self, reading: Reading, path: str) -> None:
        super().__init__(_RawReading(reading, path), BUFFER_BYTES)
        self.path = path
        self.size = reading.attributes.size_bytes


class _RawWriting(io.RawIOBase):
    """Positions over `pwrite`."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._at = 0
        self.dropped = False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        if self.dropped:
            return memoryview(data).nbytes  # what was still buffered when the file was discarded
        count = os.pwrite(self._writing.descriptor, data, self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = os.fstat(self._writing.descriptor).st_size if whence == io.SEEK_END else 0
        start = (0, self._at, end)[whence]
        if start + offset < 0:
            raise ValueError(f"no position {start + offset}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        wanted = self._at if size is None else size
        os.ftruncate(self._writing.descriptor, wanted)
        return wanted

    def fileno(self) -> int:
        return self._writing.descriptor


class WritingFile(io.BufferedWriter):
    """A file being written. `replace` False: the name must be free when it gets it (`x`)."""

    def __init__(
        self,
        writing: Writing,
        path: str,
        *,
        autocommit: bool = True,
        replace: bool = True,
        condition: Condition | None = None,
    ) -> None:
        self._bytes = _RawWriting(writing)
        super().__init__(self._bytes, BUFFER_BYTES)
        self.path = path
        self.autocommit = autocommit
        self._writing = writing
        self._replace = replace
        self._condition = condition

    def close(self) -> None:
        if self.closed:
            return
        try:
            with self._discarding_on_error():
                self.flush()
                if self.autocommit and not self._bytes.dropped:
                    self.commit()
        finally:
            super().close()

    def prepare(self) -> None:
        """The bytes are durable after it, so that `commit` has little left to fail with."""
        with as_python(self.path), self._discarding_on_error():
            if not self.closed:
                self.close()
            self._writing.make_durable()

    def commit(self) -> None:
        """Give the file its name. Raises what replacing raises; then the old file is as it was."""
        with as_python(self.path), self._discarding_on_error():
            if not (self.closed or self.autocommit):
                self.close()
            path = self.path.encode("utf-8", "surrogateescape")
            self._writing.commit(path, replace=self._replace, condition=self._condition)

    def discard(self) -> None:
        """The name stays as it was. May be called after a failed `commit`."""
        self._bytes.dropped = True
        with as_python(self.path):
            self._writing.discard()
        super().close()

    @contextlib.contextmanager
    def _discarding_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._bytes.dropped = True
            self._writing.discard()
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        if not self.closed:
            self.discard()


class TextFile(io.TextIOWrapper):
    """Text over a file of ours: leaving `with` by an exception discards what was written."""

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and isinstance(self.buffer, WritingFile):
            self.buffer.discard()
        else:
            self.close()


def unchanged(seen: Attributes | None) -> Condition:
    """For appending: the name must still show what was copied."""

    def check(found: Attributes | None) -> None:
        now = (found.inode, found.version) if found else None
        if now != ((seen.inode, seen.version) if seen else None):
            raise ConflictError("the file was changed by somebody else while it was being appended to")

    return check


def pour(source: int, target: int, size: int) -> int:
    """`size` bytes from the start of a file to the position of another, inside the kernel; fewer only at the end."""
    done = 0
    while done < size and (moved := os.sendfile(target, source, done, min(size - done, _POUR_BYTES))):
        done += moved
    return done


def pour_reading(reading: Reading, target: int) -> int:
    """All of a file to the position of another: by the kernel when it is whole here, else as it arrives."""
    size = reading.attributes.size_bytes
    if reading.descriptor is not None:
        done = pour(reading.descriptor, target, size)
    else:
        done = 0
        scratch = memoryview(bytearray(min(4 * BUFFER_BYTES, max(size, 1))))
        while count := reading.read_into(done, scratch):
            _write_all(target, scratch[:count])
            done += count
    if done != size:
        raise OSError(errno.EIO, f"the file ended after {done} of {size} bytes")
    return done


def _write_all(target: int, data: memoryview) -> None:
    while data:
        data = data[os.write(target, data) :]
