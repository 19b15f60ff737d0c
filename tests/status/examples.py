"""Documents for the tests of the page: a volume that is well, and what can be the matter."""

from dataclasses import replace

from tieredfs.limits import GIB, MIB
from tieredfs.volume.status import (
    CacheStatus,
    DiskStatus,
    DumpStatus,
    SessionStatus,
    ShortStatus,
    StagedSummary,
    VolumeStatus,
)
from tieredfs_gateway.status.census import Census, DiskHolding
from tieredfs_gateway.status.concerns import concerns_of
from tieredfs_gateway.status.document import DiskSpeed, Document, Healing, MountLook, Sample
from tieredfs_gateway.status.looking import facts_of

NOW_NS = 1_800_000_000_000_000_000


def disk(number: int, *, reachable: bool = True, domain: str = "", free_bytes: int = 60 * GIB) -> DiskStatus:
    problem = None if reachable else "it does not answer"
    total, free = (100 * GIB, free_bytes) if reachable else (None, None)
    return DiskStatus(
        number, f"disk:///data/d{number}", domain or f"d{number}", "active", reachable, problem, total, free, None
    )


WELL = VolumeStatus(
    name="train",
    uuid="u",
    meta_url="sqlite:///data/volume.db",
    code="rs:4+2",
    durability="ssd",
    block_bytes=64 * MIB,
    inode_count=10,
    safe=True,
    redundancy=2,
    staged=StagedSummary(0, 0, 0.0),
    short=ShortStatus(0, 0, 0, 0, 0.0),
    disks=tuple(disk(number) for number in range(1, 7)),
    sessions=(SessionStatus(1, "host-a", 77, "mount 0123", 2.0, True),),
    caches=(CacheStatus(1, "host-a", "/ssd", 0, 0, 0.0),),
    metadata_dump=DumpStatus(600.0, ("/data/d1/metadata/1.dump",)),
)
MOUNT = MountLook("/mnt/train", "0" * 16, answers=True, resident_bytes=40 * MIB)


def with_disks(*away: int) -> VolumeStatus:
    disks = tuple(disk(number, reachable=number not in away) for number in range(1, 7))
    return replace(WELL, disks=disks, redundancy=max(0, 2 - len(away)))


def document(status: VolumeStatus = WELL, *mounts: MountLook, problem: str | None = None) -> Document:
    sample = Sample(NOW_NS, status.staged.size_bytes, status.staged.oldest_age_s, status.short.missing_bytes, 0, None)
    return Document(
        made_ns=NOW_NS,
        problem=problem,
        concerns=concerns_of(status, [facts_of(mount) for mount in mounts], problem),
        volume=status,
        census=Census(3, 100 * MIB, {1: DiskHolding(3, 40 * MIB)}),
        census_age_s=1.0,
        mounts=mounts,
        speeds=(DiskSpeed(1, 2.0, 0.004, 1.0, 0.030),),
        healing=Healing(None, None),
        history=(replace(sample, at_ns=NOW_NS - 60_000_000_000), sample),
    )
