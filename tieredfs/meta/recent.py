"""What was read lately: attributes by inode, by name and by path, good for as long as nobody else changes anything.

The engine has a stamp that changes with every commit of any process (`kv.engine.Stamped`), so what is remembered is exact and
not merely young: an answer is given only under the stamp under which it was read. A commit of our own is known to have
changed some inodes and names and nothing else, so the rest is carried over to its stamp: the heartbeat of this process,
every five seconds, ends nothing. Somebody else's commit ends it all.

**What we wrote ourselves** is known without being read: a commit leaves its records here as they are at rest, and who asks
for them decodes them. The first look at each of 20,000 names that this process made costs a third of what it takes to read them
with their neighbours.

**Looking ahead.** A program that asks for one name after another (`stat`, `open` over a sorted list) gets them from one
snapshot: `Ahead` sees that a name is the very successor of the last one that was read in its directory, and says how many
to read at once, twice as many each time. One name costs 16 us in a transaction of its own, 6 us among many.

Safe from any thread: what is remembered is changed under a lock, and looked at without.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from tieredfs.format import keys, records
from tieredfs.format.keys import Tag
from tieredfs.meta.names import Shown
from tieredfs.model import Attributes, InodeId

RECENT_MAX: Final = 32_768
"""Names, and inodes, that are remembered: 18 MiB. The 20,000 files of a directory that is walked again and again fit."""
DROPPED_AT_ONCE: Final = RECENT_MAX // 8
"""When there is one too many, the oldest go together: each alone would have to be searched for behind those that went before."""
WRITTEN_MAX: Final = 2 * RECENT_MAX
"""Records that are remembered as we wrote them, two of each file: 12 MiB."""
SHOWN_BYTES_MAX: Final = 4 << 20
"""Of paths and extended attributes that are remembered together: an object of an ordinary size has about 300."""
AHEAD_FIRST: Final = 8
AHEAD_MAX: Final = 128
"""Names that are read at once: 0.8 ms, during which nobody else is served."""
DIRECTORIES_MAX: Final = 64
"""Directories that are watched for a program that walks through them in order."""

K = TypeVar("K")
V = TypeVar("V")


Asked = tuple[tuple[bytes, ...], tuple[bytes, ...]]
"""Paths, and names of extended attributes."""


@dataclass(slots=True)
class _Snapshot:
    stamp: bytes
    by_inode: dict[InodeId, Attributes] = field(default_factory=dict)
    by_name: dict[tuple[InodeId, bytes], InodeId] = field(default_factory=dict)
    written: dict[bytes, bytes] = field(default_factory=dict)
    """Records of inodes and names, by key."""
    shown: dict[Asked, tuple[Shown | None, ...]] = field(default_factory=dict)
    shown_bytes: int = 0


class Recent:
    """Attributes under one stamp; those of another are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot = _Snapshot(b"")

    def named(self, stamp: bytes, directory: InodeId, name: bytes) -> Attributes | None:
        snapshot = self._snapshot
        if snapshot.stamp != stamp:
            return None
        inode = snapshot.by_name.get((directory, name))
        if inode is None:
            value = snapshot.written.get(keys.name(directory, name)) if snapshot.written else None
            if value is None:
                return None
            inode = records.decode_entry(name, value).inode
        return snapshot.by_inode.get(inode) or _as_written(snapshot, inode)

    def of(self, stamp: bytes, inode: InodeId) -> Attributes | None:
        snapshot = self._snapshot
        if snapshot.stamp != stamp:
            return None
        return snapshot.by_inode.get(inode) or _as_written(snapshot, inode)

    def shown(self, stamp: bytes, asked: Asked) -> tuple[Shown | None, ...] | None:
        snapshot = self._snapshot
        return snapshot.shown.get(asked) if snapshot.stamp == stamp else None

    def remember(self, stamp: bytes, attributes: Attributes) -> None:
        """Read under `stamp`: that was the engine's before the transaction began and is so after its end."""
        with self._lock:
            snapshot = self._under(stamp)
            _put(snapshot.by_inode, attributes.inode, attributes)

    def remember_named(self, stamp: bytes, directory: InodeId, found: list[tuple[bytes, Attributes]]) -> None:
        """As `remember`, with the names in `directory` that show them."""
        with self._lock:
            snapshot = self._under(stamp)
            for name, attributes in found:
                _put(snapshot.by_name, (directory, name), attributes.inode)
                _put(snapshot.by_inode, attributes.inode, attributes)

    def carry(self, before: bytes, after: bytes, written: Mapping[bytes, bytes | None]) -> None:
        """The one commit between the two stamps made this of the records of inodes and names, by key, and changed no others."""
        with self._lock:
            snapshot = self._snapshot
            if snapshot.stamp == before:
                # Who has looked at the stamp before, and looks at this snapshot later, may miss: never find what is gone.
                snapshot = _Snapshot(after, snapshot.by_inode, snapshot.by_name, snapshot.written)
            elif snapshot.stamp != after:
                snapshot = _Snapshot(after)
            for key, value in written.items():
                _forget(snapshot, key)
                if value is not None:
                    _put(snapshot.written, key, value, WRITTEN_MAX)
            self._snapshot = snapshot

    def remember_shown(self, stamp: bytes, asked: Asked, found: Sequence[Shown | None]) -> None:
        """As `remember`, of several paths that were looked at together. Any commit ends these, for they rest on much."""
        values = [value for shown in found if shown is not None for value in shown[1] if value is not None]
        with self._lock:
            snapshot = self._under(stamp)
            if len(snapshot.shown) >= RECENT_MAX or snapshot.shown_bytes >= SHOWN_BYTES_MAX:
                snapshot.shown, snapshot.shown_bytes = {}, 0
            snapshot.shown_bytes += sum(map(len, asked[0])) + sum(map(len, values))
            snapshot.shown[asked] = tuple(found)

    def _under(self, stamp: bytes) -> _Snapshot:
        if self._snapshot.stamp != stamp:
            self._snapshot = _Snapshot(stamp)
        return self._snapshot


def _as_written(snapshot: _Snapshot, inode: InodeId) -> Attributes | None:
    value = snapshot.written.get(keys.inode(inode)) if snapshot.written else None
    return None if value is None else records.decode_attributes(inode, value)


def _forget(snapshot: _Snapshot, key: bytes) -> None:
    """What is known of the inode or the name under `key`."""
    if key[keys.SHARD_BYTES] == Tag.INODE:
        snapshot.by_inode.pop(InodeId(keys.first_u64(key)), None)
    elif snapshot.by_name:
        snapshot.by_name.pop((InodeId(keys.first_u64(key)), keys.text_after_u64(key)), None)
    snapshot.written.pop(key, None)


def _put(remembered: dict[K, V], key: K, value: V, at_most: int = RECENT_MAX) -> None:
    if len(remembered) >= at_most and key not in remembered:
        for old in list(islice(remembered, DROPPED_AT_ONCE)):
            del remembered[old]
    remembered[key] = value


class Ahead:
    """Who walks through a directory in order, and how far to look ahead for them."""

    def __init__(self) -> None:
        self._expected: dict[InodeId, tuple[bytes, int]] = {}
        """By directory: the name after the last one read, and how many to read if that is asked for next."""

    def count(self, directory: InodeId, name: bytes) -> int:
        """How many names to read, from `name` on."""
        expected, count = self._expected.get(directory, (b"", 1))
        return count if expected == name else 1

    def note(self, directory: InodeId, count: int, successor: bytes) -> None:
        """`count` names were read, and `successor` (empty: none) comes after them."""
        if len(self._expected) >= DIRECTORIES_MAX and directory not in self._expected:
            self._expected.clear()
        self._expected[directory] = successor, min(AHEAD_MAX, max(AHEAD_FIRST, 2 * count))
