"""Files of the SSD tier that trainers of this host look into, instead of getting copies of what is in them.

What may be lent. A file of the tier that is whole has the bytes of one content and nothing else, and they stay what they are under
one version: eviction unlinks the file, a newer version is another file, small contents that are packed together have no file. Only
a mount writes into a file of its own tier when it is opened for writing; a gateway and the processes whose copies it borrows have
none. So whoever maps such a file sees the pinned bytes for as long as the mapping lasts, whatever becomes of the file. They were
verified when they came from the store; like every reader of the SSD, a mapping does not verify them again.

What that costs. A lent file stays open here until the reader is closed, so the tier counts its room and does not evict it; hence
no file is lent while the files that are open take more than half of the SSD (`OPEN_SHARE`), and at most `FILES_MAX` of a reader.
What a trainer still maps afterwards takes room that the tier does not see, until its arrays are gone.

A trainer gets a descriptor that is open for reading only: no mapping of it can be written to. Safe from any thread.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final, Protocol

from tieredfs.errors import TieredError
from tieredfs_gateway.datasets.contract import LentFile
from tieredfs_gateway.datasets.versions import PinnedFile, Snapshot

FILES_MAX: Final = 256
"""Of one reader: a trainer has a descriptor and a mapping for each, of 1,024 descriptors that processes usually may have."""
OPEN_SHARE: Final = 1 / 2
RETRY_S: Final = 1.0
"""A file that was not whole is not looked at again before: it may be read through for the whole epoch."""
_numbers: Final = itertools.count(1)


class SsdRoom(Protocol):
    """What lending asks of a volume: `tieredfs.volume.FileSystem`."""

    @property
    def cache_bytes(self) -> int: ...
    def open_bytes(self) -> int: ...


class Lending:
    """What one reader has lent: `contract.LentFiles`. It only grows, until `close`."""

    def __init__(self, snapshot: Snapshot, room: SsdRoom) -> None:
        self._snapshot = snapshot
        self._room = room
        self._lent: dict[bytes, LentFile] = {}
        self._refused_s: dict[bytes, float] = {}
        self._held = ExitStack()
        self._closed = False
        self._lock = threading.Lock()

    def lend(self, file: PinnedFile) -> LentFile | None:
        """None: its bytes have to be carried, now. Never raises the domain's errors: who reads the bytes will meet them."""
        with self._lock:
            found = self._lent.get(file.path)
            if found is not None:
                return found
            is_early = time.monotonic() - self._refused_s.get(file.path, -RETRY_S) < RETRY_S
            if self._closed or is_early or len(self._lent) >= FILES_MAX or not file.size_bytes:
                return None
        with contextlib.suppress(TieredError):
            found = self._opened(file)
        if found is None:
            with self._lock:
                self._refused_s[file.path] = time.monotonic()
        return found

    def _opened(self, file: PinnedFile) -> LentFile | None:
        with ExitStack() as stack:
            reading = stack.enter_context(self._snapshot.reading(file))
            if reading.descriptor is None or self._room.open_bytes() > self._room.cache_bytes * OPEN_SHARE:
                return None
            descriptor = os.open(f"/proc/self/fd/{reading.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if os.fstat(descriptor).st_size != file.size_bytes:
                return None
            with self._lock:
                if self._closed or file.path in self._lent:  # somebody else was faster
                    return self._lent.get(file.path)
                made = self._lent[file.path] = LentFile(next(_numbers), descriptor, file.size_bytes)
                self._held.push(stack.pop_all())
                return made

    @contextlib.contextmanager
    def beyond(self, known: set[int]) -> Iterator[Sequence[LentFile]]:
        """See `LentFiles`. The descriptors are the caller's own, whatever is closed meanwhile."""
        with ExitStack() as stack:
            with self._lock:
                new = [file for file in self._lent.values() if file.number not in known and not self._closed]
                own = [LentFile(file.number, os.dup(file.descriptor), file.size_bytes) for file in new]
                for file in own:
                    stack.callback(os.close, file.descriptor)
            yield own

    def numbers(self) -> set[int]:
        with self._lock:
            return {file.number for file in self._lent.values()}

    def close(self) -> None:
        """Trainers keep what they have mapped."""
        with self._lock:
            self._closed = True
            held, self._held = self._held, ExitStack()
        held.close()
