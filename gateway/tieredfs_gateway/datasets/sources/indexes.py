"""What was found in files stays true: a content has one version for ever. So it is kept, and to open a dataset again is quick.

Kept by volume, format, inode and version; the least recently used goes first when there is no more room.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from tieredfs_gateway.datasets.sources.protocol import FileIndex
from tieredfs_gateway.datasets.versions import PinnedFile

LIMIT_BYTES_DEFAULT: Final = 64 << 20

_Key = tuple[str, str, int, int]


class IndexCache:
    """Safe from any thread."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES_DEFAULT) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, FileIndex] = OrderedDict()
        self._bytes = 0
        self.hits = 0

    def look(self, volume: str, kind: str, file: PinnedFile, look: Callable[[PinnedFile], FileIndex]) -> FileIndex:
        """What `look` finds, now or before. Raises what it raises."""
        key = (volume, kind, int(file.attributes.inode), file.attributes.version)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return found
        found = look(file)
        if found.held_bytes:
            with self._lock:
                self._keep(key, found)
        return found

    def _keep(self, key: _Key, index: FileIndex) -> None:
        if key not in self._kept:
            self._kept[key] = index
            self._bytes += index.held_bytes
        while self._bytes > self._limit_bytes:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.held_bytes
