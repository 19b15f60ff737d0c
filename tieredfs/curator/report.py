"""What the curator tells: frozen values that `dataclasses.asdict` and `json.dumps` take as they are.

Paths are text; bytes that are not UTF-8 are surrogates, as `os.fsdecode` makes them.
"""

import enum
from dataclasses import dataclass
from typing import Final

from tieredfs.model import BlockId, DiskId, DiskState, SessionId


class FindingKind(enum.StrEnum):
    """What a check can find. Told to people and scripts: never rename."""

    # Records that everything else follows from: what is wrong with them is told, never guessed.
    RECORD = "record"
    """A value that fails its checksum or makes no sense, or a key of no known table."""
    ENTRY = "entry"
    """A name that points to no inode, a name below no directory, or a directory with several names."""
    CONTENT = "content"
    """An inode whose newest content is neither staged nor stored, or staged in a cache that nobody knows."""
    EXTENTS = "extents"
    """Extents that overlap, are empty, or reach beyond their block; or that belong to no inode."""
    NO_BLOCK = "no-block"
    """An extent in a block that does not exist: these bytes are gone."""
    ATTRIBUTE = "attribute"
    """A symlink without a target, or a target or extended attribute without an inode."""

    # What follows from other records, and is restored from them.
    LINK_COUNT = "link-count"
    ENTRY_KIND = "entry-kind"
    PARENT = "parent"
    UNREACHABLE = "unreachable"
    """An inode that no path leads to, and that nobody holds open. Repair gives it a name in `/lost+found`."""
    HINT = "hint"
    BLOCK_USER = "block-user"
    DEATH = "death"
    """A block that is marked dead and has a user, or has none and is not marked."""
    DISK_INDEX = "disk-index"
    SHORT_INDEX = "short-index"
    """A block that lacks chunks and is not listed for healing (an earlier version wrote it), or the other way round."""
    QUOTA = "quota"
    """A directory's quota does not have what lies below it; or there is one that the directory's record denies, or none."""
    STAGED = "staged"
    ORPHAN = "orphan"
    INTENT = "intent"
    COUNTER = "counter"

    # Disks and chunks.
    DISK_UNREACHABLE = "disk-unreachable"
    CHUNK_UNPLACED = "chunk-unplaced"
    CHUNK_MISSING = "chunk-missing"
    CHUNK_ROTTEN = "chunk-rotten"
    DATA_UNAVAILABLE = "data-unavailable"
    DATA_LOST = "data-lost"
    GARBAGE = "garbage"
    """Chunks that no record names: what an interrupted write leaves, and garbage collection removes."""


INFORMATIONAL: Final = frozenset({FindingKind.GARBAGE})
"""Kinds that don't make a volume unclean."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, or was not before it was repaired."""

    kind: FindingKind
    subject: str
    detail: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at, and what was found. `omitted`: unrepaired findings beyond `FINDINGS_MAX`."""

    findings: tuple[Finding, ...]
    omitted: int
    records_checked: int
    inodes_checked: int
    blocks_checked: int
    chunks_checked: int
    bytes_checked: int
    """Payload bytes of the chunks that were read."""
    chunks_repaired: int

    @property
    def clean(self) -> bool:
        """Nothing is left that should not be so."""
        return not self.omitted and all(finding.repaired or finding.kind in INFORMATIONAL for finding in self.findings)


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What garbage collection removed, and what it left alone because it could not be sure."""

    sessions_ended: tuple[SessionId, ...]
    orphans_reclaimed: int
    leftovers_removed: int
    """Entries of trees that dead processes were cloning, or removing after a restore or with a snapshot."""
    blocks_deleted: int
    """Dead blocks past their grace."""
    block_chunk_bytes: int
    """Payload bytes of their chunks."""
    blocks_waiting: int
    """Dead blocks that wait out their grace: a later collection deletes them."""
    waiting_bytes: int
    """Payload bytes of their chunks."""
    waiting_until_ns: int | None
    """When the grace of the last of them is over (None: none waits)."""
    chunks_seen: int
    chunks_deleted: int
    """Chunks that no record named."""
    chunk_bytes: int
    """Payload bytes of those."""
    chunks_in_flight: int
    """Chunks that no record names and somebody may be about to."""
    disks_unreachable: tuple[DiskId, ...]
    """Not swept; their garbage is found when they are back."""
    caches_missing: tuple[str, ...]
    """Paths of this host's SSD tier directories that do not exist (any more). Only told: what was staged there might
    come back with a disk."""


@dataclass(frozen=True, slots=True)
class DataLoss:
    """A block that cannot be rebuilt, and the files that have bytes in it."""

    block: BlockId
    size_bytes: int
    detail: str
    paths: tuple[str, ...]
    """`PATHS_PER_LOSS_MAX` at most."""
    file_count: int


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What became of a disk's chunks."""

    disk: DiskId
    state: DiskState
    """REMOVED, unless there are losses: then it stays as it was, for should it come back, so do they."""
    chunks_moved: int
    bytes_moved: int
    chunks_dropped: int
    """Lost chunks of blocks that nobody refers to any more."""
    losses: tuple[DataLoss, ...]
