"""Whose turn it is, among the processes of one machine, to do what needs doing once.

A lock on a file, or a name among abstract sockets where there is no file. Either ends with its process, however that ends, and
the next one to ask has it. Neither waits.
"""

import fcntl
import os
import socket
from typing import Final, Self

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


class NamedTurn:
    """A name that one process of the machine (of its network namespace) can have at a time."""

    def __init__(self, held: socket.socket) -> None:
        """`take` is the usual way."""
        self._held = held

    @classmethod
    def take(cls, name: str) -> Self | None:
        """None: another process has it. At most 107 bytes."""
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            held.bind(f"\0{name}".encode())
        except OSError:
            held.close()
            return None
        return cls(held)

    def close(self) -> None:
        self._held.close()
