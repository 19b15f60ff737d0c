"""The portable driver: `Operations` served through fuse-python, on any kernel that has FUSE.

fuse-python wraps the high-level interface of libfuse 2: it speaks of paths, and bytes pass through Python. This module
turns paths back into inodes, and knows the limits of what lies below it:

- *Names.* libfuse gives absolute paths as `str` (surrogateescape, so any bytes). `_Directories` remembers which inode a
  directory's path was, for `ENTRY_TIMEOUT_S` and until it is removed or any directory is renamed.
- *Open files that lose their name.* libfuse "hides" them: it renames them to `.fuse_hidden…` and removes that at the
  last close. Here such a rename removes the name (the inode stays open, and becomes an orphan of the session), and
  the hidden name is only remembered, so that nothing with such a name is ever seen or left behind. The directory
  cannot be removed before they are closed (ENOTEMPTY): libfuse reaches them by their path only. Renaming over an
  open file is therefore two steps: not atomic across a crash, and where both names are links of one file, where
  rename(2) does nothing, the source name is lost. An open that races with a replacement may be told ENOENT, because
  libfuse has no path any more for the inode that the kernel looked up.
- *Attributes* are not cached by the kernel: libfuse 2 gives each hard link of a file an inode of its own in the
  kernel, and a cached size of one would be wrong after a write through the other. Their page caches are two as well,
  so a file with several links starts with an empty one at each open.
- *What fuse-python 1.0 cannot say.* Times are seen in whole seconds (set and stored in nanoseconds), a change of one
  time alone (UTIME_OMIT) is dropped by libfuse, values of extended attributes are UTF-8 text, fsync of a directory
  does not reach us, and fallocate, SEEK_HOLE, RENAME_NOREPLACE and RENAME_EXCHANGE do not exist: the kernel answers
  EINVAL or EOPNOTSUPP, or takes the whole file for data.

One mount per process (libfuse 2 and fuse-python keep theirs in static variables). Callbacks come from many threads.
"""

import contextlib
import errno
import functools
import logging
import os
import re
import signal
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import fuse

from tieredfs import limits
from tieredfs.errors import (
    AlreadyExistsError,
    DirectoryNotEmptyError,
    MountPointError,
    NotFoundError,
    NotSupportedError,
    TieredError,
)
from tieredfs.fuse.errnos import errno_of
from tieredfs.fuse.operations import Caller, Opened, Operations, visible_xattrs
from tieredfs.fuse.privileges import drop_privilege
from tieredfs.host import Clock, SystemClock
from tieredfs.model import ROOT, AttributeChange, Attributes, FileKind, InodeId

_log = logging.getLogger(__name__)

DIRECTORIES_MAX: Final = 4096
REQUEST_BYTES: Final = 128 * limits.KIB
"""What libfuse 2 has room for in its request buffer: 32 pages and a header."""
HIDDEN: Final = re.compile(r".*/\.fuse_hidden[0-9a-f]{16}", re.DOTALL)

TYPE_BITS: Final = {
    FileKind.REGULAR: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.FIFO: stat.S_IFIFO,
    FileKind.SOCKET: stat.S_IFSOCK,
    FileKind.CHARACTER_DEVICE: stat.S_IFCHR,
    FileKind.BLOCK_DEVICE: stat.S_IFBLK,
}

SERVED: Final = (
    "getattr",
    "readlink",
    "readdir",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "chmod",
    "chown",
    "truncate",
    "utimens",
    "open",
    "create",
    "read",
    "write",
    "release",
    "flush",
    "fsync",
    "fgetattr",
    "ftruncate",
    "statfs",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
)
"""The callbacks that fuse-python is given. Not `fsyncdir`: its C layer calls that with a broken format (EINVAL)."""


@dataclass(slots=True, eq=False)
class _File:
    """What libfuse keeps for an open file. `keep_cache` and `direct_io` are read by fuse-python."""

    inode: InodeId
    handle: int
    keep_cache: bool
    direct_io: bool = False


@dataclass(slots=True)
class _Known:
    inode: InodeId
    until_s: float


class _Directories:
    """Inodes of directories by path; a hit saves one `lookup` per component. Safe from any thread."""

    def __init__(self, operations: Operations, clock: Clock) -> None:
        self._operations = operations
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._generation = 0

    def find(self, path: str) -> InodeId:
        """`path` without a trailing slash; the empty one is the root. Raises NotFoundError."""
        missing: list[str] = []
        with self._lock:
            generation = self._generation
            inode = self._cached(path)
        while inode is None:
            path, _, name = path.rpartition("/")
            missing.append(name)
            with self._lock:
                inode = self._cached(path)
        for name in reversed(missing):
            path = f"{path}/{name}"
            inode = self._operations.lookup(inode, os.fsencode(name)).inode
            self._remember(path, inode, generation)
        return inode

    def _cached(self, path: str) -> InodeId | None:
        if not path:
            return ROOT
        known = self._known.get(path)
        if known is None or known.until_s < self._clock.monotonic_s():
            return None
        self._known.move_to_end(path)
        return known.inode

    def _remember(self, path: str, inode: InodeId, generation: int) -> None:
        """Unless a directory has moved since the walk began: then the path may be another's by now."""
        with self._lock:
            if generation != self._generation:
                return
            self._known[path] = _Known(inode, self._clock.monotonic_s() + limits.ENTRY_TIMEOUT_S)
            if len(self._known) > DIRECTORIES_MAX:
                self._known.popitem(last=False)

    def removed(self, path: str) -> None:
        """Nothing was below it, so nothing else is forgotten: removing a tree would become quadratic in its depth."""
        with self._lock:
            self._generation += 1
            self._known.pop(path, None)

    def moved(self) -> None:
        """A directory has another name: every path below the old and the new one means something else."""
        with self._lock:
            self._generation += 1
            self._known.clear()


@dataclass(frozen=True, slots=True)
class _Hidden:
    inode: InodeId
    parent: InodeId


@dataclass(slots=True)
class _OpenInodes:
    """How often each inode is open here, and which of them libfuse believes to be at a hidden path."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: dict[InodeId, int] = field(default_factory=dict)
    hidden: dict[str, _Hidden] = field(default_factory=dict)
    """By last component, which libfuse never gives twice: the directory above may be renamed meanwhile."""

    def opened(self, inode: InodeId) -> None:
        with self.lock:
            self.counts[inode] = self.counts.get(inode, 0) + 1

    def released(self, inode: InodeId) -> None:
        with self.lock:
            self.counts[inode] -= 1
            if self.counts[inode] == 0:
                del self.counts[inode]

    def is_open(self, inode: InodeId) -> bool:
        with self.lock:
            return inode in self.counts

    def hide(self, path: str, inode: InodeId, parent: InodeId) -> None:
        with self.lock:
            self.hidden[_last(path)] = _Hidden(inode, parent)

    def at_hidden(self, path: str) -> InodeId | None:
        with self.lock:
            found = self.hidden.get(_last(path))
        return None if found is None else found.inode

    def unhide(self, path: str) -> bool:
        with self.lock:
            return self.hidden.pop(_last(path), None) is not None

    def any_hidden(self) -> bool:
        with self.lock:
            return bool(self.hidden)

    def any_hidden_in(self, directory: InodeId) -> bool:
        with self.lock:
            return any(hidden.parent == directory for hidden in self.hidden.values())


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _guarded(callback: Callable[..., object]) -> Callable[..., object]:
    """fuse-python wants a negative errno, and lets nothing else through but by printing it."""

    @functools.wraps(callback)
    def guarded(*arguments: object) -> object:
        try:
            return callback(*arguments)
        except (TieredError, OSError) as error:
            return -errno_of(error)
        except Exception:  # noqa: BLE001 - the edge of the program: the caller gets EIO, the log gets the story
            _log.exception("%s failed unexpectedly; the caller was told EIO", callback.__name__)
            return -errno.EIO

    return guarded


def _stat_of(attributes: Attributes) -> Any:
    return fuse.Stat(
        st_mode=TYPE_BITS[attributes.kind] | attributes.mode,
        st_ino=attributes.inode,
        st_nlink=attributes.link_count,
        st_uid=attributes.uid,
        st_gid=attributes.gid,
        st_rdev=attributes.device,
        st_size=attributes.size_bytes,
        st_blksize=4096,
        st_blocks=-(-attributes.allocated_bytes // 512),
        st_atime=_seconds(attributes.atime_ns),
        st_mtime=_seconds(attributes.mtime_ns),
        st_ctime=_seconds(attributes.ctime_ns),
    )


def _seconds(time_ns: int) -> int:
    """The C layer takes no time before 1970: it fails the whole answer."""
    return max(0, time_ns // 1_000_000_000)


class _Callbacks:
    """One method per name in `SERVED`, with the arguments that fuse-python passes."""

    def __init__(self, operations: Operations, clock: Clock) -> None:
        self._operations = operations
        self._directories = _Directories(operations, clock)
        self._open = _OpenInodes()

    def _caller(self) -> Caller:
        context = fuse.FuseGetContext(self)
        return Caller(uid=context["uid"], gid=context["gid"], process=context["pid"])

    def _place(self, path: str) -> tuple[InodeId, bytes]:
        parent, _, name = path.rpartition("/")
        return self._directories.find(parent), os.fsencode(name)

    def _attributes(self, path: str) -> Attributes:
        if path == "/":
            return self._operations.attributes(ROOT)
        hidden = self._open.at_hidden(path)
        if hidden is not None:
            return self._operations.attributes(hidden)
        return self._operations.lookup(*self._place(path))

    def _inode(self, path: str) -> InodeId:
        return self._attributes(path).inode

    # ---- attributes -------------------------------------------------------------------------------------------------

    def getattr(self, path: str) -> object:
        return _stat_of(self._attributes(path))

    def fgetattr(self, path: str, file: _File | None = None) -> object:
        return _stat_of(self._attributes(path) if file is None else self._operations.attributes(file.inode))

    def chmod(self, path: str, mode: int) -> None:
        self._set(path, AttributeChange(mode=stat.S_IMODE(mode)))

    def chown(self, path: str, uid: int, gid: int) -> None:
        """-1 leaves an owner as it is; the C layer passes the ids as signed 32 bits."""
        self._set(path, AttributeChange(uid=_owner(uid), gid=_owner(gid)))

    def utimens(self, path: str, accessed: Any, modified: Any) -> None:
        atime_ns = accessed.tv_sec * 1_000_000_000 + accessed.tv_nsec
        mtime_ns = modified.tv_sec * 1_000_000_000 + modified.tv_nsec
        self._set(path, AttributeChange(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def truncate(self, path: str, size_bytes: int) -> None:
        self._operations.set_attributes(self._inode(path), AttributeChange(), size_bytes, None)

    def ftruncate(self, path: str, size_bytes: int, file: _File | None = None) -> None:
        if file is None:
            self.truncate(path, size_bytes)
        else:
            self._operations.set_attributes(file.inode, AttributeChange(), size_bytes, file.handle)

    def _set(self, path: str, change: AttributeChange) -> None:
        self._operations.set_attributes(self._inode(path), change, None, None)

    # ---- names ------------------------------------------------------------------------------------------------------

    def readlink(self, path: str) -> str:
        return os.fsdecode(self._operations.read_link(self._inode(path)))

    def readdir(self, path: str, _offset: int) -> list[Any]:
        return list(self._list(self._inode(path)))

    def _list(self, inode: InodeId) -> Iterator[Any]:
        handle = self._operations.open_directory(inode)
        try:
            cookie = 0
            while items := self._operations.read_directory(handle, cookie, False):
                for item in items:
                    entry = item.entry
                    yield fuse.Direntry(os.fsdecode(entry.name), type=TYPE_BITS[entry.kind], ino=entry.inode)
                cookie = items[-1].cookie
        finally:
            self._operations.release_directory(handle)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """The C layer passes the device as signed 32 bits."""
        self._operations.make_node(*self._place(path), mode, device & 0xFFFF_FFFF, self._caller())

    def mkdir(self, path: str, mode: int) -> None:
        self._operations.make_directory(*self._place(path), stat.S_IMODE(mode), self._caller())

    def symlink(self, target: str, path: str) -> None:
        parent, name = self._place(path)
        self._operations.symlink(parent, name, os.fsencode(target), self._caller())

    def link(self, path: str, new_path: str) -> None:
        self._operations.link(self._inode(path), *self._place(new_path), self._caller())

    def unlink(self, path: str) -> None:
        if not self._open.unhide(path):
            self._operations.unlink(*self._place(path), self._caller())

    def rmdir(self, path: str) -> None:
        self._keep_what_is_open_below(path)
        self._operations.remove_directory(*self._place(path), self._caller())
        self._directories.removed(path)

    def rename(self, path: str, new_path: str) -> None:
        source = self._attributes(path)
        if HIDDEN.fullmatch(new_path) and self._open.is_open(source.inode):
            parent, name = self._place(path)
            self._operations.unlink(parent, name, self._caller())
            self._open.hide(new_path, source.inode, parent)
            return
        if source.kind is FileKind.DIRECTORY:
            self._keep_what_is_open_below(new_path)
        self._operations.rename(*self._place(path), *self._place(new_path), 0, self._caller())
        if source.kind is FileKind.DIRECTORY:
            self._directories.moved()

    def _keep_what_is_open_below(self, path: str) -> None:
        """Refuse to remove a directory with removed files that are open: libfuse could not reach those any more."""
        if not self._open.any_hidden():
            return
        with contextlib.suppress(NotFoundError):
            if self._open.any_hidden_in(self._inode(path)):
                raise DirectoryNotEmptyError(f"files that were in {path!r} are still open")

    # ---- files ------------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> _File:
        attributes, caller = self._attributes(path), self._caller()
        if flags & os.O_TRUNC and caller.uid:  # of what a truncation within open means the kernel leaves this to us
            drop_privilege(self._operations, attributes.inode)
        return self._file(attributes, self._operations.open(attributes.inode, flags, caller))

    def create(self, path: str, flags: int, mode: int) -> _File:
        try:
            created = self._operations.create(*self._place(path), stat.S_IMODE(mode), flags, self._caller())
        except AlreadyExistsError:
            # Made elsewhere since the kernel looked; to a program that did not insist, that is as good.
            if flags & os.O_EXCL:
                raise
            return self.open(path, flags)
        return self._file(*created)

    def _file(self, attributes: Attributes, opened: Opened) -> _File:
        self._open.opened(attributes.inode)
        keep_cache = opened.keep_cache and attributes.link_count == 1
        return _File(attributes.inode, opened.handle, keep_cache)

    def read(self, _path: str, size: int, offset: int, file: _File) -> bytes:
        span = self._operations.read(file.handle, offset, size)
        data = os.pread(span.descriptor, span.length, span.offset)
        while 0 < len(data) < span.length:
            more = os.pread(span.descriptor, span.length - len(data), span.offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, _path: str, data: bytes, offset: int, file: _File) -> int:
        return self._operations.write(file.handle, offset, [memoryview(data)])

    def flush(self, _path: str, file: _File) -> None:
        self._operations.flush(file.handle)

    def fsync(self, _path: str, data_only: int, file: _File) -> None:
        self._operations.sync(file.handle, bool(data_only))

    def release(self, _path: str, _flags: int, file: _File) -> None:
        self._open.released(file.inode)
        self._operations.release(file.handle)

    def statfs(self) -> object:
        space = self._operations.space(ROOT)  # libfuse does not say of what
        return fuse.StatVfs(
            f_bsize=space.block_bytes,
            f_frsize=space.block_bytes,
            f_blocks=space.total_bytes // space.block_bytes,
            f_bfree=space.free_bytes // space.block_bytes,
            f_bavail=space.free_bytes // space.block_bytes,
            f_files=space.file_count,
            f_ffree=space.free_file_count,
            f_favail=space.free_file_count,
            f_namemax=space.name_bytes_max,
        )

    # ---- extended attributes ----------------------------------------------------------------------------------------
    # `room` 0 asks for the size only. The C layer measures a value as UTF-8 and fails on what is not.

    def getxattr(self, path: str, name: str, room: int) -> str | int:
        value = self._operations.get_xattr(self._inode(path), os.fsencode(name))
        if room == 0:
            return len(value)
        if len(value) > room:
            return -errno.ERANGE
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise NotSupportedError(f"the value of {name!r} is not text, and fuse-python passes nothing else") from None

    def setxattr(self, path: str, name: str, value: str, flags: int) -> None:
        self._operations.set_xattr(self._inode(path), os.fsencode(name), value.encode(), flags)

    def listxattr(self, path: str, room: int) -> list[str] | int:
        names = visible_xattrs(self._operations.list_xattrs(self._inode(path)), self._caller().uid)
        total = sum(len(name) + 1 for name in names)
        if room == 0:
            return total
        if total > room:
            return -errno.ERANGE
        return [os.fsdecode(name) for name in names]

    def removexattr(self, path: str, name: str) -> None:
        self._operations.remove_xattr(self._inode(path), os.fsencode(name))


def _owner(number: int) -> int | None:
    return None if number == -1 else number & 0xFFFF_FFFF


def _options(source: str, read_only: bool, allow_other: bool) -> str:
    options = [
        "fsname=" + re.sub(r"([\\,])", r"\\\1", source),
        "subtype=tieredfs",
        "default_permissions",
        "use_ino",
        "big_writes",
        "atomic_o_trunc",
        f"max_read={REQUEST_BYTES}",
        f"max_write={REQUEST_BYTES}",
        f"entry_timeout={limits.ENTRY_TIMEOUT_S}",
        "attr_timeout=0",
        "negative_timeout=0",
    ]
    if read_only:
        options.append("ro")
    if allow_other:
        options.append("allow_other")
    return ",".join(options)


def serve_portable(
    operations: Operations,
    mountpoint: str,
    *,
    source: str,
    read_only: bool,
    allow_other: bool,
    on_ready: Callable[[], None],
    foreground: bool,
    clock: Clock | None = None,
) -> None:
    """Mount `operations` at `mountpoint` and serve it from this process until it is unmounted.

    Never forks. `on_ready` is called once, from a thread of libfuse, when the mount is made and requests to it wait for
    us; it must not touch the mount itself. `source` is what /proc/mounts shows. SIGTERM and SIGHUP unmount, and SIGINT
    with `foreground`, where nobody has set another handler (a Python handler runs only after the mount has ended).
    Raises MountPointError, and NotSupportedError without a usable /dev/fuse; libfuse says the reason on stderr.
    """
    if not os.path.exists("/dev/fuse"):
        raise NotSupportedError("this machine has no /dev/fuse: load the kernel module `fuse`")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise NotSupportedError("/dev/fuse may not be opened by this user")
    if foreground:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    fuse.fuse_python_api = (0, 2)
    filesystem = fuse.Fuse()
    callbacks = _Callbacks(operations, clock or SystemClock())
    for name in SERVED:
        setattr(filesystem, name, _guarded(getattr(callbacks, name)))
    filesystem.fsinit = _guarded(on_ready)
    try:
        filesystem.main(["tieredfs", mountpoint, "-f", "-o", _options(source, read_only, allow_other)])
    except fuse.FuseError as error:
        raise MountPointError(f"cannot mount at {mountpoint}: {error}") from error
