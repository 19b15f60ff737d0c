"""A bell at a path: any process of this host can ring, whoever owns it hears it, and nothing waits when nobody does."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Final

_ROPE_BYTES: Final = 4096


class Bell:
    """A FIFO, and a thread that calls `on_ring` once or more for each ringing. Safe from any thread."""

    def __init__(self, path: str, on_ring: Callable[[], None]) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # Open for writing too: so reading never ends, and close can wake the reader.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._on_ring = on_ring
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="bell", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while os.read(self._descriptor, _ROPE_BYTES) and not self._closing:
            self._on_ring()

    def close(self) -> None:
        self._closing = True
        os.write(self._descriptor, b"\0")
        self._thread.join()
        os.close(self._descriptor)


def ring(path: str) -> bool:
    """Whether somebody hears it."""
    try:
        rope = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return False
        raise
    try:
        with contextlib.suppress(BlockingIOError):  # it is ringing already
            os.write(rope, b"\0")
    finally:
        os.close(rope)
    return True
