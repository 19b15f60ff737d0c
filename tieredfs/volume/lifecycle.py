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

from tieredfs.chunk.directory import DiskIdentity, erase_disk, format_disk, path_of_url, read_identity
from tieredfs.config import MetaUrl, SqliteUrl, format_size, parse_data_urls, parse_meta_url
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
    """Make a volume over empty or missing directories, one disk each, every one a failure domain of its own. Its root directory is
    the caller's.

    Raises VolumeExistsError, ForeignDataError, ConfigurationError; then nothing was changed but directories made.
    """
    host = host or local_host()
    location = parse_meta_url(meta_url)
    roots = [url.path for url in parse_data_urls(data_urls)]
    _check_shape(code, block_bytes, roots)
    _check_vacant(location, meta_url, force=force, host=host)
    _check_disks(roots, meta_url, force=force, host=host)
    config = VolumeConfig(str(uuid.uuid4()), name, FORMAT_VERSION, host.clock.wall_ns(), code, block_bytes, durability)
    disks = [
        Disk(DiskId(number), str(uuid.uuid4()), f"disk://{root}", f"disk-{number}", DiskState.ACTIVE)
        for number, root in enumerate(roots, start=1)
    ]
    for disk, root in zip(disks, roots, strict=True):
        if force:
            with contextlib.suppress(UnavailableError, CorruptError):
                erase_disk(host, root)
        format_disk(host, root, DiskIdentity(config.uuid, disk.uuid))
    engine = create_engine(location)
    try:
        meta.format_volume(engine, config, disks, os.geteuid(), os.getegid())
        engine.sync()
    finally:
        engine.close()
    return config


def _check_shape(code: Code, block_bytes: int, roots: Sequence[str]) -> None:
    if not roots:
        raise ConfigurationError("a volume needs a data directory: --data disk:///path/d{0..5}")
    if len(roots) > DISKS_MAX:
        raise ConfigurationError(f"{len(roots)} data directories are over the limit of {DISKS_MAX}")
    if len(roots) < code.width:
        raise ConfigurationError(
            f"{code} needs {code.width} data directories, one per chunk of a block; there are {len(roots)}. "
            f"Name more, or choose a narrower --code (replica:1 works with one)"
        )
    if not CHUNK_ALIGNMENT_BYTES <= block_bytes <= BLOCK_BYTES_MAX or block_bytes % CHUNK_ALIGNMENT_BYTES:
        raise ConfigurationError(
            f"blocks of {format_size(block_bytes)} cannot be: a block size is a multiple of {format_size(CHUNK_ALIGNMENT_BYTES)}, "
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


def _check_disks(roots: Sequence[str], meta_url: str, *, force: bool, host: Host) -> None:
    """Look before anything is written: no data directory may hold another volume, or files that are not ours."""
    for root in roots:
        try:
            names = set(host.files.list_directory(root))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigurationError(f"{root} cannot be a data directory: {error.strerror}") from error
        if not names:
            continue
        try:
            found = read_identity(host.files, root)
        except UnavailableError:
            continue  # no identity: format_disk refuses foreign files by name
        if not force:
            raise ForeignDataError(
                f"{root} is a disk of volume {found.volume_uuid}; name an empty directory, or --force to erase it. "
                f"If that volume's metadata are lost, `tieredfs load {meta_url} {root}` brings them back from a dump"
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
            raise BusyError(f"the volume is in use by {users}; unmount it first")
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
    root = path_of_url(disk.url)
    try:
        identity = read_identity(host.files, root)
        if identity.volume_uuid == volume_uuid:
            erase_disk(host, root)
    except TieredError:
        return
