"""Deleted files that nobody can reach any more: disposed of, many in one transaction, by one thread.

Until then each is an orphan of its session, with its local file; or it was deleted as it was replaced, and only what the SSD has of
it is left. That goes last, when the deletion is durable: a power cut may take back the last transactions, and a name that
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

_log: Final = logging.getLogger("tieredfs.cache.burials")
_GATHER_S: Final = 0.05
_BATCH: Final = 512


class Burials:
    """One per tier in use. Safe from any thread."""

    def __init__(self, metadata: Metadata, tier: Tier, session: SessionId) -> None:
        self._metadata = metadata
        self._tier = tier
        self._session = session
        self._queue: list[InodeId] = []
        self._deleted: list[InodeId] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="burials", daemon=True)
        self._thread.start()

    def bury(self, inodes: Iterable[InodeId]) -> None:
        """Orphans of the session that nobody can reach any more. Does not wait."""
        with self._changed:
            self._wake()
            self._queue.extend(inodes)

    def discard(self, inode: InodeId) -> None:
        """The inode is deleted already; what this SSD has of it goes when that is durable. Does not wait."""
        with self._changed:
            self._wake()
            self._deleted.append(inode)

    def _wake(self) -> None:
        """Whoever gathers already need not hear of each one more: that would be a change of threads."""
        if not self._queue and not self._deleted:
            self._changed.notify()

    def close(self) -> None:
        """Dispose of what is queued, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._deleted or self._closing)
                if not self._queue and not self._deleted:
                    return
                if not self._closing:
                    self._changed.wait_for(lambda: self._closing, _GATHER_S)
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                deleted, self._deleted = self._deleted, []
            try:
                if batch:
                    self._metadata.reclaim_orphans(batch, self._session)
                self._metadata.sync()
            except TieredError as error:
                _log.warning("%d deleted files are left to the end of the session: %s", len(batch + deleted), error)
                continue
            for inode in (*batch, *deleted):
                self._tier.discard(inode)
