"""The volume record and the disks: what `format` writes and `config` and `disk` change."""

from collections.abc import Sequence
from typing import Final

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidRequestError,
    NewerFormatError,
    NotFoundError,
    TooLargeError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from tieredfs.format import keys, records
from tieredfs.format.keys import Counter
from tieredfs.format.records import InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import DISKS_MAX
from tieredfs.meta import allocation, blocks, inodes
from tieredfs.model import ROOT, BlockId, Disk, DiskId, DiskState, FileKind, VolumeConfig

FORMAT_VERSION: Final = 1
"""Of the metadata and chunk formats together; `VolumeConfig.format_version` of a new volume."""
QUOTAS_VERSION: Final = 2
"""Of a volume in which a quota was set: who does not know quotas would not count."""

DISK_TRANSITIONS: Final[dict[DiskState, frozenset[DiskState]]] = {
    DiskState.ACTIVE: frozenset({DiskState.DRAINING, DiskState.LOST}),
    DiskState.DRAINING: frozenset({DiskState.ACTIVE, DiskState.LOST, DiskState.REMOVED}),
    DiskState.LOST: frozenset({DiskState.ACTIVE, DiskState.REMOVED}),
    DiskState.REMOVED: frozenset(),
}
"""A lost disk may turn up again; a removed one never does. `REMOVED` asks that no block has a chunk on the disk."""


def format_volume(writer: Writer, config: VolumeConfig, disks: Sequence[Disk], uid: int, gid: int) -> None:
    """`uid`, `gid`: whose the root directory is."""
    if writer.get(keys.VOLUME) is not None:
        raise VolumeExistsError("there is a volume in this metadata database")
    assert len({disk.disk for disk in disks}) == len(disks)
    writer.put(keys.VOLUME, records.encode_volume(config))
    for disk in disks:
        writer.put(keys.disk(disk.disk), records.encode_disk(disk))
    allocation.take(writer, Counter.DISK, max((disk.disk for disk in disks), default=0))
    number = allocation.take(writer, Counter.INODE)
    assert number == ROOT
    inodes.save(writer, _root(config.created_ns, uid, gid))


def _root(now_ns: int, uid: int, gid: int) -> InodeRecord:
    return InodeRecord(
        inode=ROOT,
        kind=FileKind.DIRECTORY,
        mode=0o755,
        uid=uid,
        gid=gid,
        link_count=2,
        size_bytes=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        device=0,
        parent=ROOT,
        version=0,
        stored_version=0,
        staged_in=0,
        allocated_bytes=0,
        stored_size_bytes=0,
        hints=0,
    )


def config(reader: Reader) -> VolumeConfig:
    value = reader.get(keys.VOLUME)
    if value is None:
        raise VolumeNotFoundError("the metadata database holds no volume")
    found = records.decode_volume(value)
    if found.format_version > QUOTAS_VERSION:
        raise NewerFormatError(f"the volume has format {found.format_version}; this program knows {QUOTAS_VERSION}")
    return found


def set_config(writer: Writer, changed: VolumeConfig) -> None:
    old = config(writer)
    fixed = (old.uuid, old.format_version, old.created_ns)
    if fixed != (changed.uuid, changed.format_version, changed.created_ns):
        raise InvalidRequestError("the identity of a volume cannot be changed")
    writer.put(keys.VOLUME, records.encode_volume(changed))


def disks(reader: Reader) -> list[Disk]:
    prefix = keys.DISKS_PREFIX
    return [records.decode_disk(keys.disk_of(key), value) for key, value in reader.scan(prefix, keys.end_of(prefix))]


def add_disk(writer: Writer, uuid: str, url: str, domain: str) -> Disk:
    """A removed disk's url may be used again, its uuid not: the new disk is another one in the same place."""
    for disk in disks(writer):
        if disk.uuid == uuid or (disk.url == url and disk.state is not DiskState.REMOVED):
            raise AlreadyExistsError(f"disk {disk.disk} is {disk.url}, uuid {disk.uuid}")
    number = DiskId(allocation.take(writer, Counter.DISK))
    if number > DISKS_MAX:
        raise TooLargeError(f"a volume has {DISKS_MAX} disks in its life at most")
    added = Disk(number, uuid, url, domain, DiskState.ACTIVE)
    writer.put(keys.disk(number), records.encode_disk(added))
    return added


def set_disk_state(writer: Writer, number: DiskId, state: DiskState) -> Disk:
    """Raises NotFoundError, InvalidRequestError for a transition that is not in the table, BusyError for one too
    early.
    """
    value = writer.get(keys.disk(number))
    if value is None:
        raise NotFoundError(f"no disk {number}: `tieredfs disk list META_URL` shows their numbers")
    disk = records.decode_disk(number, value)
    if state is disk.state:
        return disk
    if state not in DISK_TRANSITIONS[disk.state]:
        raise InvalidRequestError(f"disk {number} is {disk.state.name} and cannot become {state.name}")
    if state is DiskState.REMOVED and blocks.on_disk(writer, number, BlockId(0), 1):
        raise BusyError(f"blocks still have chunks on disk {number}")
    changed = Disk(number, disk.uuid, disk.url, disk.domain, state)
    writer.put(keys.disk(number), records.encode_disk(changed))
    return changed
