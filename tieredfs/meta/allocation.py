"""Ids that are never used again, from counters in the store.

Inode and block ids are taken `INODE_BATCH` at a time by a small transaction of their own and then handed out from
memory, so that a create neither writes a counter nor meets other processes at one. What a process did not use is lost
when it ends: of 2^64 ids that is nothing. Rare ids (sessions, caches, disks) come one by one, inside the transaction
that uses them.
"""

import os
import threading
from collections.abc import Callable

from tieredfs.format import keys, records
from tieredfs.format.keys import Counter
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import INODE_BATCH


def value(reader: Reader, counter: Counter) -> int:
    """The next id that `counter` would give; 0 for a counter of something other than ids that was never written."""
    stored = reader.get(keys.counter(counter))
    if stored is not None:
        return records.decode_number(stored)
    return 0 if counter is Counter.INODES_DELETED else 1


def take(writer: Writer, counter: Counter, count: int = 1) -> int:
    """The first of `count` new ids in a row."""
    first = value(writer, counter)
    writer.put(keys.counter(counter), records.encode_number(first + count))
    return first


class IdRange:
    """Ids of one counter, in memory. Safe from any thread; a child made by fork takes a range of its own."""

    def __init__(self, take: Callable[[Counter, int], int], counter: Counter) -> None:
        """`take`: a transaction that takes so many of a counter, and returns the first."""
        self._take = take
        self._counter = counter
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._next = self._end = 0

    def take(self) -> int:
        with self._lock:
            if self._next == self._end or self._process != os.getpid():
                self._next = self._take(self._counter, INODE_BATCH)
                self._end = self._next + INODE_BATCH
                self._process = os.getpid()
            self._next += 1
            return self._next - 1

    def unused(self) -> int:
        """How many ids of the range in memory are still to be handed out."""
        with self._lock:
            return self._end - self._next
