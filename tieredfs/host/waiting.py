"""Who serves others in this thread learns that the thread is about to wait.

A mount's requests are read by one thread at a time, which carries out what is quick itself (`fuse.kernel.session`). What
is quick is known only where it turns out not to be: a lock that somebody holds, an SSD that is full, bytes that must be
fetched. Those places call `about_to_wait` first, and whoever reads requests in that thread lets another one read on.

A call without a hook costs 0.1 us. The hook must not raise, and may be called more than once.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final


class _Hook(threading.local):
    call: Callable[[], None] | None = None


_hook: Final = _Hook()


def when_waiting(call: Callable[[], None] | None) -> None:
    """Have `call` called before this thread waits; None: nobody wants to know any more."""
    _hook.call = call


def about_to_wait() -> None:
    """This thread may sleep now, for longer than a system call on a local file takes."""
    call = _hook.call
    if call is not None:
        call()


class AnnouncedRLock:
    """`threading.RLock` whose waiters say so first."""

    __slots__ = ("_lock", "release")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.release = self._lock.release

    def acquire(self) -> None:
        if not self._lock.acquire(blocking=False):
            about_to_wait()
            self._lock.acquire()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
