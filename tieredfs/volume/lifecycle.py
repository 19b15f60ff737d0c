"""The beginning and the end of a volume.

`format` writes the disks first and the volume record last: so a volume that exists is complete, and what an interrupted
format leaves is empty directories that `--force` may use. Nothing is overwritten unless forced, and even then only what
is ours: files that TieredFS did not write are never touched.
"""

import contextlib
import os
import uuid
from collections.abc import Sequence
from typing import Final

from tieredfs.chunk.directory import DiskIdentity
from tieredfs.chunk.sites import Site, domain_of, site_of
from tieredfs.config import (
    DataUrl,
    DiskUrl,
    MetaUrl,
    SqliteUrl,
    format_size,
    parse_data_url,
    parse_data_urls,
    parse_meta_url,
)
from tieredfs.errors import (
    BusyError,
    ConfigurationError,
    CorruptError,
    ForeignDataError,
    TieredError,
    UnavailableError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from tieredfs.host import Host, local_host
from tieredfs.kv.databases import create_engine, database_exists, open_engine, remove_database
from tieredfs.limits import (
    BLOCK_BYTES_DEFAULT,
    BLOCK_BYTES_MAX,
    CHUNK_ALIGNMENT_BYTES,
    DISKS_MAX,
    SESSION_TIMEOUT_S,
)
from tieredfs.meta import metadata as meta
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Code, Disk, DiskId, DiskState, Durability, Progress, VolumeConfig

FORMAT_VERSION: Final = 1
_DATABASE_HEAD: Final = b"SQLite format 3\0"


def format_volume(
    meta_url: str,
    data_urls: Sequence[str],
    *,
    code: Code,
    durability: Durability,
    name: str,
    block_bytes: int = BLOCK_BYTES_DEFAULT,
    force: bool = False,
    host: Host | None = None,
) -> VolumeConfig:
    """Make a volume over empty or missing directories or prefixes of buckets, one disk each. A directory is a failure domain of its
    own; those of a node, or of a bucket, are one. The volume's root directory is the caller's.

    Raises VolumeExistsError, ForeignDataError, ConfigurationError, UnavailableError (a bucket or node does not answer); then
    nothing was changed but directories made.
    """
    host = host or local_host()
    location = parse_meta_url(meta_url)
    urls = parse_data_urls(data_urls)
    _check_shape(code, block_bytes, len(urls))
    _check_vacant(location, meta_url, force=force, host=host)
    sites = [site_of(url, host) for url in urls]
    _check_disks(urls, sites, meta_url, force=force)
    config = VolumeConfig(str(uuid.uuid4()), name, FORMAT_VERSION, host.clock.wall_ns(), code, block_bytes, durability)
    disks = [
        Disk(DiskId(number), str(uuid.uuid4()), str(url), domain_of(url, f"disk-{number}"), DiskState.ACTIVE)
        for number, url in enumerate(urls, start=1)
    ]
    for disk, site in zip(disks, sites, strict=True):
        if force:
            with contextlib.suppress(UnavailableError, CorruptError):
                site.erase()
        site.format(DiskIdentity(config.uuid, disk.uuid))
    engine = create_engine(location)
    try:
        meta.format_volume(engine, config, disks, os.geteuid(), os.getegid())
        engine.sync()
    finally:
        engine.close()
    return config


def _check_shape(code: Code, block_bytes: int, count: int) -> None:
    if not count:
        raise ConfigurationError("a volume needs a data directory: --data disk:///path/d{0..5}")
    if count > DISKS_MAX:
        raise ConfigurationError(f"{count} data directories are over the limit of {DISKS_MAX}")
    if count < code.width:
        raise ConfigurationError(
            f"{code} needs {code.width} data directories, one per chunk of a block; there are {count}. "
            f"Name more, or choose a narrower --code (replica:1 works with one)"
        )
    if not CHUNK_ALIGNMENT_BYTES <= block_bytes <= BLOCK_BYTES_MAX or block_bytes % CHUNK_ALIGNMENT_BYTES:
        raise ConfigurationError(
            f"blocks of {block_bytes} bytes cannot be: a block size is a multiple of {format_size(CHUNK_ALIGNMENT_BYTES)}, "
            f"at most {format_size(BLOCK_BYTES_MAX)}"
        )


def _check_vacant(location: MetaUrl, meta_url: str, *, force: bool, host: Host) -> None:
    """Refuse a metadata file, or tables, that exist; with `force`, destroy the volume in them if it is one."""
    if not database_exists(location):
        return
    if not force:
        if isinstance(location, SqliteUrl) and not _may_be_database(location.path):
            raise VolumeExistsError(f"there is a file at {location.path}, which is no volume; use another path")
        raise VolumeExistsError(
            f"there is a volume at {meta_url} already; use another, or --force to destroy it and all its data"
        )
    try:
        destroy_volume(meta_url, host=host)
    except VolumeNotFoundError:
        remove_database(location)


def _may_be_database(path: str) -> bool:
    """What is not readable, too: better to believe that it is a volume."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_DATABASE_HEAD)) == _DATABASE_HEAD
    except OSError:
        return True


def _check_disks(urls: Sequence[DataUrl], sites: Sequence[Site], meta_url: str, *, force: bool) -> None:
    """Look before anything is written: no data directory may hold another volume, or files that are not ours."""
    for url, site in zip(urls, sites, strict=True):
        found = site.identity()
        if found is not None and not force:
            where = url.path if isinstance(url, DiskUrl) else str(url)
            raise ForeignDataError(
                f"{where} is a disk of volume {found.volume_uuid}; name an empty directory, or --force to erase it. "
                f"If that volume's metadata are lost, `tieredfs load {meta_url} {where}` brings them back from a dump"
            )


def destroy_volume(meta_url: str, *, progress: Progress | None = None, host: Host | None = None) -> None:
    """Delete every chunk and the metadata. Raises BusyError while a live process has the volume open."""
    host = host or local_host()
    location = parse_meta_url(meta_url)
    engine = open_engine(location)
    try:
        metadata = Metadata(engine, host.clock)
        config = metadata.config()
        oldest_ns = host.clock.wall_ns() - int(SESSION_TIMEOUT_S * 1e9)
        live = [session for session in metadata.sessions() if session.heartbeat_ns >= oldest_ns]
        if live:
            users = ", ".join(f"{session.purpose} (process {session.process} on {session.host})" for session in live)
            raise BusyError(
                f"the volume is in use by {users}; unmount it, or end it, first (one that was killed counts for up to "
                f"{SESSION_TIMEOUT_S:.0f} s)"
            )
        disks = metadata.disks()
        for number, disk in enumerate(disks):
            _erase(disk, config.uuid, host)
            if progress is not None:
                progress(number + 1, len(disks), "disks")
    finally:
        engine.close()
    remove_database(location)


def _erase(disk: Disk, volume_uuid: str, host: Host) -> None:
    """Erase a disk if it is there and still ours; one that is away stays as it is."""
    try:
        site = site_of(parse_data_url(disk.url), host)
        identity = site.identity()
        if identity is not None and identity.volume_uuid == volume_uuid:
            site.erase()
    except TieredError:
        return
