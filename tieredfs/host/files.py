"""Files as an argument: the calls on the local file system that the store and the SSD tier make.

`Files` is deliberately thin: descriptors are integers, errors are `OSError`, and nothing is hidden but the dance that
makes a small file durable (`save`). A fault layer implements the same protocol and forgets what was not synced.
"""

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview


_BUFFERS_MAX: Final = 1024
"""Of one pwritev(2): UIO_MAXIOV of `include/uapi/linux/uio.h`."""
_GET_FLAGS: Final = 0x80086601
_SET_FLAGS: Final = 0x40086602
_NO_ACCESS_TIME: Final = 0x80
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOATIME_FL of `include/uapi/linux/fs.h`."""
_ADD_SEALS: Final = 1033
_GET_SEALS: Final = 1034
_SEALED: Final = 0x1 | 0x2 | 0x4 | 0x8
"""F_ADD_SEALS, F_GET_SEALS; F_SEAL_SEAL, _SHRINK, _GROW and _WRITE of `include/uapi/linux/fcntl.h`."""


class Files(Protocol):
    """Local files. Safe from any thread; every call but the pure look-ups may raise `OSError`.

    Nothing is durable before `sync` (contents and size) and `sync_directory` (names) have returned; after a failed
    `sync` the contents are unknown and the file must be written anew.
    """

    def open(self, path: str, flags: int, mode: int = 0o600) -> int: ...
    def close(self, descriptor: int) -> None: ...
    def read_into(self, descriptor: int, target: memoryview, offset: int) -> int:
        """Fill `target` from `offset`; returns the bytes read, fewer than asked only at the end of the file."""
        ...

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all of `buffers` one after another at `offset`; returns their total length. Never short."""
        ...

    def will_need(self, descriptor: int) -> None:
        """Have the whole file read into the page cache, without waiting for it. A hint."""
        ...

    def sync(self, descriptor: int) -> None: ...
    def sync_directory(self, path: str) -> None: ...
    def truncate(self, descriptor: int, size_bytes: int) -> None: ...
    def allocate(self, descriptor: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) with its `mode` bits (keep size, punch hole, zero range)."""
        ...

    def stat(self, descriptor: int) -> os.stat_result: ...
    def stat_path(self, path: str) -> os.stat_result: ...
    def rename(self, source: str, target: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def make_directory(self, path: str) -> None:
        """Like `mkdir -p`."""
        ...

    def list_directory(self, path: str) -> list[str]: ...
    def free_bytes(self, path: str) -> int: ...
    def total_bytes(self, path: str) -> int: ...
    def data_segments(self, descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The (offset, length) of each run of data in [start, end); what lies between is holes."""
        ...

    def save(self, path: str, contents: Buffer) -> None:
        """Replace `path` by `contents`, whole and durable or not at all."""
        ...

    def load(self, path: str) -> bytes: ...


def is_open_for_writing(descriptor: int) -> bool:
    """Whether anybody in the machine has the file of a read-only `descriptor` open, or mapped shared, for writing.

    The kernel grants a read lease only on a file without writers, so it is asked for one, which is given back at once.
    A mapping counts, and lives on when its descriptor is closed. False where the file system knows no leases.
    """
    fcntl.fcntl(
        descriptor, fcntl.F_SETSIG, signal.SIGURG
    )  # who breaks the lease meanwhile: SIGIO would end this process
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def in_memory(content: Buffer) -> int:
    """A descriptor of a file that is in memory only and has these bytes; nobody can change it. Raises OSError."""
    descriptor = os.memfd_create("tieredfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], done)
        fcntl.fcntl(descriptor, _ADD_SEALS, _SEALED)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_in_memory(descriptor: int) -> bool:
    """Whether it is of `in_memory`, so that a read waits for no disk. (Such a file knows no RWF_NOWAIT.)"""
    try:
        return bool(fcntl.fcntl(descriptor, _GET_SEALS) & _SEALED)
    except OSError:  # other files have no seals
        return False


class LocalFiles:
    """The local file system itself."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def read_into(self, descriptor: int, target: memoryview, offset: int) -> int:
        done = 0
        while done < len(target):
            count = os.preadv(descriptor, [target[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        total = sum(len(buffer) for buffer in pending)
        done = 0
        while pending:
            count = os.pwritev(descriptor, pending[:_BUFFERS_MAX], offset + done)
            done += count
            while pending and count >= len(pending[0]):
                count -= len(pending.pop(0))
            if pending and count:
                pending[0] = pending[0][count:]
        assert done == total
        return total

    def will_need(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def allocate(self, descriptor: int, mode: int, offset: int, length: int) -> None:
        from tieredfs.host import libc

        libc.fallocate(descriptor, mode, offset, length)

    def stat(self, descriptor: int) -> os.stat_result:
        return os.fstat(descriptor)

    def stat_path(self, path: str) -> os.stat_result:
        return os.stat(path, follow_symlinks=False)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def list_directory(self, path: str) -> list[str]:
        return os.listdir(path)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def total_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize

    def data_segments(self, descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        position = start
        while position < end:
            try:
                data = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here to the end
                return
            if data >= end:
                return
            hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
            yield data, hole - data
            position = hole

    def save(self, path: str, contents: Buffer) -> None:
        temporary = f"{path}.new-{os.getpid()}-{os.urandom(4).hex()}"
        descriptor = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            try:
                self.write(descriptor, [contents], 0)
                self.sync(descriptor)
            finally:
                self.close(descriptor)
            self.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        self.sync_directory(os.path.dirname(path))

    def load(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()


def forgo_access_times(directory: str) -> bool:
    """Have files that are made in `directory` keep no access time (chattr +A); False: this file system cannot.

    Nobody asks for it, and a read by passthrough looks after it on both of its layers: 4 KiB reads from the page cache ran
    at 0.89 of ext4 with it, 0.93 without.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = int.from_bytes(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))[:4], "little")
        if not flags & _NO_ACCESS_TIME:
            fcntl.ioctl(descriptor, _SET_FLAGS, (flags | _NO_ACCESS_TIME).to_bytes(8, "little"))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
