"""A disk of a volume as a directory: its identity, its shape, and how it is made, recognised and emptied.

    tieredfs-disk.json      which volume and which disk this is; written last by `format_disk`, so a directory has an
                            identity only when it is complete
    chunks/00 .. chunks/ff  chunks, by the last byte of the block's id, as <block, 16 hex digits>.<index, 2 hex digits>; each
                            directory is made with its first chunk (`tieredfs.chunk.fan_out`)
    incoming/               chunks being written; renamed into place when durable
    metadata/               on some disks: dumps of the volume's metadata, as <nanoseconds since 1970, 16 hex digits>.dump

A directory that holds anything else is never taken over: data that is not ours is not ours to risk.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tieredfs.chunk.store import ChunkName
from tieredfs.errors import ConfigurationError, CorruptError, ForeignDataError, NewerFormatError, UnavailableError
from tieredfs.host import Files, Host
from tieredfs.model import BlockId

IDENTITY_NAME: Final = "tieredfs-disk.json"
CHUNKS_NAME: Final = "chunks"
INCOMING_NAME: Final = "incoming"
METADATA_NAME: Final = "metadata"
FAN_OUT: Final = 256
FORMAT_VERSION: Final = 1
URL_PREFIX: Final = "disk://"

_LEFTOVER_AGE_NS: Final = 24 * 3600 * 10**9
_FAN_OUT_NAME = re.compile(r"[0-9a-f]{2}")
_CHUNK_NAME = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{2})")
_INCOMING_NAME = re.compile(r"[0-9a-f]{16}\.[0-9a-f]{2}\.(\d+)-[0-9a-f]+")
_DUMP_NAME = re.compile(r"([0-9a-f]{16})\.dump")
_DUMP_LEFTOVER_NAME = re.compile(r"[0-9a-f]{16}\.dump\.(\d+)-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Which disk of which volume a directory is."""

    volume_uuid: str
    disk_uuid: str


def path_of_url(url: str) -> str:
    """The absolute path in `disk:///absolute/path`. Raises ConfigurationError."""
    path = url.removeprefix(URL_PREFIX)
    if not url.startswith(URL_PREFIX) or not path.startswith("/"):
        raise ConfigurationError(f"{url!r} is not a disk: write disk:///absolute/path")
    return path.rstrip("/") or "/"


def fan_out_path(root: str, block: BlockId) -> str:
    return f"{root}/{CHUNKS_NAME}/{block % FAN_OUT:02x}"


def is_fan_out_name(text: str) -> bool:
    return _FAN_OUT_NAME.fullmatch(text) is not None


def chunk_file_name(name: ChunkName) -> str:
    return f"{name.block:016x}.{name.index:02x}"


def chunk_path(root: str, name: ChunkName) -> str:
    return f"{fan_out_path(root, name.block)}/{chunk_file_name(name)}"


def incoming_path(root: str, name: ChunkName, process: int, token: str) -> str:
    return f"{root}/{INCOMING_NAME}/{name.block:016x}.{name.index:02x}.{process}-{token}"


def parse_chunk_name(fan_out: str, text: str) -> ChunkName | None:
    """None: a file that is not a chunk of that fan-out directory."""
    match = _CHUNK_NAME.fullmatch(text)
    if match is None or text[14:16] != fan_out:
        return None
    return ChunkName(BlockId(int(match[1], 16)), int(match[2], 16))


def dump_name(taken_ns: int) -> str:
    return f"{taken_ns:016x}.dump"


def parse_dump_name(text: str) -> int | None:
    """When it was taken, in nanoseconds since 1970; None: that is not the name of a dump."""
    match = _DUMP_NAME.fullmatch(text)
    return None if match is None else int(match[1], 16)


def dump_path(root: str, taken_ns: int) -> str:
    return f"{root}/{METADATA_NAME}/{dump_name(taken_ns)}"


def dump_upload_path(root: str, taken_ns: int, process: int, token: str) -> str:
    """Of a dump that is not whole yet."""
    return f"{dump_path(root, taken_ns)}.{process}-{token}"


def dumps_of(files: Files, root: str) -> list[int]:
    """When the dumps of a disk were taken (nanoseconds since 1970), newest first. Raises OSError."""
    try:
        names = files.list_directory(f"{root}/{METADATA_NAME}")
    except FileNotFoundError:
        return []
    return newest_first(names)


def newest_first(names: Iterable[str]) -> list[int]:
    """When the dumps among these names were taken."""
    return sorted((taken_ns for name in names if (taken_ns := parse_dump_name(name)) is not None), reverse=True)


# ---- identity --------------------------------------------------------------------------------------------------------


def read_identity(files: Files, root: str) -> DiskIdentity:
    """Raises UnavailableError (no identity: not mounted, or lost), CorruptError, NewerFormatError."""
    path = f"{root}/{IDENTITY_NAME}"
    try:
        raw = files.load(path)
    except OSError as error:
        raise UnavailableError(f"{root} is not a disk of a volume (any more): {error.strerror} for {path}") from error
    return decode_identity(raw, path)


def decode_identity(raw: bytes, where: str) -> DiskIdentity:
    """Raises CorruptError, NewerFormatError."""
    try:
        fields = json.loads(raw)
        version, volume, disk = int(fields["version"]), str(fields["volume_uuid"]), str(fields["disk_uuid"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{where} is not an identity file") from error
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"{where} is of format version {version}; this program knows {FORMAT_VERSION}")
    return DiskIdentity(volume, disk)


def encode_identity(identity: DiskIdentity) -> bytes:
    fields = {"version": FORMAT_VERSION, "volume_uuid": identity.volume_uuid, "disk_uuid": identity.disk_uuid}
    return (json.dumps(fields, indent=2) + "\n").encode()


def check_identity(found: DiskIdentity, expected: DiskIdentity, root: str) -> None:
    """Raises ForeignDataError."""
    if found.volume_uuid != expected.volume_uuid:
        raise ForeignDataError(f"{root} belongs to volume {found.volume_uuid}, not to {expected.volume_uuid}")
    if found.disk_uuid != expected.disk_uuid:
        raise ForeignDataError(f"{root} is disk {found.disk_uuid} of this volume, not {expected.disk_uuid}")


# ---- making and unmaking ---------------------------------------------------------------------------------------------


def format_disk(host: Host, root: str, identity: DiskIdentity) -> None:
    """Make `root` a disk, durably. Repeating it with the same identity is harmless.

    Raises ForeignDataError when something else is there, UnavailableError when it can't be written.
    """
    files = host.files
    try:
        files.make_directory(root)
        names = set(files.list_directory(root))
        if IDENTITY_NAME in names:
            check_identity(read_identity(files, root), identity, root)
        else:
            _refuse_foreign(files, root, names)
        for name in (CHUNKS_NAME, INCOMING_NAME):
            files.make_directory(f"{root}/{name}")
        files.sync_directory(root)
        if IDENTITY_NAME not in names:
            files.save(f"{root}/{IDENTITY_NAME}", encode_identity(identity))
    except (FileExistsError, NotADirectoryError) as error:
        raise ForeignDataError(f"{root} is not a directory") from error
    except OSError as error:
        raise UnavailableError(f"{root} cannot be made a disk: {error.strerror or error}") from error


def _refuse_foreign(files: Files, root: str, names: set[str]) -> None:
    foreign = sorted(names - {CHUNKS_NAME, INCOMING_NAME, METADATA_NAME, "lost+found"})
    if foreign:
        raise ForeignDataError(f"{root} is not empty: it holds {', '.join(foreign[:3])}{' ...' if foreign[3:] else ''}")
    for name in {CHUNKS_NAME, INCOMING_NAME, METADATA_NAME} & names:
        _refuse_files_below(files, root, name)


def _refuse_files_below(files: Files, root: str, name: str) -> None:
    """What an interrupted `format_disk` left may be there, but no file."""
    for inner in files.list_directory(f"{root}/{name}"):
        path = f"{root}/{name}/{inner}"
        empty_directory = is_fan_out_name(inner) and not files.list_directory(path)
        if not empty_directory:
            raise ForeignDataError(f"{root} holds {name}/{inner} but no {IDENTITY_NAME}: it is not ours to overwrite")


def give_to_volume(files: Files, root: str, identity: DiskIdentity) -> None:
    """From now on the disk, with what it holds, is that one's: metadata that knew it under another name cannot open it any more.

    Raises UnavailableError, and ForeignDataError when another disk is there."""
    found = read_identity(files, root)
    if found.disk_uuid != identity.disk_uuid:
        raise ForeignDataError(f"{root} is disk {found.disk_uuid}, not {identity.disk_uuid}")
    try:
        files.save(f"{root}/{IDENTITY_NAME}", encode_identity(identity))
    except OSError as error:
        raise UnavailableError(f"{root} cannot be given to the volume: {error}") from error


def erase_disk(host: Host, root: str) -> None:
    """Remove a disk's chunks, then its identity: what `destroy` and a forced `format` do. Foreign files stay.

    Raises UnavailableError. An interrupted erase leaves the identity, so it can be repeated.
    """
    files = host.files
    try:
        names = set(files.list_directory(root))
        for fan_out in files.list_directory(f"{root}/{CHUNKS_NAME}") if CHUNKS_NAME in names else ():
            directory = f"{root}/{CHUNKS_NAME}/{fan_out}"
            for name in files.list_directory(directory):
                if parse_chunk_name(fan_out, name) is not None:
                    files.unlink(f"{directory}/{name}")
        for name in files.list_directory(f"{root}/{INCOMING_NAME}") if INCOMING_NAME in names else ():
            if _INCOMING_NAME.fullmatch(name):
                files.unlink(f"{root}/{INCOMING_NAME}/{name}")
        for name in files.list_directory(f"{root}/{METADATA_NAME}") if METADATA_NAME in names else ():
            if _DUMP_NAME.fullmatch(name) or _DUMP_LEFTOVER_NAME.fullmatch(name):
                files.unlink(f"{root}/{METADATA_NAME}/{name}")
        if IDENTITY_NAME in names:
            files.unlink(f"{root}/{IDENTITY_NAME}")
        files.sync_directory(root)
    except OSError as error:
        raise UnavailableError(f"{root} cannot be erased: {error}") from error


def remove_leftovers(host: Host, root: str) -> int:
    """Delete what dead processes were writing; the number of files. A disk that can't be written keeps them."""
    return _remove_dead(host, f"{root}/{INCOMING_NAME}", _INCOMING_NAME) + remove_dump_leftovers(host, root)


def remove_dump_leftovers(host: Host, root: str) -> int:
    """The same, of dumps."""
    return _remove_dead(host, f"{root}/{METADATA_NAME}", _DUMP_LEFTOVER_NAME)


def _remove_dead(host: Host, directory: str, names: re.Pattern[str]) -> int:
    removed = 0
    try:
        for name in host.files.list_directory(directory):
            match = names.fullmatch(name)
            path = f"{directory}/{name}"
            if match and (not _is_alive(host.files, match[1]) or _is_old(host, path)):
                host.files.unlink(path)
                removed += 1
    except OSError:
        return removed
    return removed


def _is_alive(files: Files, process: str) -> bool:
    try:
        files.stat_path(f"/proc/{process}")
    except OSError:
        return False
    return True


def _is_old(host: Host, path: str) -> bool:
    return host.clock.wall_ns() - host.files.stat_path(path).st_mtime_ns > _LEFTOVER_AGE_NS
