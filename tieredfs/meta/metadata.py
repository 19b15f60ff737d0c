"""`Metadata`: every change of the namespace, of file contents and of the block maps, each one transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tieredfs.host import Clock
from tieredfs.kv.engine import Engine
from tieredfs.model import (
    NO_CACHE,
    AttributeChange,
    Attributes,
    Block,
    BlockId,
    CacheId,
    CacheRecord,
    ChunkLocation,
    Code,
    Disk,
    DiskId,
    DiskState,
    Entry,
    Extent,
    FileKind,
    InodeId,
    Session,
    SessionId,
    StagedRecord,
    StoredContent,
    VolumeConfig,
)


@dataclass(frozen=True, slots=True)
class Creation:
    """What a new inode is made with. `staged_in`: the cache that will hold its content (regular files that are being opened)."""

    kind: FileKind
    mode: int
    uid: int
    gid: int
    device: int = 0
    target: bytes = b""
    staged_in: CacheId = NO_CACHE


@dataclass(frozen=True, slots=True)
class Receipt:
    """Left by a transaction on behalf of a request that may be sent again: request `unique` of mount `mount` was carried out.

    One receipt is kept per (mount, slot), the newest.
    """

    mount: int
    slot: int
    unique: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What `unlink` and `rename` took a name from. `gone`: that was the last one, and the inode is deleted or an orphan."""

    inode: InodeId
    kind: FileKind
    gone: bool


def format_volume(engine: Engine, config: VolumeConfig, disks: Sequence[Disk]) -> None:
    """Write the volume record, the disks and the root directory. Raises VolumeExistsError."""
    raise NotImplementedError


class Metadata:
    """The three layers over one engine. Safe from any thread; every method is one transaction unless it says otherwise.

    Names are checked here (NameTooLongError; InvalidRequestError for an empty name, `.`, `..`, or one with `/` or NUL).
    Directory changes update the directory's mtime and ctime, and link counts of directories count subdirectories.
    `receipt` is stored in the same transaction.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        raise NotImplementedError

    def config(self) -> VolumeConfig:
        """Raises VolumeNotFoundError, NewerFormatError."""
        raise NotImplementedError

    def set_config(self, config: VolumeConfig) -> None:
        """Replace the settings that may change (name, code, durability, block size): they act on what is written from now on."""
        raise NotImplementedError

    def sync(self) -> None:
        """`Engine.sync`."""
        raise NotImplementedError

    # ---- names ------------------------------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        """Raises NotFoundError, NotDirectoryError."""
        raise NotImplementedError

    def resolve(self, path: bytes) -> Attributes:
        """Walk `path` from the root, symlinks not followed. Raises NotFoundError, NotDirectoryError."""
        raise NotImplementedError

    def list_directory(self, directory: InodeId, after: bytes, limit: int) -> list[Entry]:
        """Entries with a name greater than `after` in byte order, without `.` and `..`."""
        raise NotImplementedError

    def list_directory_plus(self, directory: InodeId, after: bytes, limit: int) -> list[tuple[Entry, Attributes]]:
        """`list_directory` with attributes, in the same snapshot."""
        raise NotImplementedError

    def create(self, parent: InodeId, name: bytes, creation: Creation, receipt: Receipt | None = None) -> Attributes:
        """Raises AlreadyExistsError, NotFoundError (parent removed), NotDirectoryError, NameTooLongError.

        With `staged_in`, the inode starts at version 1 staged there, with a staged record; otherwise a regular file starts
        empty and stored (version 0). A set-gid parent gives its gid, and the bit to subdirectories.
        """
        raise NotImplementedError

    def link(self, inode: InodeId, parent: InodeId, name: bytes, receipt: Receipt | None = None) -> Attributes:
        """Raises NotPermittedError for a directory, TooManyLinksError, AlreadyExistsError."""
        raise NotImplementedError

    def unlink(self, parent: InodeId, name: bytes, holder: SessionId, receipt: Receipt | None = None) -> Removed:
        """Remove a name that is not a directory's (IsDirectoryError). At the last link: with a `holder` (somebody in that
        session has it open) the inode becomes an orphan of that session; without, it is deleted and its blocks released."""
        raise NotImplementedError

    def remove_directory(self, parent: InodeId, name: bytes, receipt: Receipt | None = None) -> Removed:
        """Raises NotDirectoryError, DirectoryNotEmptyError."""
        raise NotImplementedError

    def rename(
        self,
        parent: InodeId,
        name: bytes,
        new_parent: InodeId,
        new_name: bytes,
        *,
        replace: bool = True,
        exchange: bool = False,
        holder: SessionId = SessionId(0),
        expected_target: InodeId | None = None,
        receipt: Receipt | None = None,
    ) -> Removed | None:
        """Atomic, across directories too; returns what the target name showed before, if another inode.

        Both names of one inode: nothing happens. `expected_target`: the inode that the caller believes is being replaced and
        for which `holder` was chosen; another one raises ConflictError, so that an open file is never deleted by a race.
        Raises InvalidRequestError (a directory below itself), AlreadyExistsError (replace=False), DirectoryNotEmptyError,
        IsDirectoryError, NotDirectoryError.
        """
        raise NotImplementedError

    def carried_out(self, mount: int, unique: int) -> bool:
        """Whether a receipt of request `unique` exists in any slot of `mount`."""
        raise NotImplementedError

    def forget_receipts(self, mount: int) -> None:
        raise NotImplementedError

    # ---- files ------------------------------------------------------------------------------------------------------

    def attributes(self, inode: InodeId) -> Attributes:
        """Orphans too. Raises NotFoundError."""
        raise NotImplementedError

    def set_attributes(self, inode: InodeId, change: AttributeChange) -> Attributes:
        """Sets ctime to now."""
        raise NotImplementedError

    def read_link(self, inode: InodeId) -> bytes:
        """Raises InvalidRequestError when it is not a symlink."""
        raise NotImplementedError

    def get_xattr(self, inode: InodeId, name: bytes) -> bytes:
        raise NotImplementedError

    def set_xattr(
        self, inode: InodeId, name: bytes, value: bytes, *, create: bool = False, replace: bool = False
    ) -> None:
        raise NotImplementedError

    def list_xattrs(self, inode: InodeId) -> list[bytes]:
        raise NotImplementedError

    def remove_xattr(self, inode: InodeId, name: bytes) -> None:
        raise NotImplementedError

    def begin_write(self, inode: InodeId, cache: CacheId, *, truncate: bool) -> Attributes:
        """Mark the content as staged in `cache`, at the next version. Raises BusyError when another cache has it staged.

        Already staged in this cache: the version rises all the same. `truncate` sets the size to 0.
        """
        raise NotImplementedError

    def publish(self, inode: InodeId, version: int, size_bytes: int, mtime_ns: int) -> None:
        """Size and mtime of a staged content, as of now (ctime becomes the later of itself and mtime). Silently nothing if
        `version` is no longer the inode's or the inode is gone."""
        raise NotImplementedError

    def abandon_write(self, inode: InodeId, version: int) -> None:
        """The staged content `version` is the same as the stored one, or lost: the extents are the content again (size from
        the stored content). Silently nothing if `version` is not the inode's."""
        raise NotImplementedError

    def extents(self, inode: InodeId) -> list[Extent]:
        """The stored content, in order of offset."""
        raise NotImplementedError

    def commit_stored(self, contents: Sequence[StoredContent], blocks: Sequence[Block]) -> set[InodeId]:
        """The drain's commit: record `blocks` (removing their intents), and replace the extents of each file by the new ones.

        A file whose version is no longer `content.version`, or that is gone, is left alone; the inodes that took their
        content are returned. With `complete`, the staged mark is cleared and stored_version is version. Blocks that no file
        references afterwards (old ones, or new ones that nobody took) become dead.
        """
        raise NotImplementedError

    def staged(self, cache: CacheId | None = None) -> list[StagedRecord]:
        """What is on SSDs only, oldest first; of one cache or of all."""
        raise NotImplementedError

    # ---- orphans and sessions -----------------------------------------------------------------------------------------

    def reclaim_orphan(self, inode: InodeId, holder: SessionId) -> None:
        """Delete an open-but-unlinked inode when its last handle is released. Nothing if it is no orphan of `holder`."""
        raise NotImplementedError

    def orphans(self) -> list[tuple[SessionId, InodeId]]:
        raise NotImplementedError

    def open_session(self, host: str, process: int, purpose: str) -> Session:
        raise NotImplementedError

    def heartbeat(self, session: SessionId) -> None:
        """Raises NotFoundError when the session was ended (this process was taken for dead)."""
        raise NotImplementedError

    def end_session(self, session: SessionId) -> list[InodeId]:
        """Delete the session, its orphans (returned) and its block intents. Also how a dead one is reclaimed."""
        raise NotImplementedError

    def sessions(self) -> list[Session]:
        raise NotImplementedError

    def register_cache(self, uuid: str, host: str, path: str) -> CacheRecord:
        """The record of that uuid, made or updated."""
        raise NotImplementedError

    def caches(self) -> list[CacheRecord]:
        raise NotImplementedError

    def forget_cache(self, cache: CacheId) -> None:
        """Raises BusyError while something is staged there."""
        raise NotImplementedError

    # ---- blocks and disks ---------------------------------------------------------------------------------------------

    def reserve_block(self, session: SessionId) -> BlockId:
        """A new id with an intent record, so that garbage collection leaves its chunks alone while the session lives."""
        raise NotImplementedError

    def release_reservation(self, block: BlockId) -> None:
        """The block will not be committed."""
        raise NotImplementedError

    def reserved(self, block: BlockId) -> bool:
        """An intent of a live session exists."""
        raise NotImplementedError

    def block(self, block: BlockId) -> Block:
        """Raises NotFoundError."""
        raise NotImplementedError

    def blocks(self, wanted: Iterable[BlockId]) -> dict[BlockId, Block]:
        """Those of `wanted` that exist, in one snapshot."""
        raise NotImplementedError

    def list_blocks(self, after: BlockId, limit: int) -> list[Block]:
        """Blocks in an order of the engine's choosing that `after` continues (0: from the start)."""
        raise NotImplementedError

    def blocks_on_disk(self, disk: DiskId, after: BlockId, limit: int) -> list[BlockId]:
        """One range scan, ascending, ids greater than `after`."""
        raise NotImplementedError

    def block_users(self, block: BlockId) -> list[InodeId]:
        """Inodes with an extent in the block."""
        raise NotImplementedError

    def replace_chunk(self, block: BlockId, old: ChunkLocation | None, new: ChunkLocation | None) -> bool:
        """Move, add or drop one chunk's location; False (and nothing) when `old` is not what the record says, or the block is gone."""
        raise NotImplementedError

    def dead_blocks(self, before_ns: int, limit: int) -> list[Block]:
        """Blocks without a reference since before that time."""
        raise NotImplementedError

    def forget_blocks(self, blocks: Sequence[BlockId]) -> None:
        """Delete the records of dead blocks whose chunks are deleted."""
        raise NotImplementedError

    def disks(self) -> list[Disk]:
        raise NotImplementedError

    def add_disk(self, uuid: str, url: str, domain: str) -> Disk:
        """Raises AlreadyExistsError for a known uuid or url."""
        raise NotImplementedError

    def set_disk_state(self, disk: DiskId, state: DiskState) -> Disk:
        raise NotImplementedError

    # ---- totals -------------------------------------------------------------------------------------------------------

    def count_inodes(self) -> int:
        """Estimate allowed; cheap."""
        raise NotImplementedError

    def code(self) -> Code:
        """`config().code`, cached for a second."""
        raise NotImplementedError
