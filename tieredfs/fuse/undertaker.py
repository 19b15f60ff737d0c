"""Deleted files, until nobody can reach them any more.

A path walk of the kernel may hold an inode that is deleted a moment later, and open it then. On a local file system that
works, for the walk holds the inode. So it does here: an inode that lost its last name stays as an orphan of this
session, with its local file, until the kernel says that it has forgotten it. Then it is disposed of, many in one
transaction, by one thread.

Local files go last, when their deletion is durable: a power cut may take back the last transactions, and a name that
comes back (the target of a rename that replaced it, say) must find its bytes.
"""

import logging
import threading
from collections.abc import Iterable
from typing import Final

from tieredfs.cache.tier import Tier
from tieredfs.errors import TieredError
from tieredfs.meta.metadata import Metadata
from tieredfs.model import InodeId, SessionId

_log: Final = logging.getLogger("tieredfs.fuse.undertaker")
_GATHER_S: Final = 0.05
_BATCH: Final = 512


class Undertaker:
    """One per mount. Safe from any thread; `forgotten` is called for every inode that the kernel drops, and is cheap."""

    def __init__(self, metadata: Metadata, tier: Tier, session: SessionId) -> None:
        """Orphans that an earlier daemon of this session left are waited for too."""
        self._metadata = metadata
        self._tier = tier
        self._session = session
        self._lingering = {inode for holder, inode in metadata.orphans() if holder == session}
        for inode in self._lingering:
            tier.mark_deleted(inode)
        self._queue: list[InodeId] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="undertaker", daemon=True)
        self._thread.start()

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
        with self._changed:
            self._queue.extend(inodes)
            self._changed.notify()

    def close(self) -> None:
        """Dispose of what is queued, and stop. What still lingers goes with the session."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                if not self._closing:
                    self._changed.wait_for(lambda: self._closing, _GATHER_S)
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
            try:
                self._metadata.reclaim_orphans(batch, self._session)
                self._metadata.sync()
            except TieredError as error:
                _log.warning("%d deleted files are left to the end of the session: %s", len(batch), error)
                continue
            for inode in batch:
                self._tier.discard(inode)
