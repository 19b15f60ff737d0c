"""`LocalFile`: one content on this SSD while somebody is interested in it."""

import itertools
import os
from dataclasses import dataclass, field
from typing import Final

from tieredfs.cache.fill import Fill
from tieredfs.core.file_life import DIRTY, FileEvent, FileState, next_state
from tieredfs.host import Files
from tieredfs.host.files import is_open_for_writing
from tieredfs.host.turn import NamedTurn
from tieredfs.host.waiting import AnnouncedRLock
from tieredfs.model import InodeId, Place

MAY_CHANGE: Final = -1
"""The version of a content that is read where another process has it staged, and may go on writing."""
_numbers = itertools.count(1)

Stamp = tuple[int, int, int]
"""(ctime, mtime, size) of a local file: what is written meanwhile changes it. ctime alone does not suffice: before Linux 6.13
it may be 4 ms old; mtime is set to that of the stored content when a clean file is opened for writing."""


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ctime_ns, status.st_mtime_ns, status.st_size


@dataclass(frozen=True, slots=True)
class LiveSize:
    """Size and mtime of a content that is open for writing, as its local file has them now."""

    size_bytes: int
    mtime_ns: int
    allocated_bytes: int


@dataclass(slots=True, eq=False)
class LocalFile:
    """All fields are read and changed under `lock`, but for `inode`, and for `state` and `descriptor` by callers with a handle.

    `users` (handles, and calls under way) keep the entry in the tier's table; `handles` keep the descriptor open.
    """

    inode: InodeId
    state: FileState = FileState.ABSENT
    version: int = 0
    path: str = ""
    descriptor: int = -1
    writable: bool = False
    """The descriptor is open for writing: only while there are writers, for else the kernel cannot tell whether others are."""
    handles: int = 0
    writers: int = 0
    uses: int = 0
    size_bytes: int = 0
    """As of the last look; of a STAGING content the descriptor knows better."""
    held_bytes: int = 0
    """What it takes of the SSD, as of the last look: holes take nothing."""
    asked_bytes: int = 0
    """Up to this size the daemon may write: quotas were asked."""
    place: Place | None = None
    """In a segment, and then there is neither path nor descriptor. Of a dirty content only; who reads it has an entry of its own.
    """
    mtime_ns: int = 0
    """Of a content with a place."""
    fresh_stamp: Stamp | None = None
    """Of the local file just after it was opened for writing while clean: if it is the same when the last writer leaves,
    nothing was written. None: it was dirty before, or that cannot be known."""
    published: tuple[int, int] | None = None
    """(size, mtime) that the metadata has."""
    staged_since_s: float = 0.0
    drain_not_before_s: float = 0.0
    """When it is due. Whoever is in a hurry ignores it,"""
    retry_not_before_s: float = 0.0
    """but not this: its last drain failed, or it is still mapped for writing."""
    mapped_since_s: float | None = None
    """Since when it is known that a sealed content is mapped for writing."""
    snapshot_stamp: Stamp | None = None
    """When a content that may still be written to was last drained."""
    snapshots: int = 0
    """How often it was."""
    name_durable: bool = False
    metadata_durable: bool = False
    deleted: bool = False
    borrowed: bool = False
    """The descriptor is of a content in another cache of this host."""
    fill: Fill | None = None
    turn: NamedTurn | None = None
    """Held while this process fetches the content for all of this machine."""
    lock: AnnouncedRLock = field(default_factory=AnnouncedRLock)
    number: int = field(default_factory=lambda: next(_numbers))
    """Unique in this process: which opens share one local file."""
    users: int = 0
    """Under the tier's lock, not this one's."""

    def apply(self, event: FileEvent) -> None:
        self.state = next_state(self.state, event)

    def end_turn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.close()

    @property
    def is_spent(self) -> bool:
        """Whether only those who have it open may use it: its descriptor is of what was deleted, of another cache's file, or of a
        fill that failed, which has holes where bytes did not come."""
        failed = self.state is FileState.ABSENT and bool(self.handles)
        return failed or self.borrowed or self.state is FileState.DISCARDED

    def ensure_descriptor(self, files: Files, *, writable: bool) -> bool:
        """Have one, for writing if asked for; True: there was none. Raises OSError."""
        if self.descriptor < 0:
            self.descriptor = files.open(self.path, os.O_RDWR if writable else os.O_RDONLY)
            self.writable = writable
            return True
        if writable and not self.writable:
            self._open_again(files, os.O_RDWR)
        return False

    def give_up_descriptor(self, files: Files) -> None:
        """Close it if the file has no handles (a fill for a writer has a descriptor before it has a handle); without
        writers keep it for reading only."""
        if self.descriptor >= 0 and not self.handles:
            descriptor, self.descriptor, self.writable = self.descriptor, -1, False
            files.close(descriptor)
        elif self.writable and not self.writers:
            self._open_again(files, os.O_RDONLY)

    def is_mapped(self, files: Files) -> bool:
        """Whether a mapping outlives the writers' descriptors."""
        if self.writable:
            self._open_again(files, os.O_RDONLY)
        return is_open_for_writing(self.descriptor)

    def _open_again(self, files: Files, flags: int) -> None:
        """The same file (which may have lost its name) at the same number, which requests may be using."""
        descriptor = files.open(f"/proc/self/fd/{self.descriptor}", flags)
        try:
            os.dup2(descriptor, self.descriptor, inheritable=False)
        finally:
            files.close(descriptor)
        self.writable = flags == os.O_RDWR

    @property
    def dirty(self) -> bool:
        return self.state in DIRTY

    @property
    def whole(self) -> bool:
        """The local file has every byte."""
        return self.fill is None or self.fill.whole
