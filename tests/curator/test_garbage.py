"""Garbage collection deletes what is certainly nobody's, and nothing else, whenever it runs and wherever it is killed."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.curator.care_volume import BLOCK_BYTES, CareVolume, care_volume, damage, flip, killed_at, nothing
from tieredfs.block.write import seal
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.curator import FindingKind, GarbageReport
from tieredfs.errors import ConflictError, NotFoundError
from tieredfs.limits import CHUNK_HEADER_BYTES, DEAD_BLOCK_GRACE_S, SESSION_TIMEOUT_S
from tieredfs.model import NEVER_NS, ROOT, Block, BlockId, ChunkLocation, DiskId, Extent, StoredContent


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CareVolume]:
    with care_volume(tmp_path) as volume:
        volume.fill(2)
        yield volume


def collect(volume: CareVolume) -> GarbageReport:
    return volume.curator.collect_garbage(nothing)


def put_copy(volume: CareVolume, block: Block, index: int, disk: DiskId, name: ChunkName | None = None) -> None:
    """A whole chunk, under its name or another, on any disk."""
    home = next(chunk.disk for chunk in block.chunks if chunk.index == index)
    source, target = volume.stores[home][1], volume.stores[disk][1]
    assert source is not None
    assert target is not None
    payload = memoryview(bytearray(block.chunk_bytes))
    source.read_into(ChunkName(block.block, index), 0, payload)
    name = name or ChunkName(block.block, index)
    chunk = seal(name.block, name.index, block.code, block.size_bytes, payload)
    target.put(chunk.info, chunk.payload, memoryview(chunk.cell_crcs))


def disk_of(block: Block, index: int) -> DiskId:
    return next(chunk.disk for chunk in block.chunks if chunk.index == index)


def test_a_volume_without_garbage_loses_nothing(volume: CareVolume) -> None:
    report = collect(volume)
    assert (report.chunks_seen, report.chunks_deleted, report.blocks_deleted) == (12, 0, 0)
    json.dumps(dataclasses.asdict(report))
    volume.assert_clean()
    volume.assert_contents()


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_dead_sessions_orphans_are_reclaimed_and_a_live_ones_are_not(volume: CareVolume) -> None:
    dead = volume.metadata.open_session("elsewhere", 7, "mount").session
    volume.metadata.unlink(ROOT, b"file-0", dead)
    volume.clock.advance(SESSION_TIMEOUT_S + 1)
    live = volume.metadata.open_session("elsewhere", 8, "mount").session
    volume.metadata.unlink(ROOT, b"file-1", live)
    report = collect(volume)
    assert report.sessions_ended == (dead,)
    assert report.orphans_reclaimed == 1
    assert [session for session, _ in volume.metadata.orphans()] == [live]
    assert volume.session in [session.session for session in volume.metadata.sessions()], "our own is never ended"


def test_a_session_that_beats_again_after_the_machine_slept_is_alive(volume: CareVolume) -> None:
    sleeper = volume.metadata.open_session("elsewhere", 7, "mount").session
    volume.metadata.unlink(ROOT, b"file-0", sleeper)
    volume.clock.advance(3600)
    volume.clock.on_sleep = lambda: volume.metadata.heartbeat(sleeper)
    assert collect(volume).sessions_ended == ()
    assert len(volume.metadata.orphans()) == 1


def test_what_a_process_held_that_died_after_its_session_is_reclaimed(volume: CareVolume) -> None:
    lost = volume.metadata.open_session("elsewhere", 7, "mount").session
    volume.metadata.end_session(lost)
    volume.metadata.unlink(ROOT, b"file-0", lost)
    report = collect(volume)
    assert (report.sessions_ended, report.orphans_reclaimed) == ((lost,), 1)
    assert volume.metadata.orphans() == []


def test_what_a_process_holds_that_goes_on_after_its_session_is_kept(volume: CareVolume) -> None:
    stopped = volume.metadata.open_session("elsewhere", 7, "mount").session
    volume.metadata.end_session(stopped)
    volume.metadata.unlink(ROOT, b"file-0", stopped)
    volume.clock.on_sleep = lambda: volume.metadata.revive_session(stopped, "elsewhere", 7, "mount")
    assert collect(volume).sessions_ended == ()
    assert [session for session, _ in volume.metadata.orphans()] == [stopped]


def test_a_session_whose_heartbeat_had_to_wait_as_garbage_collection_did_is_alive(volume: CareVolume) -> None:
    waiting = volume.metadata.open_session("elsewhere", 7, "mount")
    volume.metadata.heartbeat(waiting.session)
    with pytest.raises(ConflictError, match="alive"):
        volume.metadata.end_session(waiting.session, waiting.heartbeat_ns - 1)
    with pytest.raises(ConflictError, match="alive"):
        volume.metadata.end_session(waiting.session, NEVER_NS)
    assert waiting.session in [session.session for session in volume.metadata.sessions()]


# ---- dead blocks -----------------------------------------------------------------------------------------------------


def test_dead_blocks_are_deleted_after_their_grace_and_not_before(volume: CareVolume) -> None:
    block = volume.block_of(b"file-0")
    volume.remove_file(b"file-0")
    end_ns = volume.clock.now_ns + int(DEAD_BLOCK_GRACE_S * 1e9)
    volume.clock.advance(DEAD_BLOCK_GRACE_S - 1)
    early = collect(volume)
    assert early.blocks_deleted == 0
    waits = (early.blocks_waiting, early.waiting_bytes, early.waiting_until_ns)
    assert waits == (1, 6 * BLOCK_BYTES // 4, end_ns), "it says what it leaves, and until when"
    assert len(volume.chunk_files()) == 12
    volume.clock.advance(2)
    report = collect(volume)
    assert (report.blocks_deleted, report.block_chunk_bytes) == (1, 6 * BLOCK_BYTES // 4)
    assert (report.blocks_waiting, report.waiting_bytes, report.waiting_until_ns) == (0, 0, None)
    assert len(volume.chunk_files()) == 6
    with pytest.raises(NotFoundError):
        volume.metadata.block(block.block)
    volume.assert_clean()
    volume.assert_contents()


def test_a_block_whose_chunks_are_being_deleted_gets_no_user_again(volume: CareVolume) -> None:
    block = volume.block_of(b"file-0")
    volume.remove_file(b"file-0")
    volume.clock.advance(DEAD_BLOCK_GRACE_S + 1)
    file = volume.new_file(b"late")
    extent = Extent(0, block.size_bytes, block.block, 0)
    content = StoredContent(file.inode, file.version, block.size_bytes, 0, (extent,), complete=True)
    assert volume.metadata.condemn_blocks(volume.clock.now_ns, 10) == [block]
    with pytest.raises(ConflictError):
        volume.metadata.commit_stored([content], [])
    collect(volume)
    volume.assert_clean()


def test_a_dead_block_that_gets_a_user_again_lives(volume: CareVolume) -> None:
    block = volume.block_of(b"file-0")
    data = volume.contents[b"file-0"]
    volume.remove_file(b"file-0")
    volume.clock.advance(DEAD_BLOCK_GRACE_S + 1)
    file = volume.new_file(b"clone")
    extent = Extent(0, block.size_bytes, block.block, 0)
    content = StoredContent(file.inode, file.version, block.size_bytes, 0, (extent,), complete=True)
    volume.metadata.commit_stored([content], [])
    volume.contents[b"clone"] = data
    assert collect(volume).blocks_deleted == 0
    volume.assert_clean()
    volume.assert_contents()


def test_killed_between_chunks_and_records_it_finishes_the_next_time(volume: CareVolume, tmp_path: Path) -> None:
    volume.remove_file(b"file-0")
    killed_at("gc.chunks-removed", tmp_path, "gc", str(int(DEAD_BLOCK_GRACE_S + 1)))
    assert len(volume.chunk_files()) == 6, "the chunks went"
    assert len(volume.all_blocks()) == 2, "the record did not"
    assert volume.check().clean, "a dead block's chunks are missed by nobody"
    volume.clock.advance(DEAD_BLOCK_GRACE_S + 1)
    assert collect(volume).blocks_deleted == 1
    volume.assert_clean()
    volume.assert_contents()


def test_a_dead_blocks_chunk_on_a_disk_that_is_away_is_found_when_the_disk_is_back(volume: CareVolume) -> None:
    volume.remove_file(b"file-0")
    volume.clock.advance(DEAD_BLOCK_GRACE_S + 1)
    volume.disk_path(DiskId(3)).rename(volume.root / "away")
    volume.reopen_disks()
    report = collect(volume)
    assert (report.blocks_deleted, report.disks_unreachable) == (1, (DiskId(3),))
    (volume.root / "away").rename(volume.disk_path(DiskId(3)))
    volume.reopen_disks()
    assert [finding.kind for finding in volume.check().findings] == [FindingKind.GARBAGE]
    assert collect(volume).chunks_deleted == 1
    volume.assert_clean()


# ---- chunks that no record names -------------------------------------------------------------------------------------


def test_a_block_that_is_being_written_is_left_alone(volume: CareVolume) -> None:
    block = volume.write_block(b"y" * BLOCK_BYTES)
    report = collect(volume)
    assert (report.chunks_in_flight, report.chunks_deleted) == (6, 0)
    assert volume.check().findings == (), "it is not garbage either"
    file = volume.new_file(b"late")
    content = StoredContent(
        file.inode, 0, block.size_bytes, 0, (Extent(0, block.size_bytes, block.block, 0),), complete=True
    )
    volume.metadata.commit_stored([content], [block])
    volume.contents[b"late"] = b"y" * BLOCK_BYTES
    volume.assert_clean()
    volume.assert_contents()


def test_a_killed_writers_chunks_go_when_its_session_has_ended(volume: CareVolume, tmp_path: Path) -> None:
    killed_at("block.chunks-written", tmp_path, "write")
    volume.reopen_disks()
    assert len(volume.chunk_files()) == 18
    assert collect(volume).chunks_in_flight == 6, "its session may yet be alive"
    volume.clock.advance(SESSION_TIMEOUT_S + 1)
    report = collect(volume)
    assert (len(report.sessions_ended), report.chunks_deleted) == (1, 6)
    assert report.chunk_bytes == 6 * BLOCK_BYTES // 4
    volume.assert_clean()
    volume.assert_contents()


def test_chunks_under_a_wrong_name_or_on_a_wrong_disk_go(volume: CareVolume) -> None:
    block = volume.block_of(b"file-0")
    put_copy(volume, block, 0, disk_of(block, 1))
    put_copy(volume, block, 0, disk_of(block, 1), ChunkName(BlockId(0xDEAD), 0))
    (report_before,) = volume.check().findings
    assert (report_before.kind, report_before.detail.split()[0]) == (FindingKind.GARBAGE, "2")
    assert collect(volume).chunks_deleted == 2
    volume.assert_clean()
    volume.assert_contents()


def test_a_copy_stays_while_the_chunk_that_the_record_names_is_not_whole(volume: CareVolume) -> None:
    block = volume.block_of(b"file-0")
    put_copy(volume, block, 0, disk_of(block, 1))
    damage(volume.path(block, 0), flip(CHUNK_HEADER_BYTES))
    report = collect(volume)
    assert (report.chunks_deleted, report.chunks_in_flight) == (0, 1)
    assert volume.check(repair=True).clean
    assert collect(volume).chunks_deleted == 1
    volume.assert_clean()


class HookedStore:
    """A store that does something right before it deletes."""

    def __init__(self, inner: ChunkStore) -> None:
        self.inner = inner
        self.before_delete: Callable[[ChunkName], None] = lambda name: None

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def delete(self, name: ChunkName) -> None:
        self.before_delete(name)
        self.inner.delete(name)


def test_a_chunk_that_a_repair_came_to_name_just_before_its_deletion_is_made_anew(volume: CareVolume) -> None:
    volume.add_disk()
    block = volume.block_of(b"file-0")
    spare = next(disk for disk in volume.stores if all(chunk.disk != disk for chunk in block.chunks))
    put_copy(volume, block, 0, spare)
    old = next(chunk for chunk in block.chunks if chunk.index == 0)
    record, store = volume.stores[spare]
    assert store is not None
    hooked = HookedStore(store)
    volume.curator.holdings._disks[spare] = (record, hooked)  # type: ignore[assignment]
    named: list[bool] = []
    hooked.before_delete = lambda name: named.append(
        volume.metadata.replace_chunk(block.block, old, ChunkLocation(0, spare, old.crc32c))
    )
    collect(volume)
    assert named == [True], "the race happened"
    moved = volume.metadata.block(block.block)
    assert disk_of(moved, 0) == spare
    assert volume.blocks.check(moved) == []


def test_a_repair_looks_whether_its_chunk_is_still_there(volume: CareVolume) -> None:
    """The other order of the same race: the deletion comes before the record, and garbage collection saw nothing."""
    block = volume.block_of(b"file-0")
    volume.path(block, 2).unlink()
    deleted: list[Path] = []
    restore = volume.blocks.restore

    def restore_and_lose(block: Block, indexes: set[int]) -> Block:
        restored = restore(block, indexes)
        if not deleted:
            deleted.append(volume.path(restored, 2))
            deleted[0].unlink()
        return restored

    volume.blocks.restore = restore_and_lose  # type: ignore[method-assign,assignment]
    volume.curator.holdings.renew(block, [2])
    assert len(deleted) == 1
    volume.assert_clean()


def test_nothing_is_lost_while_writers_repairs_and_collections_run_at_once(volume: CareVolume) -> None:
    volume.add_disk()
    stop = threading.Event()
    reports: list[GarbageReport] = []

    def collector() -> None:
        while not stop.is_set():
            reports.append(collect(volume))

    thread = threading.Thread(target=collector)
    thread.start()
    try:
        for number in range(12):
            volume.store_file(b"busy-%d" % number, bytes([number]) * BLOCK_BYTES)
            block = volume.block_of(b"busy-%d" % number)
            if number % 3 == 0:
                volume.path(block, number % 6).unlink()
                volume.check(repair=True)
    finally:
        stop.set()
        thread.join(60)
    assert reports
    assert sum(report.blocks_deleted for report in reports) == 0
    volume.assert_clean()
    volume.assert_contents()


def test_a_missing_cache_directory_is_told_and_left_alone(volume: CareVolume) -> None:
    cache = volume.metadata.register_cache("a-cache", "testhost", str(volume.root / "no-such"))
    volume.metadata.register_cache("b-cache", "elsewhere", "/no/such/place")
    volume.metadata.register_cache("c-cache", "testhost", str(volume.root))
    assert collect(volume).caches_missing == (cache.path,)
    assert len(volume.metadata.caches()) == 3
