"""The nouns: ids, and frozen values that every part speaks of. No behaviour beyond what follows from the fields."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, NewType

InodeId = NewType("InodeId", int)
"""64 bits, never reused. `ROOT` is the root directory."""
BlockId = NewType("BlockId", int)
"""64 bits, never reused: an immutable run of bytes."""
DiskId = NewType("DiskId", int)
"""16 bits, 1-based, unique in a volume and never reused."""
SessionId = NewType("SessionId", int)
"""A process that has the volume open. 0 is nobody."""
CacheId = NewType("CacheId", int)
"""An SSD tier directory. 0 is none."""

Progress = Callable[[int, int, str], None]
"""Told by long work, from one thread at a time: done, total (an estimate; 0: unknown), and the unit of both."""

ROOT: Final = InodeId(1)
NOBODY: Final = SessionId(0)
NO_CACHE: Final = CacheId(0)
NEVER_NS: Final = 0
"""In place of the time of a heartbeat: there was none."""


class FileKind(enum.IntEnum):
    """Numbered by hand, at rest in inode and entry records: never renumber."""

    REGULAR = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


class Durability(enum.IntEnum):
    """Which state `fsync` waits for. At rest in the volume record: never renumber."""

    SSD = 1
    STORE = 2


class CodeKind(enum.IntEnum):
    """At rest in block records and chunk headers: never renumber."""

    REED_SOLOMON = 1
    REPLICA = 2


@dataclass(frozen=True, slots=True, order=True)
class Code:
    """How a block becomes chunks. `rs:k+m`: `data_count` k, `parity_count` m. `replica:n`: k = 1, m = n - 1."""

    kind: CodeKind
    data_count: int
    parity_count: int

    @property
    def width(self) -> int:
        """Chunks per block: k + m."""
        return self.data_count + self.parity_count

    def __str__(self) -> str:
        if self.kind is CodeKind.REPLICA:
            return f"replica:{self.width}"
        return f"rs:{self.data_count}+{self.parity_count}"


class Attributes(NamedTuple):
    """What `stat` shows of an inode, and where its content is.

    `version` counts contents: it rises when the file is opened for writing. `stored_version` is the version whose bytes
    the extents describe; `staged_in` is the cache that holds `version` when that is newer (`NO_CACHE`: nowhere, the
    extents are the content). `size_bytes` and the times belong to `version` as of its last flush.

    A NamedTuple, as it is made for every look at a file: 0.5 us, where a frozen dataclass of 16 fields takes 3 us.
    """

    inode: InodeId
    kind: FileKind
    mode: int
    """Permission bits only (0o7777)."""
    uid: int
    gid: int
    link_count: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    device: int
    """`st_rdev` of a device node, else 0."""
    parent: InodeId
    """Of a directory: its parent. Of anything else: the directory that it was created in (a hint)."""
    version: int
    stored_version: int
    staged_in: CacheId
    allocated_bytes: int
    """`st_blocks` in bytes: what is not a hole."""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What `setattr` asks for; None leaves a field as it is. Sizes change through the content, not here."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Entry(NamedTuple):
    """One name in a directory."""

    name: bytes
    inode: InodeId
    kind: FileKind


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`length` bytes of a file at `offset` are those of a block at `block_offset`. What no extent covers is a hole."""

    offset: int
    length: int
    block: BlockId
    block_offset: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class ChunkLocation:
    """Chunk `index` of a block is on `disk`, and the CRC32C of its payload is `crc32c`."""

    index: int
    disk: DiskId
    crc32c: int


@dataclass(frozen=True, slots=True)
class Block:
    """`size_bytes` of content, cut by `code` into chunks of `chunk_bytes` payload each (the last data chunk padded with zeros).

    `chunks` is sorted by index; an index that is missing was never written or is lost, and waits for repair.
    """

    block: BlockId
    code: Code
    size_bytes: int
    chunk_bytes: int
    chunks: tuple[ChunkLocation, ...]

    @property
    def spare(self) -> int:
        """How many of the chunks that it has can be lost."""
        return max(0, len(self.chunks) - self.code.data_count)

    @property
    def missing(self) -> list[int]:
        """Indexes without a place, ascending."""
        placed = {chunk.index for chunk in self.chunks}
        return [index for index in range(self.code.width) if index not in placed]


@dataclass(frozen=True, slots=True)
class ShortBlock:
    """A block with fewer chunks than its code says, since `since_ns`: it can lose `spare` more, and is to get `missing_bytes`."""

    block: BlockId
    spare: int
    since_ns: int
    size_bytes: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """All short blocks of a volume. `bare`: of them, those that can lose no chunk; on an SSD that has their content, it stays.

    `since_ns` is that of the oldest, `least_spare` what the nearest to being lost can lose; None: there is none. Only the first
    `SHORT_COUNTED_MAX` are counted, nearest to being lost first.
    """

    blocks: int
    bare: int
    size_bytes: int
    missing_bytes: int
    since_ns: int | None = None
    least_spare: int | None = None


class Quota(NamedTuple):
    """What may lie below a directory, and what does. Limits: 0 for none. `path`: of the directory, as the quota was set.

    Bytes are sizes of regular files, each rounded up to `QUOTA_UNIT_BYTES`; inodes are of everything below, itself excepted.
    """

    directory: InodeId
    path: bytes
    limit_bytes: int
    limit_inodes: int
    used_bytes: int
    used_inodes: int


class DiskState(enum.IntEnum):
    """At rest in disk records: never renumber."""

    ACTIVE = 1
    """Takes new chunks."""
    DRAINING = 2
    """Being emptied: read from, not written to."""
    LOST = 3
    """Declared gone: its chunks are rebuilt elsewhere."""
    REMOVED = 4
    """Emptied or rebuilt; the id is never used again."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One chunk store of the volume. Disks of one `domain` are expected to fail together."""

    disk: DiskId
    uuid: str
    url: str
    """`disk:///absolute/path`."""
    domain: str
    state: DiskState


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """The volume record, written by `format`."""

    uuid: str
    name: str
    format_version: int
    created_ns: int
    code: Code
    block_bytes: int
    durability: Durability


@dataclass(frozen=True, slots=True)
class Session:
    """A process that has the volume open; it is dead when its heartbeat is older than `SESSION_TIMEOUT_S`."""

    session: SessionId
    host: str
    process: int
    purpose: str
    started_ns: int
    heartbeat_ns: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that serves what is staged on its host to other hosts, at `address` (`http://HOST:PORT`, or https)."""

    session: Session
    address: str


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """An SSD tier directory that the volume knows of, so that whoever needs a staged file knows where it is."""

    cache: CacheId
    uuid: str
    host: str
    path: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a content lies that shares a file of its cache directory with others: its header is at `offset` of that segment."""

    segment: int
    offset: int


PLACE_UNKNOWN: Final = Place(0, 0)
"""Of a content that was staged somewhere in the cache directory, as nobody knows any more where: no segment has number 0."""


@dataclass(frozen=True, slots=True)
class StagedRecord:
    """A content that is on an SSD only: version `version` of `inode`, since `since_ns`. `place` None: it has a local file."""

    cache: CacheId
    inode: InodeId
    version: int
    since_ns: int
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A content whose bytes are now in blocks: what `Metadata.commit_stored` is told of one file."""

    inode: InodeId
    version: int
    size_bytes: int
    mtime_ns: int
    extents: tuple[Extent, ...]
    complete: bool
    """False: the file is still being written; it stays staged, and the extents are its last safe content."""
