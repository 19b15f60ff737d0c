"""The metadata database is lost, and comes back from a dump: with what it knew, and without what would be wrong by now."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.whole_files import get
from tieredfs.cache.layout import claimed
from tieredfs.config import parse_code
from tieredfs.errors import (
    BusyError,
    CorruptError,
    DataLossError,
    ForeignDataError,
    NewerFormatError,
    NotFoundError,
    UnavailableError,
    VolumeExistsError,
)
from tieredfs.host import crash, local_host
from tieredfs.limits import DUMP_COPIES, DUMPS_KEPT, MIB
from tieredfs.meta.dumping import IDS_SKIPPED
from tieredfs.model import Disk, DiskId, DiskState, Durability, InodeId
from tieredfs.volume import FileSystem, Volume, care_process, destroy_volume, format_volume, load_volume
from tieredfs.volume import caretaker as caretaker_module
from tieredfs.volume.caretaker import Caretaker
from tieredfs.volume.dumps import in_order
from tieredfs.volume.loading import LoadReport

FLUSH_S = 30.0
WAIT_S = 60.0
DISKS = 5


def quiet(_done: int, _total: int, _unit: str) -> None:
    pass


class Place:
    """A volume rs:2+2 over five directories, its database, and what is done to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "meta" / "volume.db"
        self.url = f"sqlite://{self.database}"
        self.disks = [root / f"d{number}" for number in range(DISKS)]
        format_volume(
            self.url,
            [f"disk://{disk}" for disk in self.disks],
            code=parse_code("rs:2+2"),
            durability=Durability.SSD,
            name="lost",
            block_bytes=MIB,
        )

    def open(self) -> FileSystem:
        return FileSystem.at(self.url, purpose="test")

    def lose_database(self) -> None:
        for path in self.database.parent.glob("volume.db*"):
            path.unlink()

    def load(self, *sources: Path | str) -> LoadReport:
        return load_volume(self.url, [str(source) for source in sources or self.disks], quiet)

    def dumps(self, disk: int) -> list[Path]:
        return sorted((self.disks[disk] / "metadata").glob("*"))

    def chunks(self) -> list[Path]:
        """Files of chunks, in the order of the disks. Any one disk may have none: blocks have four of five."""
        return [path for disk in self.disks for path in sorted((disk / "chunks").rglob("*.*")) if path.is_file()]

    def used_disk(self) -> DiskId:
        """The first that has a chunk."""
        return DiskId(1 + next(at for at, disk in enumerate(self.disks) if disk in self.chunks()[0].parents))

    def assert_clean(self) -> None:
        with Volume.open(self.url, purpose="test") as volume:
            volume.collect_garbage(quiet)
            report = volume.check(repair=False, progress=quiet)
        assert report.findings == ()
        assert report.clean


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def put(volume: FileSystem, path: bytes, content: bytes) -> InodeId:
    with volume.create() as writing:
        os.pwrite(writing.descriptor, content, 0)
        return writing.commit(path, xattrs={b"user.name": path}).inode


def content(seed: int, size: int = 300_000) -> bytes:
    return seed.to_bytes(4, "little") * (size // 4)


@pytest.fixture
def filled(place: Place) -> dict[bytes, bytes]:
    """Stored and staged files, and a dump on the disks behind them."""
    files = {b"dir/%d" % number: content(number) for number in range(6)}
    with place.open() as volume:
        for path, data in files.items():
            put(volume, path, data)
        volume.flush(FLUSH_S)
        files[b"dir/staged"] = b"on the SSD only"
        put(volume, b"dir/staged", files[b"dir/staged"])
        report = volume.volume.dump_to_disks(quiet)
        assert len(report.paths) == DUMP_COPIES
    return files


def assert_all_there(place: Place, files: dict[bytes, bytes]) -> None:
    with place.open() as volume:
        for path, data in files.items():
            assert get(volume, path) == data, path
            assert volume.volume.metadata.get_xattr(volume.stat(path).inode, b"user.name") == path


# ---- what comes back -------------------------------------------------------------------------------------------------


def test_all_comes_back_stored_and_staged(place: Place, filled: dict[bytes, bytes]) -> None:
    place.lose_database()
    report = place.load()
    assert (report.name, report.away, report.unusable) == ("lost", {}, ())
    assert report.chunks.moved == report.chunks.newer == 0
    assert report.chunks.chunks > 0
    assert_all_there(place, filled)
    place.assert_clean()


def test_what_was_staged_comes_back_on_a_machine_that_is_called_otherwise_by_now(
    place: Place, filled: dict[bytes, bytes]
) -> None:
    place.lose_database()
    load_volume(place.url, [str(disk) for disk in place.disks], quiet, host=replace(local_host(), name="after"))
    assert_all_there(place, filled)


def test_ids_go_on_far_above_what_anybody_can_have_seen(place: Place, filled: dict[bytes, bytes]) -> None:
    with place.open() as volume:
        last_inode = put(volume, b"after the dump", content(99))
        inodes = volume.volume.metadata.count_inodes()
    place.lose_database()
    place.load()
    with place.open() as volume:
        assert volume.volume.metadata.count_inodes() <= inodes, "the estimate does not jump"
        made = put(volume, b"new", content(7))
        volume.flush(FLUSH_S)
        blocks = {extent.block for extent in volume.volume.metadata.extents(volume.stat(b"new").inode)}
    assert made > IDS_SKIPPED > last_inode
    assert min(blocks) > IDS_SKIPPED
    assert_all_there(place, filled)
    place.assert_clean()


def test_what_was_written_since_is_gone_and_does_no_harm(place: Place, filled: dict[bytes, bytes]) -> None:
    with place.open() as volume:
        put(volume, b"later", content(50))
        volume.flush(FLUSH_S)
    place.lose_database()
    newer = place.load().chunks.newer
    assert newer >= 4
    with place.open() as volume:
        with pytest.raises(NotFoundError):
            volume.stat(b"later")
        assert volume.volume.collect_garbage(quiet).chunks_deleted == newer
    assert_all_there(place, filled)
    place.assert_clean()


def test_a_copy_in_a_cache_is_not_taken_for_another_content_of_the_same_version(
    place: Place, filled: dict[bytes, bytes]
) -> None:
    path = b"dir/1"
    with place.open() as volume:
        dumped = volume.stat(path)
        overwrite(volume, dumped.inode, content(77))
        volume.flush(FLUSH_S)
        assert volume.stat(path).version == dumped.version + 1
    place.lose_database()
    place.load()
    slots = f"{place.database.parent}/clients"
    with (
        claimed(f"{slots}/0", local_host().files),
        place.open() as volume,
    ):  # in another cache: the first one still has its copies
        assert volume.stat(path) == dumped
        overwrite(volume, dumped.inode, content(88))
        volume.flush(FLUSH_S)
        assert volume.stat(path).version == dumped.version + 1
    assert list(Path(slots).glob(f"0/content/*/{dumped.inode:016x}.{dumped.version + 1:x}")), "the other content"
    with place.open() as volume:
        assert get(volume, path) == content(88)


def overwrite(volume: FileSystem, inode: InodeId, data: bytes) -> None:
    """In place, as a mount does."""
    tier = volume._tier
    file = tier.open_write(inode, truncate=True)
    os.pwrite(file.descriptor, data, 0)
    tier.release(file, writer=True)


def test_chunks_that_have_moved_since_are_found(place: Place, filled: dict[bytes, bytes]) -> None:
    used = place.used_disk()
    with Volume.open(place.url, purpose="test") as volume:
        moved = volume.drain_disk(used, quiet).chunks_moved
    assert moved > 0
    shutil.rmtree(place.disks[used - 1])
    place.lose_database()
    report = place.load()
    assert report.chunks.moved == moved
    assert list(report.away) == [used]
    assert "not a disk" in report.away[used]
    with Volume.open(place.url, purpose="test") as volume:
        assert volume.collect_garbage(quiet).chunks_deleted == 0
        volume.rebuild_disk(used, quiet)
    assert_all_there(place, filled)
    place.assert_clean()


@pytest.mark.allows_warnings("damaged beyond repair")
def test_a_file_that_was_deleted_since_and_collected_is_lost_and_named(
    place: Place, filled: dict[bytes, bytes]
) -> None:
    block = place.chunks()[0].name.split(".")[0]
    for path in place.root.glob(f"d?/chunks/*/{block}.*"):
        path.unlink()  # as garbage collection does
    shutil.rmtree(place.root / "meta" / "clients")
    place.lose_database()
    place.load()
    with Volume.open(place.url, purpose="test") as volume:
        report = volume.check(repair=False, progress=quiet)
    assert not report.clean
    with place.open() as opened:
        lost = [path for path in filled if path != b"dir/staged" and not readable(opened, path)]
    assert lost
    assert all(any(path.decode() in str(finding) for finding in report.findings) for path in lost)


def readable(volume: FileSystem, path: bytes) -> bool:
    try:
        return get(volume, path) == content(int(path[4:]))
    except DataLossError:
        return False


# ---- fences ----------------------------------------------------------------------------------------------------------


def test_metadata_of_before_open_no_disk_and_no_cache_any_more(place: Place, filled: dict[bytes, bytes]) -> None:
    old = place.root / "old" / "volume.db"
    old.parent.mkdir()
    shutil.copy(place.database, old)
    place.lose_database()
    place.load()
    with Volume.open(f"sqlite://{old}", purpose="test") as volume:
        assert len(volume.problems) == DISKS
        assert all("belongs to volume" in problem for problem in volume.problems.values())
        assert volume.collect_garbage(quiet).chunks_deleted == 0
    assert_all_there(place, filled)


def test_a_cache_that_is_in_use(place: Place, filled: dict[bytes, bytes]) -> None:
    before = [(disk / "tieredfs-disk.json").read_bytes() for disk in place.disks]
    with place.open():
        dump = place.dumps(0)[-1]
        copy = place.root / "copy" / "volume.db"
        with pytest.raises(BusyError, match="in use"):
            load_volume(f"sqlite://{copy}", [str(dump)], quiet)
        assert list(copy.parent.iterdir()) == []
    assert [(disk / "tieredfs-disk.json").read_bytes() for disk in place.disks] == before
    assert_all_there(place, filled)


def test_never_over_a_volume(place: Place, filled: dict[bytes, bytes]) -> None:
    with pytest.raises(VolumeExistsError, match="already"):
        place.load()
    assert_all_there(place, filled)


def test_no_disk_is_here(place: Place, filled: dict[bytes, bytes]) -> None:
    dump = shutil.copy(place.dumps(0)[-1], place.root / "kept.dump")
    for disk in place.disks:
        disk.rename(f"{disk}.away")
    place.lose_database()
    with pytest.raises(UnavailableError, match="none of the volume's disks is here"):
        place.load(dump)
    for disk in place.disks:
        Path(f"{disk}.away").rename(disk)
    place.load(dump)
    assert_all_there(place, filled)


def test_disks_that_changed_places_are_found_by_what_they_are(place: Place, filled: dict[bytes, bytes]) -> None:
    first, second, third, away = *place.disks[:3], place.root / "away"
    first.rename(away)
    second.rename(first)
    third.rename(second)
    away.rename(third)
    with place.open() as opened:
        assert opened.volume.problems == {}
        opened.flush(FLUSH_S)
    shutil.rmtree(place.database.parent / "clients" / "0" / "content")  # nothing is read from the SSD
    assert_all_there(place, filled)
    place.assert_clean()
    place.disks[4].rename(place.root / "away")
    shutil.copytree(place.disks[0], place.disks[4])  # a disk that is away, and another one's copy in its place
    with Volume.open(place.url, purpose="test") as volume:
        assert list(volume.problems) == [5]
        assert "not" in volume.problems[DiskId(5)]


# ---- dumps that are none ---------------------------------------------------------------------------------------------


def test_a_damaged_dump_gives_way_to_an_older_one(place: Place, filled: dict[bytes, bytes]) -> None:
    older = place.dumps(0)[-1]
    with place.open() as volume:
        put(volume, b"later", b"x")
        newer = Path(volume.volume.dump_to_disks(quiet).paths[0])
    raw = bytearray(newer.read_bytes())
    raw[len(raw) // 2] ^= 1
    newer.write_bytes(raw)
    place.lose_database()
    report = place.load(place.disks[0])
    assert report.dump == str(older)
    assert len(report.unusable) == 1
    assert str(newer) in report.unusable[0]
    assert_all_there(place, filled)


def test_the_newest_of_all_is_taken(place: Place, filled: dict[bytes, bytes]) -> None:
    with place.open() as volume:
        filled[b"later"] = b"x"
        put(volume, b"later", b"x")
        volume.volume.dump_to_file(str(place.root / "newest.dump"), quiet)
    assert os.stat(place.root / "newest.dump").st_mode & 0o777 == 0o600, "keys of S3 are in it"
    place.lose_database()
    assert place.load(*place.disks, place.root / "newest.dump").dump == str(place.root / "newest.dump")
    assert_all_there(place, filled)


@pytest.mark.parametrize(
    ("raw", "error"),
    [(b"", CorruptError), (b"SQLite format 3\0", CorruptError), (b"\x89TFSmeta\x09\0\0\0\0\0\0\0", NewerFormatError)],
)
def test_no_dump(place: Place, filled: dict[bytes, bytes], raw: bytes, error: type[Exception]) -> None:
    (place.root / "garbage").write_bytes(raw)
    place.lose_database()
    with pytest.raises(error):
        place.load(place.root / "garbage")
    with pytest.raises(NotFoundError, match="cannot be read"):
        place.load(place.root / "missing")
    with pytest.raises(NotFoundError, match="no dump in"):
        place.load(place.disks[4])
    assert not place.database.exists()
    place.load()
    assert_all_there(place, filled)


# ---- writing dumps ---------------------------------------------------------------------------------------------------


def test_the_newest_few_stay_on_each_disk(place: Place) -> None:
    with Volume.open(place.url, purpose="test") as volume:
        assert volume.metadata_dump() is None
        written = [volume.dump_to_disks(quiet).paths for _ in range(DUMPS_KEPT + 2)]
        newest = volume.metadata_dump()
        assert newest is not None
        assert newest.paths == written[-1]
        assert volume.status().metadata_dump is not None
    for disk in range(DUMP_COPIES):
        assert [str(path) for path in place.dumps(disk)] == [paths[disk] for paths in written[-DUMPS_KEPT:]]
    assert place.dumps(DUMP_COPIES) == []


def test_a_disk_that_takes_none_is_named_and_another_has_it_instead(place: Place) -> None:
    (place.disks[0] / "metadata").write_text("in the way")
    with Volume.open(place.url, purpose="test") as volume:
        report = volume.dump_to_disks(quiet)
        assert [path.split("/")[-3] for path in report.paths] == ["d1", "d2", "d3"]
        assert len(report.problems) == 1
        assert "d0" in report.problems[0]
        for disk in place.disks[1:]:
            (disk / "metadata").mkdir(exist_ok=True)
            shutil.rmtree(disk / "metadata")
            (disk / "metadata").write_text("in the way")
        with pytest.raises(UnavailableError, match=r"no dump was written: .*d0.*d1.*d2.*d3.*d4"):
            volume.dump_to_disks(quiet)
        with pytest.raises(UnavailableError, match="missing"):
            volume.dump_to_file("/proc/missing/volume.dump", quiet)


def test_copies_are_on_what_fails_apart_before_they_are_on_what_does_not() -> None:
    def disk(number: int, url: str, domain: str, state: DiskState = DiskState.ACTIVE) -> Disk:
        return Disk(DiskId(number), str(number), url, domain, state)

    first, second, third = (disk(at, f"disk:///d{at}", f"disk-{at}") for at in (1, 2, 3))
    here, beside = disk(4, "node://a:1/d0", "node-a:1"), disk(5, "node://a:1/d1", "node-a:1")
    away, bucket = disk(6, "node://b:1/d0", "node-b:1"), disk(7, "s3://c-c/p", "bucket-c-c")
    draining = disk(8, "s3://e-e/p", "bucket-e-e", DiskState.DRAINING)
    assert in_order([]) == []
    assert in_order([first, second, third]) == [first, second, third]
    assert in_order([draining, first, second, bucket, third]) == [first, bucket, second, third]
    assert in_order([here, beside, away, bucket]) == [here, away, bucket, beside]
    rack = replace(second, domain=first.domain)
    assert in_order([first, rack, third]) == [first, third, rack]


def test_a_disk_that_is_added_is_in_a_dump_at_once(place: Place, filled: dict[bytes, bytes]) -> None:
    with Volume.open(place.url, purpose="test") as volume:
        volume.add_disk(f"disk://{place.root}/new")
        assert volume.drain_disk(place.used_disk(), quiet).chunks_moved > 0
    place.lose_database()
    assert place.load(*place.disks).away == {}
    assert_all_there(place, filled)
    place.assert_clean()


def test_destroying_takes_dumps_along_and_a_new_disk_has_none(place: Place, filled: dict[bytes, bytes]) -> None:
    destroy_volume(place.url)
    assert [path for disk in place.disks for path in disk.rglob("*") if path.is_file()] == []
    (place.disks[0] / "metadata" / "mine").write_text("not yours")
    with pytest.raises(ForeignDataError, match="metadata/mine"):
        Place(place.root)


def test_a_dump_while_the_volume_changes_is_one_moment(place: Place) -> None:
    """Two moments would be a file with two names or none, or a count that is wrong."""
    stop = threading.Event()

    def change() -> None:
        with place.open() as volume:
            for number in range(1000):
                put(volume, b"a/%d" % number, b"x")
                if number:
                    volume.rename(b"a/%d" % number, b"b/%d" % number)
                if stop.is_set():
                    return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with Volume.open(place.url, purpose="test") as volume:
            for _ in range(5):
                volume.dump_to_disks(quiet)
    finally:
        stop.set()
        thread.join(WAIT_S)
    place.lose_database()
    place.load()
    place.assert_clean()


# ---- killed ----------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from tieredfs.volume import Volume, load_volume
quiet = lambda *_: None
url, *sources = sys.argv[1:]
if sources:
    load_volume(url, sources, quiet)
else:
    with Volume.open(url, purpose="test") as volume:
        volume.dump_to_disks(quiet)
"""


def killed_at(point: str, *arguments: str) -> None:
    environment = {**os.environ, crash.ENVIRONMENT: point, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", CHILD, *arguments]
    child = subprocess.run(line, env=environment, timeout=WAIT_S, check=False)
    assert child.returncode == -9, "the crash happened"


def test_a_dump_that_was_killed_is_none(place: Place, filled: dict[bytes, bytes]) -> None:
    before = place.dumps(0)
    killed_at("dump.written", place.url)
    assert len(place.dumps(0)) == len(before) + 1, "the leftover"
    with Volume.open(place.url, purpose="test") as volume:
        newest = volume.metadata_dump()
    assert newest is not None
    assert newest.paths[0] == str(before[-1])
    assert place.dumps(0) == before, "removed by whoever opened the disk next"


@pytest.mark.parametrize("point", ["load.filled", "load.given"])
def test_a_loading_that_was_killed_is_done_again(place: Place, filled: dict[bytes, bytes], point: str) -> None:
    place.lose_database()
    killed_at(point, place.url, str(place.disks[0]))
    assert place.database.exists()
    place.load()
    assert_all_there(place, filled)
    place.assert_clean()


# ---- by themselves ---------------------------------------------------------------------------------------------------


def test_whoever_has_a_volume_open_cares_for_it(
    place: Place, filled: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caretaker_module, "CARE_FIRST_S", 0.0)
    monkeypatch.setattr(caretaker_module, "ABANDONED_LOOK_S", 0.05)
    monkeypatch.setattr(caretaker_module, "CARE_INTERVAL_S", 0.0)
    monkeypatch.setattr(caretaker_module, "DUMP_INTERVAL_S", 0.0)
    chunk = place.chunks()[0]
    stray = chunk.with_name(f"{2**50 + int(chunk.name[:16], 16) % 256:016x}.00")
    shutil.copy(chunk, stray)
    before = place.dumps(0)
    with place.open() as opened:
        wait_until(lambda: not stray.exists())
        wait_until(lambda: place.dumps(0)[-1] != before[-1])
        assert opened.volume.metadata_dump() is not None
    assert_all_there(place, filled)


def test_where_no_disk_takes_a_dump_none_is_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(caretaker_module, "CARE_FIRST_S", 0.0)
    monkeypatch.setattr(caretaker_module, "ABANDONED_LOOK_S", 0.01)
    monkeypatch.setattr(care_process, "run", lambda _url, jobs, _closing: asked.append(list(jobs)))
    monkeypatch.setattr(Volume, "takes_dumps", lambda _: False)  # as on nodes and buckets alone
    with place.open():
        wait_until(lambda: len(asked) == 1)
    assert asked == [[care_process.GARBAGE]]


def test_a_dump_that_fails_is_not_asked_for_again_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    looks: list[int] = []
    monkeypatch.setattr(caretaker_module, "CARE_FIRST_S", 0.0)
    monkeypatch.setattr(caretaker_module, "ABANDONED_LOOK_S", 0.01)
    monkeypatch.setattr(caretaker_module, "drain_abandoned", lambda *_: looks.append(1))
    monkeypatch.setattr(care_process, "run", lambda _url, jobs, _closing: asked.append(list(jobs)))
    with place.open():
        wait_until(lambda: len(looks) >= 10)
    assert asked == [[care_process.GARBAGE, care_process.DUMP]]


def test_one_of_a_machine_is_at_work_and_the_next_when_it_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []
    monkeypatch.setattr(caretaker_module, "ABANDONED_LOOK_S", 0.01)
    monkeypatch.setattr(Caretaker, "_care", lambda self: at_work.append(self._own))
    with place.open() as second:
        with place.open():
            wait_until(lambda: len(at_work) >= 20)
            assert len(set(at_work)) == 1
            first = at_work[0]
        if first == second._tier.cache:
            return
        at_work.clear()
        wait_until(lambda: second._tier.cache in at_work)


@pytest.mark.allows_warnings("some care was left for the next time: dump: no dump was written")
def test_care_that_fails_is_told(place: Place) -> None:
    for disk in place.disks:
        (disk / "metadata").write_text("in the way")
    care_process.run(place.url, [care_process.GARBAGE, care_process.DUMP], threading.Event())


def test_closing_does_not_wait_for_care(place: Place) -> None:
    closing = threading.Event()
    closing.set()
    care_process.run(place.url, [care_process.DUMP], closing)
    assert place.dumps(0) == []


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_who_loads_is_told_of_every_site_that_gave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIEREDFS_NODE_SECRET", "a secret of the nodes")
    url = f"sqlite://{tmp_path}/volume.db"
    with pytest.raises(
        UnavailableError, match=r"127\.0\.0\.1:1 .*; node 127\.0\.0\.1:2 .*; bring it back, or name another disk"
    ):
        load_volume(url, ["node://127.0.0.1:{1,2}/x"], quiet)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 .*junk: this is no dump"):
        load_volume(url, ["node://127.0.0.1:1/x", str(tmp_path / "junk")], quiet)
