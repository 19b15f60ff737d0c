"""Requests about open regular files: open, create, and the bytes where passthrough is not legal."""

import errno
import os
from collections.abc import Callable
from typing import Final

from tieredfs.errors import NotFoundError, UnavailableError
from tieredfs.fuse.kernel import wire
from tieredfs.fuse.kernel.handles import Answer, Handles
from tieredfs.fuse.kernel.ledger import OpenFile
from tieredfs.fuse.kernel.request import (
    DONE,
    Handler,
    Reply,
    Request,
    Timeouts,
    attribute_fields,
)
from tieredfs.fuse.kernel.wire import Op
from tieredfs.fuse.operations import Opened, Operations
from tieredfs.fuse.privileges import drop_privilege
from tieredfs.limits import FUSE_REQUEST_BYTES_MAX
from tieredfs.model import Attributes, InodeId

_BODY: Final = wire.IN_HEADER_BYTES
_PERMISSIONS: Final = 0o7777
_SETUID_OR_SETGID: Final = 0o6000


class ContentHandlers:
    """open, create, read, write, flush, fsync, release, fallocate, lseek."""

    def __init__(
        self,
        operations: Operations,
        timeouts: Timeouts,
        handles: Handles,
        forget_attributes: Callable[[InodeId], None],
    ) -> None:
        self._operations = operations
        self._timeouts = timeouts
        self._handles = handles
        self._forget_attributes = forget_attributes

    def table(self) -> dict[Op, tuple[Handler, int]]:
        """Opcode to handler and the least length of the request's body."""
        return {
            Op.OPEN: (self.open, wire.OPEN_IN.size),
            Op.CREATE: (self.create, wire.CREATE_IN.size + 2),
            Op.READ: (self.read, wire.READ_IN.size),
            Op.WRITE: (self.write, wire.WRITE_IN.size),
            Op.RELEASE: (self.release, wire.RELEASE_IN.size),
            Op.FLUSH: (self.flush, wire.FLUSH_IN.size),
            Op.FSYNC: (self.sync, wire.FSYNC_IN.size),
            Op.FALLOCATE: (self.allocate, wire.FALLOCATE_IN.size),
            Op.LSEEK: (self.seek, wire.LSEEK_IN.size),
        }

    def open(self, request: Request) -> Reply:
        if request.resent:
            before = self._handles.resent(request.unique)
            if isinstance(before, OpenFile):
                return _opened(self._handles.answer_again(before))
        flags, open_flags = wire.OPEN_IN.unpack_from(request.buffer, _BODY)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            request.step_aside()  # an older copy is made durable first
        if open_flags & wire.OPEN_KILL_SUIDGID:
            drop_privilege(self._operations, request.inode)
        opened = self._operations.open(request.inode, flags, request.caller())
        bypass = opened.whole and self._writes_need_no_watch(request.inode, flags)
        answer = self._add(request, request.inode, flags, opened, bypass=bypass)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._forget_attributes(request.inode)  # kept for long while stored; mapped writes change them unseen
        return _opened(answer)

    def create(self, request: Request) -> Reply:
        if request.resent:
            before = self._handles.resent(request.unique)
            if isinstance(before, OpenFile):
                attributes = self._operations.attributes(before.inode)
                return self._created(attributes, self._handles.answer_again(before))
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(request.buffer, _BODY)
        name = request.name(wire.CREATE_IN.size)
        caller = request.caller(umask)
        attributes, opened = self._operations.create(request.inode, name, mode & _PERMISSIONS, flags, caller)
        bypass = opened.whole and not attributes.mode & _SETUID_OR_SETGID
        return self._created(attributes, self._add(request, attributes.inode, flags, opened, bypass=bypass))

    def _add(self, request: Request, inode: InodeId, flags: int, opened: Opened, *, bypass: bool) -> Answer:
        try:
            return self._handles.add(inode, flags, opened, request.unique, bypass=bypass)
        except UnavailableError:
            self._operations.release(opened.handle)
            raise

    def _writes_need_no_watch(self, inode: InodeId, flags: int) -> bool:
        """False for a file that must lose setuid or setgid when written: that is left to who sees the WRITE."""
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return True
        return not self._operations.attributes(inode).mode & _SETUID_OR_SETGID

    def _created(self, attributes: Attributes, answer: Answer) -> bytes:
        timeouts = self._timeouts
        seconds, nanoseconds = timeouts.staged if attributes.staged_in else timeouts.stored
        return wire.CREATE_OUT.pack(
            attributes.inode,
            0,
            timeouts.entry_s,
            seconds,
            timeouts.entry_ns,
            nanoseconds,
            *attribute_fields(attributes),
            answer.handle,
            answer.open_flags,
            answer.backing_id,
        )

    def undo(self, reply: bytes) -> None:
        """The program that asked for an open was killed before the answer came: nobody will release it but us."""
        handle, _, _ = wire.OPEN_OUT.unpack_from(reply, len(reply) - wire.OPEN_OUT.size)
        if self._handles.remove(handle):
            self._operations.release(handle)

    def read(self, request: Request) -> Reply:
        handle, offset, size, _, _, _ = wire.READ_IN.unpack_from(request.buffer, _BODY)
        span = self._operations.read(handle, offset, min(size, FUSE_REQUEST_BYTES_MAX))
        request.read_bytes += span.length
        return request.send_file(span)

    def write(self, request: Request) -> Reply:
        handle, offset, size, write_flags, _, _ = wire.WRITE_IN.unpack_from(request.buffer, _BODY)
        data = request.data(wire.WRITE_IN.size, size)
        if write_flags & wire.WRITE_KILL_SUIDGID:
            drop_privilege(self._operations, request.inode)
        written = self._operations.write(handle, offset, (data,))
        request.written_bytes += written
        return wire.WRITE_OUT.pack(written)

    def release(self, request: Request) -> Reply:
        (handle, *_) = wire.RELEASE_IN.unpack_from(request.buffer, _BODY)
        self.close(handle)
        return DONE

    def only_read(self, request: Request) -> int:
        """The handle that a RELEASE closes, if it was open for nothing but reading; else 0, which is none."""
        (handle, *_) = wire.RELEASE_IN.unpack_from(request.buffer, _BODY)
        return int(handle) if self._handles.only_reads(handle) else 0

    def close_late(self, handle: int, _: Request) -> Reply:
        """A RELEASE that was put off; the request is a later one's."""
        self.close(handle)
        return DONE

    def close(self, handle: int) -> None:
        """Nothing where it is not known (any more)."""
        # The backing file is given back before the operations close theirs; a daemon killed between the two finds
        # nothing to bind again, and the operations of its successor never knew the handle.
        if self._handles.remove(handle):
            self._operations.release(handle)

    def flush(self, request: Request) -> Reply:
        (handle, _) = wire.FLUSH_IN.unpack_from(request.buffer, _BODY)
        self._forget_what_a_map_changed(handle, request.inode)
        self._operations.flush(handle)
        return DONE

    def sync(self, request: Request) -> Reply:
        handle, flags = wire.FSYNC_IN.unpack_from(request.buffer, _BODY)
        self._forget_what_a_map_changed(handle, request.inode)
        self._operations.sync(handle, bool(flags & wire.FSYNC_DATA_ONLY))
        return DONE

    def _forget_what_a_map_changed(self, handle: int, inode: InodeId) -> None:
        """The kernel asks for attributes again after it has written, for write(2) or of its own pages. A map of a passthrough
        file is the local file's: of what is written there it sees nothing, and believes the attributes that it has."""
        if self._handles.may_be_mapped_unseen(handle):
            self._forget_attributes(inode)

    def allocate(self, request: Request) -> Reply:
        handle, offset, length, mode = wire.FALLOCATE_IN.unpack_from(request.buffer, _BODY)
        if request.uid:  # a change like any other, but there is no flag as WRITE has one
            drop_privilege(self._operations, request.inode)
        self._operations.allocate(handle, mode, offset, length)
        return DONE

    def seek(self, request: Request) -> Reply:
        handle, offset, whence = wire.LSEEK_IN.unpack_from(request.buffer, _BODY)
        try:
            return wire.LSEEK_OUT.pack(self._operations.seek(handle, offset, whence))
        except NotFoundError as error:
            raise OSError(errno.ENXIO, "no data or hole from here") from error


def _opened(answer: Answer) -> bytes:
    return wire.OPEN_OUT.pack(answer.handle, answer.open_flags, answer.backing_id)
