"""`Operations` over a plain directory: the double that drivers are tested with, so that a bug there is the driver's.

Every inode that was looked up is held by an O_PATH descriptor, so that it survives renames and removal, as the kernel
expects of a file that is open. Numbers of inodes are those of the directory's own file system (the root is 1), so that
a second process over the same directory gives them the same meaning: a hand-over between daemons can be tested too. The
price: the number of a removed file may come back, once `REMOVED_PINS_MAX` later removals have let go of its pin.

The constructor raises the limit of open files as far as it may, and pins half as many inodes at most; one whose pin was
given up is found again by its name. Safe from any thread. Errors are the domain's, else the `OSError` of the system call.
"""

import bisect
import contextlib
import ctypes
import errno
import functools
import hashlib
import itertools
import os
import resource
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, Final, ParamSpec, TypeVar

from tieredfs import errors
from tieredfs.fuse.operations import Caller, DirectoryItem, Opened, Space, Span
from tieredfs.host import libc
from tieredfs.model import NO_CACHE, ROOT, AttributeChange, Attributes, Entry, FileKind, InodeId

REMOVED_PINS_MAX: Final = 64  # removed inodes that are still answered for, beyond those that are open
RETIRED_MAX: Final = 256
DESCRIPTORS_WANTED: Final = 300_000  # every name of three directories of 100,000
LISTING_RUN: Final = 512  # items that one `read_directory` returns at most

KIND_OF: Final = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER_DEVICE,
    stat.S_IFBLK: FileKind.BLOCK_DEVICE,
}

ERROR_OF: Final[dict[int, type[errors.TieredError]]] = {
    errno.ENOENT: errors.NotFoundError,
    errno.ENXIO: errors.NotFoundError,
    errno.EEXIST: errors.AlreadyExistsError,
    errno.ENOTDIR: errors.NotDirectoryError,
    errno.EISDIR: errors.IsDirectoryError,
    errno.ENOTEMPTY: errors.DirectoryNotEmptyError,
    errno.EINVAL: errors.InvalidRequestError,
    errno.ENAMETOOLONG: errors.NameTooLongError,
    errno.EFBIG: errors.TooLargeError,
    errno.EMLINK: errors.TooManyLinksError,
    errno.EPERM: errors.NotPermittedError,
    errno.EACCES: errors.AccessDeniedError,
    errno.ENODATA: errors.NoAttributeError,
    errno.EOPNOTSUPP: errors.NotSupportedError,
    errno.EROFS: errors.ReadOnlyError,
    errno.ENOSPC: errors.NoSpaceError,
}

_OPEN_FLAGS_KEPT: Final = os.O_TRUNC
_libc = ctypes.CDLL(None, use_errno=True)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Self = TypeVar("_Self")


def renameat2(source_dir: int, source: bytes, target_dir: int, target: bytes, flags: int) -> None:
    """renameat2(2), which Python's `os` lacks. Raises OSError."""
    if _libc.renameat2(source_dir, ctypes.c_char_p(source), target_dir, ctypes.c_char_p(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def _in_domain_words(
    method: Callable[Concatenate[_Self, _P], _R],
) -> Callable[Concatenate[_Self, _P], _R]:
    """Raise the domain's error where the host file system raised its OSError."""

    @functools.wraps(method)
    def translated(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            kind = ERROR_OF.get(error.errno or 0)
            if kind is None:
                raise
            raise kind(str(error)) from error

    return translated


def _raise_descriptor_limit() -> int:
    """To `DESCRIPTORS_WANTED` where we have the privilege, else to the hard limit; what it is now."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (max(hard, DESCRIPTORS_WANTED), hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@dataclass(slots=True)
class _Pin:
    """An inode held by an O_PATH descriptor. `opens` counts handles on it, guarded by the table's lock."""

    descriptor: int
    opens: int = 0
    removed: bool = False

    @property
    def path(self) -> str:
        """Names the inode itself to calls that want a path, symlinks too."""
        return f"/proc/self/fd/{self.descriptor}"


@dataclass(slots=True)
class _OpenFile:
    inode: InodeId
    descriptor: int


@dataclass(slots=True)
class _OpenDirectory:
    inode: InodeId
    listing: list[tuple[int, bytes, InodeId, FileKind]] = field(default_factory=list)
    """Sorted by cookie. Empty in a successor, until it is read again."""


def _cookie(name: bytes) -> int:
    """Follows from the name alone, so that a listing goes on in another process, whatever came and went meanwhile."""
    if name in {b".", b".."}:
        return len(name)
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1 | 1 << 8


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class LoopbackOperations:
    """The tree below `directory`, as `tieredfs.fuse.operations.Operations`."""

    def __init__(self, directory: str) -> None:
        self._pins_max = _raise_descriptor_limit() // 2
        root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = directory
        self._root_number = os.fstat(root).st_ino
        self._lock = threading.Lock()
        self._pins: dict[InodeId, _Pin] = {ROOT: _Pin(root)}
        self._removed: deque[InodeId] = deque()
        self._listed: dict[InodeId, tuple[InodeId, bytes]] = {}
        self._retired: deque[int] = deque()
        self._files: dict[int, _OpenFile] = {}
        self._directories: dict[int, _OpenDirectory] = {}
        self._handles = itertools.count(1)

    def close(self) -> None:
        """Let go of every descriptor; nothing may be called afterwards."""
        with self._lock:
            descriptors = [pin.descriptor for pin in self._pins.values()]
            descriptors += [file.descriptor for file in self._files.values()]
            self._pins.clear()
            self._files.clear()
        _close_all(descriptors)

    def open_handles(self) -> tuple[int, int]:
        """How many files and directories are open, for tests that look for leaks."""
        with self._lock:
            return len(self._files), len(self._directories)

    # ---- inodes and pins --------------------------------------------------------------------------------------------

    def _inode_of(self, number: int) -> InodeId:
        """The host's number, with the root's and 1 exchanged: one to one, and the root is 1."""
        if number == self._root_number:
            return ROOT
        return InodeId(self._root_number if number == ROOT else number)

    def _pin(self, inode: InodeId) -> _Pin:
        with self._lock:
            pin = self._pins.get(inode)
        return pin if pin is not None else self._search(inode)

    def _search(self, wanted: InodeId) -> _Pin:
        """An inode that was only listed, or that an earlier process met: look where it was, then everywhere."""
        listed = self._listed.get(wanted)
        if listed is not None:
            with contextlib.suppress(OSError):
                inode, pin, _ = self._adopt(self._pin(listed[0]).descriptor, listed[1])
                if inode == wanted:
                    return pin
        for _, directories, names, parent_fd in os.fwalk(self._directory):
            for name in directories + names:
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
                    if self._inode_of(found.st_ino) == wanted:
                        return self._adopt(parent_fd, os.fsencode(name))[1]
        raise errors.NotFoundError(f"no inode {wanted}")

    def _adopt(self, parent_fd: int, name: bytes) -> tuple[InodeId, _Pin, os.stat_result]:
        """Pin what `name` shows now; an inode has one pin, whoever comes first."""
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        status = os.fstat(descriptor)
        inode = self._inode_of(status.st_ino)
        with self._lock:
            pin = self._pins.setdefault(inode, _Pin(descriptor))
            stale = self._retire()
        if pin.descriptor != descriptor:
            stale.append(descriptor)
        _close_all(stale)
        return inode, pin, status

    def _retire(self) -> list[int]:
        """Under the lock: give up the oldest pin when there are too many; returns descriptors to close.

        Not at once: another thread may have just looked it up. `RETIRED_MAX` later retirements are time enough.
        """
        if len(self._pins) > self._pins_max:
            known = (i for i, pin in self._pins.items() if i in self._listed and not pin.opens and not pin.removed)
            oldest = next(known, None)
            if oldest is not None:
                self._retired.append(self._pins.pop(oldest).descriptor)
        return [self._retired.popleft()] if len(self._retired) > RETIRED_MAX else []

    def _look(self, parent: InodeId, name: bytes) -> InodeId | None:
        """Pin the child that is about to lose its name."""
        try:
            return self._adopt(self._pin(parent).descriptor, name)[0]
        except FileNotFoundError:
            return None

    def _lost_name(self, inode: InodeId | None) -> None:
        """A name of `inode` was removed: if it was the last, let go of it once nobody has it open."""
        if inode is None:
            return
        pin = self._pin(inode)
        status = os.fstat(pin.descriptor)
        if status.st_nlink > 0 and not stat.S_ISDIR(status.st_mode):
            return
        with self._lock:
            pin.removed = True
            if pin.opens == 0:
                self._removed.append(inode)
            stale = self._expire()
        _close_all(stale)

    def _expire(self) -> list[int]:
        """Under the lock: forget the oldest removed inodes; returns the descriptors to close."""
        stale = []
        while len(self._removed) > REMOVED_PINS_MAX:
            inode = self._removed.popleft()
            pin = self._pins.get(inode)
            if pin is not None and pin.opens == 0:
                stale.append(self._pins.pop(inode).descriptor)
        return stale

    def _retain(self, pin: _Pin) -> None:
        with self._lock:
            pin.opens += 1

    def _let_go(self, inode: InodeId) -> None:
        with self._lock:
            pin = self._pins[inode]
            pin.opens -= 1
            if pin.removed and pin.opens == 0:
                self._removed.append(inode)
            stale = self._expire()
        _close_all(stale)

    def _attributes(self, inode: InodeId, pin: _Pin, status: os.stat_result | None = None) -> Attributes:
        status = status or os.fstat(pin.descriptor)
        kind = KIND_OF[stat.S_IFMT(status.st_mode)]
        parent = ROOT
        if kind is FileKind.DIRECTORY and inode != ROOT:
            with contextlib.suppress(OSError):
                parent = self._inode_of(os.stat("..", dir_fd=pin.descriptor).st_ino)
        return Attributes(
            inode=inode,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            link_count=status.st_nlink,
            size_bytes=status.st_size,
            atime_ns=status.st_atime_ns,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            device=status.st_rdev,
            parent=parent,
            version=0,
            stored_version=0,
            staged_in=NO_CACHE,
            allocated_bytes=status.st_blocks * 512,
        )

    # ---- names ------------------------------------------------------------------------------------------------------

    @_in_domain_words
    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        if parent == ROOT and name in {b".", b".."}:
            return self.attributes(ROOT)
        inode, pin, status = self._adopt(self._pin(parent).descriptor, name)
        if name not in {b".", b".."}:
            with self._lock:
                self._listed[inode] = (parent, name)
        return self._attributes(inode, pin, status)

    @_in_domain_words
    def attributes(self, inode: InodeId) -> Attributes:
        return self._attributes(inode, self._pin(inode))

    @_in_domain_words
    def set_attributes(
        self, inode: InodeId, change: AttributeChange, size_bytes: int | None, handle: int | None
    ) -> Attributes:
        pin = self._pin(inode)
        if size_bytes is not None:
            os.truncate(pin.path if handle is None else self._file(handle).descriptor, size_bytes)
        if change.uid is not None or change.gid is not None:
            os.chown(pin.path, -1 if change.uid is None else change.uid, -1 if change.gid is None else change.gid)
        if change.mode is not None:
            os.chmod(pin.path, change.mode)
        if change.atime_ns is not None or change.mtime_ns is not None:
            now = os.fstat(pin.descriptor)
            atime = now.st_atime_ns if change.atime_ns is None else change.atime_ns
            mtime = now.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
            os.utime(pin.path, ns=(atime, mtime))
        return self._attributes(inode, pin)

    @_in_domain_words
    def read_link(self, inode: InodeId) -> bytes:
        pin = self._pin(inode)
        if not stat.S_ISLNK(os.fstat(pin.descriptor).st_mode):
            raise errors.InvalidRequestError(f"inode {inode} is not a symlink")
        return os.readlink(b"", dir_fd=pin.descriptor)

    def _made(self, parent_fd: int, name: bytes, mode: int | None, caller: Caller) -> tuple[InodeId, _Pin, Attributes]:
        """Give the new inode to its caller, as if it had made it; a set-gid parent has given its group already."""
        inode, pin, status = self._adopt(parent_fd, name)
        inherits = bool(os.fstat(parent_fd).st_mode & stat.S_ISGID)
        gid = status.st_gid if inherits else caller.gid
        if (status.st_uid, status.st_gid) != (caller.uid, gid):
            os.chown(pin.path, caller.uid, gid)
        if mode is not None:
            # Our own umask has cut the mode, and chown the set-uid bits; a set-gid parent gives its bit to directories.
            inherited = stat.S_ISGID if inherits and stat.S_ISDIR(status.st_mode) else 0
            os.chmod(pin.path, stat.S_IMODE(mode) | inherited)
        return inode, pin, self._attributes(inode, pin)

    @_in_domain_words
    def create(self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Attributes, Opened]:
        parent_fd = self._pin(parent).descriptor
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=parent_fd))
        inode, pin, attributes = self._made(parent_fd, name, mode, caller)
        return attributes, self._open(inode, pin, flags & ~os.O_TRUNC)

    @_in_domain_words
    def make_node(self, parent: InodeId, name: bytes, mode: int, device: int, caller: Caller) -> Attributes:
        parent_fd = self._pin(parent).descriptor
        os.mknod(name, mode, device, dir_fd=parent_fd)
        return self._made(parent_fd, name, mode, caller)[2]

    @_in_domain_words
    def make_directory(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Attributes:
        parent_fd = self._pin(parent).descriptor
        os.mkdir(name, mode, dir_fd=parent_fd)
        return self._made(parent_fd, name, mode, caller)[2]

    @_in_domain_words
    def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Attributes:
        parent_fd = self._pin(parent).descriptor
        os.symlink(target, name, dir_fd=parent_fd)
        return self._made(parent_fd, name, None, caller)[2]

    @_in_domain_words
    def link(self, inode: InodeId, parent: InodeId, name: bytes, caller: Caller) -> Attributes:
        del caller
        pin = self._pin(inode)
        os.link(pin.path, name, dst_dir_fd=self._pin(parent).descriptor, follow_symlinks=True)
        return self._attributes(inode, pin)

    @_in_domain_words
    def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        del caller
        child = self._look(parent, name)
        os.unlink(name, dir_fd=self._pin(parent).descriptor)
        self._lost_name(child)

    @_in_domain_words
    def remove_directory(self, parent: InodeId, name: bytes, caller: Caller) -> None:
        del caller
        child = self._look(parent, name)
        os.rmdir(name, dir_fd=self._pin(parent).descriptor)
        self._lost_name(child)

    @_in_domain_words
    def rename(
        self, parent: InodeId, name: bytes, new_parent: InodeId, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        del caller
        moved, replaced = self._look(parent, name), self._look(new_parent, new_name)
        renameat2(self._pin(parent).descriptor, name, self._pin(new_parent).descriptor, new_name, flags)
        if moved is not None:
            with self._lock:
                self._listed[moved] = (new_parent, new_name)
        if replaced not in {None, moved} and not flags:
            self._lost_name(replaced)

    # ---- open files -------------------------------------------------------------------------------------------------

    def _file(self, handle: int) -> _OpenFile:
        with self._lock:
            return self._files[handle]

    def _open(self, inode: InodeId, pin: _Pin, flags: int, handle: int | None = None) -> Opened:
        # Never O_APPEND: the kernel says where a write goes. Never write-only: the page cache may have to read first.
        access = os.O_RDONLY if flags & os.O_ACCMODE == os.O_RDONLY else os.O_RDWR
        descriptor = os.open(pin.path, access | (flags & _OPEN_FLAGS_KEPT) | os.O_CLOEXEC)
        self._retain(pin)
        with self._lock:
            handle = next(self._handles) if handle is None else handle
            assert handle not in self._files, f"handle {handle} is bound already"
            self._files[handle] = _OpenFile(inode, descriptor)
        return Opened(handle, descriptor, backing=inode, whole=True, keep_cache=True)

    @_in_domain_words
    def open(self, inode: InodeId, flags: int, caller: Caller) -> Opened:
        del caller
        return self._open(inode, self._pin(inode), flags)

    @_in_domain_words
    def reopen(self, handle: int, inode: InodeId, flags: int) -> Opened:
        pin = self._pin(inode)
        with self._lock:
            self._handles = itertools.count(max(handle + 1, next(self._handles)))
        return self._open(inode, pin, flags & ~os.O_TRUNC, handle)

    @_in_domain_words
    def read(self, handle: int, offset: int, size: int) -> Span:
        descriptor = self._file(handle).descriptor
        length = max(0, min(size, os.fstat(descriptor).st_size - offset))
        return Span(descriptor, offset, length)

    @_in_domain_words
    def write(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> int:
        return os.pwritev(self._file(handle).descriptor, list(buffers), offset)

    @_in_domain_words
    def flush(self, handle: int) -> None:
        self._file(handle)

    @_in_domain_words
    def sync(self, handle: int, data_only: bool) -> None:
        descriptor = self._file(handle).descriptor
        if data_only:
            os.fdatasync(descriptor)
        else:
            os.fsync(descriptor)

    def release(self, handle: int) -> None:
        with self._lock:
            file = self._files.pop(handle)
        os.close(file.descriptor)
        self._let_go(file.inode)

    @_in_domain_words
    def allocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        libc.fallocate(self._file(handle).descriptor, mode, offset, length)

    @_in_domain_words
    def seek(self, handle: int, offset: int, whence: int) -> int:
        return os.lseek(self._file(handle).descriptor, offset, whence)

    @_in_domain_words
    def open_directory(self, inode: InodeId) -> int:
        with self._lock:
            handle = next(self._handles)
        return self._bind_directory(handle, inode)

    @_in_domain_words
    def reopen_directory(self, handle: int, inode: InodeId) -> None:
        with self._lock:
            self._handles = itertools.count(max(handle + 1, next(self._handles)))
        self._bind_directory(handle, inode)

    def _bind_directory(self, handle: int, inode: InodeId) -> int:
        pin = self._pin(inode)
        if not stat.S_ISDIR(os.fstat(pin.descriptor).st_mode):
            raise errors.NotDirectoryError(f"inode {inode}")
        self._retain(pin)
        with self._lock:
            self._directories[handle] = _OpenDirectory(inode)
        return handle

    def _scan(self, inode: InodeId) -> Iterator[tuple[bytes, InodeId, FileKind]]:
        """The directory as it is now. A removed one has no entries, not even its own."""
        pin = self._pin(inode)
        if pin.removed:
            return
        parent = self._attributes(inode, pin).parent
        yield b".", inode, FileKind.DIRECTORY
        yield b"..", parent, FileKind.DIRECTORY
        with os.scandir(pin.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    kind = KIND_OF[stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)]
                    yield os.fsencode(entry.name), self._inode_of(entry.inode()), kind

    @_in_domain_words
    def read_directory(self, handle: int, cookie: int, with_attributes: bool) -> Sequence[DirectoryItem]:
        with self._lock:
            opened = self._directories[handle]
        if cookie == 0 or not opened.listing:
            opened.listing = sorted(
                (_cookie(name), name, inode, kind) for name, inode, kind in self._scan(opened.inode)
            )
        items: list[DirectoryItem] = []
        place = bisect.bisect_left(opened.listing, (cookie + 1,))
        # Names may have gone since the listing was taken: go on until something is left to return.
        while not items and place < len(opened.listing):
            run = opened.listing[place : place + LISTING_RUN]
            items = list(self._items(opened.inode, run, with_attributes))
            place += len(run)
        return items

    def _items(
        self, directory: InodeId, run: Sequence[tuple[int, bytes, InodeId, FileKind]], with_attributes: bool
    ) -> Iterator[DirectoryItem]:
        for cookie, name, inode, kind in run:
            attributes = None
            if with_attributes:
                try:
                    attributes = (
                        self.attributes(inode) if name in {b".", b".."} else self._listed_attributes(directory, name)
                    )
                except (errors.NotFoundError, FileNotFoundError):
                    continue
            yield DirectoryItem(Entry(name, inode, kind), cookie, attributes)

    def _listed_attributes(self, directory: InodeId, name: bytes) -> Attributes:
        """Without a pin: a listing of 100,000 names must not cost 100,000 descriptors."""
        pin = self._pin(directory)
        status = os.stat(name, dir_fd=pin.descriptor, follow_symlinks=False)
        inode = self._inode_of(status.st_ino)
        with self._lock:
            self._listed[inode] = (directory, name)
        attributes = self._attributes(inode, pin, status)
        return attributes._replace(parent=directory)

    def release_directory(self, handle: int) -> None:
        with self._lock:
            opened = self._directories.pop(handle)
        self._let_go(opened.inode)

    @_in_domain_words
    def sync_directory(self, inode: InodeId) -> None:
        descriptor = os.open(self._pin(inode).path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @_in_domain_words
    def forget(self, inodes: Sequence[InodeId]) -> None: ...
    def space(self, inode: InodeId) -> Space:
        status = os.statvfs(self._pin(inode).path)
        return Space(
            total_bytes=status.f_blocks * status.f_frsize,
            free_bytes=status.f_bavail * status.f_frsize,
            file_count=status.f_files,
            free_file_count=status.f_favail,
            block_bytes=status.f_frsize,
            name_bytes_max=status.f_namemax,
        )

    @_in_domain_words
    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        return os.getxattr(self._pin(inode).path, name)

    @_in_domain_words
    def set_xattr(self, inode: InodeId, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._pin(inode).path, name, value, flags)

    @_in_domain_words
    def list_xattrs(self, inode: InodeId) -> Sequence[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self._pin(inode).path)]

    @_in_domain_words
    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        os.removexattr(self._pin(inode).path, name)
