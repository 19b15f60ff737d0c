"""The bytes of an open object, for who sends them: in a thread that may wait, or in the event loop, which may not."""

import os

from tieredfs.host.files import is_in_memory
from tieredfs.volume.contract import Reading


class OpenContent:
    """The bytes of an open object."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def read(self, offset: int, length: int) -> bytes:
        """Not past the end; fewer bytes only there."""
        descriptor = self._reading.descriptor
        if descriptor is not None:
            return os.pread(descriptor, length, offset)
        target = bytearray(length)
        count = self._reading.read_into(offset, memoryview(target))
        return bytes(target[:count])

    def read_now(self, offset: int, target: bytearray) -> int:
        descriptor = self._reading.descriptor
        if descriptor is None:
            return 0
        try:
            return os.preadv(descriptor, [target], offset, os.RWF_NOWAIT)
        except OSError:  # not there now, or not on this file system: `read` waits, and says what is wrong
            return os.preadv(descriptor, [target], offset) if is_in_memory(descriptor) else 0

    def read_all_now(self, offset: int, length: int) -> bytes | None:
        """None when it is not all in memory."""
        target = bytearray(length)
        return bytes(target) if self.read_now(offset, target) == length else None

    def close(self) -> None:
        self._reading.close()
