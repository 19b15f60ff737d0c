"""The volumes that this process has open for its drop-ins: one `FileSystem` per metadata URL, whoever asks, from any thread.

fsspec makes an instance per thread and never closes one; a `FileSystem` is a session and an SSD directory, so instances share
it. It is opened by the first call that needs it, and closed when the process ends or by `close`. In a child made by fork the
parent's are set aside, alive and unused (their threads and connections are the parent's), and the child opens its own.
"""

import atexit
import os
import threading
from typing import Final

from tieredfs.config import parse_meta_url
from tieredfs.volume import FileSystem


class Connections:
    """Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, FileSystem] = {}
        self._inherited: list[dict[str, FileSystem]] = []

    def get(self, meta_url: str) -> FileSystem:
        """Raises ConfigurationError, VolumeNotFoundError, and what else opening a volume raises."""
        key = str(parse_meta_url(meta_url))
        with self._lock:
            found = self._open.get(key)
            if found is None:
                found = self._open[key] = FileSystem.at(key, purpose=f"client of process {os.getpid()}")
            return found

    def close(self, meta_url: str) -> None:
        """The next `get` opens it again. What still reads or writes through it fails."""
        with self._lock:
            found = self._open.pop(str(parse_meta_url(meta_url)), None)
        if found is not None:
            found.close()

    def close_all(self) -> None:
        with self._lock:
            every, self._open = self._open, {}
        for each in every.values():
            each.close()

    def after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._inherited.append(self._open)
        self._open = {}


CONNECTIONS: Final = Connections()
os.register_at_fork(after_in_child=CONNECTIONS.after_fork)
atexit.register(CONNECTIONS.close_all)
