"""What is staged on this host, for others: the contents of its cache directories as they lie there, whoever uses these.

A process that reads a neighbour's staged content opens the neighbour's file (`tieredfs.cache.elsewhere`). This is the same for a
process of another host, which cannot. Nothing is asked of the process that has the directory in use, so what a dead one left
can be read, too.

**A content is closed** when nobody has its file open for writing, or mapped so. From then on the file has these bytes for as long
as it has this name, because whoever opens a content for writing renames its file before anything else. So the name is looked
at again after the bytes were read: is it still there, the bytes are those of this version. And it is made durable before anybody
elsewhere is told that it is closed: what another host keeps as a copy, no power cut takes back here.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tieredfs.cache.layout import bell_path, content_path, is_here
from tieredfs.cache.peer_protocol import Staged
from tieredfs.core.spans import few
from tieredfs.errors import NotFoundError, UnavailableError
from tieredfs.host import Host
from tieredfs.host.bell import ring
from tieredfs.host.files import is_open_for_writing
from tieredfs.limits import STAGED_RUNS_MAX
from tieredfs.meta.metadata import Metadata
from tieredfs.model import InodeId


class StagedFiles:
    """The cache directories of one volume on this host. Safe from any thread."""

    def __init__(self, metadata: Metadata, host: Host) -> None:
        self._metadata = metadata
        self._host = host
        self._roots: dict[str, str] = {}
        self._lock = threading.Lock()

    def look(self, cache_uuid: str, inode: InodeId, version: int) -> Staged:
        """Raises NotFoundError (it is not here, or not any more), UnavailableError."""
        files = self._host.files
        with self._opened(cache_uuid, inode, version) as (descriptor, path):
            closed = not is_open_for_writing(descriptor)
            if closed:
                files.sync(descriptor)
                files.sync_directory(os.path.dirname(path))
            status = files.stat(descriptor)
            runs = few(files.data_segments(descriptor, 0, status.st_size), STAGED_RUNS_MAX)
        return Staged(status.st_size, closed, tuple(runs))

    def read_into(self, cache_uuid: str, inode: InodeId, version: int, offset: int, target: memoryview) -> int:
        """The number of bytes, fewer only at the end. Raises as `look` does."""
        with self._opened(cache_uuid, inode, version) as (descriptor, _):
            return self._host.files.read_into(descriptor, target, offset)

    def ring(self, cache_uuid: str) -> None:
        """Have what is staged there drained without delay. Raises NotFoundError, UnavailableError."""
        if not ring(bell_path(self._root(cache_uuid))):
            raise UnavailableError("no process drains that cache now")

    @contextmanager
    def _opened(self, cache_uuid: str, inode: InodeId, version: int) -> Iterator[tuple[int, str]]:
        """A descriptor and the path of a content's file, which has its name still when the block ends."""
        files = self._host.files
        path = content_path(self._root(cache_uuid), inode, version)
        try:
            descriptor = files.open(path, os.O_RDONLY)
            try:
                yield descriptor, path
                named, opened = files.stat_path(path), files.stat(descriptor)
            finally:
                files.close(descriptor)
        except FileNotFoundError:
            self._forget(cache_uuid)
            raise NotFoundError(f"version {version} of inode {inode} is not staged here, or not any more") from None
        except OSError as error:
            raise UnavailableError(f"the SSD failed: {error}") from error
        if (named.st_ino, named.st_dev) != (opened.st_ino, opened.st_dev):
            raise NotFoundError(f"version {version} of inode {inode} was replaced just now")

    def _root(self, cache_uuid: str) -> str:
        with self._lock:
            known = self._roots.get(cache_uuid)
        if known is not None:
            return known
        found = {record.uuid: record.path for record in self._metadata.caches() if is_here(record, self._host)}
        with self._lock:
            self._roots = found
        if cache_uuid not in found:
            raise NotFoundError(f"cache {cache_uuid} is not on this host")
        return found[cache_uuid]

    def _forget(self, cache_uuid: str) -> None:
        """It may have moved."""
        with self._lock:
            self._roots.pop(cache_uuid, None)
