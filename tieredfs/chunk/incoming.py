"""A chunk on its way into a directory: written piece by piece below `incoming/`, then durable and renamed, or gone.

Pieces are checked against the header's checksums when they are written, if they come off a wire; what the same process
computed a moment ago need not be. One thread at a time.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from tieredfs.chunk.cells import check_cells, label
from tieredfs.chunk.directory import chunk_path, incoming_path
from tieredfs.chunk.fan_out import FanOut
from tieredfs.chunk.store import ChunkName
from tieredfs.errors import CorruptError, NoSpaceError, UnavailableError
from tieredfs.format.chunk import ChunkHeader
from tieredfs.host import Host, crash
from tieredfs.limits import CELL_BYTES, CHUNK_HEADER_BYTES, STORE_FREE_RESERVE_BYTES

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class IncomingChunk:
    """One chunk. `page`: its header in memory of `CHUNK_HEADER_BYTES`; `direct`: that and every piece are page-aligned and whole
    pages long, so the page cache can be left out. `refused_direct`: the file system would not have it.

    After an error, and instead of `commit`: `discard`. Raises NoSpaceError, UnavailableError.
    """

    def __init__(
        self, root: str, host: Host, fan_out: FanOut, header: ChunkHeader, page: memoryview, *, direct: bool
    ) -> None:
        self.name = ChunkName(header.block, header.index)
        self.refused_direct = False
        self._direct = direct
        self._root = root
        self._files = host.files
        self._fan_out = fan_out
        self._header = header
        self._page = page
        self._path = incoming_path(root, self.name, os.getpid(), f"{host.random.getrandbits(64):x}")
        self._descriptor: int | None = None
        self._written_bytes = 0
        self._check_room()

    def _check_room(self) -> None:
        with self._translated():
            free = self._files.free_bytes(self._root)
        if free - self._header.payload_bytes - CHUNK_HEADER_BYTES < STORE_FREE_RESERVE_BYTES:
            raise NoSpaceError(f"{self._root} has {free} bytes free and keeps {STORE_FREE_RESERVE_BYTES} of them")

    def write(self, piece: memoryview, *, check: bool) -> None:
        """What follows in the payload: whole cells, but for the last. `check`: raises CorruptError for another's bytes."""
        start = self._written_bytes
        assert start % CELL_BYTES == 0
        if start + len(piece) > self._header.payload_bytes:
            raise CorruptError(f"{label(self.name)} for {self._root} is longer than its header says")
        if check:
            check_cells(self._header, f"its way to {self._root}", start, piece)
        with self._translated():
            if self._descriptor is None:
                self._begin(piece)
            else:
                self._files.write(self._descriptor, [piece], CHUNK_HEADER_BYTES + start)
        self._written_bytes += len(piece)

    def _begin(self, piece: memoryview) -> None:
        if self._direct:
            try:
                self._open(os.O_DIRECT, piece)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.refused_direct = True  # a file system that caches everything (tmpfs) or aligns otherwise
                self._close()
            else:
                return
        self._open(0, piece)

    def _open(self, flags: int, piece: memoryview) -> None:
        self._descriptor = self._files.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
        self._files.write(self._descriptor, [self._page, piece], 0)

    def commit(self) -> None:
        """Durable under its name on return. Raises CorruptError when it is not whole."""
        if self._written_bytes != self._header.payload_bytes:
            raise CorruptError(f"{label(self.name)} for {self._root} is shorter than its header says")
        assert self._descriptor is not None, "no payload is empty"
        with self._translated():
            self._files.sync(self._descriptor)
            self._close()
            crash.here("chunk.written")
            self._fan_out.place(self._path, self.name.block, chunk_path(self._root, self.name))
        crash.here("chunk.published")

    def discard(self) -> None:
        """Nothing is left of it."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._files.unlink(self._path)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.close(descriptor)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{label(self.name)} cannot be written to {self._root}"
            if error.errno in _FULL:
                raise NoSpaceError(f"{what}: {error.strerror}") from error
            raise UnavailableError(f"{what}: {error}") from error
