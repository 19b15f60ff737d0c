"""Room on the SSD: what is used, what must go, and who waits.

The kernel writes into staged files without asking us, so room is made ahead: above the high watermark clean copies are
evicted down to the low one; when that is not enough the drain is told to hurry; and while the SSD is full nobody opens a
file for writing until there is room again. The wait is bounded, and an answer ENOSPC after it means that the store did
not take data for that long. Where others have filled the file system, and nothing of ours is there that could go, nobody
waits: the answer is ENOSPC at once, and the log says why.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from tieredfs.cache.local import LocalFile
from tieredfs.config import format_size
from tieredfs.core.file_life import FileState
from tieredfs.errors import NoSpaceError
from tieredfs.host import Files
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import BACKPRESSURE_WAIT_S, CACHE_FREE_RESERVE_BYTES, CACHE_HIGH_WATERMARK, CACHE_LOW_WATERMARK
from tieredfs.model import InodeId

_log: Final = logging.getLogger("tieredfs.cache.room")


class Room:
    """The budget of one cache directory. Safe from any thread."""

    def __init__(self, path: str, capacity_bytes: int, files: Files) -> None:
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.waits = 0
        """How often an opening for writing had to wait for room."""
        self._files = files
        self._dirty: dict[InodeId, LocalFile] = {}
        self._lock = threading.Condition()
        self._full = False
        self._copied_bytes = 0
        self._told = False
        self._hurry: Callable[[], None] = lambda: None
        self._others_drain: Callable[[], bool] = lambda: False
        self.spare_bytes: Callable[[], int] = lambda: 0
        self._ready_bytes: Callable[[], int] = lambda: 0

    def count_segments(self, spare_bytes: Callable[[], int], ready_bytes: Callable[[], int]) -> None:
        """`spare_bytes`: what they take beyond the contents in them; `ready_bytes`: what is taken already for the next ones. Who
        is to write there must not wait for room because of it."""
        self.spare_bytes, self._ready_bytes = spare_bytes, ready_bytes

    def _free_bytes(self) -> int:
        return self._files.free_bytes(self.path) + self._ready_bytes()

    def on_pressure(self, hurry: Callable[[], None], others_drain: Callable[[], bool]) -> None:
        """`hurry` is called, from any thread, when somebody begins to wait; `others_drain`, whether other caches have staged
        what may be on the same file system and leave it, when nothing here can.
        """
        self._hurry, self._others_drain = hurry, others_drain

    def staged(self, file: LocalFile) -> None:
        with self._lock:
            self._dirty[file.inode] = file

    def unstaged(self, file: LocalFile) -> None:
        with self._lock:
            if self._dirty.get(file.inode) is file:
                del self._dirty[file.inode]

    def reserve(self, size_bytes: int) -> None:
        """A fill of that size begins. Raises NoSpaceError when it can never fit."""
        if size_bytes > self.capacity_bytes + self._files.free_bytes(self.path):
            raise NoSpaceError(f"a file of {size_bytes} bytes does not fit the SSD below {self.path}")

    def dirty_files(self) -> list[LocalFile]:
        with self._lock:
            return list(self._dirty.values())

    def dirty_bytes(self) -> int:
        return sum(self._size(file) for file in self.dirty_files())

    def _size(self, file: LocalFile) -> int:
        descriptor = file.descriptor
        if file.state is not FileState.STAGING or descriptor < 0:
            return file.held_bytes
        try:
            return self._files.stat(descriptor).st_blocks * 512
        except OSError:
            return file.held_bytes  # closed just now

    def excess(self, clean_bytes: int) -> int:
        """Bytes that must be evicted now, given what clean copies use; 0 below the high watermark."""
        used = clean_bytes + self.dirty_bytes() + self.spare_bytes()
        free = self._free_bytes()
        excess = 0
        if used > CACHE_HIGH_WATERMARK * self.capacity_bytes:
            excess = used - int(CACHE_LOW_WATERMARK * self.capacity_bytes)
        if free < 2 * CACHE_FREE_RESERVE_BYTES:
            excess = max(excess, 2 * CACHE_FREE_RESERVE_BYTES - free)
        return excess

    def settle(self, clean_bytes: int) -> bool:
        """Decide, after eviction, whether writers must wait; wakes those who need not any more."""
        used = clean_bytes + self.dirty_bytes() + self.spare_bytes()
        full = used >= self.capacity_bytes or self._free_bytes() < CACHE_FREE_RESERVE_BYTES
        with self._lock:
            self._full, self._copied_bytes = full, clean_bytes
            self._told = self._told and full
            if not full or self._is_filled_by_others():
                self._lock.notify_all()
        return full

    def _is_filled_by_others(self) -> bool:
        """There is no room, and neither a drain nor an eviction here makes any."""
        if self._dirty or self._copied_bytes:
            return False
        return self._free_bytes() < CACHE_FREE_RESERVE_BYTES

    @property
    def is_full(self) -> bool:
        """Writers must wait, as of the last look."""
        return self._full

    def found_full(self) -> None:
        """The file system has refused a write, which the last look did not foresee; the next one decides."""
        with self._lock:
            self._full = True

    def wait_for_room(self, timeout_s: float = BACKPRESSURE_WAIT_S) -> None:
        """Returns when there is room to write. Raises NoSpaceError after `timeout_s`, or at once where waiting cannot help."""
        if not self._full:
            return
        about_to_wait()
        found = False
        if not self._is_filled_by_others():
            found = self._wait(lambda: not self._full or self._is_filled_by_others(), timeout_s)
        elif self._others_drain():
            found = self._wait(lambda: not self._full, timeout_s)
        if found:
            return
        if self._is_filled_by_others():
            raise NoSpaceError(self._tell_of_others())
        copies = "" if self._dirty else ", or of copies that stay: open, pinned, or of blocks that lack redundancy"
        raise NoSpaceError(
            f"the SSD below {self.path} is full of data that the store did not take within {timeout_s:.0f} s{copies}"
        )

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Whether there is room in the end."""
        self._hurry()
        with self._lock:
            self.waits += 1
            self._lock.wait_for(until, timeout_s)
            return not self._full

    def _tell_of_others(self) -> str:
        """The reason, which is logged once until there is room again."""
        free = self._files.free_bytes(self.path)
        reason = (
            f"the file system of {self.path} has {format_size(free)} free, of which {format_size(CACHE_FREE_RESERVE_BYTES)} "
            "must stay free, and nothing there waits for the store; make room there"
        )
        if not self._told:
            self._told = True
            _log.warning("writers are told that the SSD is full: %s", reason)
        return reason
