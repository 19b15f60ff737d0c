"""What callers of `Metadata` hand in and get back, beside the nouns of `tieredfs.model`."""

from dataclasses import dataclass

from tieredfs.model import NO_CACHE, CacheId, FileKind, InodeId, Place


@dataclass(frozen=True, slots=True)
class Creation:
    """What a new inode is made with. `staged_in`: the cache that will hold the content of a file that is being
    opened. `beyond_quotas`: it counts, and is made even where a quota has no inode left.
    """

    kind: FileKind
    mode: int
    uid: int
    gid: int
    device: int = 0
    target: bytes = b""
    staged_in: CacheId = NO_CACHE
    beyond_quotas: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """Left by a transaction on behalf of a request that may be sent again: request `unique` of `mount` was carried out.

    One receipt is kept per (mount, slot), the newest.
    """

    mount: int
    slot: int
    unique: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What `unlink`, `rename` and `place` took a name from. `gone`: it was the last; the inode is an orphan, or `deleted`."""

    inode: InodeId
    kind: FileKind
    gone: bool
    deleted: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an unnamed file goes, and what it gets with its name. `replace`: over another file. `absent`: a path that must
    show no file at that moment.
    """

    inode: InodeId
    parent: InodeId
    name: bytes
    mode: int
    replace: bool = True
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    absent: bytes = b""


@dataclass(frozen=True, slots=True)
class Content:
    """What a new file has on the SSD: a local file, or a place in a segment."""

    size_bytes: int
    mtime_ns: int
    allocated_bytes: int
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class DeadBlocks:
    """Blocks without a user that are not being deleted yet. `chunk_bytes`: payload of all their chunks; `last_death_ns`: of
    the one that lost its users last (0: there are none).
    """

    count: int
    chunk_bytes: int
    last_death_ns: int
