"""A small value in the volume's metadata, changed by compare-and-swap: what processes on several hosts agree by.

The value is an extended attribute of an empty file that has a name. A change commits a new empty file with the new value under that
name, if the name still shows the file that was seen, in one transaction: of two that change at once, one wins. Nothing of it is on
anybody's SSD, so it outlives whoever wrote it.
"""

from typing import Final

from tieredfs.errors import ConflictError, CorruptError, NotDirectoryError, NotFoundError, TooLargeError
from tieredfs.limits import XATTR_VALUE_BYTES_MAX
from tieredfs.model import Attributes, InodeId
from tieredfs.volume.contract import FileSystemContract
from tieredfs.volume.open_files import Condition

_NAME: Final = b"user.tieredfs.register"
_RACES_MAX: Final = 10


class Register:
    """Safe from any thread."""

    def __init__(self, volume: FileSystemContract, path: bytes) -> None:
        self._volume = volume
        self._path = path

    def read(self) -> tuple[InodeId | None, bytes | None]:
        """What is seen, and its value; (None, None) before the first change. Raises CorruptError."""
        for _ in range(_RACES_MAX):
            try:
                seen = self._volume.stat(self._path).inode
            except (NotFoundError, NotDirectoryError):
                return None, None
            value = self._volume.xattrs_of([seen], _NAME).get(seen)
            if value is not None:  # else it was changed between the two looks
                return seen, value
        raise CorruptError(f"{self._path!r} has no value: it was not made as a register")

    def swap(self, seen: InodeId | None, value: bytes) -> InodeId:
        """The value becomes that one if nobody has changed it since it was `seen`. Durable on return. Raises ConflictError."""
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise TooLargeError(f"a register holds {XATTR_VALUE_BYTES_MAX} bytes, not {len(value)}")
        with self._volume.create() as writing:
            condition = unchanged_since(seen)
            return writing.commit(self._path, condition=condition, xattrs={_NAME: value}).inode

    def clear(self, seen: InodeId) -> None:
        """It is as before the first change. Raises ConflictError."""
        self._volume.remove(self._path, unchanged_since(seen))


def unchanged_since(inode: InodeId | None) -> Condition:
    """The name still shows the inode that was seen (None: nothing). Raises ConflictError in the committing transaction."""

    def check(now: Attributes | None) -> None:
        if (None if now is None else now.inode) != inode:
            raise ConflictError("somebody else was faster")

    return check
