"""A volume by paths: files appear whole, replacing is atomic, by-reference files move no bytes, slots are taken over."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.whole_files import get, put
from tieredfs.config import parse_code
from tieredfs.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
    TieredError,
    UnavailableError,
)
from tieredfs.host.files import LocalFiles
from tieredfs.limits import KIB, MIB
from tieredfs.meta import names
from tieredfs.model import NO_CACHE, Attributes, Durability, FileKind, InodeId
from tieredfs.volume import FileSystem, format_volume
from tieredfs.volume.contract import Naming, Part, Writing


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite://{tmp_path}/volume.db"
    format_volume(
        made,
        [f"disk://{tmp_path}/d{{0..2}}"],
        code=parse_code("rs:2+1"),
        durability=Durability.SSD,
        name="paths",
        block_bytes=1 * MIB,
    )
    return made


@pytest.fixture
def volume(url: str) -> Iterator[FileSystem]:
    with FileSystem.at(url, purpose="test") as opened:
        yield opened


def test_a_file_has_no_name_before_its_commit(volume: FileSystem) -> None:
    with volume.create() as writing:
        os.pwrite(writing.descriptor, b"whole", 0)
        assert list(volume.walk(b"")) == []
        made = writing.commit(b"a/b/c")
    assert made.size_bytes == 5
    assert get(volume, b"/a//b/c/") == b"whole"
    assert [path for path, _ in volume.walk(b"")] == [b"a", b"a/b", b"a/b/c"]


def test_what_is_not_committed_leaves_nothing(volume: FileSystem) -> None:
    with volume.create() as writing:
        os.pwrite(writing.descriptor, bytes(MIB), 0)
        inode = writing.inode
    with pytest.raises(NotFoundError):
        volume.volume.metadata.attributes(inode)
    assert volume.volume.metadata.orphans() == []
    assert volume.volume.staged().file_count == 0
    with pytest.raises(InvalidRequestError, match="committed or discarded"):
        writing.commit(b"late")


def test_replacing_is_atomic_and_readers_keep_what_they_opened(volume: FileSystem) -> None:
    put(volume, b"f", b"old")
    with volume.open(b"f") as reading:
        put(volume, b"f", b"new!")
        target = bytearray(8)
        assert reading.read_into(0, memoryview(target)) == 3
        assert target[:3] == b"old"
    assert get(volume, b"f") == b"new!"
    assert volume.volume.metadata.orphans() == []


def test_conditions_decide_in_the_transaction(volume: FileSystem) -> None:
    class RefusedError(TieredError):
        pass

    def refuse(now: Attributes | None) -> None:
        raise RefusedError(str(now and now.size_bytes))

    put(volume, b"f", b"old")
    with volume.create() as writing:
        os.pwrite(writing.descriptor, b"new", 0)
        with pytest.raises(RefusedError, match="3"):
            writing.commit(b"f", condition=refuse)
        with pytest.raises(AlreadyExistsError):
            writing.commit(b"f", replace=False)
        assert get(volume, b"f") == b"old"
        writing.commit(b"g")
    assert get(volume, b"g") == b"new"
    with pytest.raises(RefusedError):
        volume.remove(b"g", condition=refuse)
    assert get(volume, b"g") == b"new"


def test_one_of_many_creators_wins(volume: FileSystem) -> None:
    outcomes: list[bool] = []

    def compete(number: int) -> None:
        try:
            put(volume, b"lock", b"%d" % number, replace=False)
        except AlreadyExistsError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_attributes_come_with_the_name(volume: FileSystem) -> None:
    made = put(volume, b"f", b"x", xattrs={b"user.etag": b"abc"}, mode=0o600)
    assert made.mode == 0o600
    assert volume.get_xattr(b"f", b"user.etag") == b"abc"
    assert volume.list_xattrs(b"f") == [b"user.etag"]
    volume.set_xattr(b"f", b"user.more", b"1")
    assert volume.list_xattrs(b"f") == [b"user.etag", b"user.more"]


def grouped(volume: FileSystem, content: bytes) -> Writing:
    (writing,) = volume.stage_group([content])
    assert not isinstance(writing, Exception)
    assert writing.durable
    return writing


def refuse(found: Attributes | None) -> None:
    raise ConflictError(f"found {found}")


def test_many_names_in_one_transaction_each_for_itself(volume: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    put(volume, b"d/replaced", b"old")
    with volume.open(b"d/replaced") as reading:
        wanted = [
            (b"1", Naming(b"d/one", xattrs=((b"user.x", b"y"),))),
            (b"2", Naming(b"d/refused", condition=refuse)),
            (b"3", Naming(b"d/replaced")),
            (b"4", Naming(b"d/one")),
            (b"5", Naming(b"d/one", replace=False)),
            (b"6", Naming(b"d/too-large", xattrs=((b"user.x", bytes(65 * KIB)),))),
            (b"7", Naming(b"d", absent=b"")),
            (b"8", Naming(b"d/beside", absent=b"d/one")),
            (b"9", Naming(b"d/replaced/below")),
        ]
        group = [(grouped(volume, content), naming) for content, naming in wanted]
        engine, transactions = volume.volume.metadata._engine, 0
        write = engine.write

        def counted(function: Any) -> Any:
            nonlocal transactions
            transactions += threading.current_thread() is threading.main_thread()
            return write(function)

        with monkeypatch.context() as patched:
            patched.setattr(engine, "write", counted)
            outcomes = volume.commit_group(group)
        assert transactions == 1
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds[1] is ConflictError
        assert kinds[4] is AlreadyExistsError
        assert kinds[6] is IsDirectoryError
        assert kinds[7] is ConflictError
        assert all(issubclass(kind, TieredError) for kind in (kinds[5], kinds[8]))
        assert [number for number, kind in enumerate(kinds) if kind is Attributes] == [0, 2, 3]
        assert get(volume, b"d/one") == b"4"
        target = bytearray(3)
        assert (reading.read_into(0, memoryview(target)), bytes(target)) == (3, b"old")
    assert get(volume, b"d/replaced") == b"3"
    assert [entry.name for entry, _ in volume.entries(b"d")] == [b"one", b"replaced"]
    again = group[1][0].commit(b"d/after-all")
    assert (again.size_bytes, get(volume, b"d/after-all")) == (1, b"2")
    for writing, _ in group:
        writing.discard()
    assert volume.commit_group([]) == []
    volume.sync_names()
    volume.flush(30)
    assert {path: get(volume, path) for path, found in volume.walk(b"d") if found.kind is FileKind.REGULAR} == {
        b"d/after-all": b"2",
        b"d/one": b"4",
        b"d/replaced": b"3",
    }


def test_what_a_group_replaces_is_deleted_with_it_unless_it_is_open_or_stored(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = volume.commit_group([(grouped(volume, b"old"), Naming(b"s"))])
    volume.flush(30)
    (closed,) = volume.commit_group([(grouped(volume, b"old"), Naming(b"c"))])
    opened = put(volume, b"o", b"old")
    assert isinstance(stored, Attributes)
    assert isinstance(closed, Attributes)
    metadata, later = volume.volume.metadata, list[int]()
    inodes_before = metadata.count_inodes()
    with volume.open(b"o") as reading:
        with monkeypatch.context() as patched:
            patched.setattr(volume._burials, "bury", later.extend)
            outcomes = volume.commit_group(
                [(grouped(volume, b"new"), Naming(path)) for path in (b"s", b"c", b"o", b"c")]
            )
        assert [type(outcome) for outcome in outcomes] == [Attributes] * 4
        assert later == [stored.inode], "its blocks are let go by somebody for whom nobody waits"
        assert {inode for _, inode in metadata.orphans()} == {stored.inode, opened.inode}
        for gone in (closed.inode, outcomes[1].inode):  # type: ignore[union-attr]
            with pytest.raises(NotFoundError):
                metadata.attributes(gone)
        assert metadata.count_inodes() == inodes_before + 4 - 2
        target = bytearray(3)
        assert (reading.read_into(0, memoryview(target)), bytes(target)) == (3, b"old")
    assert {inode for _, inode in metadata.orphans()} == {stored.inode}
    assert [get(volume, path) for path in (b"s", b"c", b"o")] == [b"new"] * 3


def test_what_the_ssd_has_of_a_replaced_file_goes_when_that_is_durable(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may take the transaction back, and then the name must find its bytes."""
    volume.commit_group([(grouped(volume, b"old"), Naming(b"f"))])
    metadata, events, ended = volume.volume.metadata, list[str](), threading.Event()
    sync, discard = metadata.sync, volume._tier.discard

    def synced() -> None:
        sync()
        events.append("sync")

    def discarded(inode: InodeId) -> None:
        discard(inode)
        events.append("discard")
        ended.set()

    with monkeypatch.context() as patched:
        patched.setattr(metadata, "sync", synced)
        patched.setattr(volume._tier, "discard", discarded)
        volume.commit_group([(grouped(volume, b"new"), Naming(b"f"))])
        assert ended.wait(30)
    assert events == ["sync", "discard"]


def test_a_group_is_durable_before_its_records_and_takes_one_sync(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that survives a power cut must find its bytes."""
    volume.commit_group([(grouped(volume, b"first"), Naming(b"first"))])  # there is a segment now
    engine, events = volume.volume.metadata._engine, list[str]()
    write, sync = engine.write, LocalFiles.sync

    def written(function: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            events.append("records")
        return write(function)

    def synced(files: LocalFiles, descriptor: int) -> None:
        sync(files, descriptor)
        if threading.current_thread() is threading.main_thread():
            events.append(os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))))

    with monkeypatch.context() as patched:
        patched.setattr(engine, "write", written)
        patched.setattr(LocalFiles, "sync", synced)
        staged = volume.stage_group([b"%d" % number for number in range(12)])
        group = [(one, Naming(b"f%d" % n)) for n, one in enumerate(staged) if not isinstance(one, Exception)]
        assert all(isinstance(found, Attributes) for found in volume.commit_group(group))
    assert events == ["segments", "records"]
    assert [get(volume, b"f%d" % number) for number in range(12)] == [b"%d" % number for number in range(12)]


def test_a_transaction_that_fails_takes_all_of_its_names_along(
    volume: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(volume, b"kept", b"old")
    group = [(grouped(volume, b"new"), Naming(path)) for path in (b"kept", b"another")]

    def fail(*_: object) -> None:
        raise UnavailableError("the disk of the metadata is full")

    with monkeypatch.context() as patched:
        patched.setattr(names, "put_entry", fail)
        with pytest.raises(UnavailableError):
            volume.commit_group(group)
    for writing, _ in group:
        writing.discard()
    assert get(volume, b"kept") == b"old"
    assert volume.look([b"another"]) == [None]


def test_files_by_reference_move_no_bytes(volume: FileSystem) -> None:
    first, second = os.urandom(3 * MIB + 17), os.urandom(700 * KIB)
    one, two = put(volume, b"one", first), put(volume, b"two", second)
    parts = [Part(one.inode, MIB - 5, MIB + 10), Part(two.inode, 0, len(second)), Part(one.inode, 0, 1)]
    with volume.splice(parts) as writing:
        with pytest.raises(InvalidRequestError, match="by reference"):
            _ = writing.descriptor
        stored_before = volume.volume.metadata.list_blocks(volume_start := 0, 1000)  # type: ignore[arg-type]
        made = writing.commit(b"joined")
    expected = first[MIB - 5 :][: MIB + 10] + second + first[:1]
    assert made.size_bytes == len(expected)
    assert made.staged_in == NO_CACHE
    assert get(volume, b"joined") == expected
    assert volume.volume.metadata.list_blocks(volume_start, 1000) == stored_before  # type: ignore[arg-type]
    volume.remove(b"one")
    volume.remove(b"two")
    assert get(volume, b"joined") == expected
    with pytest.raises(InvalidRequestError):
        volume.splice([Part(made.inode, 0, len(expected) + 1)])


def test_a_durable_file_is_stored_once(volume: FileSystem) -> None:
    content = os.urandom(2 * MIB)
    put(volume, b"f", content, durability=Durability.STORE)
    volume.flush(30)
    assert volume.is_stored(b"f")
    assert volume._ssd.drainer.stored_bytes == len(content), "stored when asked for, and not again when it was closed"
    assert get(volume, b"f") == content


def test_trees(volume: FileSystem) -> None:
    for number in range(5):
        put(volume, b"t/%d/f" % number, b"x")
    put(volume, b"file", b"")
    volume.rename(b"t/0", b"u/v/w")
    assert get(volume, b"u/v/w/f") == b"x"
    assert volume.remove_tree(b"t") == 4
    with pytest.raises(NotFoundError):
        volume.stat(b"t")
    assert [entry.name for entry, _ in volume.entries(b"")] == [b"file", b"u"]
    assert [entry.name for entry, _ in volume.entries(b"", after=b"file")] == [b"u"]
    assert volume.make_directories(b"u/v").kind is FileKind.DIRECTORY


def test_bad_paths(volume: FileSystem) -> None:
    put(volume, b"file", b"x")
    with pytest.raises(InvalidRequestError, match=r"no `\.`"):
        volume.stat(b"a/../b")
    with pytest.raises(NotDirectoryError):
        put(volume, b"file/below", b"")
    volume.make_directories(b"d")
    with pytest.raises(IsDirectoryError):
        volume.open(b"d")
    with pytest.raises(IsDirectoryError):
        put(volume, b"d", b"")
    with pytest.raises(InvalidRequestError):
        volume.remove(b"")
    assert volume.volume.metadata.orphans() == []


def test_each_process_has_a_slot_and_leftovers_are_taken_over(url: str, tmp_path: Path) -> None:
    content = os.urandom(100 * KIB)
    with FileSystem.at(url, purpose="one") as one, FileSystem.at(url, purpose="two") as two:
        assert {path.name for path in (tmp_path / "clients").iterdir()} == {"0", "1"}
        put(one, b"f", content)
        assert get(two, b"f") == content, "staged by one, borrowed by two"
        one._ssd.drainer.close()
        put(one, b"g", content)
        one._ssd.drainer._thread = None
    with FileSystem.at(url, purpose="three") as three:
        three.flush(30)
        assert three.is_stored(b"g")
        assert get(three, b"g") == content


def test_what_another_process_has_on_its_ssd_is_not_fetched(volume: FileSystem, url: str, tmp_path: Path) -> None:
    put(volume, b"f", b"stored and here")
    volume.flush(60)
    inode = volume.stat(b"f").inode
    with FileSystem.at(url, purpose="test") as neighbour:
        with neighbour.open(b"f") as reading:
            assert reading.descriptor is not None
            target = bytearray(40)
            assert target[: reading.read_into(0, memoryview(target))] == b"stored and here"
            put(volume, b"f", b"new")
            assert target[: reading.read_into(7, memoryview(target))] == b"and here"
        assert get(neighbour, b"f") == b"new"
        assert not neighbour._tier.holds(inode, 1), "nothing was brought here"
    elsewhere = str(tmp_path / "of-a-mount")
    with FileSystem.at(url, purpose="test", cache_dir=elsewhere) as mount:
        put(mount, b"g", b"written in place, perhaps")
        mount.flush(60)
        found = mount.stat(b"g")
        assert mount._tier.holds(found.inode, found.version)
        assert volume.open_here(found) is None, "what a mount has may change under its readers"
        assert get(volume, b"g") == b"written in place, perhaps"
