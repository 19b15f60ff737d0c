"""Requests about open directories."""

from collections.abc import Sequence
from typing import Final

from tieredfs.fuse.kernel import wire
from tieredfs.fuse.kernel.handles import Handles
from tieredfs.fuse.kernel.ledger import OpenDirectory
from tieredfs.fuse.kernel.request import (
    DIRENT_TYPE,
    DONE,
    Handler,
    Reply,
    Request,
    Timeouts,
    encode_entry,
)
from tieredfs.fuse.kernel.wire import Op
from tieredfs.fuse.operations import DirectoryItem, Operations

_BODY: Final = wire.IN_HEADER_BYTES
_NO_ENTRY: Final = bytes(wire.ENTRY_OUT.size)
_SELF_AND_PARENT: Final = (b".", b"..")


class DirectoryHandlers:
    """opendir, readdir, readdirplus, releasedir, fsyncdir."""

    def __init__(self, operations: Operations, timeouts: Timeouts, handles: Handles) -> None:
        self._operations = operations
        self._timeouts = timeouts
        self._handles = handles

    def table(self) -> dict[Op, tuple[Handler, int]]:
        """Opcode to handler and the least length of the request's body."""
        return {
            Op.OPENDIR: (self.open, wire.OPEN_IN.size),
            Op.READDIR: (self.read, wire.READ_IN.size),
            Op.READDIRPLUS: (self.read_plus, wire.READ_IN.size),
            Op.RELEASEDIR: (self.release, wire.RELEASE_IN.size),
            Op.FSYNCDIR: (self.sync, wire.FSYNC_IN.size),
        }

    def open(self, request: Request) -> Reply:
        if request.resent:
            before = self._handles.resent(request.unique)
            if isinstance(before, OpenDirectory):
                return wire.OPEN_OUT.pack(before.handle, 0, 0)
        handle = self._operations.open_directory(request.inode)
        self._handles.add_directory(handle, request.inode, request.unique)
        return wire.OPEN_OUT.pack(handle, 0, 0)

    def read(self, request: Request) -> Reply:
        handle, cookie, size, _, _, _ = wire.READ_IN.unpack_from(request.buffer, _BODY)
        return _encode(self._operations.read_directory(handle, cookie, False), size)

    def read_plus(self, request: Request) -> Reply:
        handle, cookie, size, _, _, _ = wire.READ_IN.unpack_from(request.buffer, _BODY)
        return _encode_plus(self._operations.read_directory(handle, cookie, True), size, self._timeouts)

    def release(self, request: Request) -> Reply:
        (handle, *_) = wire.RELEASE_IN.unpack_from(request.buffer, _BODY)
        if self._handles.remove_directory(handle):
            self._operations.release_directory(handle)
        return DONE

    def sync(self, request: Request) -> Reply:
        self._operations.sync_directory(request.inode)
        return DONE


def _dirent(item: DirectoryItem) -> bytes:
    entry = item.entry
    name = entry.name
    length = len(name)
    header = wire.DIRENT.pack(entry.inode, item.cookie, length, DIRENT_TYPE[entry.kind])
    return header + name + wire.PADDING[length % wire.DIRENT_ALIGNMENT]


def _encode(items: Sequence[DirectoryItem], size: int) -> bytes:
    records = []
    for item in items:
        record = _dirent(item)
        size -= len(record)
        if size < 0:
            break
        records.append(record)
    return b"".join(records)


def _encode_plus(items: Sequence[DirectoryItem], size: int, timeouts: Timeouts) -> bytes:
    """As `_encode`, each record behind its attributes; node id 0 (`.`, `..`, none known) gives the name only."""
    records = []
    for item in items:
        record = _dirent(item)
        size -= wire.ENTRY_OUT.size + len(record)
        if size < 0:
            break
        known = item.attributes is not None and item.entry.name not in _SELF_AND_PARENT
        records.append(encode_entry(item.attributes, timeouts) if known and item.attributes else _NO_ENTRY)
        records.append(record)
    return b"".join(records)
