"""The open handles of a mount, and the backing files that the kernel holds for them.

Decisions are those of `modes.py`, taken under one lock together with the ioctl that they need (2 µs), so that two opens
of one inode cannot pass each other. The kernel counts an open when it sees our answer and uncounts it before it sends
RELEASE, hence our counts are never below the kernel's, which is the safe side of every rule.

A backing id lives from the first passthrough open of an inode to the last. When the kernel or our privilege has no
passthrough, the first refusal turns it off for the whole mount, says so once, and everything is cached from there.
"""

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from tieredfs.errors import NotFoundError, TieredError
from tieredfs.fuse.kernel import wire
from tieredfs.fuse.kernel.ledger import Ledger, OpenDirectory, OpenFile
from tieredfs.fuse.kernel.modes import CLOSED, InodeModes, Mode, after_close, after_open, mode_of_open
from tieredfs.fuse.operations import Opened, Operations
from tieredfs.model import InodeId

_log = logging.getLogger(__name__)

PASSING_SHORTAGE: Final = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR})
"""Refusals of a backing file that say nothing about the next one."""

_READ_ONLY_ACCESS: Final = 0
_ACCESS_MASK: Final = 3
_CHANGING: Final = os.O_ACCMODE | os.O_TRUNC
_PASSING: Final = frozenset({Mode.PASSTHROUGH, Mode.VEILED})


class Live(NamedTuple):
    """An open file and where the ledger has it."""

    file: OpenFile
    record_index: int


class Answer(NamedTuple):
    """What OPEN and CREATE tell the kernel."""

    handle: int
    open_flags: int
    backing_id: int


class BackingFiles:
    """The two ioctls. `device` is the mount's /dev/fuse descriptor."""

    def __init__(self, device: int) -> None:
        self._device = device

    def open(self, descriptor: int) -> int:
        """Lend the file to the kernel; returns its backing id. Raises OSError.

        It is lent for reading only: the kernel opens it again, with the program's own flags, for each open. One that is lent
        for writing would count as a writer for as long as anybody reads (`host.files.is_open_for_writing`).
        """
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return self._lend(descriptor)
        reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._lend(reading)
        finally:
            os.close(reading)

    def _lend(self, descriptor: int) -> int:
        argument = bytearray(wire.BACKING_MAP.pack(descriptor, 0, 0))
        return int(fcntl.ioctl(self._device, wire.DEV_IOC_BACKING_OPEN, argument))

    def close(self, backing_id: int) -> None:
        fcntl.ioctl(self._device, wire.DEV_IOC_BACKING_CLOSE, wire.BACKING_ID.pack(backing_id))


class Handles:
    """All open files and directories. Safe from any thread."""

    def __init__(self, backing_files: BackingFiles, ledger: Ledger) -> None:
        self._backing_files = backing_files
        self._ledger = ledger
        self._lock = threading.Lock()
        self._modes: dict[int, InodeModes] = {}
        self._files: dict[int, Live] = {}
        self._directories: dict[int, int] = {}
        self._by_unique: dict[int, OpenFile | OpenDirectory] = {}
        """Opens found in the ledger, by the request that made them: the kernel may ask for these again."""
        self.passthrough = False
        self.refused = ""
        """Why passthrough was given up, or empty."""
        self.opened: dict[Mode, int] = dict.fromkeys(Mode, 0)

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    # ---- files -------------------------------------------------------------------------------------------------------

    def add(self, inode: InodeId, flags: int, opened: Opened, unique: int, *, bypass: bool) -> Answer:
        """Decide how a new open does its I/O, and note it. `bypass`: as to its content, passthrough is legal."""
        with self._lock:
            modes = self._modes.get(inode, CLOSED)
            mode, backing_id = self._decide(modes, opened, whole=bypass and self.passthrough)
            file = OpenFile(opened.handle, inode, flags, mode, opened.backing, backing_id, unique)
            index = self._ledger.note_file(file)
            self._modes[inode] = after_open(modes, mode, opened.backing, backing_id)
            self._files[opened.handle] = Live(file, index)
            self.opened[mode] += 1
        return _answer(file, keep_cache=opened.keep_cache)

    def remove(self, handle: int) -> bool:
        """Forget an open file and give its backing file back if it was the last; False: it is not known (any more)."""
        with self._lock:
            live = self._files.pop(handle, None)
            if live is None:
                return False
            modes, closing = after_close(self._modes[live.file.inode], live.file.mode)
            if modes is CLOSED:
                del self._modes[live.file.inode]
            else:
                self._modes[live.file.inode] = modes
            self._ledger.forget(live.record_index)
            if closing:
                self._close_backing(closing)
        return True

    def only_reads(self, handle: int) -> bool:
        """Whether it is open, and for nothing but reading."""
        live = self._files.get(handle)
        return live is not None and not live.file.flags & _CHANGING

    def may_be_mapped_unseen(self, handle: int) -> bool:
        """Whether its program may write to the local file through a map: open by passthrough, for reading and writing, without
        which mmap(2) shares no writable memory."""
        live = self._files.get(handle)
        return live is not None and live.file.flags & os.O_ACCMODE == os.O_RDWR and live.file.mode in _PASSING

    def resent(self, unique: int) -> OpenFile | OpenDirectory | None:
        """The open that request `unique` made in a daemon before this one, if the answer was not seen."""
        return self._by_unique.pop(unique, None)

    @staticmethod
    def answer_again(file: OpenFile) -> Answer:
        """What was, or would have been, answered to the request that opened `file`."""
        return _answer(file, keep_cache=False)

    def inode_of(self, handle: int) -> InodeId | None:
        live = self._files.get(handle)
        return live.file.inode if live else None

    def _decide(self, modes: InodeModes, opened: Opened, *, whole: bool) -> tuple[Mode, int]:
        mode = mode_of_open(modes, opened.backing, whole=whole)
        if mode is Mode.PASSTHROUGH and modes is CLOSED:
            backing_id = self._open_backing(opened.descriptor)
            return (mode, backing_id) if backing_id else (Mode.CACHED, 0)
        return mode, modes.backing_id if mode in _PASSING else 0

    def _open_backing(self, descriptor: int) -> int:
        try:
            return self._backing_files.open(descriptor)
        except OSError as error:
            if error.errno not in PASSING_SHORTAGE:
                self.passthrough = False
                self.refused = error.strerror or str(error)
                _log.warning("kernel passthrough is off for this mount: %s", self.refused)
            return 0

    def _close_backing(self, backing_id: int) -> None:
        try:
            self._backing_files.close(backing_id)
        except OSError as error:
            _log.warning("backing file %d could not be given back: %s", backing_id, error.strerror)

    # ---- directories -------------------------------------------------------------------------------------------------

    def add_directory(self, handle: int, inode: InodeId, unique: int) -> None:
        self._directories[handle] = self._ledger.note_directory(OpenDirectory(handle, inode, unique))

    def remove_directory(self, handle: int) -> bool:
        index = self._directories.pop(handle, None)
        if index is None:
            return False
        self._ledger.forget(index)
        return True

    # ---- a new daemon, and the end -----------------------------------------------------------------------------------

    def take_over(self, operations: Operations) -> None:
        """Bind again every handle that the ledger knows. One that cannot be bound keeps its number: its operations fail, and
        not those of the whole mount. (By passthrough it goes on: the kernel has its file.)"""
        for index, file in self._ledger.files():
            with _unbound(file.handle, file.inode):
                operations.reopen(file.handle, file.inode, file.flags)
            modes = self._modes.get(file.inode, CLOSED)
            self._modes[file.inode] = after_open(modes, file.mode, file.backing, file.backing_id)
            self._files[file.handle] = Live(file, index)
            self._by_unique[file.unique] = file
        for index, directory in self._ledger.directories():
            with _unbound(directory.handle, directory.inode):
                operations.reopen_directory(directory.handle, directory.inode)
            self._directories[directory.handle] = index
            self._by_unique[directory.unique] = directory

    def drain(self) -> Iterator[tuple[int, bool]]:
        """Every handle still open and whether it is a directory's; they are forgotten. For when the mount is gone."""
        while self._files:
            handle, live = self._files.popitem()
            self._ledger.forget(live.record_index)
            yield handle, False
        while self._directories:
            handle, index = self._directories.popitem()
            self._ledger.forget(index)
            yield handle, True
        self._modes.clear()


@contextlib.contextmanager
def _unbound(handle: int, inode: InodeId) -> Iterator[None]:
    try:
        yield
    except NotFoundError:
        pass  # deleted meanwhile
    except (TieredError, OSError) as error:
        _log.warning("handle %d of inode %d could not be bound again: %s", handle, inode, error)


def _answer(file: OpenFile, *, keep_cache: bool) -> Answer:
    # A file that is only read has nothing to flush: one request per open less.
    flags = wire.FOPEN_NOFLUSH if file.flags & _ACCESS_MASK == _READ_ONLY_ACCESS else 0
    if file.mode is Mode.CACHED:
        flags |= wire.FOPEN_KEEP_CACHE if keep_cache else 0
    elif file.mode is Mode.DIRECT:
        flags |= wire.FOPEN_DIRECT_IO
    else:
        flags |= wire.FOPEN_PASSTHROUGH | (wire.FOPEN_DIRECT_IO if file.mode is Mode.VEILED else 0)
    return Answer(file.handle, flags, file.backing_id)
