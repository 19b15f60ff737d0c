"""Files that `FileSystem` has open: for reading, being written, being made by reference."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from tieredfs.cache.local import MAY_CHANGE, LocalFile
from tieredfs.cache.tier import Tier
from tieredfs.errors import InvalidRequestError
from tieredfs.host import Files
from tieredfs.model import Attributes, Durability, InodeId

Condition = Callable[[Attributes | None], None]
"""Looks, in the committing transaction, at what the name shows now (None: nothing); raises to leave everything as it is.
May run more than once."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What `commit` asks for."""

    path: bytes
    replace: bool = True
    condition: Condition | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    mode: int = 0o644
    absent: bytes = b""


class TierReading:
    """A file of the SSD tier, open for reading."""

    def __init__(self, tier: Tier, attributes: Attributes, files: Files, on_close: Callable[[LocalFile], None]) -> None:
        self._files = files
        self._on_close: Callable[[LocalFile], None] | None = on_close
        self._file = tier.open_read(attributes.inode)
        live = tier.live(attributes.inode)
        self.attributes = attributes
        self.size_bytes = live.size_bytes if live else attributes.size_bytes

    @property
    def descriptor(self) -> int | None:
        """See `tieredfs.volume.filesystem.Reading`."""
        return self._file.descriptor if self._file.whole else None

    @property
    def version(self) -> int | None:
        """Of the content that is read; None when it is read where another process has it staged, and may go on writing."""
        return None if self._file.version == MAY_CHANGE else self._file.version

    def read_into(self, offset: int, target: memoryview) -> int:
        """See `tieredfs.volume.filesystem.Reading`."""
        if offset < 0:
            raise InvalidRequestError("a negative offset")
        length = max(0, min(len(target), self.size_bytes - offset))
        if not length:
            return 0
        if not self._file.whole and self._file.fill is not None:
            self._file.fill.wait(offset, length)
        return self._files.read_into(self._file.descriptor, target[:length], offset)

    def close(self) -> None:
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BorrowedReading:
    """A whole copy in another process's cache, open for reading."""

    def __init__(self, attributes: Attributes, descriptor: int, files: Files) -> None:
        self.attributes = attributes
        self._descriptor = descriptor
        self._files = files

    @property
    def descriptor(self) -> int | None:
        """See `tieredfs.volume.filesystem.Reading`."""
        return self._descriptor

    def read_into(self, offset: int, target: memoryview) -> int:
        """See `tieredfs.volume.filesystem.Reading`."""
        if offset < 0:
            raise InvalidRequestError("a negative offset")
        length = max(0, min(len(target), self.attributes.size_bytes - offset))
        return self._files.read_into(self._descriptor, target[:length], offset) if length else 0

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._files.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Unnamed:
    """A file without a name: staged and being written (`file`), or made by reference (no `file`). `recorded`: the metadata
    knows of it. Else it is whole, in a segment, and others are committed beside it, with one sync for them all (`grouped`).
    `durable`: its bytes are.
    """

    def __init__(self, inode: InodeId, file: LocalFile | None, owner: "UnnamedOwner", *, recorded: bool = True) -> None:
        self.inode = inode
        self.file = file
        self.recorded = recorded
        self.grouped = not recorded
        self.durable = not recorded
        self._owner = owner
        self._open = True

    @property
    def descriptor(self) -> int:
        """See `tieredfs.volume.filesystem.Writing`."""
        self._check_open()
        if self.file is None:
            raise InvalidRequestError("a file that is made by reference has no local file to write to")
        if self.grouped:
            raise InvalidRequestError("a file that is written among others has no local file of its own")
        return self.file.descriptor

    def make_durable(self, durability: Durability | None = None) -> None:
        """See `tieredfs.volume.filesystem.Writing`."""
        self._check_open()
        self._owner.make_durable(self, durability)

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
        """See `tieredfs.volume.filesystem.Writing`."""
        return self.commit_as(Naming(path, replace, condition, tuple((xattrs or {}).items()), mode, absent), durability)

    def commit_as(self, naming: Naming, durability: Durability | None = None) -> Attributes:
        self._check_open()
        attributes = self._owner.commit(self, naming, durability)
        self._open = False
        return attributes

    def end(self) -> None:
        """It was committed, among others."""
        self._open = False

    def discard(self) -> None:
        if self._open:
            self._open = False
            self._owner.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _check_open(self) -> None:
        if not self._open:
            raise InvalidRequestError("the file was committed or discarded before")


class UnnamedOwner:
    """What an `Unnamed` asks of the file system that made it."""

    def make_durable(self, unnamed: Unnamed, durability: Durability | None) -> None:
        raise NotImplementedError

    def commit(self, unnamed: Unnamed, naming: Naming, durability: Durability | None) -> Attributes:
        raise NotImplementedError

    def discard(self, unnamed: Unnamed) -> None:
        raise NotImplementedError


def caller_ids() -> tuple[int, int]:
    """Who owns what this process makes."""
    return os.geteuid(), os.getegid()
