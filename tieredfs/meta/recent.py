"""What was read lately: attributes by inode and by name, good for as long as nobody commits anything.

The engine has a stamp that changes with every commit of any process (`kv.engine.Stamped`), so what is remembered is exact and
not merely young: an answer is given only under the stamp under which it was read. Our own commits end it as those of
others do, which is no loss where it matters: a program that looks at many files while nobody writes.

**Looking ahead.** A program that asks for one name after another (`stat`, `open` over a sorted list) gets them from one
snapshot: `Ahead` sees that a name is the very successor of the last one that was read in its directory, and says how many
to read at once, twice as many each time. One name costs 16 us in a transaction of its own, 6 us among many.

Pure but for the references that it swaps; safe from any thread.
"""

from dataclasses import dataclass, field
from typing import Final

from tieredfs.model import Attributes, InodeId

RECENT_MAX: Final = 4096
"""Names, and inodes, that are remembered: about 2 MiB."""
AHEAD_FIRST: Final = 8
AHEAD_MAX: Final = 128
"""Names that are read at once: 0.8 ms, during which nobody else is served."""
DIRECTORIES_MAX: Final = 64
"""Directories that are watched for a program that walks through them in order."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    stamp: bytes
    by_inode: dict[InodeId, Attributes] = field(default_factory=dict)
    by_name: dict[tuple[InodeId, bytes], Attributes] = field(default_factory=dict)


class Recent:
    """Attributes under one stamp; those of another are forgotten."""

    def __init__(self) -> None:
        self._snapshot = _Snapshot(b"")
        self.hits = 0

    def named(self, stamp: bytes, directory: InodeId, name: bytes) -> Attributes | None:
        snapshot = self._snapshot
        if snapshot.stamp != stamp:
            return None
        found = snapshot.by_name.get((directory, name))
        self.hits += found is not None
        return found

    def of(self, stamp: bytes, inode: InodeId) -> Attributes | None:
        snapshot = self._snapshot
        if snapshot.stamp != stamp:
            return None
        found = snapshot.by_inode.get(inode)
        self.hits += found is not None
        return found

    def remember(self, stamp: bytes, attributes: Attributes) -> None:
        """Read under `stamp`: that was the engine's before the transaction began and is so after its end."""
        self._under(stamp).by_inode[attributes.inode] = attributes

    def remember_named(self, stamp: bytes, directory: InodeId, found: list[tuple[bytes, Attributes]]) -> None:
        """As `remember`, with the names in `directory` that show them."""
        snapshot = self._under(stamp)
        for name, attributes in found:
            snapshot.by_name[directory, name] = attributes
            snapshot.by_inode[attributes.inode] = attributes

    def _under(self, stamp: bytes) -> _Snapshot:
        snapshot = self._snapshot
        if snapshot.stamp != stamp or max(len(snapshot.by_inode), len(snapshot.by_name)) >= RECENT_MAX:
            snapshot = self._snapshot = _Snapshot(stamp)
        return snapshot


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
