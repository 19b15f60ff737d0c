"""What other processes change is pushed out of the kernel's caches.

One thread a mount. It looks at the metadata's stamp every `FOLLOW_INTERVAL_S` (0.1 us while nobody commits), reads the change
feed when it is another one, and tells the kernel: names go, attributes go, and pages with them, since the content may be
another. (Where the engine has no stamp it reads the feed each time, which is two round trips to the engine's server.) A
program so sees what others did within two intervals; while the daemon does not run, within the kernel's own timeouts.

The kernel may have to wait for a request on the directory before it can drop a name, so this is no work for a thread that
serves requests, and nobody waits for this one.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from tieredfs.errors import TieredError
from tieredfs.limits import FOLLOW_INTERVAL_S
from tieredfs.meta.feed import Change
from tieredfs.model import InodeId

_log: Final = logging.getLogger(__name__)
STOP_WAIT_S: Final = 10.0


class Cache(Protocol):
    """What the kernel keeps for us (`Session`)."""

    def invalidate_inode(self, inode: InodeId, offset: int = 0, length: int = 0) -> None: ...
    def invalidate_entry(self, parent: InodeId, name: bytes) -> None: ...


class Pusher:
    """From `start` to `close`."""

    def __init__(self, stamp: Callable[[], bytes] | None, changes: Callable[[], Change], cache: Cache) -> None:
        """`changes`: what others changed since it was last called. `stamp` None: nothing tells when to call it."""
        self._stamp = stamp
        self._changes = changes
        self._cache = cache
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pusher", daemon=True)
        self.pushed = 0
        """Names and inodes that the kernel was told of."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT_S)

    def _run(self) -> None:
        seen = b""
        while not self._closing.wait(FOLLOW_INTERVAL_S):
            stamp = self._stamp() if self._stamp is not None else b""
            if self._stamp is not None and stamp == seen:
                continue
            try:
                self._push(self._changes())
                seen = stamp
            except (TieredError, OSError) as error:
                _log.warning("what others changed could not be pushed, the kernel's timeouts decide: %s", error)
                self._closing.wait(1.0)

    def _push(self, change: Change) -> None:
        for parent, name in change.names:
            self._cache.invalidate_entry(parent, name)
        for inode in change.inodes:
            self._cache.invalidate_inode(inode)
        self.pushed += len(change.names) + len(change.inodes)
