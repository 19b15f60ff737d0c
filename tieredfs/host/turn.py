"""Whose turn it is, among the processes of one machine, to do what needs doing once.

A lock on a file. It ends with its process, however that ends, and the next one to ask has it.
"""

import fcntl
import os
from typing import Final

_FILE_MODE: Final = 0o600


class Turn:
    """For one thread at a time. The file's directory exists."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)

    def take(self) -> bool:
        """Whether it is ours; then it stays ours until `close`, or the end of the process. Does not wait."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)
