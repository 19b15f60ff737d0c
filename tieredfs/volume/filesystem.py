"""`FileSystem`: a volume by paths, from Python, without a mount: what checkpoints, the S3 endpoint and datasets stand on.

Paths are bytes from the root of the volume (`b"runs/gpt/step-10"`; leading and doubled slashes do not count, `.` and `..`
are refused). A file is written without a name and gets one when it is whole (`Writing.commit`), so nothing half-written
is ever seen, and replacing is atomic. Bytes go through local files on the SSD tier of this process, as the mount's do.

Every process has an SSD directory of its own, a *slot* below `clients` beside the metadata file; what a process leaves
staged there is stored by whoever takes the slot next, by a mount's caretaker, or by `tieredfs drain`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from tieredfs.model import Attributes, Durability, Entry, InodeId

Condition = Callable[[Attributes | None], None]
"""Looks, in the committing transaction, at what the name shows now (None: nothing); raises to leave everything as it is.
May run more than once."""


@dataclass(frozen=True, slots=True)
class Part:
    """`length` bytes at `offset` of a stored file: a piece of a new file that is made by reference."""

    inode: InodeId
    offset: int
    length: int


class Reading(Protocol):
    """An open file. A context manager. Safe from any thread. Its content stays what it was at the opening."""

    @property
    def attributes(self) -> Attributes: ...
    @property
    def descriptor(self) -> int | None:
        """Of the local file when it is whole (for sendfile, mmap, preadv); None while it is not on this SSD."""
        ...

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset`; fewer bytes only at the end. Verified when they come from the store.

        Raises DataLossError, UnavailableError, DeadlineError.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Writing(Protocol):
    """A file without a name. A context manager: leaving it without `commit` discards the file."""

    @property
    def inode(self) -> InodeId: ...
    @property
    def descriptor(self) -> int:
        """The local file: fallocate, pwrite, sendfile into it, from any thread. Closed by `commit` and `discard`."""
        ...

    def make_durable(self, durability: Durability | None = None) -> None:
        """Returns when the bytes written so far have reached that state (None: the volume's): may run before `commit`."""
        ...

    def commit(
        self,
        path: bytes,
        *,
        replace: bool = True,
        condition: Condition | None = None,
        durability: Durability | None = None,
        xattrs: Mapping[bytes, bytes] | None = None,
        mode: int = 0o644,
    ) -> Attributes:
        """Give the file its name (parents are made), with its attributes, in one transaction, durable on return.

        Raises AlreadyExistsError (`replace` False), IsDirectoryError, what `condition` raises; then nothing has changed and the
        file can be committed elsewhere.
        """
        ...

    def discard(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class FileSystemContract(Protocol):
    """The methods of `FileSystem`. Safe from any thread."""

    def stat(self, path: bytes) -> Attributes: ...
    def entries(self, path: bytes, after: bytes = b"", limit: int = 1000) -> list[tuple[Entry, Attributes]]:
        """Entries with names greater than `after`, in byte order."""
        ...

    def walk(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """Everything below `path`, parents before children, each directory in byte order."""
        ...

    def make_directories(self, path: bytes, mode: int = 0o755) -> Attributes: ...
    def remove(self, path: bytes, condition: Condition | None = None) -> None:
        """A file or an empty directory. Open readings go on."""
        ...

    def remove_tree(self, path: bytes) -> int:
        """Everything below `path` and itself; the number of files removed. Not atomic."""
        ...

    def rename(self, source: bytes, target: bytes, *, replace: bool = True) -> None:
        """Atomic; parents of the target are made."""
        ...

    def get_xattr(self, path: bytes, name: bytes) -> bytes: ...
    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None: ...
    def list_xattrs(self, path: bytes) -> list[bytes]: ...
    def open(self, path: bytes) -> Reading: ...
    def create(self) -> Writing: ...
    def splice(self, parts: Sequence[Part]) -> Writing:
        """A new file, without a name, whose content is those parts one after another: no bytes are moved. Sources that are
        only staged are stored first. Its `descriptor` cannot be used."""
        ...

    def is_stored(self, path: bytes) -> bool:
        """The content is in the store, not only staged."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Returns when nothing that this process staged is only on the SSD. Raises DeadlineError."""
        ...

    def close(self) -> None: ...
