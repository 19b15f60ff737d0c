"""Dumps in a directory of a local disk, below `metadata/`. The contract is `tieredfs.chunk.dump_shelf.DumpShelf`.

A dump that is coming has a name of its own until it is whole and durable; what a dead process left under such a name is removed by
whoever opens the disk, or puts a dump there, next. A storage node takes the pieces of a dump one call at a time, by `write`,
`publish` and `discard`: it remembers nothing between them.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from tieredfs.chunk.directory import (
    DiskIdentity,
    check_identity,
    dump_path,
    dump_upload_path,
    dumps_of,
    read_identity,
    remove_dump_leftovers,
)
from tieredfs.chunk.dump_shelf import HEAD_BYTES, DumpSource, ranges
from tieredfs.errors import (
    CorruptError,
    ForeignDataError,
    NewerFormatError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from tieredfs.host import Files, Host, crash
from tieredfs.limits import DUMP_PIECE_BYTES

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskDumps:
    """`identity`: which disk the directory must still be; None: any, for somebody who only reads."""

    def __init__(self, root: str, host: Host, identity: DiskIdentity | None) -> None:
        self._root = root
        self._host = host
        self._files = host.files
        self._identity = identity

    def label(self, taken_ns: int) -> str:
        return dump_path(self._root, taken_ns)

    def put(self, taken_ns: int, source: DumpSource) -> None:
        token = f"{self._host.random.getrandbits(64):x}"
        try:
            for offset, length in ranges(source.size_bytes, DUMP_PIECE_BYTES):
                self.write(taken_ns, token, offset, source.piece(offset, length))
            self.publish(taken_ns, token, source.size_bytes)
        except BaseException:
            self.discard(taken_ns, token)
            raise

    def taken(self) -> list[int]:
        self._check()
        with self._translated("its dumps cannot be listed"):
            return dumps_of(self._files, self._root)

    def read(self, taken_ns: int) -> Iterator[bytes]:
        descriptor = self.open_raw(taken_ns)
        try:
            piece_bytes, offset = HEAD_BYTES, 0
            while True:
                target = bytearray(piece_bytes)
                with self._translated("a dump cannot be read"):
                    count = self._files.read_into(descriptor, memoryview(target), offset)
                if count:
                    yield bytes(target[:count])
                if count < piece_bytes:
                    return
                piece_bytes, offset = DUMP_PIECE_BYTES, offset + count
        finally:
            self._files.close(descriptor)

    def open_raw(self, taken_ns: int) -> int:
        """A descriptor of a dump; the caller closes it. Raises NotFoundError, UnavailableError."""
        self._check()
        with self._translated("a dump cannot be opened"):
            return self._files.open(dump_path(self._root, taken_ns), os.O_RDONLY)

    def delete(self, taken_ns: int) -> None:
        self._check()
        with contextlib.suppress(NotFoundError), self._translated("a dump cannot be deleted"):
            self._files.unlink(dump_path(self._root, taken_ns))

    # ---- a dump that comes in pieces --------------------------------------------------------------------------------

    def write(self, taken_ns: int, token: str, offset: int, piece: bytes | bytearray) -> None:
        """A piece at its place; the one at 0 comes first. `token`: hex digits of the upload's own. Repeating it is harmless.

        Raises UnavailableError, NoSpaceError, NotFoundError (that upload has not begun, or this process did not begin it).
        """
        self._check()
        flags = os.O_WRONLY
        if not offset:
            self._make_folder()
            remove_dump_leftovers(self._host, self._root)
            flags |= os.O_CREAT
        with self._translated("a dump cannot be written"):
            descriptor = self._files.open(self._upload(taken_ns, token), flags)
            try:
                self._files.write(descriptor, [piece], offset)
            finally:
                self._files.close(descriptor)

    def publish(self, taken_ns: int, token: str, size_bytes: int) -> None:
        """Durable under its name on return. Repeating it is harmless.

        Raises UnavailableError, NoSpaceError, NotFoundError (no such upload), CorruptError (it is not as long as that).
        """
        self._check()
        path = dump_path(self._root, taken_ns)
        with self._translated("a dump cannot be written"):
            try:
                descriptor = self._files.open(self._upload(taken_ns, token), os.O_WRONLY)
            except FileNotFoundError:
                if self._files.stat_path(path).st_size != size_bytes:
                    raise
                return  # the answer of the first time was lost
            try:
                found = self._files.stat(descriptor).st_size
                if found != size_bytes:
                    raise CorruptError(f"the dump for {self._root} has {found} bytes of {size_bytes}")
                settle(self._files, descriptor, self._upload(taken_ns, token), path)
            finally:
                self._files.close(descriptor)

    def discard(self, taken_ns: int, token: str) -> None:
        """Nothing is left of an upload."""
        with contextlib.suppress(OSError):
            self._files.unlink(self._upload(taken_ns, token))

    def _upload(self, taken_ns: int, token: str) -> str:
        return dump_upload_path(self._root, taken_ns, os.getpid(), token)

    def _make_folder(self) -> None:
        folder = os.path.dirname(dump_path(self._root, 0))
        with self._translated("a dump cannot be written"):
            try:
                self._files.stat_path(folder)
            except FileNotFoundError:
                self._files.make_directory(folder)
                self._files.sync_directory(self._root)

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """What was given to another volume meanwhile is not ours to write, and its dumps not ours to read."""
        if self._identity is None:
            return
        try:
            check_identity(read_identity(self._files, self._root), self._identity, self._root)
        except (ForeignDataError, CorruptError, NewerFormatError) as error:
            raise UnavailableError(str(error)) from error

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._root}: {what}: it is not there") from error
        except OSError as error:
            kind = NoSpaceError if error.errno in _FULL else UnavailableError
            raise kind(f"{self._root}: {what}: {error.strerror}") from error


def settle(files: Files, descriptor: int, temporary: str, path: str) -> None:
    """A dump that is completely written gets its name, durably. Raises OSError."""
    files.sync(descriptor)
    crash.here("dump.written")
    files.rename(temporary, path)
    files.sync_directory(os.path.dirname(path))
