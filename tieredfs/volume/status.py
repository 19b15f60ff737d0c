"""What `status` says, as values that become JSON by `dataclasses.asdict`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """One disk. `reachable`: it could be opened; `problem` says why not. Bytes are of the file system below it."""

    disk: int
    url: str
    domain: str
    state: str
    reachable: bool
    problem: str | None
    total_bytes: int | None
    free_bytes: int | None
    chunk_count: int | None


@dataclass(frozen=True, slots=True)
class StagedSummary:
    """What is not in the store yet: on SSDs only."""

    file_count: int
    size_bytes: int
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class ShortStatus:
    """Blocks that lack chunks, and get them by themselves when disks take them. `bare_count`: those that can lose no disk more,
    whose content stays on the SSDs that have it. `missing_bytes`: of the chunks that are to come."""

    block_count: int
    bare_count: int
    size_bytes: int
    missing_bytes: int
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A process that has the volume open. `alive`: its heartbeat is recent."""

    session: int
    host: str
    process: int
    purpose: str
    age_s: float
    alive: bool


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """An SSD tier directory known to the volume, and what is nowhere else."""

    cache: int
    host: str
    path: str
    staged_files: int
    staged_bytes: int
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class DumpStatus:
    """The newest dump of the metadata that the volume's disks have, and its copies."""

    age_s: float
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume at a glance. `safe`: nothing depends on an SSD: nothing is staged, and no block is bare. `redundancy`: how many more
    disks may be lost now."""

    name: str
    uuid: str
    meta_url: str
    code: str
    durability: str
    block_bytes: int
    inode_count: int
    safe: bool
    redundancy: int
    staged: StagedSummary
    short: ShortStatus
    disks: tuple[DiskStatus, ...]
    sessions: tuple[SessionStatus, ...]
    caches: tuple[CacheStatus, ...]
    metadata_dump: DumpStatus | None
