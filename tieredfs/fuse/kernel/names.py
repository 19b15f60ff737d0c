"""Requests about names, attributes and extended attributes."""

import errno
from typing import Final

from tieredfs.errors import NotFoundError
from tieredfs.fuse.kernel import wire
from tieredfs.fuse.kernel.request import (
    DONE,
    NO_REPLY,
    Handler,
    Reply,
    Request,
    Timeouts,
    encode_attributes,
    encode_entry,
)
from tieredfs.fuse.kernel.wire import Op
from tieredfs.fuse.operations import Operations, visible_xattrs
from tieredfs.fuse.privileges import drop_privilege, mode_without_privilege
from tieredfs.host import Clock
from tieredfs.model import AttributeChange, Attributes, FileKind, InodeId

_BODY: Final = wire.IN_HEADER_BYTES
_NANOSECONDS: Final = 1_000_000_000
_PERMISSIONS: Final = 0o7777
_CHANGES: Final = (
    wire.FATTR_MODE
    | wire.FATTR_UID
    | wire.FATTR_GID
    | wire.FATTR_SIZE
    | wire.FATTR_ATIME
    | wire.FATTR_MTIME
    | wire.FATTR_ATIME_NOW
    | wire.FATTR_MTIME_NOW
)
_TIME_NS_MAX: Final = (1 << 63) - 1
"""In 2262: what a record holds. Linux has its file systems take the nearest time that they can keep."""


class NameHandlers:
    """Lookup, attributes, links, directories' entries by name, xattrs, statfs."""

    def __init__(self, operations: Operations, timeouts: Timeouts, clock: Clock) -> None:
        self._operations = operations
        self._timeouts = timeouts
        self._clock = clock

    def table(self) -> dict[Op, tuple[Handler, int]]:
        """Opcode to handler and the least length of the request's body."""
        return {
            Op.LOOKUP: (self.lookup, 2),
            Op.GETATTR: (self.get_attributes, wire.GETATTR_IN.size),
            Op.SETATTR: (self.set_attributes, wire.SETATTR_IN.size),
            Op.READLINK: (self.read_link, 0),
            Op.SYMLINK: (self.symlink, 3),
            Op.MKNOD: (self.make_node, wire.MKNOD_IN.size + 2),
            Op.MKDIR: (self.make_directory, wire.MKDIR_IN.size + 2),
            Op.UNLINK: (self.unlink, 2),
            Op.RMDIR: (self.remove_directory, 2),
            Op.RENAME: (self.rename, wire.RENAME_IN.size + 4),
            Op.RENAME2: (self.rename2, wire.RENAME2_IN.size + 4),
            Op.LINK: (self.link, wire.LINK_IN.size + 2),
            Op.STATFS: (self.space, 0),
            Op.SETXATTR: (self.set_xattr, wire.SETXATTR_IN.size + 2),
            Op.GETXATTR: (self.get_xattr, wire.GETXATTR_IN.size + 2),
            Op.LISTXATTR: (self.list_xattrs, wire.GETXATTR_IN.size),
            Op.REMOVEXATTR: (self.remove_xattr, 2),
            Op.FORGET: (self.forget, 0),
            Op.BATCH_FORGET: (self.forget_many, 0),
        }

    def lookup(self, request: Request) -> Reply:
        try:
            attributes = self._operations.lookup(request.inode, request.name())
        except NotFoundError:
            if not (self._timeouts.negative_s or self._timeouts.negative_ns):
                raise
            timeouts = self._timeouts
            return wire.ENTRY_OUT.pack(0, 0, timeouts.negative_s, 0, timeouts.negative_ns, 0, *([0] * 16))
        return encode_entry(attributes, self._timeouts)

    def forget(self, request: Request) -> Reply:
        """The kernel dropped the inode. How often it was looked up does not matter: numbers keep their meaning for ever."""
        self._operations.forget((request.inode,))
        return NO_REPLY

    def forget_many(self, request: Request) -> Reply:
        if request.length < _BODY + wire.BATCH_FORGET_IN.size:
            return NO_REPLY
        count, _ = wire.BATCH_FORGET_IN.unpack_from(request.buffer, _BODY)
        start, size = _BODY + wire.BATCH_FORGET_IN.size, wire.FORGET_ONE.size
        count = min(count, (request.length - start) // size)
        whole = request.view[start : start + count * size]
        self._operations.forget([InodeId(inode) for inode, _ in wire.FORGET_ONE.iter_unpack(whole)])
        whole.release()
        return NO_REPLY

    def get_attributes(self, request: Request) -> Reply:
        return encode_attributes(self._operations.attributes(request.inode), self._timeouts)

    def set_attributes(self, request: Request) -> Reply:
        fields = wire.SETATTR_IN.unpack_from(request.buffer, _BODY)
        valid, handle, size, _, atime_s, mtime_s, _, atime_ns, mtime_ns, _, mode, uid, gid = fields
        now_ns = self._clock.wall_ns() if valid & (wire.FATTR_ATIME_NOW | wire.FATTR_MTIME_NOW) else 0
        change = AttributeChange(
            mode=mode & _PERMISSIONS if valid & wire.FATTR_MODE else self._mode_after_chown(request.inode, valid),
            uid=uid if valid & wire.FATTR_UID else None,
            gid=gid if valid & wire.FATTR_GID else None,
            atime_ns=_time(valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, atime_s * _NANOSECONDS + atime_ns, now_ns),
            mtime_ns=_time(valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, mtime_s * _NANOSECONDS + mtime_ns, now_ns),
        )
        # All that is left of a SETATTR when the kernel has cut out what HANDLE_KILLPRIV_V2 makes ours: a passthrough write to a
        # file that became setuid after its open, and chown(-1, -1).
        nothing_else = not valid & _CHANGES and self._operations.attributes(request.inode).kind is FileKind.REGULAR
        if valid & wire.FATTR_KILL_SUIDGID or nothing_else:
            drop_privilege(self._operations, request.inode)
        attributes = self._operations.set_attributes(
            request.inode,
            change,
            size if valid & wire.FATTR_SIZE else None,
            handle if valid & wire.FATTR_FH else None,
        )
        return encode_attributes(attributes, self._timeouts)

    def _mode_after_chown(self, inode: InodeId, valid: int) -> int | None:
        """chown(2) of anything but a directory drops setuid and setgid; with HANDLE_KILLPRIV_V2 that is ours to do."""
        if not valid & (wire.FATTR_UID | wire.FATTR_GID):
            return None
        attributes = self._operations.attributes(inode)
        if attributes.kind is FileKind.DIRECTORY:
            return None
        mode = mode_without_privilege(attributes.mode)
        return mode if mode != attributes.mode else None

    def read_link(self, request: Request) -> Reply:
        return self._operations.read_link(request.inode)

    def symlink(self, request: Request) -> Reply:
        name = request.name()
        target = request.text(len(name) + 1)
        return self._entry(self._operations.symlink(request.inode, name, target, request.caller()))

    def make_node(self, request: Request) -> Reply:
        mode, device, umask = wire.MKNOD_IN.unpack_from(request.buffer, _BODY)
        name = request.name(wire.MKNOD_IN.size)
        return self._entry(self._operations.make_node(request.inode, name, mode, device, request.caller(umask)))

    def make_directory(self, request: Request) -> Reply:
        mode, umask = wire.MKDIR_IN.unpack_from(request.buffer, _BODY)
        name = request.name(wire.MKDIR_IN.size)
        caller = request.caller(umask)
        return self._entry(self._operations.make_directory(request.inode, name, mode & _PERMISSIONS, caller))

    def unlink(self, request: Request) -> Reply:
        self._operations.unlink(request.inode, request.name(), request.caller())
        return DONE

    def remove_directory(self, request: Request) -> Reply:
        self._operations.remove_directory(request.inode, request.name(), request.caller())
        return DONE

    def rename(self, request: Request) -> Reply:
        (target,) = wire.RENAME_IN.unpack_from(request.buffer, _BODY)
        name, new_name = request.names(wire.RENAME_IN.size)
        self._operations.rename(request.inode, name, InodeId(target), new_name, 0, request.caller())
        return DONE

    def rename2(self, request: Request) -> Reply:
        target, flags = wire.RENAME2_IN.unpack_from(request.buffer, _BODY)
        name, new_name = request.names(wire.RENAME2_IN.size)
        self._operations.rename(request.inode, name, InodeId(target), new_name, flags, request.caller())
        return DONE

    def link(self, request: Request) -> Reply:
        (inode,) = wire.LINK_IN.unpack_from(request.buffer, _BODY)
        name = request.name(wire.LINK_IN.size)
        return self._entry(self._operations.link(InodeId(inode), request.inode, name, request.caller()))

    def space(self, request: Request) -> Reply:
        space = self._operations.space(request.inode)
        block = space.block_bytes
        free = space.free_bytes // block
        return wire.STATFS_OUT.pack(
            space.total_bytes // block,
            free,
            free,
            space.file_count,
            space.free_file_count,
            block,
            space.name_bytes_max,
            block,
        )

    def set_xattr(self, request: Request) -> Reply:
        size, flags = wire.SETXATTR_IN.unpack_from(request.buffer, _BODY)
        name = request.name(wire.SETXATTR_IN.size)
        value = request.data(wire.SETXATTR_IN.size + len(name) + 1, size)
        self._operations.set_xattr(request.inode, name, value.tobytes(), flags)
        return DONE

    def get_xattr(self, request: Request) -> Reply:
        (size,) = wire.GETXATTR_IN.unpack_from(request.buffer, _BODY)
        return _sized(self._operations.get_xattr(request.inode, request.name(wire.GETXATTR_IN.size)), size)

    def list_xattrs(self, request: Request) -> Reply:
        (size,) = wire.GETXATTR_IN.unpack_from(request.buffer, _BODY)
        names = visible_xattrs(self._operations.list_xattrs(request.inode), request.uid)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def remove_xattr(self, request: Request) -> Reply:
        self._operations.remove_xattr(request.inode, request.name())
        return DONE

    def _entry(self, attributes: Attributes) -> bytes:
        return encode_entry(attributes, self._timeouts)


def _time(valid: int, given: int, now: int, given_ns: int, now_ns: int) -> int | None:
    if valid & now:
        return now_ns
    return max(-_TIME_NS_MAX, min(given_ns, _TIME_NS_MAX)) if valid & given else None


def _sized(value: bytes, size: int) -> bytes:
    """The answer of a call that first asks how long the value is (`size` 0)."""
    if size == 0:
        return wire.GETXATTR_OUT.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, "the value is longer than the caller's buffer")
    return value
