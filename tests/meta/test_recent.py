"""What is remembered of the metadata: exact, carried over our own commits, gone with a commit of anybody else, bounded."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.meta.conftest import Volume, make_volume
from tieredfs.errors import AlreadyExistsError, NameTooLongError, NotDirectoryError, NotFoundError
from tieredfs.format import keys
from tieredfs.host import SystemClock
from tieredfs.kv.engine import Reader, Writer
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.limits import INODE_BATCH
from tieredfs.meta import files, names
from tieredfs.meta.metadata import Creation, Metadata
from tieredfs.meta.names import lookup
from tieredfs.meta.recent import (
    AHEAD_FIRST,
    AHEAD_MAX,
    DIRECTORIES_MAX,
    RECENT_MAX,
    SHOWN_BYTES_MAX,
    WRITTEN_MAX,
    Ahead,
    Recent,
)
from tieredfs.model import NO_CACHE, NOBODY, ROOT, AttributeChange, Attributes, FileKind, InodeId

FILE = Creation(FileKind.REGULAR, 0o644, 0, 0)
DIRECTORY = Creation(FileKind.DIRECTORY, 0o755, 0, 0)


def attributes_of(inode: int) -> Attributes:
    return Attributes(InodeId(inode), FileKind.REGULAR, 0, 0, 0, 0, 0, 0, 0, 0, 0, ROOT, 0, 0, NO_CACHE, 0)


@pytest.fixture
def made(tmp_path: Path) -> Volume:
    return make_volume(str(tmp_path / "volume.db"))


@pytest.fixture
def other(made: Volume) -> Iterator[Volume]:
    """Another process of the volume `made`: what it knows it has read."""
    engine = SqliteEngine(made.path)
    yield Volume(made.path, engine, made.clock, Metadata(engine, made.clock), made.cache)
    engine.close()


class Counted:
    """Transactions that a `Metadata` begins to read, counted."""

    def __init__(self, volume: Volume) -> None:
        self.metadata: Metadata = volume.metadata
        self.reads = 0
        read = volume.engine.read

        def counting(function):  # type: ignore[no-untyped-def]
            self.reads += 1
            return read(function)

        volume.engine.read = counting  # type: ignore[method-assign]


def test_a_second_look_costs_no_transaction(made: Volume, other: Volume) -> None:
    inode = made.metadata.create(ROOT, b"a", FILE).inode
    counted = Counted(other)
    first = other.metadata.lookup(ROOT, b"a")
    assert counted.reads == 1
    assert other.metadata.lookup(ROOT, b"a") == first
    assert other.metadata.attributes(inode) == first
    assert counted.reads == 1


def test_what_we_wrote_ourselves_costs_no_transaction(made: Volume, other: Volume) -> None:
    count = INODE_BATCH + 10  # a range of ids is taken in between, by a commit of its own
    names = [b"%d" % number for number in range(count)]
    inodes = [made.metadata.create(ROOT, name, FILE).inode for name in names]
    made.metadata.set_attributes(inodes[7], AttributeChange(mode=0o600))
    made.metadata.rename(ROOT, names[8], ROOT, b"renamed")
    made.metadata.unlink(ROOT, names[9], NOBODY)
    names[8:10], inodes[8:10] = [b"renamed"], [inodes[8]]
    counted = Counted(made)
    for _ in range(2):
        found = [made.metadata.lookup(ROOT, name) for name in names]
        assert [attributes.inode for attributes in found] == inodes
        assert [made.metadata.attributes(inode) for inode in inodes] == found
    assert counted.reads == 0
    assert found == [other.metadata.lookup(ROOT, name) for name in names]
    for gone in (b"8", b"9"):
        with pytest.raises(NotFoundError):
            made.metadata.lookup(ROOT, gone)


def test_what_was_rolled_back_is_not_remembered(made: Volume) -> None:
    before = made.metadata.create(ROOT, b"a", FILE)

    def change(writer: Writer) -> None:
        files.set_attributes(writer, before.inode, AttributeChange(mode=0), 1)
        raise NotFoundError("in the middle")

    with pytest.raises(NotFoundError):
        made.metadata.amend(change)
    assert made.metadata.lookup(ROOT, b"a") == made.metadata.attributes(before.inode) == before


def test_our_own_commit_is_seen_at_once(made: Volume) -> None:
    inode = made.metadata.create(ROOT, b"a", FILE).inode
    assert made.metadata.lookup(ROOT, b"a").mode == 0o644
    made.metadata.set_attributes(inode, AttributeChange(mode=0o600))
    assert made.metadata.lookup(ROOT, b"a").mode == 0o600
    assert made.metadata.attributes(inode).mode == 0o600
    made.metadata.unlink(ROOT, b"a", NOBODY)
    with pytest.raises(NotFoundError):
        made.metadata.lookup(ROOT, b"a")
    with pytest.raises(NotFoundError):
        made.metadata.attributes(inode)


def test_our_own_commits_end_nothing_but_what_they_change(made: Volume) -> None:
    kept, changed = (made.metadata.create(ROOT, name, FILE) for name in (b"kept", b"changed"))
    session = made.metadata.open_session("host", 1, "test").session
    seen = [made.metadata.lookup(ROOT, name) for name in (b"kept", b"changed")]
    counted = Counted(made)
    made.metadata.heartbeat(session)
    made.metadata.set_attributes(changed.inode, AttributeChange(mode=0o600))
    made.metadata.create(ROOT, b"new", FILE)
    assert made.metadata.lookup(ROOT, b"kept") == seen[0]
    assert made.metadata.attributes(kept.inode) == seen[0]
    assert counted.reads == 0
    assert made.metadata.attributes(changed.inode).mode == 0o600
    assert made.metadata.lookup(ROOT, b"new").mode == 0o644
    assert counted.reads == 0
    made.metadata.rename(ROOT, b"kept", ROOT, b"changed")
    assert made.metadata.lookup(ROOT, b"changed").inode == kept.inode
    with pytest.raises(NotFoundError):
        made.metadata.lookup(ROOT, b"kept")


def test_who_looks_at_a_volume_that_several_change_sees_what_is_there(made: Volume) -> None:
    """Three engines, each with a memory of its own, against one that remembers nothing."""
    chance = random.Random(7)
    engines = [SqliteEngine(made.path) for _ in range(3)]
    all_three = [Metadata(engine, SystemClock()) for engine in engines]
    names = [b"%d" % number for number in range(6)]
    hits = 0
    for _ in range(1500):
        actor = chance.choices(all_three, (8, 1, 1))[0]
        name, other = chance.choice(names), chance.choice(names)
        with contextlib.suppress(NotFoundError, AlreadyExistsError):
            act = chance.randrange(12)
            if act == 0:
                actor.create(ROOT, name, FILE)
            elif act == 1:
                actor.unlink(ROOT, name, NOBODY)
            elif act == 2:
                actor.rename(ROOT, name, ROOT, other)
            elif act == 3:
                actor.link(actor.lookup(ROOT, name).inode, ROOT, other)
            elif act == 4:
                actor.set_attributes(actor.lookup(ROOT, name).inode, AttributeChange(mode=chance.randrange(0o777)))
            else:
                with contextlib.suppress(NotFoundError):
                    true = engines[0].read(partial(lookup, parent=ROOT, name=name)).attributes()
                    looks = actor._looks
                    hits += looks._recent.named(looks.at(), ROOT, name) is not None
                    assert actor.lookup(ROOT, name) == true
                    assert actor.attributes(true.inode) == true
                    continue
                with pytest.raises(NotFoundError):
                    actor.lookup(ROOT, name)
    assert hits > 100, "memory was asked, too"
    for engine in engines:
        engine.close()


def test_the_commit_of_another_process_is_seen_at_once(made: Volume) -> None:
    before = made.metadata.lookup(ROOT, b"a") if made.metadata.create(ROOT, b"a", FILE) else None
    change = (
        "import sys\n"
        "from tieredfs.host import SystemClock\n"
        "from tieredfs.kv.sqlite import SqliteEngine\n"
        "from tieredfs.meta.metadata import Metadata\n"
        "from tieredfs.model import AttributeChange, InodeId\n"
        "Metadata(SqliteEngine(sys.argv[1]), SystemClock()).set_attributes(InodeId(int(sys.argv[2])), AttributeChange(mode=0))\n"
    )
    assert before is not None
    assert made.metadata.lookup(ROOT, b"a") == before
    subprocess.run([sys.executable, "-c", change, made.path, str(before.inode)], check=True, timeout=30)
    assert made.metadata.lookup(ROOT, b"a").mode == 0
    assert made.metadata.attributes(before.inode).mode == 0


def test_a_checkpoint_of_the_log_changes_no_answer(made: Volume) -> None:
    made.metadata.create(ROOT, b"a", FILE)
    before = made.metadata.lookup(ROOT, b"a")
    assert isinstance(made.engine, SqliteEngine)
    made.engine._connections.writer.control("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert made.metadata.lookup(ROOT, b"a") == before
    made.metadata.set_attributes(before.inode, AttributeChange(mode=0o111))
    assert made.metadata.lookup(ROOT, b"a").mode == 0o111


def test_paths_that_were_looked_at_cost_no_transaction_until_somebody_commits(made: Volume) -> None:
    directory = made.metadata.create(ROOT, b"d", DIRECTORY).inode
    inode = made.metadata.create(directory, b"a", FILE).inode
    made.metadata.set_xattr(inode, b"user.x", b"1")
    paths, wanted = [b"d/a", b"d//./a", b"d/b", b"d/a/b", b"d", b""], [b"user.x", b"user.y"]
    counted = Counted(made)
    shown = made.metadata.look(paths, wanted)
    assert [None if found is None else (found[0].inode, found[1]) for found in shown] == [
        (inode, (b"1", None)),
        (inode, (b"1", None)),
        None,
        None,
        (directory, (None, None)),
        (ROOT, (None, None)),
    ]
    assert [made.metadata.look(paths, wanted), counted.reads] == [shown, 1]
    assert made.metadata.look([b"d/a"], []) == [(shown[0][0], ())] if shown[0] else False
    made.metadata.set_xattr(inode, b"user.x", b"2")
    changed = made.metadata.look(paths, wanted)[0]
    assert changed is not None
    assert changed[1] == (b"2", None)


def test_shared_directories_are_walked_once(made: Volume) -> None:
    directory = made.metadata.create(ROOT, b"d", DIRECTORY).inode
    for name in (b"a", b"b"):
        made.metadata.create(directory, name, FILE)
    read: list[bytes] = []

    class Watched:
        """A reader whose reads are noted."""

        def __init__(self, reader: Reader) -> None:
            self.get = lambda key: read.append(key) or reader.get(key)

    made.engine.read(lambda reader: names.look(Watched(reader), [b"d/a", b"d/b", b"d/c", b"d"], []))  # type: ignore[arg-type]
    assert len(read) == 4 + 3, "an entry for each name, an inode for each that is there"


def test_a_deep_path_is_looked_at_without_recursion(made: Volume) -> None:
    assert made.metadata.look([b"/".join([b"d"] * 2000)]) == [None]
    with pytest.raises(NameTooLongError):
        made.metadata.look([b"/".join([b"d"] * 2100)])


def test_who_walks_a_directory_in_order_is_read_ahead_for(made: Volume, other: Volume) -> None:
    directory = made.metadata.create(ROOT, b"d", DIRECTORY).inode
    names = [b"n-%04d" % number for number in range(400)]
    inodes = [made.metadata.create(directory, name, FILE).inode for name in names]
    counted = Counted(other)
    assert [other.metadata.lookup(directory, name).inode for name in names] == inodes
    # 1, 8, 16, 32, 64, 128, 128, and the rest.
    assert counted.reads == 8


def test_who_jumps_about_is_not_read_ahead_for(made: Volume, other: Volume) -> None:
    directory = made.metadata.create(ROOT, b"d", DIRECTORY).inode
    names = [b"n-%04d" % number for number in range(100)]
    for name in names:
        made.metadata.create(directory, name, FILE)
    asked = names[::2]
    for name in asked:
        other.metadata.lookup(directory, name)
    assert len(other.metadata._looks._recent._snapshot.by_name) == len(asked), "nothing but what was asked for was read"


def test_the_end_of_a_directory_is_not_the_next_one(made: Volume) -> None:
    first, second = (made.metadata.create(ROOT, name, DIRECTORY).inode for name in (b"d1", b"d2"))
    for directory in (first, second):
        for name in (b"\xfe", b"\xff\xff"):
            made.metadata.create(directory, name, FILE)
    for _ in range(2):
        assert made.metadata.lookup(first, b"\xfe").inode != made.metadata.lookup(first, b"\xff\xff").inode
        with pytest.raises(NotFoundError):
            made.metadata.lookup(first, b"\xff")
    with pytest.raises(NotDirectoryError):
        made.metadata.lookup(made.metadata.lookup(first, b"\xfe").inode, b"x")


def test_memory_is_bounded() -> None:
    recent, ahead = Recent(), Ahead()
    for number in range(3 * RECENT_MAX):
        recent.remember_named(b"s", ROOT, [(b"%d" % number, attributes_of(number))])
        ahead.note(InodeId(number), 1, b"x")
        recent.remember_shown(b"s", ((b"%d" % number,), ()), [None])
    assert recent.named(b"s", ROOT, b"%d" % (3 * RECENT_MAX - 1)) is not None
    assert recent.of(b"s", InodeId(5 * RECENT_MAX // 2)) is not None, "the oldest went, not all"
    assert len(recent._snapshot.by_name) <= RECENT_MAX
    assert len(recent._snapshot.shown) <= RECENT_MAX
    assert len(recent._snapshot.by_inode) <= RECENT_MAX
    assert len(ahead._expected) <= DIRECTORIES_MAX
    for number in range(3 * WRITTEN_MAX):
        recent.carry(b"s", b"s", {keys.inode(InodeId(number)): bytes(100)})
    assert len(recent._snapshot.written) <= WRITTEN_MAX
    recent, large = Recent(), (attributes_of(2), (bytes(SHOWN_BYTES_MAX // 8),))
    for number in range(100):
        recent.remember_shown(b"s", ((b"%d" % number,), (b"user.x",)), [large])
        assert len(recent._snapshot.shown) <= 8


def test_nothing_is_told_under_another_stamp() -> None:
    recent = Recent()
    recent.remember_named(b"one", ROOT, [(b"a", attributes_of(2))])
    assert recent.named(b"one", ROOT, b"a") == attributes_of(2)
    assert recent.named(b"two", ROOT, b"a") is None
    recent.remember(b"two", attributes_of(3))
    assert recent.of(b"one", InodeId(2)) is None
    assert recent.of(b"two", InodeId(2)) is None


@given(st.lists(st.tuples(st.sampled_from((1, 2)), st.sampled_from((b"", b"a", b"b", b"c")))))
def test_looking_ahead_is_only_for_the_expected_name(asked: list[tuple[int, bytes]]) -> None:
    ahead = Ahead()
    expected: dict[int, bytes] = {}
    for directory, name in asked:
        count = ahead.count(InodeId(directory), name)
        assert 1 <= count <= AHEAD_MAX
        assert (count >= AHEAD_FIRST) == (directory in expected and expected[directory] == name)
        ahead.note(InodeId(directory), count, name + b"+" if name else b"a")
        expected[directory] = name + b"+" if name else b"a"
