"""What the model test does not say of names: limits, inheritance, times, receipts, conflicts, depth."""

import pytest

from tests.meta.conftest import ManualClock, Volume
from tieredfs import errors
from tieredfs.limits import LINK_COUNT_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, SYMLINK_BYTES_MAX
from tieredfs.meta.inodes import read as read_inode
from tieredfs.meta.inodes import save
from tieredfs.meta.metadata import Creation, Metadata, Receipt
from tieredfs.model import NOBODY, ROOT, AttributeChange, FileKind, InodeId, SessionId

DIRECTORY = Creation(FileKind.DIRECTORY, 0o755, 1, 2)
REGULAR = Creation(FileKind.REGULAR, 0o644, 1, 2)


def symlink(target: bytes) -> Creation:
    return Creation(FileKind.SYMLINK, 0o777, 1, 2, target=target)


# ---- names and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0"])
def test_impossible_names(metadata: Metadata, name: bytes) -> None:
    for call in (
        lambda: metadata.create(ROOT, name, REGULAR),
        lambda: metadata.lookup(ROOT, name),
        lambda: metadata.unlink(ROOT, name, NOBODY),
        lambda: metadata.remove_directory(ROOT, name),
        lambda: metadata.link(ROOT, ROOT, name),
        lambda: metadata.rename(ROOT, name, ROOT, b"x"),
        lambda: metadata.rename(ROOT, b"x", ROOT, name),
    ):
        with pytest.raises(errors.InvalidRequestError):
            call()


def test_longest_name(metadata: Metadata) -> None:
    name = b"\xff" * NAME_BYTES_MAX
    inode = metadata.create(ROOT, name, REGULAR).inode
    assert metadata.lookup(ROOT, name).inode == inode
    assert [entry.name for entry in metadata.list_directory(ROOT, b"", 10)] == [name]
    with pytest.raises(errors.NameTooLongError):
        metadata.create(ROOT, name + b"x", REGULAR)


def test_resolve(metadata: Metadata) -> None:
    directory = metadata.create(ROOT, b"d", DIRECTORY).inode
    file = metadata.create(directory, b"f", REGULAR).inode
    metadata.create(ROOT, b"l", symlink(b"d"))
    assert metadata.resolve(b"").inode == metadata.resolve(b"/").inode == ROOT
    assert metadata.resolve(b"/d//./f/").inode == metadata.resolve(b"d/f").inode == file
    assert metadata.resolve(b"/l").kind is FileKind.SYMLINK
    for path, error in {
        b"/none": errors.NotFoundError,
        b"/d/f/x": errors.NotDirectoryError,
        b"/l/f": errors.NotDirectoryError,
        b"/d/..": errors.InvalidRequestError,
        b"/d" * PATH_BYTES_MAX: errors.NameTooLongError,
    }.items():
        with pytest.raises(error):
            metadata.resolve(path)


def test_who_names_a_path_is_told_of_that_path(metadata: Metadata) -> None:
    metadata.create(ROOT, b"dir", DIRECTORY)
    for missing in (b"dir/no\xff/where", b"dir/nowhere", b"nowhere"):
        with pytest.raises(errors.NotFoundError) as caught:
            metadata.resolve(missing)
        assert str(caught.value) == "there is no " + missing.decode("utf-8", "backslashreplace")


def test_symlink_targets(metadata: Metadata) -> None:
    longest = b"t" * SYMLINK_BYTES_MAX
    shown = metadata.create(ROOT, b"l", symlink(longest))
    assert shown.size_bytes == SYMLINK_BYTES_MAX
    assert metadata.read_link(shown.inode) == longest
    with pytest.raises(errors.NameTooLongError):
        metadata.create(ROOT, b"m", symlink(longest + b"x"))
    with pytest.raises(errors.InvalidRequestError):
        metadata.create(ROOT, b"m", symlink(b""))
    with pytest.raises(errors.InvalidRequestError):
        metadata.read_link(ROOT)
    with pytest.raises(errors.NotFoundError):
        metadata.read_link(InodeId(999))


def test_listing_in_steps_sees_each_name_once(metadata: Metadata) -> None:
    names = sorted([b"%d" % number for number in range(50)] + [b"5\0".replace(b"\0", b"\x01"), b"\xff\xff"])
    for name in names:
        metadata.create(ROOT, name, REGULAR)
    seen: list[bytes] = []
    while step := metadata.list_directory_plus(ROOT, seen[-1] if seen else b"", 7):
        assert all(entry.inode == shown.inode for entry, shown in step)
        seen += [entry.name for entry, _ in step]
    assert seen == names
    with pytest.raises(errors.NotDirectoryError):
        metadata.list_directory(metadata.lookup(ROOT, b"1").inode, b"", 1)
    with pytest.raises(errors.NotFoundError):
        metadata.list_directory(InodeId(999), b"", 1)


def test_device_nodes(metadata: Metadata) -> None:
    shown = metadata.create(ROOT, b"n", Creation(FileKind.CHARACTER_DEVICE, 0o600, 0, 0, device=0x0103))
    assert (shown.device, shown.kind) == (0x0103, FileKind.CHARACTER_DEVICE)
    assert metadata.attributes(shown.inode) == shown


# ---- inheritance, links, times ---------------------------------------------------------------------------------------


def test_set_gid_directory_gives_its_group_and_the_bit_to_directories(metadata: Metadata) -> None:
    parent = metadata.create(ROOT, b"p", Creation(FileKind.DIRECTORY, 0o2775, 1, 50)).inode
    below = metadata.create(parent, b"d", DIRECTORY)
    file = metadata.create(parent, b"f", REGULAR)
    assert (below.gid, below.mode) == (50, 0o2755)
    assert (file.gid, file.mode) == (50, 0o644)
    assert metadata.create(ROOT, b"f", REGULAR).gid == 2


def test_too_many_links(volume: Volume) -> None:
    metadata = volume.metadata
    inode = metadata.create(ROOT, b"f", REGULAR).inode
    record = volume.engine.read(lambda reader: read_inode(reader, inode))
    volume.engine.write(lambda writer: save(writer, record._replace(link_count=LINK_COUNT_MAX)))
    with pytest.raises(errors.TooManyLinksError):
        metadata.link(inode, ROOT, b"g")
    volume.engine.write(lambda writer: save(writer, record))


def test_times(metadata: Metadata) -> None:
    directory = metadata.create(ROOT, b"d", DIRECTORY).inode
    other = metadata.create(ROOT, b"e", DIRECTORY).inode

    def moved(change: object, inode: InodeId) -> bool:
        before = metadata.attributes(inode)
        assert callable(change)
        change()
        after = metadata.attributes(inode)
        assert after.atime_ns == before.atime_ns
        assert (after.mtime_ns > before.mtime_ns) <= (after.ctime_ns > before.ctime_ns)
        return after.mtime_ns > before.mtime_ns

    assert moved(lambda: metadata.create(directory, b"f", REGULAR), directory)
    file = metadata.lookup(directory, b"f").inode
    assert moved(lambda: metadata.link(file, directory, b"g"), directory)
    assert moved(lambda: metadata.unlink(directory, b"g", NOBODY), directory)
    assert moved(lambda: metadata.rename(directory, b"f", other, b"f"), directory)
    assert moved(lambda: metadata.rename(other, b"f", directory, b"f"), other)
    assert not moved(lambda: metadata.set_attributes(directory, AttributeChange(mode=0o700)), directory)
    before = metadata.attributes(file)
    metadata.rename(directory, b"f", directory, b"h")
    after = metadata.attributes(file)
    assert after.mtime_ns == before.mtime_ns
    assert after.ctime_ns > before.ctime_ns


def test_set_attributes_leaves_what_is_none(metadata: Metadata) -> None:
    before = metadata.create(ROOT, b"f", REGULAR)
    after = metadata.set_attributes(before.inode, AttributeChange(uid=7, atime_ns=-5, mtime_ns=1 << 60))
    assert (after.uid, after.gid, after.mode, after.atime_ns, after.mtime_ns) == (7, 2, 0o644, -5, 1 << 60)
    assert after.ctime_ns > before.ctime_ns
    assert metadata.attributes(before.inode) == after


# ---- races that callers guard against --------------------------------------------------------------------------------


def test_only_the_expected_inode_is_replaced_or_removed(metadata: Metadata) -> None:
    first = metadata.create(ROOT, b"a", REGULAR).inode
    second = metadata.create(ROOT, b"b", REGULAR).inode
    for wrong in (first, InodeId(0)):
        with pytest.raises(errors.ConflictError):
            metadata.rename(ROOT, b"a", ROOT, b"b", expected_target=wrong)
        with pytest.raises(errors.ConflictError):
            metadata.unlink(ROOT, b"b", NOBODY, expected_target=wrong)
    with pytest.raises(errors.ConflictError):
        metadata.rename(ROOT, b"a", ROOT, b"c", expected_target=second)
    metadata.rename(ROOT, b"a", ROOT, b"c", expected_target=InodeId(0))
    removed = metadata.rename(ROOT, b"c", ROOT, b"b", expected_target=second, holder=SessionId(3))
    assert removed is not None
    assert (removed.inode, removed.gone) == (second, True)
    assert metadata.orphans() == [(3, second)]
    with pytest.raises(errors.NotFoundError):
        metadata.link(second, ROOT, b"back")
    assert metadata.unlink(ROOT, b"b", NOBODY, expected_target=first).inode == first


def test_receipts_are_left_by_what_was_carried_out(metadata: Metadata) -> None:
    directory = metadata.create(ROOT, b"d", DIRECTORY, Receipt(5, 0, 100)).inode
    file = metadata.create(directory, b"f", REGULAR, Receipt(5, 1, 101)).inode
    metadata.link(file, directory, b"g", Receipt(5, 2, 102))
    metadata.unlink(directory, b"g", NOBODY, Receipt(5, 3, 103))
    metadata.rename(directory, b"f", ROOT, b"f", receipt=Receipt(5, 4, 104))
    metadata.remove_directory(ROOT, b"d", Receipt(6, 0, 105))
    with pytest.raises(errors.AlreadyExistsError):
        metadata.create(ROOT, b"f", REGULAR, Receipt(5, 9, 106))
    assert [metadata.carried_out(5, unique) for unique in range(100, 107)] == [True] * 5 + [False] * 2
    assert metadata.carried_out(6, 105)
    metadata.create(ROOT, b"x", REGULAR, Receipt(5, 0, 107))
    assert not metadata.carried_out(5, 100), "one receipt per slot"
    metadata.forget_receipts(5)
    assert not metadata.carried_out(5, 107)
    assert metadata.carried_out(6, 105)


# ---- depth -----------------------------------------------------------------------------------------------------------


def test_a_thousand_nested_directories_and_no_cycle(metadata: Metadata) -> None:
    directory = ROOT
    for _ in range(1000):
        directory = metadata.create(directory, b"d", DIRECTORY).inode
    with pytest.raises(errors.InvalidRequestError):
        metadata.rename(ROOT, b"d", directory, b"d")
    metadata.create(ROOT, b"e", DIRECTORY)
    metadata.rename(ROOT, b"e", directory, b"e")
    assert metadata.resolve(b"/d" * 1000 + b"/e").link_count == 2


def test_the_walk_to_the_root_is_bounded(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieredfs.meta.renames.DIRECTORY_DEPTH_MAX", 10)
    directory = ROOT
    for _ in range(20):
        directory = metadata.create(directory, b"d", DIRECTORY).inode
    metadata.create(ROOT, b"e", DIRECTORY)
    with pytest.raises(errors.InvalidRequestError, match="deeper"):
        metadata.rename(ROOT, b"e", directory, b"e")


def test_clock_of_the_tests_never_repeats() -> None:
    clock = ManualClock()
    assert len({clock.wall_ns() for _ in range(10)}) == 10
