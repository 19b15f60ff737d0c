"""`Looks`: attributes by name, by path and by inode, from memory where nobody changed them since they were read.

What is remembered is exact (`recent`): an engine that tells by a stamp whether anybody committed is asked before and after
each transaction. An engine without a stamp is asked each time. Safe from any thread.
"""

from collections.abc import Mapping, Sequence

from tieredfs.errors import CorruptError
from tieredfs.kv.engine import Engine, Stamped
from tieredfs.meta import inodes, names
from tieredfs.meta.names import Shown
from tieredfs.meta.recent import Ahead, Recent
from tieredfs.model import Attributes, InodeId


class Looks:
    """Over one engine. `stamp` is its own, if it has one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stamped = engine if isinstance(engine, Stamped) else None
        self.stamp = engine.stamp if isinstance(engine, Stamped) else None
        self._recent = Recent()
        self._ahead = Ahead()

    def lookup(self, parent: InodeId, name: bytes) -> Attributes:
        """Raises NotFoundError, NotDirectoryError; NameTooLongError, InvalidRequestError for what cannot be a name."""
        if self.stamp is None:
            names.check_name(name)
            return self._engine.read(lambda reader: names.lookup(reader, parent, name)).attributes()
        stamp = self.stamp()
        known = self._recent.named(stamp, parent, name)
        if known is not None:
            return known
        names.check_name(name)
        count = self._ahead.count(parent, name)
        try:
            found, successor = self._engine.read(lambda reader: names.ahead(reader, parent, name, count))
        except CorruptError:  # of a neighbour, perhaps, who is not what was asked for
            count = 1
            found, successor = self._engine.read(lambda reader: names.ahead(reader, parent, name, count))
        self._ahead.note(parent, count, successor)
        if stamp == self.stamp():
            self._recent.remember_named(stamp, parent, found)
        return found[0][1]

    def attributes(self, inode: InodeId) -> Attributes:
        """Raises NotFoundError."""
        stamp = self.stamp() if self.stamp is not None else b""
        known = self._recent.of(stamp, inode)
        if known is not None:
            return known
        attributes = self._engine.read(lambda reader: inodes.read(reader, inode)).attributes()
        if self.stamp is not None and stamp == self.stamp():
            self._recent.remember(stamp, attributes)
        return attributes

    def look(self, paths: Sequence[bytes], xattrs: Sequence[bytes]) -> list[Shown | None]:
        """`names.look`, in one snapshot. Raises NameTooLongError."""
        if self.stamp is None:
            return self._engine.read(lambda reader: names.look(reader, paths, xattrs))
        stamp, asked = self.stamp(), (tuple(paths), tuple(xattrs))
        known = self._recent.shown(stamp, asked)
        if known is not None:
            return list(known)
        found = self._engine.read(lambda reader: names.look(reader, paths, xattrs))
        if stamp == self.stamp():
            self._recent.remember_shown(stamp, asked, found)
        return found

    def at(self) -> bytes:
        """The stamp, for `committed`; called by who has the right to write."""
        return b"" if self.stamp is None else self.stamp()

    def committed(self, before: bytes, written: Mapping[bytes, bytes | None]) -> bytes:
        """A transaction of ours that began at `before` made this of the records of inodes and names, and changed no others.

        Returns the stamp that it led to, unless somebody else has committed as well: then nothing."""
        if self._stamped is None:
            return b""
        after = self._stamped.stamp()
        if not self._stamped.is_next(before, after):
            return b""
        self._recent.carry(before, after, written)
        return after
