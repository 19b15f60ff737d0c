"""Paths of inodes, for people: which files does this block belong to?

A directory's inode knows its parent. A file's knows where it was created, which is mostly where it still is; one that
was moved or linked is found by a scan of every name, once for all that are wanted.
"""

from collections.abc import Collection

from tieredfs.errors import TieredError
from tieredfs.format import keys, records
from tieredfs.format.keys import END_OF_KEYS, Tag
from tieredfs.kv.engine import Reader
from tieredfs.limits import DIRECTORY_DEPTH_MAX
from tieredfs.meta import inodes
from tieredfs.model import ROOT, InodeId


def text_of(path: bytes) -> str:
    """For reports; as `os.fsdecode` where file names are UTF-8."""
    return path.decode("utf-8", "surrogateescape")


def paths_of(reader: Reader, wanted: Collection[InodeId], names_max: int | None = None) -> dict[InodeId, str]:
    """A path of each inode; `inode N` for one that has none (it is open and unlinked, or damaged).

    `names_max`: for who may not take long. No more names of a directory are read than that, and a file that was moved is not
    searched for; what is not found so is `inode N`, too.
    """
    names = _names_in_hinted_directories(reader, set(wanted), names_max)
    missing = {inode for inode in wanted if inode not in names and inode != ROOT}
    if missing and names_max is None:
        names.update(_names_anywhere(reader, missing))
    directories: dict[InodeId, bytes | None] = {ROOT: b""}
    found: dict[InodeId, str] = {}
    for inode in wanted:
        path = _joined(reader, inode, names, directories, names_max)
        found[inode] = f"inode {inode}" if path is None else text_of(path or b"/")
    return found


Name = tuple[InodeId, bytes]
"""A directory, and the name in it."""


def _names_in_hinted_directories(reader: Reader, wanted: set[InodeId], names_max: int | None) -> dict[InodeId, Name]:
    by_parent: dict[InodeId, set[InodeId]] = {}
    for inode in wanted:
        parent = _parent_of(reader, inode)
        if parent is not None:
            by_parent.setdefault(parent, set()).add(inode)
    found: dict[InodeId, Name] = {}
    for parent, children in by_parent.items():
        found.update(_names_in(reader, parent, children, names_max))
    return found


def _parent_of(reader: Reader, inode: InodeId) -> InodeId | None:
    try:
        record = inodes.find(reader, inode)
    except TieredError:
        return None
    return None if record is None else InodeId(record.parent)


def _names_in(
    reader: Reader, directory: InodeId, wanted: Collection[InodeId], names_max: int | None
) -> dict[InodeId, Name]:
    prefix = keys.names(directory)
    left, found = set(wanted), dict[InodeId, Name]()
    for key, value in reader.scan(prefix, keys.end_of(prefix), limit=names_max):
        inode = _target(value)
        if inode in left:
            found[inode] = (directory, keys.text_after_u64(key))
            left.discard(inode)
            if not left:
                break
    return found


def _names_anywhere(reader: Reader, wanted: Collection[InodeId]) -> dict[InodeId, Name]:
    found: dict[InodeId, Name] = {}
    for key, value in reader.scan(b"", END_OF_KEYS):
        if key[keys.SHARD_BYTES] == Tag.NAME:
            inode = _target(value)
            if inode in wanted:
                found[inode] = (InodeId(keys.first_u64(key)), keys.text_after_u64(key))
    return found


def _target(value: bytes) -> InodeId:
    """0, which is no inode, for an entry that cannot be read."""
    try:
        return records.decode_entry(b"", value).inode
    except TieredError:
        return InodeId(0)


def _joined(
    reader: Reader,
    inode: InodeId,
    names: dict[InodeId, Name],
    directories: dict[InodeId, bytes | None],
    names_max: int | None,
) -> bytes | None:
    """None: no path leads there. Paths of directories are remembered in `directories`."""
    chain: list[tuple[InodeId, bytes]] = []
    current = inode
    while current not in directories:
        place = names.get(current) or _name_of_directory(reader, current, names_max)
        if place is None or len(chain) > DIRECTORY_DEPTH_MAX:
            return None
        chain.append((current, place[1]))
        current = place[0]
    path = directories[current]
    for child, name in reversed(chain):
        path = None if path is None else path + b"/" + name
        if child != inode:
            directories[child] = path
    return path


def _name_of_directory(reader: Reader, inode: InodeId, names_max: int | None) -> Name | None:
    parent = _parent_of(reader, inode)
    return None if parent is None else _names_in(reader, parent, [inode], names_max).get(inode)
