"""The audit finds each kind of broken record, restores what follows from others, and never makes anything up.

Records are damaged behind the metadata's back, key by key.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curator.care_volume import BLOCK_BYTES, START_NS, CareVolume, care_volume, memory
from tieredfs.curator import FindingKind
from tieredfs.curator import audit as audit_module
from tieredfs.errors import NotFoundError
from tieredfs.format import keys, records
from tieredfs.format.keys import Counter
from tieredfs.kv.engine import Writer
from tieredfs.meta import inodes
from tieredfs.meta.metadata import Creation
from tieredfs.model import (
    NOBODY,
    ROOT,
    BlockId,
    DiskId,
    Extent,
    FileKind,
    InodeId,
    SessionId,
    ShortBlock,
)

Break = Callable[["Scene", Writer], object]


class Scene:
    """A volume with something of everything."""

    def __init__(self, volume: CareVolume) -> None:
        self.volume = volume
        metadata = volume.metadata
        volume.fill(2)
        self.file = metadata.lookup(ROOT, b"file-0").inode
        self.other = metadata.lookup(ROOT, b"file-1").inode
        self.block = volume.block_of(b"file-0")
        self.directory = self.make(FileKind.DIRECTORY, b"dir")
        self.inner = self.make(FileKind.DIRECTORY, b"inner", self.directory)
        self.leaf = self.make(FileKind.REGULAR, b"leaf", self.inner)
        self.symlink = metadata.create(ROOT, b"link", Creation(FileKind.SYMLINK, 0o777, 0, 0, target=b"dir")).inode
        metadata.link(self.file, self.inner, b"second name")
        metadata.set_xattr(self.other, b"user.color", b"blue")
        self.cache = metadata.register_cache("cache", "testhost", str(volume.root)).cache
        self.staged = metadata.create(ROOT, b"new", Creation(FileKind.REGULAR, 0o644, 0, 0, staged_in=self.cache)).inode
        self.orphan = self.make(FileKind.REGULAR, b"open")
        metadata.unlink(ROOT, b"open", volume.session)
        volume.store_file(b"dead", b"d" * 100)
        self.dead = volume.block_of(b"dead")
        volume.remove_file(b"dead")
        self.intent = metadata.reserve_block(volume.session)

    def make(self, kind: FileKind, name: bytes, parent: InodeId = ROOT) -> InodeId:
        return self.volume.metadata.create(parent, name, Creation(kind, 0o755, 0, 0)).inode


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with care_volume(tmp_path) as volume:
        scene = Scene(volume)
        volume.assert_clean()
        yield scene


def dump(scene: Scene) -> dict[bytes, bytes]:
    return dict(scene.volume.engine.read(lambda reader: list(reader.scan(b"", b"\xff" * 64))))


def change_inode(inode: str, **fields: object) -> Break:
    def apply(scene: Scene, writer: Writer) -> None:
        record = inodes.read(writer, getattr(scene, inode))
        inodes.save(writer, record._replace(**fields))  # type: ignore[arg-type]

    return apply


def delete(key: Callable[[Scene], bytes]) -> Break:
    def apply(scene: Scene, writer: Writer) -> None:
        assert writer.get(key(scene)) is not None, "there is something to delete"
        writer.delete(key(scene))

    return apply


def put(key: Callable[[Scene], bytes], value: bytes = records.EMPTY) -> Break:
    def apply(scene: Scene, writer: Writer) -> None:
        assert writer.get(key(scene)) != value, "this changes something"
        writer.put(key(scene), value)

    return apply


MENDED: dict[str, tuple[FindingKind, Break]] = {
    "file's link count": (FindingKind.LINK_COUNT, change_inode("file", link_count=5)),
    "directory's link count": (FindingKind.LINK_COUNT, change_inode("directory", link_count=2)),
    "root's link count": (
        FindingKind.LINK_COUNT,
        lambda scene, writer: inodes.save(writer, inodes.read(writer, ROOT)._replace(link_count=9)),
    ),
    "kind in an entry": (
        FindingKind.ENTRY_KIND,
        put(lambda scene: keys.name(scene.inner, b"leaf"), records.encode_entry(InodeId(0), FileKind.FIFO)),
    ),
    "directory's parent": (FindingKind.PARENT, change_inode("inner", parent=1)),
    "hint of extents": (FindingKind.HINT, change_inode("file", hints=0)),
    "hint of attributes": (FindingKind.HINT, change_inode("other", hints=records.MAY_HAVE_EXTENTS)),
    "user missing": (FindingKind.BLOCK_USER, delete(lambda scene: keys.block_user(scene.block.block, scene.file))),
    "user too many": (FindingKind.BLOCK_USER, put(lambda scene: keys.block_user(scene.block.block, scene.other))),
    "dead though used": (
        FindingKind.DEATH,
        put(lambda scene: keys.dead_block(scene.block.block), records.encode_number(START_NS)),
    ),
    "unused though not dead": (FindingKind.DEATH, delete(lambda scene: keys.dead_block(scene.dead.block))),
    "dead and not there": (
        FindingKind.DEATH,
        put(lambda scene: keys.dead_block(BlockId(999)), records.encode_number(1)),
    ),
    "disk does not list": (
        FindingKind.DISK_INDEX,
        delete(lambda scene: keys.block_on_disk(scene.block.chunks[2].disk, scene.block.block)),
    ),
    "nothing lists": (
        FindingKind.DISK_INDEX,
        delete(lambda scene: keys.block_on_disk(keys.ALL_DISKS, scene.block.block)),
    ),
    "disk lists in vain": (
        FindingKind.DISK_INDEX,
        put(lambda scene: keys.block_on_disk(DiskId(77), scene.block.block)),
    ),
    "disk lists no block": (FindingKind.DISK_INDEX, put(lambda scene: keys.block_on_disk(DiskId(1), BlockId(999)))),
    "whole and listed as short": (
        FindingKind.SHORT_INDEX,
        put(
            lambda scene: keys.short_block(0, scene.block.block),
            records.encode_short(ShortBlock(BlockId(0), 0, 1, 2, 3)),
        ),
    ),
    "no block and listed as short": (
        FindingKind.SHORT_INDEX,
        put(lambda scene: keys.short_block(0, BlockId(999)), records.encode_short(ShortBlock(BlockId(0), 0, 1, 2, 3))),
    ),
    "staged and not listed": (FindingKind.STAGED, delete(lambda scene: keys.staged(scene.cache, scene.staged))),
    "listed and not staged": (
        FindingKind.STAGED,
        put(lambda scene: keys.staged(scene.cache, scene.file), records.encode_staged(3, 4)),
    ),
    "listed at another version": (
        FindingKind.STAGED,
        put(lambda scene: keys.staged(scene.cache, scene.staged), records.encode_staged(9, 4)),
    ),
    "listing torn": (
        FindingKind.STAGED,
        put(lambda scene: keys.staged(scene.cache, scene.staged), b"\x01torn"),
    ),
    "listing of nothing torn": (
        FindingKind.STAGED,
        put(lambda scene: keys.staged(scene.cache, scene.file), b"\x01torn"),
    ),
    "orphan with a name": (FindingKind.ORPHAN, put(lambda scene: keys.orphan(scene.volume.session, scene.file))),
    "orphan of nobody": (
        FindingKind.ORPHAN,
        lambda scene, writer: (
            writer.delete(keys.orphan(scene.volume.session, scene.orphan)),
            writer.put(keys.orphan(SessionId(900), scene.orphan), records.EMPTY),
        ),
    ),
    "orphan that is not there": (
        FindingKind.ORPHAN,
        put(lambda scene: keys.orphan(scene.volume.session, InodeId(800))),
    ),
    "intent of nobody": (FindingKind.INTENT, put(lambda scene: keys.intent(scene.intent), records.encode_number(77))),
    "intent for what is written": (
        FindingKind.INTENT,
        put(lambda scene: keys.intent(scene.block.block), records.encode_number(1)),
    ),
    "counter of inodes": (
        FindingKind.COUNTER,
        put(lambda scene: keys.counter(Counter.INODE), records.encode_number(2)),
    ),
    "counter of blocks": (
        FindingKind.COUNTER,
        put(lambda scene: keys.counter(Counter.BLOCK), records.encode_number(1)),
    ),
    "file without a name": (
        FindingKind.UNREACHABLE,
        lambda scene, writer: (writer.delete(keys.name(ROOT, b"file-1")),),
    ),
    "directory without a name": (
        FindingKind.UNREACHABLE,
        lambda scene, writer: (
            writer.delete(keys.name(ROOT, b"dir")),
            inodes.save(writer, inodes.read(writer, ROOT)._replace(link_count=2)),
        ),
    ),
}


@pytest.mark.parametrize("case", MENDED)
def test_what_follows_from_other_records_is_found_and_restored(scene: Scene, case: str) -> None:
    kind, break_it = MENDED[case]
    if case == "kind in an entry":
        break_it = put(lambda s: keys.name(s.inner, b"leaf"), records.encode_entry(scene.leaf, FileKind.FIFO))
    before = dump(scene)
    scene.volume.engine.write(lambda writer: break_it(scene, writer))
    broken = dump(scene)
    assert broken != before, "the fault happened"
    found = scene.volume.check()
    assert not found.clean
    assert kind in {finding.kind for finding in found.findings}
    assert dump(scene) == broken, "a check alone changes nothing"
    repaired = scene.volume.check(repair=True)
    assert repaired.clean, repaired.findings
    assert all(finding.repaired for finding in repaired.findings)
    scene.volume.assert_clean()
    if kind not in {FindingKind.UNREACHABLE, FindingKind.ORPHAN, FindingKind.COUNTER, FindingKind.STAGED}:
        after = {key: value for key, value in dump(scene).items() if value}
        expected = {key: value for key, value in before.items() if value}
        if case not in {"hint of attributes", "unused though not dead", "intent of nobody"}:
            assert after == expected, "to the bit"


@settings(max_examples=15, deadline=None)
@given(cases=st.lists(st.sampled_from(sorted(set(MENDED) - {"kind in an entry"})), min_size=2, max_size=4, unique=True))
def test_several_damages_at_once_are_restored_too(cases: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="care-", dir=memory()) as root, care_volume(Path(root)) as volume:
        scene = Scene(volume)
        broken = 0
        for case in cases:
            with contextlib.suppress(AssertionError):  # another damage was there before
                volume.engine.write(partial(MENDED[case][1], scene))
                broken += 1
        assert broken
        assert not volume.check().clean
        repaired = volume.check(repair=True)
        assert repaired.clean, repaired.findings
        volume.assert_clean()


def test_inodes_without_a_name_are_found_again_in_lost_and_found(scene: Scene) -> None:
    volume = scene.volume

    def unname(writer: Writer) -> None:
        writer.delete(keys.name(ROOT, b"dir"))
        writer.delete(keys.name(ROOT, b"file-1"))

    volume.engine.write(unname)
    assert volume.check(repair=True).clean
    home = volume.metadata.lookup(ROOT, b"lost+found").inode
    found = {entry.name: entry.inode for entry in volume.metadata.list_directory(home, b"", 10)}
    assert found == {b"inode-%d" % inode: inode for inode in (scene.directory, scene.other)}
    assert volume.metadata.resolve(b"/lost+found/inode-%d/inner/leaf" % scene.directory).inode == scene.leaf
    assert volume.read_file(b"inode-%d" % scene.other, home) == volume.contents.pop(b"file-1")
    volume.assert_clean()
    volume.assert_contents()


TOLD: dict[str, tuple[FindingKind, Break, str]] = {
    "rotten record": (FindingKind.RECORD, put(lambda scene: keys.inode(scene.leaf), b"\x01rotten"), ""),
    "key of no table": (FindingKind.RECORD, put(lambda scene: b"\x00\x00?what", b""), "3f"),
    "entry of nothing": (
        FindingKind.ENTRY,
        put(lambda scene: keys.name(ROOT, b"ghost"), records.encode_entry(InodeId(700), FileKind.REGULAR)),
        "700",
    ),
    "entry nowhere": (
        FindingKind.ENTRY,
        lambda scene, writer: writer.put(
            keys.name(InodeId(701), b"x"), records.encode_entry(scene.file, FileKind.REGULAR)
        ),
        "no such directory",
    ),
    "directory with two names": (
        FindingKind.ENTRY,
        lambda scene, writer: writer.put(
            keys.name(ROOT, b"twin"), records.encode_entry(scene.inner, FileKind.DIRECTORY)
        ),
        "2 names",
    ),
    "content nowhere": (FindingKind.CONTENT, change_inode("file", version=7), "/file-0"),
    "content in a cache of nobody": (FindingKind.CONTENT, change_inode("file", staged_in=66), "/file-0"),
    "extents overlap": (
        FindingKind.EXTENTS,
        lambda scene, writer: writer.put(
            keys.extent(scene.file, 10), records.encode_extent(Extent(10, 5, scene.block.block, 0))
        ),
        "/file-0",
    ),
    "extent beyond its block": (
        FindingKind.EXTENTS,
        lambda scene, writer: writer.put(
            keys.extent(scene.file, BLOCK_BYTES),
            records.encode_extent(Extent(BLOCK_BYTES, 9, scene.block.block, BLOCK_BYTES)),
        ),
        "/file-0",
    ),
    "content of no inode": (
        FindingKind.EXTENTS,
        lambda scene, writer: writer.put(
            keys.extent(InodeId(702), 0), records.encode_extent(Extent(0, 5, scene.block.block, 0))
        ),
        "702",
    ),
    "no block": (FindingKind.NO_BLOCK, delete(lambda scene: keys.block(scene.block.block)), "/file-0"),
    "symlink to nothing": (FindingKind.ATTRIBUTE, delete(lambda scene: keys.symlink(scene.symlink)), "/link"),
    "attribute of nothing": (
        FindingKind.ATTRIBUTE,
        put(lambda scene: keys.xattr(InodeId(703), b"user.x"), records.encode_bytes(b"y")),
        "703",
    ),
    "loop": (
        FindingKind.UNREACHABLE,
        lambda scene, writer: (
            writer.delete(keys.name(ROOT, b"dir")),
            writer.put(keys.name(scene.inner, b"dir"), records.encode_entry(scene.directory, FileKind.DIRECTORY)),
            inodes.save(writer, inodes.read(writer, scene.directory)._replace(parent=scene.inner)),
        ),
        "root",
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_nothing_else_says_is_told_and_left_as_it_is(scene: Scene, case: str) -> None:
    kind, break_it, text = TOLD[case]
    scene.volume.engine.write(lambda writer: break_it(scene, writer))
    report = scene.volume.check(repair=True)
    assert not report.clean
    told = [finding for finding in report.findings if finding.kind is kind and not finding.repaired]
    assert told
    assert any(text in f"{finding.subject} {finding.detail}" for finding in told)
    assert scene.volume.read_file(b"file-1") == scene.volume.contents[b"file-1"], "nothing else is harmed"


def test_while_a_name_cannot_be_read_no_count_of_names_is_believed(scene: Scene) -> None:
    metadata = scene.volume.metadata
    scene.volume.engine.write(lambda writer: writer.put(keys.name(ROOT, b"file-0"), b"\x01rot"))
    scene.volume.engine.write(lambda writer: writer.put(keys.name(ROOT, b"file-1"), b"\x01rot"))
    report = scene.volume.check(repair=True)
    assert not report.clean
    assert FindingKind.RECORD in {finding.kind for finding in report.findings}
    assert metadata.attributes(scene.file).link_count == 2
    with pytest.raises(NotFoundError):
        metadata.lookup(ROOT, b"lost+found")


def test_inodes_are_counted_in_windows(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "LINKS_WINDOW", 4)
    scene.volume.assert_clean()
    scene.volume.engine.write(lambda writer: change_inode("leaf", link_count=3)(scene, writer))
    found = scene.volume.check()
    assert [(finding.kind, finding.subject) for finding in found.findings] == [
        (FindingKind.LINK_COUNT, f"inode {scene.leaf}")
    ]
    assert "/dir/inner/leaf" in found.findings[0].detail


def test_findings_beyond_the_limit_are_counted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "FINDINGS_MAX", 3)

    def damage(writer: Writer) -> None:
        for number in range(10):
            writer.put(keys.block_on_disk(DiskId(1), BlockId(5000 + number)), b"")

    scene.volume.engine.write(damage)
    report = scene.volume.check()
    assert (len(report.findings), report.omitted, report.clean) == (3, 7, False)


def test_a_volume_in_use_is_clean(scene: Scene) -> None:
    """Names come, go and move while the audit runs; one snapshot sees none of it half done."""
    import threading

    metadata = scene.volume.metadata
    stop = threading.Event()
    done = [0]

    def work() -> None:
        while not stop.is_set():
            name = b"busy-%d" % (done[0] % 7)
            metadata.create(scene.directory, name, Creation(FileKind.DIRECTORY, 0o755, 0, 0))
            metadata.rename(scene.directory, name, scene.inner, name)
            metadata.remove_directory(scene.inner, name)
            file = metadata.create(scene.inner, name, Creation(FileKind.REGULAR, 0o644, 0, 0)).inode
            metadata.link(file, scene.directory, name)
            metadata.unlink(scene.directory, name, NOBODY)
            metadata.unlink(scene.inner, name, NOBODY)
            done[0] += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while done[0] < 50:
            scene.volume.assert_clean()
    finally:
        stop.set()
        worker.join(60)
    scene.volume.assert_clean()
