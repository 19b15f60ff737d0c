"""Where snapshots are: `/.snapshots/PATH/@NAME` is the snapshot NAME of the directory PATH of the volume.

Snapshots and the directories on the way to them are frozen: nobody changes them but this module. A part of PATH that begins with
`@` has another `@` before it, and no NAME begins with one, so each place means one snapshot. A directory on the way has the
permissions of the one that it stands for, so a snapshot shows nobody what its original would not. What a snapshot says of itself
is an extended attribute of its root.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from tieredfs.errors import AlreadyExistsError, CorruptError, InvalidRequestError, NameTooLongError, NotFoundError
from tieredfs.format import keys, records
from tieredfs.format.records import FROZEN, MAY_HAVE_XATTRS, InodeRecord
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import NAME_BYTES_MAX, PATH_BYTES_MAX
from tieredfs.meta import inodes, names
from tieredfs.meta.changes import Creation
from tieredfs.meta.cloning import SNAPSHOT_XATTR
from tieredfs.meta.names import SNAPSHOTS
from tieredfs.meta.quotas import QUOTA_BITS
from tieredfs.meta.workplaces import count_directories
from tieredfs.model import ROOT, Entry, FileKind, InodeId

_MARK: Final = b"@"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class About:
    """What a snapshot says of itself. `taken_ns`: its moment. `open_file_count`: files that were open for writing then."""

    taken_ns: int
    file_count: int
    directory_count: int
    size_bytes: int
    open_file_count: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`path`: of the directory, from the root of the volume. `place`: of the snapshot, likewise."""

    path: bytes
    name: bytes
    place: bytes
    about: About


def check_name(name: bytes) -> None:
    """Raises NameTooLongError, InvalidRequestError."""
    shown = name.decode("utf-8", "backslashreplace")
    if len(name) + len(_MARK) > NAME_BYTES_MAX:
        raise NameTooLongError(f"a snapshot's name of {len(name)} bytes; {NAME_BYTES_MAX - len(_MARK)} are allowed")
    if not name or name in {b".", b".."} or name.startswith(_MARK) or any(byte < 32 or byte == 47 for byte in name):
        raise InvalidRequestError(
            f"{shown!r} cannot be the name of a snapshot: no `/`, no control characters, no `@` in front, not empty, `.` or `..`"
        )


def place_of(parts: Sequence[bytes], name: bytes) -> bytes:
    """The path of a snapshot. Raises as `check_name`."""
    check_name(name)
    place = b"/".join([SNAPSHOTS, *map(_escaped, parts), _MARK + name])
    if len(place) > PATH_BYTES_MAX:
        raise NameTooLongError(f"the snapshot's path would have {len(place)} bytes; {PATH_BYTES_MAX} are allowed")
    return place


def _escaped(part: bytes) -> bytes:
    if not part.startswith(_MARK):
        return part
    if len(part) == NAME_BYTES_MAX:
        raise NameTooLongError(
            f"a directory whose name begins with `@` and has {NAME_BYTES_MAX} bytes cannot have snapshots"
        )
    return _MARK + part


def parents(reader: Reader, parts: Sequence[bytes]) -> list[InodeRecord]:
    """The directory of each of `parts`, and the root before them."""
    found = [inodes.read(reader, ROOT)]
    for part in parts:
        found.append(names.lookup(reader, InodeId(found[-1].inode), part))
    return found


def give_name(
    writer: Writer,
    place: InodeId,
    copy_name: bytes,
    parts: Sequence[bytes],
    name: bytes,
    about: About,
    likenesses: Sequence[InodeRecord],
    new: Sequence[InodeId],
    now_ns: int,
) -> None:
    """Move the frozen tree `copy_name` from `place` to where the snapshot NAME of the directory `parts` is. `likenesses`: as
    `parents` says, before. `new`: one id more than there are parts. Raises AlreadyExistsError."""
    directory = _make_way(writer, parts, likenesses, new, now_ns)
    if names.find_entry(writer, directory, _MARK + name) is not None:
        raise AlreadyExistsError(taken(parts, name))
    entry = names.read_entry(writer, place, copy_name)
    record = names.target_of(writer, place, entry)
    writer.delete(keys.name(place, copy_name))
    names.put_entry(writer, directory, _MARK + name, entry.inode, FileKind.DIRECTORY)
    inodes.save(writer, record._replace(parent=directory, hints=record.hints | MAY_HAVE_XATTRS))
    said = json.dumps({"version": _VERSION, **asdict(about)}).encode()
    writer.put(keys.xattr(entry.inode, SNAPSHOT_XATTR), records.encode_bytes(said))
    count_directories(writer, place, -1)
    count_directories(writer, directory, 1)


def _make_way(
    writer: Writer, parts: Sequence[bytes], likenesses: Sequence[InodeRecord], new: Sequence[InodeId], now_ns: int
) -> InodeId:
    directory = ROOT
    for part, inode, like in zip([SNAPSHOTS, *map(_escaped, parts)], new, likenesses, strict=True):
        entry = names.find_entry(writer, directory, part)
        record = None if entry is None else names.target_of(writer, directory, entry)
        if record is not None and not record.hints & FROZEN:
            raise AlreadyExistsError(
                f"/{_shown(SNAPSHOTS)} of the volume is something of yours; rename it, for snapshots go there"
            )
        if record is None:
            creation = Creation(FileKind.DIRECTORY, 0, 0, 0)
            record = names.new_inode(inode, inodes.read(writer, directory), creation, now_ns)
            names.put_entry(writer, directory, part, inode, FileKind.DIRECTORY)
            count_directories(writer, directory, 1)
        permissions = record._replace(mode=like.mode, uid=like.uid, gid=like.gid)
        inodes.save(writer, permissions._replace(hints=record.hints & ~QUOTA_BITS | FROZEN))
        directory = InodeId(record.inode)
    return directory


def find(reader: Reader, parts: Sequence[bytes], name: bytes) -> InodeId | None:
    """The root of a snapshot."""
    trail = _trail(reader, parts)
    entry = names.find_entry(reader, trail[-1].inode, _MARK + name) if trail else None
    return None if entry is None else entry.inode


def _trail(reader: Reader, parts: Sequence[bytes]) -> list[Entry]:
    """The directories on the way to snapshots of `parts`; empty: there are none."""
    directory, trail = ROOT, list[Entry]()
    for part in [SNAPSHOTS, *map(_escaped, parts)]:
        entry = names.find_entry(reader, directory, part)
        if entry is None or entry.kind is not FileKind.DIRECTORY:
            return []
        trail.append(entry)
        directory = entry.inode
    return trail if inodes.read(reader, trail[0].inode).hints & FROZEN else []


def take_name(
    writer: Writer, parts: Sequence[bytes], name: bytes, place: InodeId, new_name: bytes, now_ns: int
) -> None:
    """Move a snapshot to `place`; directories on the way to nothing go, too. Raises NotFoundError."""
    trail = _trail(writer, parts)
    entry = names.find_entry(writer, trail[-1].inode, _MARK + name) if trail else None
    if entry is None:
        raise NotFoundError(missing(parts, name))
    record = names.target_of(writer, trail[-1].inode, entry)
    writer.delete(keys.name(trail[-1].inode, entry.name))
    names.put_entry(writer, place, new_name, entry.inode, entry.kind)
    inodes.save(writer, record._replace(parent=place))
    count_directories(writer, trail[-1].inode, -1)
    count_directories(writer, place, 1)
    above = [ROOT, *(each.inode for each in trail)]
    for directory, way in zip(reversed(above[:-1]), reversed(trail), strict=True):
        if not names.is_empty(writer, way.inode):
            return
        writer.delete(keys.name(directory, way.name))
        inodes.delete(writer, names.target_of(writer, directory, way), now_ns)
        count_directories(writer, directory, -1)


def taken(parts: Sequence[bytes], name: bytes) -> str:
    """What to tell who wants to give that name."""
    path = b"/" + b"/".join(parts)
    return f"there is a snapshot {_shown(name)} of {_shown(path)} already; remove it, or choose another name"


def missing(parts: Sequence[bytes], name: bytes) -> str:
    """What to tell who asked for it."""
    path = b"/" + b"/".join(parts)
    return f"there is no snapshot {_shown(name)} of {_shown(path)}; `tieredfs snapshot list` shows what there is"


def listed(reader: Reader, parts: Sequence[bytes]) -> list[Snapshot]:
    """The snapshots of a directory and of all below it, in the order of their paths."""
    trail = _trail(reader, parts)
    return list(_below(reader, trail[-1].inode, list(parts))) if trail else []


def _below(reader: Reader, directory: InodeId, parts: list[bytes]) -> Iterator[Snapshot]:
    prefix = keys.names(directory)
    for key, value in list(reader.scan(prefix, keys.end_of(prefix))):
        entry = records.decode_entry(keys.text_after_u64(key), value)
        name = entry.name.removeprefix(_MARK)
        if entry.name.startswith(_MARK) and not name.startswith(_MARK):
            about = _about(reader, entry.inode)
            yield Snapshot(b"/".join(parts), name, place_of(parts, name), about)
        else:
            yield from _below(reader, entry.inode, [*parts, name])


def _about(reader: Reader, inode: InodeId) -> About:
    value = reader.get(keys.xattr(inode, SNAPSHOT_XATTR))
    try:
        said = json.loads(records.decode_bytes(value or b""))
        return About(**{field: int(said[field]) for field in About.__slots__})
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the snapshot with inode {inode} says nothing of itself: {error}") from error


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")
