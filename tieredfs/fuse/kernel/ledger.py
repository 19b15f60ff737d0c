"""The ledger: what a new daemon must know to take over a mount, in memory that outlives the daemon.

The keeper holds the memory (a memfd); the daemon maps it and notes what INIT agreed and every open handle *before* it
answers the kernel. So after SIGKILL at any instruction the ledger holds at least the opens that programs have; at most
it also holds one whose answer was not sent, and the kernel sends that request again with the same `unique`.

One record is 64 bytes. Its `state` is written last and cleared first, so a torn record does not exist. One daemon
writes at a time; `note` and `forget` are safe from any thread (the caller's lock is not needed).
"""

import mmap
import os
import threading
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from tieredfs.errors import CorruptError, UnavailableError
from tieredfs.fuse.kernel.modes import Mode
from tieredfs.fuse.kernel.negotiation import Agreement
from tieredfs.fuse.kernel.wire import Init
from tieredfs.model import InodeId

RECORDS_MAX: Final = 1 << 20
"""Open handles at most; the memory is sparse, so only those that were in use at once cost any."""

_MAGIC: Final = 0x5453464C_45444752
_HEADER: Final = Struct("=QIIQ")  # magic, minor, readahead bytes, flags
_HEADER_BYTES: Final = 4096
_STATE: Final = Struct("=I")
_RECORD: Final = Struct("=IIIQQQQ")  # mode, flags, backing id, handle, inode, backing, unique
_RECORD_BYTES: Final = 64
_FREE: Final = 0
_FILE: Final = 1
_DIRECTORY: Final = 2
_BYTES: Final = _HEADER_BYTES + RECORDS_MAX * _RECORD_BYTES


class OpenFile(NamedTuple):
    """An open regular file. `unique` is the number of the request that opened it."""

    handle: int
    inode: InodeId
    flags: int
    mode: Mode
    backing: int
    backing_id: int
    unique: int


class OpenDirectory(NamedTuple):
    """An open directory."""

    handle: int
    inode: InodeId
    unique: int


def make_memory() -> int:
    """A descriptor of fresh, empty memory for a ledger; it does not survive exec unless passed on."""
    descriptor = os.memfd_create("tieredfs-ledger")
    os.ftruncate(descriptor, _BYTES)
    return descriptor


class Ledger:
    """The memory behind `descriptor`, which the caller keeps and may close."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _BYTES)
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._used = 0
        """Records from here on were never used."""
        self._scan_free()

    def close(self) -> None:
        self._memory.close()

    def agreement(self) -> Agreement | None:
        """What INIT agreed, or None: INIT was never answered. Raises CorruptError."""
        magic, minor, readahead, flags = _HEADER.unpack_from(self._memory)
        if magic == 0:
            return None
        if magic != _MAGIC:
            raise CorruptError("the hand-over memory is not a ledger of this version")
        return Agreement(minor, readahead, Init(flags))

    def note_agreement(self, agreement: Agreement) -> None:
        _HEADER.pack_into(self._memory, 0, 0, agreement.minor, agreement.readahead_bytes_max, int(agreement.flags))
        _HEADER.pack_into(self._memory, 0, _MAGIC, agreement.minor, agreement.readahead_bytes_max, int(agreement.flags))

    def note_file(self, file: OpenFile) -> int:
        """Write `file` down; returns the index to `forget` it by. Raises UnavailableError when the ledger is full."""
        return self._note(
            _FILE, (file.mode, file.flags, file.backing_id, file.handle, file.inode, file.backing, file.unique)
        )

    def note_directory(self, directory: OpenDirectory) -> int:
        """As `note_file`."""
        return self._note(_DIRECTORY, (0, 0, 0, directory.handle, directory.inode, 0, directory.unique))

    def forget(self, index: int) -> None:
        _STATE.pack_into(self._memory, self._offset(index), _FREE)
        self._free.append(index)

    def files(self) -> Iterator[tuple[int, OpenFile]]:
        """Every open file with its index."""
        for index in self._indices(_FILE):
            mode, flags, backing_id, handle, inode, backing, unique = self._record(index)
            yield index, OpenFile(handle, InodeId(inode), flags, Mode(mode), backing, backing_id, unique)

    def directories(self) -> Iterator[tuple[int, OpenDirectory]]:
        """Every open directory with its index."""
        for index in self._indices(_DIRECTORY):
            _, _, _, handle, inode, _, unique = self._record(index)
            yield index, OpenDirectory(handle, InodeId(inode), unique)

    def _note(self, state: int, fields: tuple[int, ...]) -> int:
        index = self._take()
        offset = self._offset(index)
        _RECORD.pack_into(self._memory, offset + _STATE.size, *fields)
        _STATE.pack_into(self._memory, offset, state)
        return index

    def _take(self) -> int:
        try:
            return self._free.pop()
        except IndexError:
            pass
        with self._lock:
            if self._used >= RECORDS_MAX:
                raise UnavailableError(f"{RECORDS_MAX} files are open on this mount, which is its limit")
            self._used += 1
            return self._used - 1

    @staticmethod
    def _offset(index: int) -> int:
        return _HEADER_BYTES + index * _RECORD_BYTES

    def _record(self, index: int) -> tuple[int, ...]:
        return _RECORD.unpack_from(self._memory, self._offset(index) + _STATE.size)

    def _state(self, index: int) -> int:
        (state,) = _STATE.unpack_from(self._memory, self._offset(index))
        return int(state)

    def _indices(self, state: int) -> Iterator[int]:
        return (index for index in range(self._used) if self._state(index) == state)

    def _scan_free(self) -> None:
        """Find the records that a daemon before us left: dense from the start, then zeros."""
        empty = bytes(_RECORD_BYTES)
        index = 0
        while index < RECORDS_MAX and self._memory[self._offset(index) : self._offset(index + 1)] != empty:
            if self._state(index) == _FREE:
                self._free.append(index)
            index += 1
        self._used = index
