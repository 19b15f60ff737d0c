"""Reading a content where it is: in the cache directory of another process of this host.

Close-to-open between mounts needs no waiting for the drain: who opens a file after its writer closed it, and before it is
stored, reads the writer's local file. And what is stored, and whole on another's SSD, need not be fetched again: files get
their names in `content` when they are whole, and stay what they are under one version.
"""

import os
from typing import Final

from tieredfs.cache.layout import content_path, is_of_this_boot
from tieredfs.errors import UnavailableError
from tieredfs.host import Host
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Attributes, CacheId

BELIEVED_S: Final = 1.0
"""How long a look at who else is here is believed."""


def borrow(metadata: Metadata, host: Host, attributes: Attributes) -> int:
    """A descriptor of the staged file, for reading. Raises UnavailableError when it is on another host, or just moved."""
    record = next((record for record in metadata.caches() if record.cache == attributes.staged_in), None)
    if record is None or record.host != host.name:
        raise UnavailableError("the file is staged on another host and is not stored yet")
    try:
        return host.files.open(content_path(record.path, attributes.inode, attributes.version), os.O_RDONLY)
    except FileNotFoundError:
        raise UnavailableError("the staged file has just moved to the store: try again") from None


class Neighbours:
    """Copies in other caches below the directory `root` of this host. Safe from any thread.

    Only caches whose users never write into a content that has a name: a mount does, and a reader here would see it.
    """

    def __init__(self, metadata: Metadata, host: Host, own: CacheId, root: str) -> None:
        self._metadata = metadata
        self._host = host
        self._own = own
        self._root = root
        self._looked_s = -BELIEVED_S
        self._paths: list[str] = []

    def open_copy(self, attributes: Attributes) -> int | None:
        """A descriptor of a whole copy of this stored content, for reading; None: nobody here has one."""
        for path in self._caches():
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
                if record.host == self._host.name
                and record.cache != self._own
                and os.path.dirname(record.path) == self._root
                and is_of_this_boot(record.path, self._host.files)
            ]
            self._looked_s = now_s
        return self._paths
