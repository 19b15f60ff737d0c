"""The change feed: which names and inodes were changed, for processes that keep copies of them elsewhere.

A mount's kernel keeps names and attributes for long (`limits.ENTRY_TIMEOUT_S`), which is right only if it is told when
somebody else changes them. So a process with a mount is a *follower*: it has a record, and every transaction of any
process that changes an inode or a name appends what it changed, as long as somebody other than itself follows. A volume
with one mount and nothing beside it appends nothing.

A change is the keys that were written, and who wrote them (the session, where it follows itself; a follower leaves out
its own, which its kernel knows already). The last `CHANGES_KEPT` are kept; a follower that falls behind further, because
it did not run, has missed some, and then the kernel's own timeout is the bound. A successor of a killed daemon reads all
that are kept.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from tieredfs.format import keys, records
from tieredfs.format.keys import Counter, Tag
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import CHANGE_KEYS_MAX, CHANGES_KEPT
from tieredfs.meta import allocation
from tieredfs.model import InodeId, SessionId

_FOLLOWER: Final = int(Tag.FOLLOWER)
_FOLLOWED: Final = frozenset({int(Tag.INODE), int(Tag.NAME)})


class Change(NamedTuple):
    """What was changed: inodes (attributes or content), and names as (directory, name)."""

    inodes: frozenset[InodeId]
    names: frozenset[tuple[InodeId, bytes]]


class Recorder:
    """A `Writer` that remembers what it made of the records of inodes and names: by key, None where it deleted them; and
    whether it changed who follows."""

    __slots__ = ("_delete", "_put", "audience_changed", "get", "get_many", "scan", "written")

    def __init__(self, writer: Writer) -> None:
        self.get, self.get_many, self.scan = writer.get, writer.get_many, writer.scan
        self._put, self._delete = writer.put, writer.delete
        self.written: dict[bytes, bytes | None] = {}
        self.audience_changed = False

    def put(self, key: bytes, value: bytes) -> None:
        self._note(key, value)
        self._put(key, value)

    def delete(self, key: bytes) -> None:
        self._note(key, None)
        self._delete(key)

    def _note(self, key: bytes, value: bytes | None) -> None:
        tag = key[keys.SHARD_BYTES]
        if tag in _FOLLOWED:
            self.written[key] = value
        elif tag == _FOLLOWER:
            self.audience_changed = True


class Audience:
    """Who follows, remembered by a process of an engine with a stamp for as long as nobody else commits: a look for them
    takes 5 % of the transaction that creates a file. Safe from any thread."""

    def __init__(self) -> None:
        self._known: tuple[bytes, list[int]] = b"", []
        """The stamp, and who followed under it: two of them at most."""

    def at(self, reader: Reader, stamp: bytes) -> list[int]:
        """Who follows, at most two. `stamp`: what the transaction began at; empty: the engine has none."""
        known, followers = self._known
        if stamp and known == stamp:
            return followers
        prefix = keys.FOLLOWERS_PREFIX
        return [keys.last_u64(key) for key, _ in reader.scan(prefix, keys.end_of(prefix), limit=2)]

    def carry(self, after: bytes, followers: list[int]) -> None:
        """A commit of ours led to the stamp `after`, and nobody else committed; it did not change who follows."""
        self._known = after, followers


def follow(writer: Writer, session: SessionId) -> None:
    """From the next transaction on, what others change is in the feed."""
    writer.put(keys.follower(session), records.EMPTY)


def append(writer: Writer, origin: SessionId, followers: Sequence[int], changed: Sequence[bytes]) -> None:
    """Nothing unless somebody but `origin` follows."""
    if not followers or followers == [origin]:
        return
    for start in range(0, len(changed), CHANGE_KEYS_MAX):
        number = allocation.take(writer, Counter.CHANGE)
        encoded = records.encode_change(origin, changed[start : start + CHANGE_KEYS_MAX])
        writer.put(keys.change(number), encoded)
        if number > CHANGES_KEPT:
            writer.delete(keys.change(number - CHANGES_KEPT))


def decoded(changed: Iterable[bytes]) -> Change:
    """The inodes and names under these keys. Raises CorruptError."""
    inodes: set[InodeId] = set()
    names: set[tuple[InodeId, bytes]] = set()
    for key in changed:
        number = InodeId(keys.first_u64(key))
        if keys.tag_of(key) is Tag.INODE:
            inodes.add(number)
        else:
            names.add((number, keys.text_after_u64(key)))
    return Change(frozenset(inodes), frozenset(names))


def changes(reader: Reader, after: int, origin: SessionId) -> tuple[Change, int]:
    """What anybody but `origin` changed after `after`, and where the feed ends. Of what is not kept, nothing."""
    first, last = keys.change(after + 1), keys.end_of(keys.CHANGES_PREFIX)
    found: list[bytes] = []
    for key, value in reader.scan(first, last):
        after = keys.last_u64(key)
        by, changed = records.decode_change(value)
        if by != origin:
            found += changed
    return decoded(found), after
