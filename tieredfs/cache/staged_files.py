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
from tieredfs.cache.segments import read_packed
from tieredfs.core.spans import few
from tieredfs.errors import NotFoundError, UnavailableError
from tieredfs.host import Host
from tieredfs.host.bell import ring
from tieredfs.host.files import in_memory, is_open_for_writing
from tieredfs.limits import STAGED_RUNS_MAX
from tieredfs.meta.metadata import Metadata
from tieredfs.model import CacheRecord, InodeId


class StagedFiles:
    """The cache directories of one volume on this host. Safe from any thread."""

    def __init__(self, metadata: Metadata, host: Host) -> None:
        self._metadata = metadata
        self._host = host
        self._records: dict[str, CacheRecord] = {}
        self._lock = threading.Lock()

    def look(self, cache_uuid: str, inode: InodeId, version: int) -> Staged:
        """Raises NotFoundError (it is not here, or not any more), UnavailableError."""
        files = self._host.files
        with self._opened(cache_uuid, inode, version) as (descriptor, path):
            closed = path is None or not is_open_for_writing(descriptor)
            if closed and path is not None:
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
        if not ring(bell_path(self._record(cache_uuid).path)):
            raise UnavailableError("no process drains that cache now")

    @contextmanager
    def _opened(self, cache_uuid: str, inode: InodeId, version: int) -> Iterator[tuple[int, str | None]]:
        """A descriptor and the path of a content's file, which has its name still when the block ends. None: it has no file but
        a place in a segment, and what is there was made durable before it was recorded, and is verified."""
        files = self._host.files
        record = self._record(cache_uuid)
        path = content_path(record.path, inode, version)
        try:
            descriptor, packed = self._open(record, path, inode, version)
            try:
                yield descriptor, None if packed else path
                if packed:
                    return
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

    def _open(self, record: CacheRecord, path: str, inode: InodeId, version: int) -> tuple[int, bool]:
        """A descriptor, and whether it is of a content in a segment. Raises FileNotFoundError, NotFoundError, OSError."""
        try:
            return self._host.files.open(path, os.O_RDONLY), False
        except FileNotFoundError:
            staged = self._metadata.staged_as(record.cache, inode)
            if staged is None or staged.version != version or staged.place is None:
                raise
        return in_memory(read_packed(self._host.files, record.path, staged.place, inode, version)), True

    def _record(self, cache_uuid: str) -> CacheRecord:
        with self._lock:
            known = self._records.get(cache_uuid)
        if known is not None:
            return known
        found = {record.uuid: record for record in self._metadata.caches() if is_here(record, self._host)}
        with self._lock:
            self._records = found
        if cache_uuid not in found:
            raise NotFoundError(f"cache {cache_uuid} is not on this host")
        return found[cache_uuid]

    def _forget(self, cache_uuid: str) -> None:
        """It may have moved."""
        with self._lock:
            self._records.pop(cache_uuid, None)
