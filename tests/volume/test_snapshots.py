"""A snapshot is the tree at one moment, whatever goes on meanwhile and becomes of the tree; and going back is one step."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from tests.volume.planted import TREE, assert_clean, overwrite, plant, put, quiet, shown
from tests.whole_files import get
from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    DeadlineError,
    InvalidRequestError,
    NameTooLongError,
    NotDirectoryError,
    NotFoundError,
    ReadOnlyError,
    TieredError,
)
from tieredfs.host import crash
from tieredfs.kv.engine import Reader
from tieredfs.limits import MIB, NAME_BYTES_MAX
from tieredfs.meta.cloning import Late
from tieredfs.meta.matching import Captured, Compared, Difference
from tieredfs.meta.metadata import Creation
from tieredfs.model import AttributeChange, FileKind, InodeId
from tieredfs.volume import FileSystem, Volume, clone, snapshots
from tieredfs.volume import filesystem as filesystem_module

FLUSH_S = 30.0
WORKPLACES = b".tieredfs/clones"


def restore(volume: FileSystem, path: bytes, name: bytes, target: bytes, *, force: bool = False) -> None:
    snapshots.restore(volume, path, name, target, force=force, progress=quiet)


def nothing_is_left(volume: FileSystem) -> None:
    assert list(volume.walk(WORKPLACES)) == []


def test_a_tree_and_back(volume: FileSystem, url: str) -> None:
    plant(volume)
    before = shown(volume, TREE)
    taken = snapshots.create(volume, TREE, b"monday", quiet)
    assert (taken.path, taken.name, taken.place) == (TREE, b"monday", b".snapshots/run/@monday")
    assert (taken.about.file_count, taken.about.directory_count, taken.about.open_file_count) == (609, 5, 0)
    assert sorted(name for name in volume.list_xattrs(taken.place) if name != b"user.tieredfs.snapshot") == []
    kept = shown(volume, taken.place)
    kept[b""], before_root = before[b""], before[b""]
    assert kept == before
    for path, seen in volume.walk(TREE):
        copy = volume.stat(taken.place + path.removeprefix(TREE))
        assert (copy.ctime_ns, copy.inode != seen.inode) == (seen.ctime_ns, True)
    nothing_is_left(volume)
    assert_clean(url)

    volume.remove_tree(TREE)
    volume.volume.collect_garbage(quiet)
    restore(volume, TREE, b"monday", TREE)
    again = shown(volume, TREE)
    assert again == {**before, b"": before_root}
    put(volume, TREE + b"/nothing", b"it can be changed")
    assert get(volume, taken.place + b"/nothing") == b""
    assert_clean(url)


def test_it_costs_no_block_and_none_stays_when_it_goes(volume: FileSystem, url: str) -> None:
    put(volume, b"run/f", os.urandom(2 * MIB))
    volume.flush(FLUSH_S)
    blocks = volume.volume.metadata.list_blocks(0, 1000)  # type: ignore[arg-type]
    snapshots.create(volume, b"run", b"s", quiet)
    assert volume.volume.metadata.list_blocks(0, 1000) == blocks  # type: ignore[arg-type]
    overwrite(volume, b"run/f", b"changed")
    volume.flush(FLUSH_S)
    dead = volume.volume.collect_garbage(quiet).blocks_waiting
    assert dead == 0, "the snapshot refers to them"
    told: list[int] = []
    assert snapshots.remove(volume, b"run", b"s", lambda done, _total, _unit: told.append(done)) == 2
    assert told[-1] == 2
    assert volume.volume.collect_garbage(quiet).blocks_waiting == len(blocks)
    assert volume.volume.metadata.look([b".snapshots"]) == [None]
    assert get(volume, b"run/f") == b"changed"
    assert_clean(url)


def test_nobody_changes_it(volume: FileSystem, url: str) -> None:
    put(volume, b"run/d/f", b"x")
    snapshots.create(volume, b"run", b"s", quiet)
    base = b".snapshots/run/@s"
    metadata = volume.volume.metadata
    here, file = volume.stat(base).inode, volume.stat(base + b"/d/f").inode
    made = Creation(FileKind.DIRECTORY, 0o755, 0, 0)
    attempts: Sequence[Callable[[], object]] = (
        lambda: put(volume, base + b"/new", b""),
        lambda: put(volume, base + b"/d/f", b""),
        lambda: volume.remove(base + b"/d/f"),
        lambda: volume.remove_tree(base),
        lambda: volume.make_directories(b".snapshots/mine"),
        lambda: volume.rename(base + b"/d/f", b"away"),
        lambda: volume.rename(b"run/d/f", base + b"/in"),
        lambda: volume.rename(b".snapshots", b"elsewhere"),
        lambda: volume.link(file, b"another"),
        lambda: volume.link(volume.stat(b"run/d/f").inode, base + b"/another"),
        lambda: volume.set_xattr(base, b"user.x", b""),
        lambda: volume.remove_xattr(base, b"user.tieredfs.snapshot"),
        lambda: metadata.set_attributes(file, AttributeChange(mode=0)),
        lambda: metadata.create(here, b"dir", made),
        lambda: metadata.begin_write(file, volume._tier.cache, truncate=False),
        lambda: volume._tier.open_write(file, truncate=True),
        lambda: clone(volume, b"run", base + b"/clone", quiet),
    )
    before = shown(volume, base)
    for number, attempt in enumerate(attempts):
        with pytest.raises(ReadOnlyError):
            attempt()
        assert shown(volume, base) == before, number
    assert get(volume, b"run/d/f") == b"x"
    nothing_is_left(volume)
    assert_clean(url)


def test_it_is_where_no_listing_shows_it(volume: FileSystem) -> None:
    put(volume, b"run/f", b"x")
    snapshots.create(volume, b"", b"all", quiet)
    snapshots.create(volume, b"run", b"one", quiet)
    assert sorted(path for path, _ in volume.walk(b"")) == [WORKPLACES.partition(b"/")[0], WORKPLACES, b"run", b"run/f"]
    assert [entry.name for entry, _ in volume.entries(b"", b".a", 2)] == [b".tieredfs", b"run"]
    assert sorted(path for path, _ in volume.walk(b".snapshots")) == [
        b".snapshots/@all",
        b".snapshots/@all/run",
        b".snapshots/@all/run/f",
        b".snapshots/run",
        b".snapshots/run/@one",
        b".snapshots/run/@one/f",
    ]
    clone(volume, b"", b"root again", quiet)
    assert sorted(path for path, _ in volume.walk(b"root again")) == [b"root again/run", b"root again/run/f"]
    clone(volume, b".snapshots/@all/run", b"changeable", quiet)
    put(volume, b"changeable/f", b"y")
    assert get(volume, b".snapshots/@all/run/f") == b"x"


def test_names(volume: FileSystem) -> None:
    for path in (b"a/b", b"a/@b", b"@@/a"):
        put(volume, path + b"/f", path)
        snapshots.create(volume, path, b"same name", quiet)
    longest = b"n" * (NAME_BYTES_MAX - 1)
    snapshots.create(volume, b"a", longest, quiet)
    found = snapshots.listed(volume.volume.metadata, b"")
    assert sorted((each.path, each.name) for each in found) == [
        (b"@@/a", b"same name"),
        (b"a", longest),
        (b"a/@b", b"same name"),
        (b"a/b", b"same name"),
    ]
    for each in found:
        if each.path != b"a":
            assert get(volume, each.place + b"/f") == each.path
    assert [each.path for each in snapshots.listed(volume.volume.metadata, b"a/@b")] == [b"a/@b"]
    assert snapshots.listed(volume.volume.metadata, b"nowhere") == []
    for each in found:
        snapshots.remove(volume, each.path, each.name, quiet)
    assert volume.volume.metadata.look([b".snapshots"]) == [None]


def test_what_is_on_the_way_lets_nobody_in_who_was_out(volume: FileSystem) -> None:
    volume.make_directories(b"private", mode=0o700)
    volume.volume.metadata.set_attributes(volume.stat(b"private").inode, AttributeChange(uid=7, gid=8))
    put(volume, b"private/run/f", b"x")
    snapshots.create(volume, b"private/run", b"s", quiet)
    way = volume.stat(b".snapshots/private")
    assert (way.mode, way.uid, way.gid) == (0o700, 7, 8)


@pytest.mark.parametrize(
    ("path", "name", "error"),
    [
        (b"missing", b"s", NotFoundError),
        (b"run/f", b"s", NotDirectoryError),
        (b"run/link", b"s", NotDirectoryError),
        (b"run", b"", InvalidRequestError),
        (b"run", b"..", InvalidRequestError),
        (b"run", b"a/b", InvalidRequestError),
        (b"run", b"@a", InvalidRequestError),
        (b"run", b"a\nb", InvalidRequestError),
        (b"run", b"n" * NAME_BYTES_MAX, NameTooLongError),
        (b"run", b"taken", AlreadyExistsError),
        (b".snapshots/run/@taken", b"s", InvalidRequestError),
        (b".snapshots", b"s", InvalidRequestError),
        (b".tieredfs", b"s", InvalidRequestError),
    ],
)
def test_what_cannot_be_taken(volume: FileSystem, path: bytes, name: bytes, error: type[TieredError]) -> None:
    put(volume, b"run/f", b"x")
    home = volume.stat(b"run").inode
    volume.volume.metadata.create(home, b"link", Creation(FileKind.SYMLINK, 0o777, 0, 0, target=b"."))
    snapshots.create(volume, b"run", b"taken", quiet)
    with pytest.raises(error):
        snapshots.create(volume, path, name, quiet)
    assert [each.name for each in snapshots.listed(volume.volume.metadata, b"")] == [b"taken"]
    nothing_is_left(volume)


def test_somebody_has_a_directory_of_that_name(volume: FileSystem) -> None:
    put(volume, b".snapshots/mine", b"x")
    put(volume, b"run/f", b"x")
    with pytest.raises(AlreadyExistsError, match="rename it"):
        snapshots.create(volume, b"run", b"s", quiet)
    assert b".snapshots/mine" in [path for path, _ in volume.walk(b"")]
    nothing_is_left(volume)


def test_what_cannot_be_restored_or_removed(volume: FileSystem) -> None:
    put(volume, b"run/f", b"x")
    snapshots.create(volume, b"run", b"s", quiet)
    snapshots.create(volume, b"", b"all", quiet)
    for path, name, target, force, error in (
        (b"run", b"s", b"run", False, AlreadyExistsError),
        (b"run", b"s", b"run/f", True, AlreadyExistsError),
        (b"run", b"s", b"no/parent", True, NotFoundError),
        (b"run", b"s", b"", True, InvalidRequestError),
        (b"", b"all", b"", True, InvalidRequestError),
        (b"run", b"other", b"run", True, NotFoundError),
        (b"other", b"s", b"new", True, NotFoundError),
        (b"run", b"s", b".snapshots/run", True, InvalidRequestError),
        (b"run", b"s", b".tieredfs", True, InvalidRequestError),
    ):
        with pytest.raises(error):
            restore(volume, path, name, target, force=force)
    with pytest.raises(NotFoundError, match="snapshot list"):
        snapshots.remove(volume, b"run", b"other", quiet)
    assert sorted(path for path, _ in volume.walk(b"run")) == [b"run/f"]
    nothing_is_left(volume)


def test_instead_of_what_is_there(volume: FileSystem, url: str) -> None:
    put(volume, b"run/f", b"old")
    snapshots.create(volume, b"run", b"s", quiet)
    put(volume, b"run/f", b"new")
    put(volume, b"run/sub/more", b"more")
    reading = volume.open(b"run/f")
    restore(volume, b"run", b"s", b"run", force=True)
    assert shown(volume, b"run").keys() == {b"", b"/f"}
    assert get(volume, b"run/f") == b"old"
    target = bytearray(3)
    reading.read_into(0, memoryview(target))
    assert target == b"new", "who has it open goes on"
    reading.close()
    restore(volume, b"run", b"s", b"another")
    assert get(volume, b"another/f") == b"old"
    nothing_is_left(volume)
    assert_clean(url)


# ---- while others write -------------------------------------------------------------------------------------------


class Meddler:
    """Changes the tree when it is copied and not yet held against its copy. Counts what was tried at once, and what was done so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object]) -> None:
        self.tried = self.done = 0
        follow, mend = snapshots._Taking._follow, snapshots._Taking._mend_at_once

        def meddled(taking: snapshots._Taking) -> None:
            for change in changes:
                change()
            follow(taking)

        def counted(taking: snapshots._Taking, found: Compared, captured: Captured) -> list[Late] | None:
            self.tried += 1
            late = mend(taking, found, captured)
            self.done += late is not None
            return late

        monkeypatch.setattr(snapshots._Taking, "_follow", meddled)
        monkeypatch.setattr(snapshots._Taking, "_mend_at_once", counted)


def everything_changes(volume: FileSystem) -> None:
    """One of each kind of change that a tree of `plant` can see."""
    metadata = volume.volume.metadata
    put(volume, TREE + b"/new", b"new")
    put(volume, TREE + b"/new dir/deep/f", b"new")
    put(volume, TREE + b"/large", os.urandom(MIB))
    overwrite(volume, TREE + b"/nothing", b"something")
    volume.remove(TREE + b"/many/007")
    volume.rename(TREE + b"/many/008", TREE + b"/a/moved")
    volume.rename(TREE + b"/empty", TREE + b"/many/empty")
    volume.rename(TREE + b"/b", TREE + b"/a/b")
    volume.remove(TREE + b"/link")
    put(volume, TREE + b"/link", b"a file now")
    volume.remove(TREE + b"/a/linked")
    put(volume, TREE + b"/a/linked", b"two inodes now")
    volume.link(volume.stat(TREE + b"/sparse").inode, TREE + b"/many/sparse too")
    volume.set_xattr(TREE + b"/many/100", b"user.new", b"x")
    volume.set_xattr(TREE + b"/many", b"user.new", b"x")
    volume.remove_xattr(TREE + b"/many/101", b"user.of")
    metadata.set_attributes(volume.stat(TREE + b"/many/102").inode, AttributeChange(mode=0, uid=1, gid=2, mtime_ns=5))
    volume.remove(TREE + b"/fifo")
    metadata.create(volume.stat(TREE).inode, b"fifo", Creation(FileKind.DIRECTORY, 0o755, 0, 0))


def assert_same(volume: FileSystem, before: dict[bytes, object], place: bytes) -> None:
    kept = shown(volume, place)
    kept[b""] = before[b""]  # but for what a snapshot says of itself
    assert kept == before


def test_changes_are_followed(volume: FileSystem, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(volume)
    meddler = Meddler(monkeypatch, lambda: everything_changes(volume))
    taken = snapshots.create(volume, TREE, b"s", quiet)
    assert (meddler.tried, meddler.done) == (1, 1)
    assert_same(volume, shown(volume, TREE), taken.place)
    nothing_is_left(volume)
    assert_clean(url)


def test_changes_are_followed_in_parts(volume: FileSystem, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(volume)
    monkeypatch.setattr(snapshots, "SNAPSHOT_CHANGES_MAX", 0)
    monkeypatch.setattr(snapshots, "_BATCH", 3)
    meddler = Meddler(monkeypatch, lambda: everything_changes(volume))
    taken = snapshots.create(volume, TREE, b"s", quiet)
    assert meddler.tried == 0
    assert_same(volume, shown(volume, TREE), taken.place)
    nothing_is_left(volume)
    assert_clean(url)


def test_too_many_changes_for_one_transaction(volume: FileSystem, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(volume)
    monkeypatch.setattr(snapshots, "SNAPSHOT_CHANGES_MAX", 20)

    def many() -> None:
        for number in range(30):
            put(volume, TREE + b"/new dir/%d" % number, b"new")

    meddler = Meddler(monkeypatch, many)
    taken = snapshots.create(volume, TREE, b"s", quiet)
    assert (meddler.tried, meddler.done) == (0, 0)
    assert_same(volume, shown(volume, TREE), taken.place)
    assert_clean(url)


def test_a_tree_that_never_rests_is_refused(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    put(volume, b"run/f", b"x")
    monkeypatch.setattr(snapshots, "SNAPSHOT_CHANGES_MAX", 0)
    look, numbers = snapshots._Taking._look, iter(range(1000))

    def restless(taking: snapshots._Taking, reader: Reader) -> tuple[Compared, Captured | None]:
        found, _ = look(taking, reader)
        found.differences.append(Difference(volume.stat(b"run").inode, InodeId(0), b"%d" % next(numbers)))
        return found, None

    monkeypatch.setattr(snapshots._Taking, "_look", restless)
    with pytest.raises(BusyError, match="10 passes"):
        snapshots.create(volume, b"run", b"s", quiet)
    nothing_is_left(volume)


def test_what_is_deleted_before_it_is_stored_is_in_it(
    volume: FileSystem, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was closed before the moment, only staged, and replaced and removed right after."""
    put(volume, b"run/f", b"x")
    Meddler(monkeypatch, lambda: put(volume, b"run/late", b"late"), lambda: put(volume, b"run/again", b"first"))
    mend = snapshots._Taking._mend_at_once

    def gone_then(taking: snapshots._Taking, found: Compared, captured: Captured) -> list[Late] | None:
        late = mend(taking, found, captured)
        volume.remove(b"run/late")
        put(volume, b"run/again", b"second")
        return late

    monkeypatch.setattr(snapshots._Taking, "_mend_at_once", gone_then)
    taken = snapshots.create(volume, b"run", b"s", quiet)
    assert get(volume, taken.place + b"/late") == b"late"
    assert get(volume, taken.place + b"/again") == b"first"
    assert taken.about.file_count == 3
    nothing_is_left(volume)
    volume.flush(FLUSH_S)
    assert_clean(url)


def test_a_file_that_is_open_for_writing(volume: FileSystem, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(volume, b"run/busy", b"first")
    volume.flush(FLUSH_S)
    tier = volume._tier
    file = tier.open_write(volume.stat(b"run/busy").inode, truncate=False)
    os.pwrite(file.descriptor, b"FIRST and more", 0)
    monkeypatch.setattr(filesystem_module, "BACKPRESSURE_WAIT_S", 0.2)
    with pytest.raises(DeadlineError):
        snapshots.create(volume, b"run", b"nobody stores it", quiet)

    def store(inodes: Sequence[InodeId]) -> dict[InodeId, int]:
        assert list(inodes) == [file.inode]
        volume._ssd.drainer.store_now(file)
        return {file.inode: file.version}

    taken = snapshots.create(volume, b"run", b"s", quiet, store)
    assert (taken.about.open_file_count, taken.about.size_bytes) == (1, 14)
    assert get(volume, taken.place + b"/busy") == b"FIRST and more"
    os.pwrite(file.descriptor, b"later", 0)
    tier.release(file, writer=True)
    volume.flush(FLUSH_S)
    assert get(volume, taken.place + b"/busy") == b"FIRST and more"
    assert get(volume, b"run/busy") == b"later and more"
    nothing_is_left(volume)
    assert_clean(url)


def test_it_is_one_moment_while_others_write(volume: FileSystem, url: str) -> None:
    """Another process moves a token from file to file, always making the new one before it removes the old one; so at each moment
    there are one or two, with numbers that follow one another."""
    for number in range(300):
        put(volume, b"run/still/%d" % number, b"x")
    put(volume, b"run/0/token", b"0")
    volume.flush(FLUSH_S)
    with subprocess.Popen([sys.executable, "-c", MOVER, url], env=child_environment(), stdout=subprocess.PIPE) as mover:
        assert mover.stdout is not None
        assert mover.stdout.readline() == b"going\n"
        for number in range(3):
            snapshots.create(volume, b"run", b"%d" % number, quiet)
        mover.terminate()
        mover.wait()
    seen = set()
    for number in range(3):
        place = b".snapshots/run/@%d" % number
        names = [path.rsplit(b"/", 2)[-2] for path, _ in volume.walk(place) if path.endswith(b"/token")]
        numbers = sorted(map(int, names))
        assert len(numbers) in {1, 2}
        assert numbers[-1] - numbers[0] == len(numbers) - 1
        assert len([path for path, _ in volume.walk(place + b"/still")]) == 300
        seen.add(numbers[0])
    assert len(seen) == 3, "it was moved meanwhile"
    nothing_is_left(volume)
    assert_clean(url)


MOVER = """
import sys
from tieredfs.meta.metadata import Creation
from tieredfs.model import FileKind
from tieredfs.volume import Volume
with Volume.open(sys.argv[1], purpose="test") as volume:
    metadata = volume.metadata
    run = metadata.resolve(b"run").inode
    names = [b"%d" % number for number in range(1000)]
    for number, name in enumerate(names[1:], start=1):
        made = metadata.create(run, name, Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
        metadata.create(made, b"token", Creation(FileKind.REGULAR, 0o644, 0, 0))
        before = metadata.resolve(b"run/" + names[number - 1]).inode
        metadata.unlink(before, b"token", volume.session)
        metadata.remove_directory(run, names[number - 1])
        if number == 1:
            print("going", flush=True)
"""


# ---- dying --------------------------------------------------------------------------------------------------------


def child_environment(point: str | None = None) -> dict[str, str]:
    armed = {} if point is None else {crash.ENVIRONMENT: point}
    return {**os.environ, **armed, "PYTHONPATH": os.pathsep.join(sys.path)}


CHILD = """
import sys
from tieredfs.volume import FileSystem, snapshots
quiet = lambda *_: None
with FileSystem.at(sys.argv[1], purpose="test") as volume:
    if sys.argv[2] == "create":
        snapshots.create(volume, b"run", b"new", quiet)
    elif sys.argv[2] == "rm":
        snapshots.remove(volume, b"run", b"old", quiet)
    else:
        snapshots.restore(volume, b"run", b"old", b"run", force=True, progress=quiet)
"""


@pytest.mark.parametrize(
    ("act", "point", "names", "content"),
    [
        ("create", "snapshot.built", [b"old"], b"new"),
        ("create", "snapshot.named", [b"new", b"old"], b"new"),
        ("rm", "snapshot.unnamed", [], b"new"),
        ("restore", "clone.built", [b"old"], b"new"),
        ("restore", "restore.swapped", [b"old"], b"old"),
    ],
)
def test_killed_it_was_done_or_not(url: str, act: str, point: str, names: list[bytes], content: bytes) -> None:
    with FileSystem.at(url, purpose="test") as volume:
        put(volume, b"run/f", b"old")
        snapshots.create(volume, b"run", b"old", quiet)
        put(volume, b"run/f", b"new")
        put(volume, b"run/d/g", b"new")
        volume.flush(FLUSH_S)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, url, act], env=child_environment(point), timeout=60, check=False
    )
    assert child.returncode == -9, "the crash happened"
    with Volume.open(url, purpose="test") as opened:
        assert [each.name for each in snapshots.listed(opened.metadata, b"run")] == names
        for session in opened.metadata.sessions():
            if session.session != opened.session:
                opened.metadata.end_session(session.session)
        removed = opened.collect_garbage(quiet).leftovers_removed
        assert removed > 0, "what was out of sight is gone, and its workplace"
        assert opened.collect_garbage(quiet).leftovers_removed == 0
    with FileSystem.at(url, purpose="test") as volume:
        nothing_is_left(volume)
        assert get(volume, b"run/f") == content
        for name in names:
            wanted = {b"old": b"old", b"new": b"new"}[name]
            assert get(volume, b".snapshots/run/@" + name + b"/f") == wanted
    assert_clean(url)
