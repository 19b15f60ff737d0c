"""The change feed: complete for others, silent for oneself, absent without followers, and bounded."""

from pathlib import Path

import pytest

from tests.meta.conftest import Volume, make_volume
from tieredfs.format import keys
from tieredfs.host import SystemClock
from tieredfs.kv.engine import Writer
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.limits import CHANGES_KEPT
from tieredfs.meta import feed
from tieredfs.meta.metadata import Creation, Metadata
from tieredfs.model import NOBODY, ROOT, AttributeChange, CacheId, FileKind, SessionId, StoredContent
from tieredfs.testing.metadata_check import broken_invariants

FILE = Creation(FileKind.REGULAR, 0o644, 0, 0)
NOTHING = feed.Change(frozenset(), frozenset())


@pytest.fixture
def made(tmp_path: Path) -> Volume:
    return make_volume(str(tmp_path / "volume.db"))


def records_of(volume: Volume) -> int:
    prefix = keys.CHANGES_PREFIX
    return volume.engine.read(lambda reader: sum(1 for _ in reader.scan(prefix, keys.end_of(prefix))))


def another(volume: Volume) -> tuple[Metadata, SessionId]:
    """The metadata as another process has it, with a session that follows."""
    metadata = Metadata(SqliteEngine(volume.path), SystemClock())
    session = metadata.open_session("host", 2, "mount").session
    metadata.follow(session)
    return metadata, session


def test_without_followers_nothing_is_appended(made: Volume) -> None:
    made.metadata.create(ROOT, b"a", FILE)
    assert records_of(made) == 0


def test_alone_one_hears_nothing_and_nothing_is_appended(made: Volume) -> None:
    session = made.metadata.open_session("host", 1, "mount").session
    made.metadata.follow(session)
    made.metadata.create(ROOT, b"a", FILE)
    assert records_of(made) == 0
    assert made.metadata.changes() == NOTHING


def test_who_comes_and_goes_between_our_commits_is_noticed(made: Volume) -> None:
    own = made.metadata.open_session("host", 1, "mount").session
    names = iter(b"%d" % number for number in range(100))
    for _ in range(3):
        for _ in range(3):
            made.metadata.create(ROOT, next(names), FILE)
        before = records_of(made)
        follower, session = another(made)
        for _ in range(3):
            made.metadata.create(ROOT, next(names), FILE)
        assert records_of(made) == before + 3
        follower.end_session(session)
        for _ in range(3):
            made.metadata.create(ROOT, next(names), FILE)
        assert records_of(made) == before + 3
        made.metadata.follow(SessionId(own + 1000))  # by this process itself, under another name
        made.metadata.create(ROOT, next(names), FILE)
        made.metadata.end_session(SessionId(own + 1000))


def test_who_writes_alone_does_not_look_for_followers_again(made: Volume) -> None:
    looks = 0
    write = made.engine.write

    class Counted(feed.Recorder):
        """A writer whose looks for followers are counted."""

        def __init__(self, writer: Writer) -> None:
            super().__init__(writer)
            self.scan = self.counted
            self.below = writer.scan

        __slots__ = ("below",)

        def counted(self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False):  # type: ignore[no-untyped-def]
            nonlocal looks
            looks += start == keys.FOLLOWERS_PREFIX
            return self.below(start, end, limit=limit, reverse=reverse)

    made.engine.write = lambda function: write(lambda writer: function(Counted(writer)))  # type: ignore[method-assign]
    for number in range(100):
        made.metadata.create(ROOT, b"%d" % number, FILE)
    assert looks <= 1
    another(made)
    before = looks
    for number in range(100):
        made.metadata.unlink(ROOT, b"%d" % number, NOBODY)
    assert looks == before + 1
    assert records_of(made) == 100


def test_a_follower_hears_of_every_name_and_inode_that_another_changed(made: Volume) -> None:
    follower, _ = another(made)
    file = made.metadata.create(ROOT, b"a", FILE).inode
    assert follower.changes() == feed.Change(frozenset({ROOT, file}), frozenset({(ROOT, b"a")}))
    made.metadata.set_attributes(file, AttributeChange(mode=0o600))
    assert follower.changes() == feed.Change(frozenset({file}), frozenset())
    made.metadata.set_xattr(file, b"user.x", b"1")
    assert follower.changes() == feed.Change(frozenset({file}), frozenset())
    made.metadata.rename(ROOT, b"a", ROOT, b"b")
    assert follower.changes() == feed.Change(frozenset({ROOT, file}), frozenset({(ROOT, b"a"), (ROOT, b"b")}))
    made.metadata.begin_write(file, CacheId(1), truncate=True)
    assert follower.changes().inodes == {file}
    made.metadata.publish(file, 1, 10, 1_000)
    assert follower.changes().inodes == {file}
    made.metadata.commit_stored([StoredContent(file, 1, 10, 1_000, (), True)], [])
    assert follower.changes().inodes == {file}
    made.metadata.unlink(ROOT, b"b", NOBODY)
    assert follower.changes() == feed.Change(frozenset({ROOT, file}), frozenset({(ROOT, b"b")}))
    assert follower.changes() == NOTHING
    assert broken_invariants(made.engine) == []


def test_two_followers_hear_of_each_other_and_not_of_themselves(made: Volume) -> None:
    first, _ = another(made)
    second, _ = another(made)
    one = first.create(ROOT, b"one", FILE).inode
    two = second.create(ROOT, b"two", FILE).inode
    assert first.changes() == feed.Change(frozenset({ROOT, two}), frozenset({(ROOT, b"two")}))
    assert second.changes() == feed.Change(frozenset({ROOT, one}), frozenset({(ROOT, b"one")}))


def test_what_fails_is_not_told(made: Volume) -> None:
    follower, _ = another(made)
    made.metadata.create(ROOT, b"a", FILE)
    follower.changes()
    with pytest.raises(Exception, match="has an entry"):
        made.metadata.create(ROOT, b"a", FILE)
    assert follower.changes() == NOTHING


def test_a_session_that_ends_follows_no_more(made: Volume) -> None:
    follower, session = another(made)
    follower.end_session(session)
    made.metadata.create(ROOT, b"a", FILE)
    assert records_of(made) == 0


def test_a_session_that_is_revived_follows_again(made: Volume) -> None:
    follower, session = another(made)
    made.metadata.end_session(session)
    follower.revive_session(session, "host", 2, "mount")
    file = made.metadata.create(ROOT, b"a", FILE).inode
    assert follower.changes().inodes >= {file}
    unfollowing = Metadata(SqliteEngine(made.path), SystemClock())
    other = unfollowing.open_session("host", 3, "client").session
    made.metadata.end_session(session)
    made.metadata.end_session(other)
    unfollowing.revive_session(other, "host", 3, "client")
    before = records_of(made)
    made.metadata.create(ROOT, b"b", FILE)
    assert records_of(made) == before, "nobody follows any more"


def test_a_successor_hears_what_its_predecessor_did_not_ask_for(made: Volume) -> None:
    _, session = another(made)
    file = made.metadata.create(ROOT, b"a", FILE).inode
    successor = Metadata(SqliteEngine(made.path), SystemClock())
    successor.follow(session)
    assert successor.changes().inodes >= {file}


def test_the_feed_is_bounded_and_a_late_follower_goes_on_with_what_is_kept(
    made: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CHANGES_KEPT >= 1024
    monkeypatch.setattr(feed, "CHANGES_KEPT", 8)
    monkeypatch.setattr(feed, "CHANGE_KEYS_MAX", 2)
    follower, _ = another(made)
    inodes = [made.metadata.create(ROOT, b"n%d" % number, FILE).inode for number in range(20)]
    assert records_of(made) == 8, "each made two records: of an inode and a name, and of the directory"
    assert follower.changes().inodes == {ROOT, *inodes[-4:]}
    assert follower.changes() == NOTHING
