"""`VolumeOperations`: the file system itself, between a driver and a volume with its SSD tier.

Namespace calls are one metadata transaction each; calls on open files go to the tier's local file. Two facts are joined
here and nowhere else: that a name disappears (metadata) while its file is open (tier), and that size and times of a file
that is being written are those of its local file.
"""

import contextlib
import itertools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tieredfs.cache.durable import make_durable
from tieredfs.cache.local import LocalFile
from tieredfs.cache.times import set_times
from tieredfs.errors import (
    InvalidRequestError,
    NotFoundError,
    NotSupportedError,
    ReadOnlyError,
    StaleError,
    TieredError,
)
from tieredfs.fuse.directories import DirectoryHandles
from tieredfs.fuse.operations import Caller, DirectoryItem, Opened, Space, Span
from tieredfs.fuse.undertaker import Undertaker
from tieredfs.host import crash
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import KIB, NAME_BYTES_MAX, QUOTA_STEP_BYTES
from tieredfs.meta.metadata import Creation, Receipt, Removed
from tieredfs.model import AttributeChange, Attributes, Durability, FileKind, InodeId, Quota
from tieredfs.volume import SsdTier, Volume

_NOREPLACE: Final = 1
_EXCHANGE: Final = 2
_KEEP_SIZE: Final = 1
"""FALLOC_FL_KEEP_SIZE"""
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
"""xattr(7). The kernel asks for rights by these; in `system.` are those that mean something to a file system, none to us
(POSIX ACLs are among them)."""

_KIND_OF_FORMAT: Final = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER_DEVICE,
    stat.S_IFBLK: FileKind.BLOCK_DEVICE,
}


READ_WITH_OPEN_BYTES_MAX: Final = 64 * KIB
"""A file up to this size is asked of the disk as it is opened, so that the wait for it begins before its program knows that it is
open. Where the page cache has it, that costs 0.6 us."""


class _Handle(NamedTuple):
    file: LocalFile
    writer: bool


@contextlib.contextmanager
def _stale_when_deleted(inode: InodeId) -> Iterator[None]:
    """A request names an inode that the kernel looked up a moment ago. If it is deleted by now, ESTALE makes the kernel
    look the name up again, so a program that opens a file while it is being replaced gets the old one or the new one."""
    try:
        yield
    except NotFoundError:
        raise StaleError(f"inode {inode} was deleted") from None


def _check_namespace(name: bytes) -> None:
    """Raises NotSupportedError, InvalidRequestError."""
    if not name.startswith(_XATTR_NAMESPACES):
        raise NotSupportedError(f"{name!r} is in no namespace of extended attributes")
    if name in _XATTR_NAMESPACES:
        raise InvalidRequestError(f"{name!r} is a namespace without a name")


class VolumeOperations:
    """`tieredfs.fuse.operations.Operations` over one volume and its tier."""

    def __init__(
        self, volume: Volume, ssd: SsdTier, mount: int, *, read_only: bool = False, told_when_forgotten: bool = False
    ) -> None:
        """`mount`: the identity of the mount, the same for every daemon that serves it. `told_when_forgotten`: the driver
        calls `forget`."""
        self._volume = volume
        self._metadata = volume.metadata
        self._tier = ssd.tier
        self._drainer = ssd.drainer
        self._files = volume.host.files
        self._mount = mount
        self._read_only = read_only
        self._told_when_forgotten = told_when_forgotten
        self._undertaker = Undertaker(volume.metadata, ssd.tier, volume.session)
        self._handles: dict[int, _Handle] = {}
        self._numbers = itertools.count(1)
        self._directories = DirectoryHandles(volume.metadata)
        self._lock = threading.Lock()

    # ---- names ------------------------------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        if name == b".":
            return self.attributes(parent)
        if name == b"..":
            return self.attributes(self._metadata.attributes(parent).parent)
        return self._live(self._metadata.lookup(parent, name))

    def create(self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Attributes, Opened]:
        self._check_writable()
        if self._carried_out(caller):
            attributes = self._metadata.lookup(parent, name)
            return attributes, self.open(attributes.inode, flags & ~os.O_TRUNC, caller)
        self._tier.room.wait_for_room()
        creation = Creation(FileKind.REGULAR, mode & 0o7777, caller.uid, caller.gid, staged_in=self._tier.cache)
        attributes = self._metadata.create(parent, name, creation, self._receipt(caller))
        crash.here("create.committed")
        file = self._tier.create(attributes.inode, attributes.version)
        return attributes, self._opened_for_writing(file, flags)

    def make_node(self, parent: InodeId, name: bytes, mode: int, device: int, caller: Caller) -> Attributes:
        kind = _KIND_OF_FORMAT.get(stat.S_IFMT(mode) or stat.S_IFREG)
        if kind is None:
            raise InvalidRequestError(f"mknod with mode {mode:o}")
        return self._make(parent, name, Creation(kind, mode & 0o7777, caller.uid, caller.gid, device=device), caller)

    def make_directory(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Attributes:
        return self._make(parent, name, Creation(FileKind.DIRECTORY, mode & 0o7777, caller.uid, caller.gid), caller)

    def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Attributes:
        creation = Creation(FileKind.SYMLINK, 0o777, caller.uid, caller.gid, target=target)
        return self._make(parent, name, creation, caller)

    def _make(self, parent: InodeId, name: bytes, creation: Creation, caller: Caller) -> Attributes:
        self._check_writable()
        if self._carried_out(caller):
            return self._metadata.lookup(parent, name)
        return self._metadata.create(parent, name, creation, self._receipt(caller))

    def link(self, inode: InodeId, parent: InodeId, name: bytes, caller: Caller) -> Attributes:
        self._check_writable()
        if self._carried_out(caller):
            return self.attributes(inode)
        return self._live(self._metadata.link(inode, parent, name, self._receipt(caller)))

    def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        if self._carried_out(caller):
            return
        removed = self._metadata.unlink(parent, name, self._volume.session, self._receipt(caller))
        crash.here("unlink.committed")
        self._bury(removed)

    def remove_directory(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        self._check_writable()
        if not self._carried_out(caller):
            self._metadata.remove_directory(parent, name, self._receipt(caller))

    def rename(
        self, parent: InodeId, name: bytes, new_parent: InodeId, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        self._check_writable()
        if flags & ~(_NOREPLACE | _EXCHANGE):
            raise InvalidRequestError(f"rename with flags {flags:#x}")
        if self._carried_out(caller):
            return
        removed = self._metadata.rename(
            parent,
            name,
            new_parent,
            new_name,
            replace=not flags & _NOREPLACE,
            exchange=bool(flags & _EXCHANGE),
            holder=self._volume.session,
            receipt=self._receipt(caller),
        )
        crash.here("rename.committed")
        if removed is not None:
            self._bury(removed)

    def _bury(self, removed: Removed) -> None:
        """A name is gone. With the last one the inode became an orphan of ours: it goes when nobody can reach it."""
        if not removed.gone or removed.kind is FileKind.DIRECTORY:
            return
        self._tier.mark_deleted(removed.inode)
        if self._told_when_forgotten:
            self._undertaker.await_forgetting(removed.inode)
        elif not self._tier.is_open(removed.inode):
            self._undertaker.bury((removed.inode,))

    def forget(self, inodes: Sequence[InodeId]) -> None:
        self._undertaker.forgotten(inodes)

    def _carried_out(self, caller: Caller) -> bool:
        """The kernel repeats a request that an earlier daemon had committed."""
        return caller.resent and self._metadata.carried_out(self._mount, caller.unique)

    def _receipt(self, caller: Caller) -> Receipt | None:
        return Receipt(self._mount, caller.slot, caller.unique) if caller.unique else None

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("the volume is mounted read-only")

    # ---- attributes -------------------------------------------------------------------------------------------------

    def attributes(self, inode: InodeId) -> Attributes:
        try:
            return self._live(self._metadata.attributes(inode))
        except NotFoundError:
            return self._directories.removed(inode)

    def _live(self, attributes: Attributes) -> Attributes:
        """Size and times of a file that is being written are those of its local file."""
        live = self._tier.live(attributes.inode)
        if live is None:
            return attributes
        return attributes._replace(
            size_bytes=live.size_bytes,
            allocated_bytes=live.allocated_bytes,
            mtime_ns=live.mtime_ns,
            ctime_ns=max(attributes.ctime_ns, live.mtime_ns),
        )

    def set_attributes(
        self, inode: InodeId, change: AttributeChange, size_bytes: int | None, handle: int | None
    ) -> Attributes:
        self._check_writable()
        with _stale_when_deleted(inode):
            if size_bytes is not None:
                self._truncate(inode, size_bytes, handle)
            if change != AttributeChange():
                self._metadata.set_attributes(inode, change)
                if change.mtime_ns is not None:
                    set_times(self._tier, self._metadata.attributes(inode))
        return self.attributes(inode)

    def _truncate(self, inode: InodeId, size_bytes: int, handle: int | None) -> None:
        open_handle = self._handles.get(handle) if handle is not None else None
        if open_handle is not None and open_handle.writer:
            self._ask_quotas(open_handle.file, size_bytes)
            self._files.truncate(open_handle.file.descriptor, size_bytes)
            return
        if size_bytes:
            self._metadata.check_size(inode, size_bytes)
        file = self._tier.open_write(inode, truncate=size_bytes == 0, admitted=True)
        try:
            self._files.truncate(file.descriptor, size_bytes)
        finally:
            self._release(_Handle(file, writer=True))

    def read_link(self, inode: InodeId) -> bytes:
        with _stale_when_deleted(inode):
            return self._metadata.read_link(inode)

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        _check_namespace(name)
        return self._metadata.get_xattr(inode, name)

    def set_xattr(self, inode: InodeId, name: bytes, value: bytes, flags: int) -> None:
        self._check_writable()
        _check_namespace(name)
        create, replace = bool(flags & os.XATTR_CREATE), bool(flags & os.XATTR_REPLACE)
        self._metadata.set_xattr(inode, name, value, create=create, replace=replace)

    def list_xattrs(self, inode: InodeId) -> Sequence[bytes]:
        return self._metadata.list_xattrs(inode)

    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        self._check_writable()
        _check_namespace(name)
        self._metadata.remove_xattr(inode, name)

    # ---- open files -------------------------------------------------------------------------------------------------

    def open(self, inode: InodeId, flags: int, caller: Caller) -> Opened:  # noqa: ARG002 - rights are the kernel's
        writer = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if not writer:
            try:  # as below; a generator costs 1.5 us, and this is the hot one
                file = self._tier.open_read(inode)
            except NotFoundError:
                raise StaleError(f"inode {inode} was deleted") from None
            if file.size_bytes <= READ_WITH_OPEN_BYTES_MAX and file.fill is None:
                self._files.will_need(file.descriptor)
            return self._opened(file, writer=False)
        with _stale_when_deleted(inode):
            self._check_writable()
            file = self._tier.open_write(inode, truncate=bool(flags & os.O_TRUNC))
            return self._opened_for_writing(file, flags)

    def reopen(self, handle: int, inode: InodeId, flags: int) -> Opened:
        writer = flags & os.O_ACCMODE != os.O_RDONLY
        if writer:
            file = self._tier.open_write(inode, truncate=False, resumed=True)
        else:
            file = self._tier.open_read(inode, fill_before=0)  # every program waits meanwhile
        with self._lock:
            self._handles[handle] = _Handle(file, writer)
            self._numbers = itertools.count(max(handle + 1, next(self._numbers)))
        return Opened(handle, file.descriptor, file.number, file.whole, keep_cache=False)

    def _opened_for_writing(self, file: LocalFile, flags: int) -> Opened:
        """Writes with O_DSYNC (hence O_SYNC) make bytes durable and ask nobody else: what makes these bytes the content must be
        durable before."""
        if flags & os.O_DSYNC:
            about_to_wait()
            try:
                make_durable(self._tier.part, file)
            except BaseException:
                self._release(_Handle(file, writer=True))
                raise
        return self._opened(file, writer=True)

    def _opened(self, file: LocalFile, *, writer: bool) -> Opened:
        with self._lock:
            handle = next(self._numbers)
            self._handles[handle] = _Handle(file, writer)
        return Opened(handle, file.descriptor, file.number, file.whole, keep_cache=False)

    def _file(self, handle: int) -> LocalFile:
        found = self._handles.get(handle)
        if found is None:
            raise InvalidRequestError(f"no open file has handle {handle}")
        return found.file

    def read(self, handle: int, offset: int, size: int) -> Span:
        file = self._file(handle)
        if file.whole:
            return Span(file.descriptor, offset, size)
        length = max(0, min(size, file.size_bytes - offset))
        if length and file.fill is not None:
            file.fill.wait(offset, length)
        return Span(file.descriptor, offset, length)

    def write(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> int:
        file = self._file(handle)
        self._ask_quotas(file, offset + sum(map(len, buffers)))
        return self._files.write(file.descriptor, buffers, offset)

    def _ask_quotas(self, file: LocalFile, size_bytes: int) -> None:
        """Before the daemon makes a file so large; again after `QUOTA_STEP_BYTES`, for others write, too. An open file without a
        name counts nowhere. Raises QuotaExceededError."""
        if size_bytes <= file.asked_bytes:
            return
        most = self._metadata.check_size(file.inode, size_bytes)
        further = size_bytes + QUOTA_STEP_BYTES
        file.asked_bytes = further if most is None else max(size_bytes, min(most, further))

    def flush(self, handle: int) -> None:
        found = self._handles.get(handle)
        if found is not None and found.writer:
            self._tier.publish(found.file)

    def sync(self, handle: int, data_only: bool) -> None:  # noqa: ARG002 - both make size durable, which costs no more
        file = self._file(handle)
        if not file.dirty:
            self._metadata.sync()
        elif self._volume.config.durability is Durability.STORE and not file.deleted:
            self._drainer.store_now(file)
            self._metadata.sync()
        else:
            make_durable(self._tier.part, file)

    def release(self, handle: int) -> None:
        with self._lock:
            found = self._handles.pop(handle, None)
        if found is not None:
            self._release(found)

    def _release(self, handle: _Handle) -> None:
        file = handle.file
        self._tier.release(file, writer=handle.writer)
        if file.deleted and not self._told_when_forgotten and not self._tier.is_open(file.inode):
            self._undertaker.bury((file.inode,))

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        file = self._file(handle)
        if not mode & _KEEP_SIZE:
            self._ask_quotas(file, offset + length)
        self._files.allocate(file.descriptor, mode, offset, length)

    def seek(self, handle: int, offset: int, whence: int) -> int:
        file = self._file(handle)
        if file.whole:
            return os.lseek(file.descriptor, offset, whence)
        if not 0 <= offset < file.size_bytes:
            raise NotFoundError("no data there")
        return offset if whence == os.SEEK_DATA else file.size_bytes

    # ---- directories ------------------------------------------------------------------------------------------------

    def open_directory(self, inode: InodeId) -> int:
        with self._lock:
            handle = next(self._numbers)
        self._directories.open(handle, inode)
        return handle

    def reopen_directory(self, handle: int, inode: InodeId) -> None:
        with self._lock:
            self._numbers = itertools.count(max(handle + 1, next(self._numbers)))
        self._directories.open(handle, inode)

    def read_directory(self, handle: int, cookie: int, with_attributes: bool) -> Sequence[DirectoryItem]:
        items = self._directories.read(handle, cookie, with_attributes=with_attributes)
        if not with_attributes:
            return items
        return [self._live_item(item) for item in items]

    def _live_item(self, item: DirectoryItem) -> DirectoryItem:
        if item.attributes is None or self._tier.live(item.attributes.inode) is None:
            return item
        return item._replace(attributes=self._live(item.attributes))

    def release_directory(self, handle: int) -> None:
        self._directories.close(handle)

    def sync_directory(self, inode: InodeId) -> None:  # noqa: ARG002 - one log holds all directories
        self._metadata.sync()

    def space(self, inode: InodeId) -> Space:
        total, free = self._volume.capacity()
        count, free_inodes = self._metadata.count_inodes() + (1 << 40), 1 << 40
        for quota in self._quotas_over(inode):
            if quota.limit_bytes:
                total, free = min(total, quota.limit_bytes), min(free, max(0, quota.limit_bytes - quota.used_bytes))
            if quota.limit_inodes:
                left = max(0, quota.limit_inodes - quota.used_inodes)
                count, free_inodes = min(count, quota.limit_inodes), min(free_inodes, left)
        return Space(total, free, count, free_inodes, 4096, NAME_BYTES_MAX)

    def _quotas_over(self, inode: InodeId) -> Sequence[Quota]:
        try:
            return self._metadata.quotas_over(inode)
        except NotFoundError:  # a directory that was removed while it is open: it is below none
            return ()

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> list[TieredError]:
        """Release every handle that the kernel did not; the errors met on the way."""
        self._undertaker.close()
        errors: list[TieredError] = []
        for handle in list(self._handles):
            try:
                self.release(handle)
            except TieredError as error:
                errors.append(error)
        return errors
