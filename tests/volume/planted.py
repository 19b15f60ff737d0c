"""A tree with everything in it that a tree can have, and all that can be seen of one."""

import os

from tests.whole_files import get
from tieredfs.limits import MIB
from tieredfs.meta.metadata import Creation
from tieredfs.model import AttributeChange, FileKind, InodeId
from tieredfs.volume import FileSystem, Volume

TREE = b"run"


def quiet(_done: int, _total: int, _unit: str) -> None:
    pass


def put(volume: FileSystem, path: bytes, content: bytes, mode: int = 0o640) -> InodeId:
    with volume.create() as writing:
        os.pwrite(writing.descriptor, content, 0)
        return writing.commit(path, mode=mode, xattrs={b"user.of": path}).inode


def plant(volume: FileSystem) -> None:
    """Directories, large and small files, a sparse one, hard links across directories, a symlink, a FIFO, odd names, times."""
    metadata = volume.volume.metadata
    volume.make_directories(TREE + b"/empty", mode=0o700)
    put(volume, TREE + b"/large", os.urandom(3 * MIB))
    for number in range(600):  # more than are copied at a time
        put(volume, TREE + b"/many/%03d" % number, b"%d" % number)
    put(volume, TREE + b"/\xff\n odd", b"name")
    put(volume, TREE + b"/nothing", b"")
    linked = put(volume, TREE + b"/a/linked", b"two names")
    volume.link(linked, TREE + b"/b/linked, too")
    volume.link(put(volume, TREE + b"/a/outside", b"one of them elsewhere"), b"elsewhere")
    home = volume.stat(TREE).inode
    metadata.create(home, b"link", Creation(FileKind.SYMLINK, 0o777, 0, 0, target=b"../nowhere"))
    metadata.create(home, b"fifo", Creation(FileKind.FIFO, 0o600, 3, 4))
    with volume.create() as writing:
        os.pwrite(writing.descriptor, b"end", 2 * MIB)
        writing.commit(TREE + b"/sparse")
    metadata.set_attributes(volume.stat(TREE + b"/a").inode, AttributeChange(mtime_ns=10**18, uid=7, gid=8))


def shown(volume: FileSystem, base: bytes) -> dict[bytes, object]:
    """All that a copy shares with its original, by path from `base`; names of one inode together."""
    metadata = volume.volume.metadata
    names: dict[InodeId, bytes] = {}
    found: dict[bytes, object] = {}
    for path, seen in [(base, volume.stat(base)), *volume.walk(base)]:
        below = path.removeprefix(base)
        first = names.setdefault(seen.inode, below)
        content: object = None
        if seen.kind is FileKind.REGULAR:
            content = get(volume, path)
        elif seen.kind is FileKind.SYMLINK:
            content = metadata.read_link(seen.inode)
        xattrs = {name: metadata.get_xattr(seen.inode, name) for name in metadata.list_xattrs(seen.inode)}
        about = seen.kind, seen.mode, seen.uid, seen.gid, seen.size_bytes, seen.mtime_ns, seen.atime_ns, seen.version
        found[below] = about, content, xattrs, first
    return found


def assert_clean(url: str) -> None:
    with Volume.open(url, purpose="test") as volume:
        assert volume.check(repair=False, progress=quiet).findings == ()


def overwrite(volume: FileSystem, path: bytes, data: bytes) -> None:
    """In place, as a mount does."""
    tier = volume._tier
    file = tier.open_write(volume.stat(path).inode, truncate=True)
    os.pwrite(file.descriptor, data, 0)
    tier.release(file, writer=True)
