"""`LocalFile`: one content on this SSD while somebody is interested in it."""

import itertools
import os
from dataclasses import dataclass, field
from typing import Final

from tieredfs.cache.borrow import FillTurn
from tieredfs.cache.fill import Fill
from tieredfs.core.file_life import DIRTY, FileEvent, FileState, next_state
from tieredfs.host import Files
from tieredfs.host.files import is_open_for_writing
from tieredfs.host.waiting import AnnouncedRLock
from tieredfs.model import InodeId

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
    handles: int = 0
    writers: int = 0
    uses: int = 0
    size_bytes: int = 0
    """As of the last look; of a STAGING content the descriptor knows better."""
    held_bytes: int = 0
    """What it takes of the SSD, as of the last look: holes take nothing."""
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
    turn: FillTurn | None = None
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

    def close_descriptor(self, files: Files) -> None:
        """If the file has no handles: a fill for a writer has a descriptor before it has a handle."""
        if self.descriptor >= 0 and not self.handles:
            descriptor, self.descriptor = self.descriptor, -1
            files.close(descriptor)

    def is_mapped(self, files: Files) -> bool:
        """Whether a mapping outlives the writers' descriptors. With readers there are descriptors of ours, and none can tell."""
        if self.handles:
            return False
        ours, self.descriptor = self.descriptor, -1
        files.close(ours)
        self.descriptor = files.open(self.path, os.O_RDONLY)
        return is_open_for_writing(self.descriptor)

    @property
    def dirty(self) -> bool:
        return self.state in DIRTY

    @property
    def whole(self) -> bool:
        """The local file has every byte."""
        return self.fill is None or self.fill.whole
