"""What a driver asks of the file system: the contract between drivers and `VolumeOperations`.

Inodes are numbers that never change meaning, so a driver keeps no table of them. Names are bytes. Errors are
`tieredfs.errors`; the driver translates them to errno in its one table (`tieredfs.fuse.errnos`). Rights are checked by the
kernel (`default_permissions`) from the attributes that we return. Every method may be called from any thread.

What is made for every open or read is a NamedTuple: 0.4 us, where a frozen dataclass takes 2 us.

Bytes do not pass through here: a regular file that is open has a local file below it (`Opened.descriptor`), which
the kernel reads and writes by passthrough, or the driver does with `read` and `write` where passthrough is not legal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tieredfs.model import AttributeChange, Attributes, Entry, InodeId


class Caller(NamedTuple):
    """Who asks, and the kernel's number of the request (`unique`), which is the same when the kernel sends it again."""

    uid: int
    gid: int
    process: int
    umask: int = 0
    unique: int = 0
    resent: bool = False
    """The kernel sent this once before, to a daemon that is gone; it may have been carried out."""
    slot: int = 0
    """Index of the thread that serves the request; one slot serves one request at a time."""


class Opened(NamedTuple):
    """An open regular file.

    `whole`: the local file has all bytes, so passthrough to `descriptor` is legal. Not whole: a fill is under way, and
    reads must come through `read`, which waits for the bytes. `descriptor` belongs to the operations and stays open until
    `release`. `backing` names the local file: opens with equal `backing` share one, and may share a passthrough id.
    """

    handle: int
    descriptor: int
    backing: int
    whole: bool
    keep_cache: bool


class Span(NamedTuple):
    """`length` bytes of a local file: what a read is answered from. Shorter than asked only at the end of the file."""

    descriptor: int
    offset: int
    length: int


class DirectoryItem(NamedTuple):
    """One entry of a listing. `cookie` continues the listing after it. `attributes` only when asked for."""

    entry: Entry
    cookie: int
    attributes: Attributes | None


@dataclass(frozen=True, slots=True)
class Space:
    """What `statfs` shows. Bytes and inodes."""

    total_bytes: int
    free_bytes: int
    file_count: int
    free_file_count: int
    block_bytes: int
    name_bytes_max: int


def visible_xattrs(names: Sequence[bytes], uid: int) -> Sequence[bytes]:
    """Those of `names` that a listing shows to `uid`: the kernel lets only root read the trusted ones, as xattr(7) says."""
    return [name for name in names if not name.startswith(b"trusted.")] if uid else names


class Operations(Protocol):
    """One mounted volume."""

    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        """`.` and `..` too. Raises NotFoundError."""
        ...

    def attributes(self, inode: InodeId) -> Attributes:
        """Size and times are those of the open local file where there is one."""
        ...

    def set_attributes(
        self, inode: InodeId, change: AttributeChange, size_bytes: int | None, handle: int | None
    ) -> Attributes: ...
    def read_link(self, inode: InodeId) -> bytes: ...

    def create(self, parent: InodeId, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Attributes, Opened]:
        """Make a regular file and open it. `mode` is permission bits with the umask applied. Raises AlreadyExistsError."""
        ...

    def make_node(self, parent: InodeId, name: bytes, mode: int, device: int, caller: Caller) -> Attributes:
        """mknod(2): `mode` with its file type (regular files too)."""
        ...

    def make_directory(self, parent: InodeId, name: bytes, mode: int, caller: Caller) -> Attributes: ...
    def symlink(self, parent: InodeId, name: bytes, target: bytes, caller: Caller) -> Attributes: ...
    def link(self, inode: InodeId, parent: InodeId, name: bytes, caller: Caller) -> Attributes: ...
    def unlink(self, parent: InodeId, name: bytes, caller: Caller) -> None: ...
    def remove_directory(self, parent: InodeId, name: bytes, caller: Caller) -> None: ...

    def rename(
        self, parent: InodeId, name: bytes, new_parent: InodeId, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        """renameat2(2) with RENAME_NOREPLACE (1) and RENAME_EXCHANGE (2)."""
        ...

    def open(self, inode: InodeId, flags: int, caller: Caller) -> Opened:
        """open(2) flags: access mode, O_TRUNC and O_APPEND count; O_CREAT and O_EXCL were the kernel's."""
        ...

    def reopen(self, handle: int, inode: InodeId, flags: int) -> Opened:
        """Bind `handle` again in a new daemon, without truncation; NotFoundError when the inode is gone."""
        ...

    def read(self, handle: int, offset: int, size: int) -> Span:
        """Waits, bounded, until the bytes are local. Raises DeadlineError, DataLossError."""
        ...

    def write(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> int: ...
    def flush(self, handle: int) -> None:
        """A descriptor was closed (there may be others): size and times become visible to other hosts."""
        ...

    def sync(self, handle: int, data_only: bool) -> None:
        """fsync(2): returns when the content has reached the state that the volume's durability asks for."""
        ...

    def release(self, handle: int) -> None:
        """The last reference to the open file is gone, its memory maps included."""
        ...

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        ...

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE. Raises NotFoundError for ENXIO."""
        ...

    def open_directory(self, inode: InodeId) -> int: ...
    def reopen_directory(self, handle: int, inode: InodeId) -> None: ...

    def read_directory(self, handle: int, cookie: int, with_attributes: bool) -> Sequence[DirectoryItem]:
        """A run of items after `cookie` (0: from the start, `.` and `..` first); empty at the end.

        A name that exists during the whole listing is seen exactly once; one that comes or goes meanwhile, once or not.
        """
        ...

    def release_directory(self, handle: int) -> None: ...
    def sync_directory(self, inode: InodeId) -> None: ...
    def forget(self, inodes: Sequence[InodeId]) -> None:
        """The kernel has no reference to these any more: no path walk that ended at one of them is under way. What was
        deleted can now be disposed of. A driver that is not told (fuse-python) never calls it."""
        ...

    def space(self, inode: InodeId) -> Space:
        """statfs(2) of anything: the volume's, or less where a quota holds."""
        ...

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes: ...
    def set_xattr(self, inode: InodeId, name: bytes, value: bytes, flags: int) -> None:
        """XATTR_CREATE (1) raises AlreadyExistsError, XATTR_REPLACE (2) raises NoAttributeError."""
        ...

    def list_xattrs(self, inode: InodeId) -> Sequence[bytes]: ...
    def remove_xattr(self, inode: InodeId, name: bytes) -> None: ...
