"""What the page shows, as values: `/status.json` is this, and the page is made from it and from nothing else."""

from dataclasses import dataclass

from tieredfs.volume import VolumeStatus
from tieredfs_gateway.status.census import Census
from tieredfs_gateway.status.concerns import Concern


@dataclass(frozen=True, slots=True)
class MountLook:
    """A mount on this host. `answers`: its daemon does; otherwise nothing more is known. Rates are over `interval_s`; None: not yet
    known, after one look."""

    mount_point: str
    mount_id: str
    answers: bool
    staged_files: int = 0
    staged_bytes: int = 0
    staged_oldest_age_s: float = 0.0
    ssd_full: bool = False
    resident_bytes: int = 0
    drain_error: str | None = None
    interval_s: float | None = None
    operations_per_s: float | None = None
    stored_bytes_per_s: float | None = None
    filled_bytes_per_s: float | None = None
    hit_ratio: float | None = None
    room_waits_per_s: float | None = None
    cpu_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """How long chunks took that this host's mounts read from a disk and wrote to it lately; None: there were none."""

    disk: int
    reads_per_s: float
    read_mean_s: float | None
    writes_per_s: float
    write_mean_s: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of the past."""

    at_ns: int
    staged_bytes: int
    staged_oldest_age_s: float
    missing_bytes: int
    short_blocks: int
    stored_bytes_per_s: float | None


@dataclass(frozen=True, slots=True)
class Healing:
    """How fast missing chunks come, over the samples since there were most; None: nothing is missing, or nothing comes."""

    missing_bytes_per_s: float | None
    remaining_s: float | None


@dataclass(frozen=True, slots=True)
class Document:
    """`made_ns`: when this was looked at. `problem`: why there is no newer look; None: this is one. `census`: None while it is
    counted for the first time; `census_age_s`: of the one that is shown."""

    made_ns: int
    problem: str | None
    concerns: tuple[Concern, ...]
    volume: VolumeStatus
    census: Census | None
    census_age_s: float | None
    mounts: tuple[MountLook, ...]
    speeds: tuple[DiskSpeed, ...]
    healing: Healing
    history: tuple[Sample, ...]
