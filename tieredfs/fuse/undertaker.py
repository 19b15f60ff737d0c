"""Deleted files, until nobody can reach them any more.

A path walk of the kernel may hold an inode that is deleted a moment later, and open it then. On a local file system that
works, for the walk holds the inode. So it does here: an inode that lost its last name stays as an orphan of this
session, with its local file, until the kernel says that it has forgotten it. Then it is buried (`tieredfs.cache.burials`).
"""

from collections.abc import Iterable

from tieredfs.cache.burials import Burials
from tieredfs.cache.tier import Tier
from tieredfs.meta.metadata import Metadata
from tieredfs.model import InodeId, SessionId


class Undertaker:
    """One per mount. Safe from any thread; `forgotten` is called for every inode that the kernel drops, and is cheap."""

    def __init__(self, metadata: Metadata, tier: Tier, session: SessionId) -> None:
        """Orphans that an earlier daemon of this session left are waited for too."""
        self._lingering = {inode for holder, inode in metadata.orphans() if holder == session}
        for inode in self._lingering:
            tier.mark_deleted(inode)
        self._burials = Burials(metadata, tier, session)

    def await_forgetting(self, inode: InodeId) -> None:
        """The inode lost its last name."""
        self._lingering.add(inode)

    def forgotten(self, inodes: Iterable[InodeId]) -> None:
        """The kernel dropped these; most were never deleted."""
        gone = [inode for inode in inodes if inode in self._lingering]
        if gone:
            self._lingering.difference_update(gone)
            self.bury(gone)

    def bury(self, inodes: Iterable[InodeId]) -> None:
        """Nobody can reach these any more."""
        self._burials.bury(inodes)

    def close(self) -> None:
        """Dispose of what is queued, and stop. What still lingers goes with the session."""
        self._burials.close()
