"""Open chunks, remembered: a bounded cache of descriptors with their parsed headers.

A small read of a cold chunk costs an open, a header and its checksum (about 60 us) before the first byte; a program
that reads randomly pays that once per chunk. Entries are counted: one that is forgotten while a reader uses it is
closed by that reader. Decisions are made under the lock, descriptors are opened and closed outside it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tieredfs.chunk.store import ChunkName
from tieredfs.format.chunk import ChunkHeader


@dataclass(frozen=True, slots=True)
class Opened:
    """A chunk open for reading: through the page cache and, where the file system has it, past it."""

    header: ChunkHeader
    buffered: int
    direct: int | None


class _Entry:
    __slots__ = ("forgotten", "opened", "users")

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.users = 1
        self.forgotten = False


class OpenChunks:
    """At most `count` idle entries. `open_chunk` may raise whatever it likes; `close_chunk` must not raise."""

    def __init__(
        self, count: int, open_chunk: Callable[[ChunkName], Opened], close_chunk: Callable[[Opened], None]
    ) -> None:
        self._count = count
        self._open_chunk = open_chunk
        self._close_chunk = close_chunk
        self._entries: OrderedDict[ChunkName, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, name: ChunkName) -> Iterator[Opened]:
        entry = self._find(name) or self._add(name, _Entry(self._open_chunk(name)))
        try:
            yield entry.opened
        finally:
            self._close(self._leave(entry))

    def forget(self, name: ChunkName) -> None:
        """The next use opens the chunk anew."""
        with self._lock:
            entry = self._entries.pop(name, None)
            closable = [] if entry is None else self._retire(entry)
        self._close(closable)

    def close(self) -> None:
        with self._lock:
            closable = [opened for entry in self._entries.values() for opened in self._retire(entry)]
            self._entries.clear()
        self._close(closable)

    def __len__(self) -> int:
        return len(self._entries)

    def _find(self, name: ChunkName) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                entry.users += 1
                self._entries.move_to_end(name)
            return entry

    def _add(self, name: ChunkName, entry: _Entry) -> _Entry:
        """Two threads may have opened the same chunk; the later entry stays, the earlier is closed by its user."""
        with self._lock:
            replaced = self._entries.pop(name, None)
            closable = [] if replaced is None else self._retire(replaced)
            self._entries[name] = entry
            while len(self._entries) > self._count:
                closable += self._retire(self._entries.popitem(last=False)[1])
        self._close(closable)
        return entry

    def _leave(self, entry: _Entry) -> list[Opened]:
        with self._lock:
            entry.users -= 1
            return [entry.opened] if entry.forgotten and entry.users == 0 else []

    @staticmethod
    def _retire(entry: _Entry) -> list[Opened]:
        entry.forgotten = True
        return [] if entry.users else [entry.opened]

    def _close(self, closable: list[Opened]) -> None:
        for opened in closable:
            self._close_chunk(opened)
