"""`SharedSync`: callers who arrive while a sync runs share the next one.

A flush of the disk takes as long for one caller as for thirty; what they wait for is one that began after they called.
"""

import threading
from collections.abc import Callable

from tieredfs.errors import UnavailableError
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import LOCK_WAIT_S


class SharedSync:
    """One fdatasync for everybody who waits: a caller needs one that began after it called, not one of its own.

    After a failure the kernel may have dropped the dirty pages and call the next sync good, so every later call fails.
    """

    def __init__(self, sync: Callable[[], None], what: str = "metadata") -> None:
        self._sync = sync
        self._what = what
        self._changed = threading.Condition()
        self._started = 0
        self._finished = 0
        self._failure: str | None = None
        self.waiting = 0

    def wait(self) -> None:
        """Raises UnavailableError."""
        about_to_wait()
        with self._changed:
            wanted = self._started + 1
            while self._finished < wanted and self._failure is None and self._started > self._finished:
                self.waiting += 1
                self._changed.wait(LOCK_WAIT_S)
                self.waiting -= 1
            if self._failure is not None:
                raise UnavailableError(self._failure)
            if self._finished >= wanted:
                return
            self._started += 1
        try:
            self._sync()
        except OSError as error:
            self._end(f"{self._what} could not be made durable: {error}")
            raise UnavailableError(f"{self._what} could not be made durable: {error}") from error
        self._end(None)

    def _end(self, failure: str | None) -> None:
        with self._changed:
            self._finished = self._started
            self._failure = self._failure or failure
            self._changed.notify_all()
