"""What front ends are promised of a volume by paths: the protocol that `FileSystem` carries out, and the nouns in it.

Whoever stands on a volume without a mount (checkpoints, the S3 endpoint, datasets, fsspec) asks for this and no more, so that
its tests may put another one below it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from tieredfs.host.files import Buffer
from tieredfs.model import Attributes, Durability, Entry, InodeId
from tieredfs.volume.open_files import Condition, Naming

__all__ = ["FileSystemContract", "Naming", "Part", "Reading", "Seen", "Writing"]

Seen = tuple[Attributes, tuple[bytes | None, ...]]
"""What a path shows, and the values of the attributes that were asked for."""


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

    @property
    def durable(self) -> bool:
        """`make_durable` has returned."""
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
        absent: bytes = b"",
    ) -> Attributes:
        """Give the file its name (parents are made), with its attributes, in one transaction, durable on return. `absent`:
        another path that must show no file at that moment.

        Raises AlreadyExistsError (`replace` False), IsDirectoryError, ConflictError (`absent` is there), what `condition`
        raises; then nothing has changed and the file can be committed elsewhere.
        """
        ...

    def discard(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class FileSystemContract(Protocol):
    """The methods of `FileSystem`. Safe from any thread."""

    @property
    def uuid(self) -> str:
        """Of the volume."""
        ...

    def stat(self, path: bytes) -> Attributes: ...
    def look(self, paths: Sequence[bytes], xattrs: Sequence[bytes] = ()) -> list[Seen | None]:
        """What each path shows, with its value of each of `xattrs`, in one snapshot. None: nothing."""
        ...

    def entries(self, path: bytes, after: bytes = b"", limit: int = 1000) -> list[tuple[Entry, Attributes]]:
        """Entries with names greater than `after`, in byte order."""
        ...

    def walk(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """Everything below `path`, parents before children, each directory in byte order."""
        ...

    def make_directories(self, path: bytes, mode: int = 0o755, *, beyond_quotas: bool = False) -> Attributes:
        """`beyond_quotas`: they count, and are made even where a quota has no inode left: for who reads or deletes."""
        ...

    def remove(self, path: bytes, condition: Condition | None = None, *, spare_limited: bool = False) -> None:
        """A file or an empty directory. Open readings go on. `spare_limited`: BusyError for a directory with a quota."""
        ...

    def remove_tree(self, path: bytes) -> int:
        """Everything below `path` and itself; the number of files removed. Not atomic."""
        ...

    def rename(
        self,
        source: bytes,
        target: bytes,
        *,
        replace: bool = True,
        expected_target: InodeId | None = None,
        beside: bytes = b"",
    ) -> None:
        """Atomic; parents of the target are made. `expected_target`: what the target must show (0: nothing), or ConflictError;
        `beside`: a name that the source's directory must have at that moment, or ConflictError."""
        ...

    def link(self, inode: InodeId, target: bytes) -> None:
        """Another name for a file that has one; parents of the target are made. Raises AlreadyExistsError."""
        ...

    def get_xattr(self, path: bytes, name: bytes) -> bytes: ...
    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None: ...
    def remove_xattr(self, path: bytes, name: bytes) -> None: ...
    def list_xattrs(self, path: bytes) -> list[bytes]: ...
    def xattrs_of(self, inodes: Sequence[InodeId], name: bytes) -> dict[InodeId, bytes]:
        """One attribute of many inodes (of `entries`, say), in one snapshot; those that have it."""
        ...

    def open(self, path: bytes) -> Reading: ...
    def open_seen(self, attributes: Attributes) -> Reading:
        """`open` of a regular file that was just looked at."""
        ...

    def open_here(self, attributes: Attributes) -> Reading | None:
        """`open_seen` without waiting: None when its bytes would have to be fetched."""
        ...

    def create(self) -> Writing: ...
    def has_room(self) -> bool:
        """Whether `create` would not wait now."""
        ...

    def stage_group(self, contents: Sequence[Buffer]) -> "list[Writing | Exception]":
        """Small files (1 MiB at most) that are whole and committed in a moment, beside others: written together, and `durable`
        where the volume's durability is `ssd`; else each needs a `make_durable`. They cannot be written to. Nothing is
        recorded of them before their commit, and their names are durable when `sync_names` returns. Of each, why there is
        none, if so. Waits, bounded, for room on the SSD. Raises when all of them failed."""
        ...

    def commit_group(self, group: Sequence[tuple[Writing, Naming]]) -> list[Attributes | Exception]:
        """`Writing.commit` of several files of `stage_group`, their names in one transaction. Of each, what it shows now or what
        `commit` would have raised; then it can still be committed or discarded. Raises when the transaction failed, and
        with it all of them."""
        ...

    def sync_names(self) -> None:
        """What was committed before survives a power cut when this returns."""
        ...

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
