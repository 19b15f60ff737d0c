"""Reading a copy where it is: in the cache directory of another process of this machine. (What is *staged* there:
`tieredfs.cache.elsewhere`.)

A machine reads each byte from the store once, however many of its processes want it. Files get their names
in `content` when they are whole, and stay what they are under one version. Who needs a content that no neighbour has takes
the turn, a name that one process can have at a time, and fetches it; the others wait until it is whole in that
process's directory, and read it there. Nothing depends on the fetching process: when it dies its name is free and the next
one fetches; when it evicts the copy, whoever has it open keeps it; who waits too long fetches, too.

Neighbours are the processes without a mount. A mount writes into the resident copy of a file that is opened for writing, and
whoever had borrowed it would see that.
"""

import os
from typing import Final

from tieredfs.cache.layout import content_path, is_here, is_of_this_boot
from tieredfs.host import Host
from tieredfs.host.turn import NamedTurn
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import FILL_WAIT_S, MIB, PACKED_FILE_BYTES_MAX
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Attributes, CacheId, InodeId

SHARED_BYTES_MIN: Final = PACKED_FILE_BYTES_MAX
"""A smaller file is fetched sooner than waited for."""
BELIEVED_S: Final = 1.0
"""How long a look at who else is here is believed."""
_PAUSE_FIRST_S: Final = 0.002
_PAUSE_LAST_S: Final = 0.05


def fill_turn(volume_uuid: str, inode: InodeId, version: int) -> NamedTurn | None:
    """The right to fetch one content for this machine; None: another process has it."""
    return NamedTurn.take(f"tieredfs-fill-{volume_uuid}-{inode:016x}.{version:x}")


class Neighbours:
    """Copies in other caches below the directory `root` of this machine. Safe from any thread."""

    def __init__(self, metadata: Metadata, host: Host, own: CacheId, *, root: str, volume_uuid: str) -> None:
        self._metadata = metadata
        self._host = host
        self._own = own
        self._root = root
        self._volume_uuid = volume_uuid
        self._looked_s = -BELIEVED_S
        self._paths: list[str] = []

    def open_copy(self, attributes: Attributes) -> int | None:
        """A descriptor of a whole copy of this stored content, for reading; None: nobody here has one."""
        return self._open_copy(attributes, self._caches())

    def share(self, attributes: Attributes) -> int | NamedTurn | None:
        """A descriptor of a whole copy, for reading; or the turn to fetch it; None: fetch it without."""
        if attributes.size_bytes < SHARED_BYTES_MIN:
            return self.open_copy(attributes)
        clock = self._host.clock
        deadline_s = clock.monotonic_s() + FILL_WAIT_S * (1 + attributes.size_bytes // (64 * MIB))
        pause_s = _PAUSE_FIRST_S
        while True:
            turn = fill_turn(self._volume_uuid, attributes.inode, attributes.version)
            descriptor = self._open_copy(attributes, self._caches())
            if descriptor is not None:
                if turn is not None:
                    turn.close()
                return descriptor
            if turn is not None or clock.monotonic_s() > deadline_s:
                return turn
            about_to_wait()
            clock.sleep(pause_s)
            pause_s = min(_PAUSE_LAST_S, pause_s * 1.5)

    def _open_copy(self, attributes: Attributes, caches: list[str]) -> int | None:
        for path in caches:
            try:
                descriptor = self._host.files.open(
                    content_path(path, attributes.inode, attributes.version), os.O_RDONLY
                )
            except OSError:  # not there, or not ours to read: then it is fetched
                continue
            if self._host.files.stat(descriptor).st_size == attributes.size_bytes:
                return descriptor
            self._host.files.close(descriptor)
        return None

    def _caches(self) -> list[str]:
        """Directories whose copies are certainly whole: used since the machine came up."""
        now_s = self._host.clock.monotonic_s()
        if now_s - self._looked_s >= BELIEVED_S:
            self._paths = [
                record.path
                for record in self._metadata.caches()
                if record.cache != self._own
                and os.path.dirname(record.path) == self._root
                and is_here(record, self._host)
                and is_of_this_boot(record.path, self._host.files)
            ]
            self._looked_s = now_s
        return self._paths
