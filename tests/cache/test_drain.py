"""The drain: what is committed is what was written, once, packed, without holes; and nothing else ever is."""

import ctypes
import mmap
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cache.rigs import WIDE, LyingFiles, Rig, in_threads, noise, opened, rig, volume_folder, wait_until
from tieredfs.cache.room import Room
from tieredfs.core.file_life import FileState
from tieredfs.errors import NoSpaceError, TieredError
from tieredfs.limits import GIB, KIB, MIB, STORE_FREE_RESERVE_BYTES, TIB
from tieredfs.model import NO_CACHE, BlockId, DiskId, DiskState, Durability, InodeId
from tieredfs.volume import Volume

BLOCK = 64 * KIB
DRAIN_FAILED = r"the drain of \d+ file\(s\) failed and will be tried again"


def is_staged(made: Rig, inode: InodeId) -> bool:
    return made.meta.attributes(inode).staged_in != NO_CACHE


# ---- whole, once, packed ---------------------------------------------------------------------------------------------


def test_small_files_share_one_block_and_come_back_apart() -> None:
    with rig(start=False) as made:
        contents = {
            made.put(f"file-{number}", noise(100 * number, number)): noise(100 * number, number) for number in range(30)
        }
        made.ssd.start()
        made.flush()
        assert made.block_sizes() == [sum(len(data) for data in contents.values())]
        assert made.blocks.writes == 1
        for inode, data in contents.items():
            made.tier.evict(inode)
            assert made.get(inode) == data


def test_a_sparse_file_stores_its_data_only_and_a_tebibyte_of_holes_is_no_burden() -> None:
    with rig(capacity=64 * MIB) as made:
        bystander = made.put("bystander", noise(BLOCK))
        inode, file = made.create("sparse")
        made.files.truncate(file.descriptor, TIB)
        for offset in (0, TIB // 2, TIB - 4096):
            made.files.write(file.descriptor, [noise(4096, offset)], offset)
        made.tier.release(file, writer=True)
        made.flush()
        assert sum(made.block_sizes()) == 3 * 4096 + BLOCK
        held = made.tier.open_read(inode)
        made.ssd.evictor.turn()
        assert made.ssd.evictor.clean_bytes() < MIB, "a hole takes no room"
        assert made.state(bystander) is FileState.RESIDENT, "nobody had to go for it"
        made.tier.release(held, writer=False)
        assert made.tier.evict(inode)
        file = made.tier.open_read(inode)
        assert file.fill is not None
        file.fill.wait_whole()
        assert os.fstat(file.descriptor).st_size == TIB
        assert os.fstat(file.descriptor).st_blocks * 512 <= 64 * KIB
        for offset in (0, TIB // 2, TIB - 4096):
            assert os.pread(file.descriptor, 4096, offset) == noise(4096, offset)
        made.tier.release(file, writer=False)
        made.ssd.evictor.turn()
        assert made.state(bystander) is FileState.RESIDENT
        assert made.ssd.room.waits == 0


def test_an_open_for_writing_that_writes_nothing_is_not_drained_again() -> None:
    with rig() as made:
        inode = made.put("file", noise(3 * BLOCK))
        made.flush()
        before, version = made.blocks.writes, made.meta.attributes(inode).version
        file = made.tier.open_write(inode, truncate=False)
        assert is_staged(made, inode)
        assert made.meta.attributes(inode).version > version
        made.tier.release(file, writer=True)
        assert not is_staged(made, inode)
        assert made.state(inode) is FileState.RESIDENT
        made.flush()
        assert made.blocks.writes == before
        assert made.tier.evict(inode)
        assert made.get(inode) == noise(3 * BLOCK)


def test_a_write_of_the_same_size_right_after_the_opening_is_never_taken_for_none() -> None:
    with rig() as made:
        inode = made.put("file", bytes(100))
        for turn in range(1, 40):
            made.flush()
            made.change(inode, bytes([turn]) * 100)
            assert is_staged(made, inode)
        made.flush()
        assert made.tier.evict(inode)
        assert made.get(inode) == bytes([39]) * 100


def test_a_version_that_was_replaced_leaves_dead_blocks_for_garbage_collection() -> None:
    with rig() as made:
        inode = made.put("file", noise(2 * BLOCK))
        made.flush()
        made.change(inode, noise(2 * BLOCK, 2))
        made.flush()
        dead = made.meta.dead_blocks(made.host.clock.wall_ns() + 1, 10)
        assert [block.size_bytes for block in dead] == [BLOCK, BLOCK]


# ---- overtaken, and open for long ------------------------------------------------------------------------------------


def test_a_drain_that_is_overtaken_by_a_writer_is_void() -> None:
    with rig() as made:
        made.blocks.hold(lambda kind, _number: kind == "write")
        inode = made.put("file", noise(BLOCK))
        made.ssd.drainer.hurry(30)
        wait_until(lambda: made.blocks.waiting, "the drain writes its block")
        assert made.state(inode) is FileState.DRAINING
        file = made.tier.open_write(inode, truncate=False)
        made.files.write(file.descriptor, [b"overtaken"], 0)
        made.blocks.open_all()
        wait_until(lambda: made.blocks.waiting == 0, "the block is written")
        made.ssd.drainer._one_at_a_time.acquire()
        made.ssd.drainer._one_at_a_time.release()
        assert is_staged(made, inode)
        assert made.meta.extents(inode) == [], "what the drain had read is nobody's content"
        assert made.state(inode) is FileState.STAGING
        made.tier.release(file, writer=True)
        made.flush()
        assert made.tier.evict(inode)
        assert made.get(inode) == b"overtaken" + noise(BLOCK)[9:]


def test_a_file_that_is_open_for_long_is_stored_as_it_is_now_and_stays_staged() -> None:
    with volume_folder() as root:
        with opened(root) as made:
            inode, file = made.create("log")
            made.files.write(file.descriptor, [noise(BLOCK)], 0)
            file.drain_not_before_s = 0.0
            wait_until(lambda: made.meta.extents(inode), "a snapshot is stored")
            wait_until(lambda: file.snapshot_stamp is not None, "the snapshot is noted")
            assert is_staged(made, inode)
            assert made.state(inode) is FileState.STAGING
            writes = made.blocks.writes
            file.drain_not_before_s = 0.0
            wait_until(lambda: file.drain_not_before_s, "the drain looked again")
            assert made.blocks.writes == writes, "an unchanged file is not stored twice"
            made.files.write(file.descriptor, [b"later"], BLOCK)
            made.tier.release(file, writer=True)
            made.ssd.close()  # nothing is drained any more
            shutil.rmtree(root / "cache")
            made.ssd.close = lambda: None  # type: ignore[method-assign]
        # The SSD is lost: what is left is the snapshot. (The new tier is another cache, so the old one's record stays.)
        with opened(root, start=False) as made:
            record = next(one for one in made.meta.staged() if one.inode == inode)
            made.meta.abandon_write(inode, record.version)
            assert made.get(inode) == noise(BLOCK)


def test_a_mapping_that_outlives_its_descriptor_loses_nothing() -> None:
    """mmap, close, and go on writing through the mapping: as `torch.from_file(shared=True)` and many C programs do."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with rig() as made:
        inode, file = made.create("mapped")
        made.files.write(file.descriptor, [bytes(BLOCK)], 0)
        address = libc.mmap(None, BLOCK, 3, 1, file.descriptor, 0)
        ctypes.memmove(address, b"first", 5)
        made.tier.release(file, writer=True)
        made.ssd.drainer.hurry(30)
        wait_until(lambda: made.meta.extents(inode), "its bytes of some moment are stored")
        ctypes.memmove(address + 100, b"second", 6)
        assert not made.tier.evict(inode), "it may still change"
        assert is_staged(made, inode)
        libc.munmap(address, BLOCK)
        made.flush()
        assert made.tier.evict(inode)
        found = made.get(inode)
        assert (found[:5], found[100:106]) == (b"first", b"second")


@pytest.mark.parametrize("through_descriptor", [False, True], ids=["closed", "open"])
def test_a_page_that_is_written_to_while_a_snapshot_cleans_it_is_stored_again(*, through_descriptor: bool) -> None:
    """Further writes to a mapped page that is dirty leave no trace in the times, so the snapshot must not be taken for the
    content: neither when the mapping is gone, nor by an fsync that waits for the store."""
    with rig(durability=Durability.STORE) as made:
        inode, file = made.create("mapped")
        made.files.write(file.descriptor, [bytes(BLOCK)], 0)
        with mmap.mmap(file.descriptor, BLOCK) as mapped:
            made.files.after_sync.append(lambda: mapped.__setitem__(slice(0, 6), b"during"))
            if not through_descriptor:
                made.tier.release(file, writer=True)
            file.drain_not_before_s = 0.0
            wait_until(lambda: file.snapshot_stamp is not None, "its bytes of some moment are stored")
            assert not made.files.after_sync, "the page was written to meanwhile"
            mapped[100:105] = b"later"
            if through_descriptor:
                made.ssd.drainer.store_now(file)
        if through_descriptor:
            made.tier.release(file, writer=True)
        made.flush()
        assert made.tier.evict(inode)
        found = made.get(inode)
        assert (found[:6], found[100:105]) == (b"during", b"later")


# ---- disks that go --------------------------------------------------------------------------------------------------


@pytest.mark.allows_warnings(DRAIN_FAILED)
@pytest.mark.parametrize("asked", [False, True], ids=["drain", "fsync"])
def test_no_chunk_is_left_on_a_disk_that_was_removed_while_blocks_were_written(*, asked: bool) -> None:
    """A process hears of other processes' changes to the disks with its heartbeat; until then it may choose one that is gone."""
    with rig(disks=4, durability=Durability.STORE, start=not asked) as made:
        with Volume.open(made.url, purpose="administrator") as other:
            made.blocks.hold(lambda kind, _number: kind == "write")
            inode, file = made.create("file")
            made.files.write(file.descriptor, [noise(16 * BLOCK)], 0)
            stored = ThreadPoolExecutor(1).submit(made.ssd.drainer.store_now, file) if asked else None
            if not asked:
                made.tier.release(file, writer=True)
                made.ssd.drainer.hurry(30)
            wait_until(lambda: made.blocks.waiting, "blocks are about to be written")
            gone = DiskId(other.disks()[0].disk)
            assert other.drain_disk(gone, lambda *_: None).state is DiskState.REMOVED
        made.blocks.open_all()
        if stored is not None:
            stored.result(30)
            made.tier.release(file, writer=True)
            made.ssd.start()
        made.flush()
        assert made.blocks.writes > 16, "some block was written to the disk that is gone, and refused"
        assert made.meta.blocks_on_disk(gone, BlockId(0), 1) == []
        assert made.tier.evict(inode)
        assert made.get(inode) == noise(16 * BLOCK)


# ---- fsync that waits for the store ----------------------------------------------------------------------------------


def test_fsync_at_durability_store_returns_when_the_blocks_are_committed() -> None:
    with volume_folder(durability=Durability.STORE) as root:
        with opened(root, start=False) as made:
            inode, file = made.create("safe")
            made.files.write(file.descriptor, [noise(BLOCK + 5)], 0)
            made.ssd.drainer.store_now(file)
            assert sum(extent.length for extent in made.meta.extents(inode)) == BLOCK + 5
            writes = made.blocks.writes
            made.ssd.drainer.store_now(file, timeout_s=5)
            assert made.blocks.writes == writes, "a second fsync without a write in between has nothing to do"
            made.files.write(file.descriptor, [b"more"], BLOCK + 5)
            made.ssd.drainer.store_now(file, timeout_s=5)
            shutil.rmtree(root / "cache/content")
        with opened(root, cache="another", start=False) as made:
            made.meta.abandon_write(inode, made.meta.staged()[0].version)
            assert made.get(inode) == noise(BLOCK + 5) + b"more"


def test_fsync_of_many_files_at_durability_store() -> None:
    with rig(durability=Durability.STORE) as made:

        def save(number: int) -> bytes:
            inode, file = made.create(f"file-{number}")
            made.files.write(file.descriptor, [noise(BLOCK + number, number)], 0)
            made.ssd.drainer.store_now(file)
            assert made.meta.extents(inode)
            made.ssd.drainer.store_now(file)
            made.tier.release(file, writer=True)
            made.flush()
            made.tier.evict(inode)
            return made.get(inode)

        found = in_threads([lambda number=number: save(number) for number in range(6)])  # type: ignore[misc]
        assert found == [noise(BLOCK + number, number) for number in range(6)]


def test_fsync_at_durability_store_says_that_the_store_is_full() -> None:
    with rig(durability=Durability.STORE, start=False) as made:
        inode, file = made.create("safe")
        made.files.write(file.descriptor, [noise(BLOCK)], 0)
        made.files.free = {f"{made.root}/d": STORE_FREE_RESERVE_BYTES - 1}
        with pytest.raises(NoSpaceError):
            made.ssd.drainer.store_now(file)
        assert made.files.lies
        made.files.free = {}
        made.ssd.drainer.store_now(file)
        assert made.meta.extents(inode)
        made.tier.release(file, writer=True)


# ---- what is in the way ----------------------------------------------------------------------------------------------


@pytest.mark.allows_warnings(DRAIN_FAILED)
def test_while_the_store_is_full_data_stays_staged_and_says_so() -> None:
    with rig() as made:
        made.files.free = {f"{made.root}/d": STORE_FREE_RESERVE_BYTES - 1}
        inode = made.put("file", noise(3 * BLOCK))
        made.ssd.drainer.hurry(30)
        wait_until(lambda: made.ssd.drainer.last_error, "the drain fails")
        assert "NoSpaceError" in (made.ssd.drainer.last_error or "")
        assert made.files.lies
        assert is_staged(made, inode)
        assert made.get(inode) == noise(3 * BLOCK)
        assert made.volume.staged().file_count == 1
        made.files.free = {}
        made.flush()
        wait_until(lambda: made.ssd.drainer.last_error is None, "the error is over")
        assert made.tier.evict(inode)
        assert made.get(inode) == noise(3 * BLOCK)


@pytest.mark.allows_warnings(DRAIN_FAILED)
def test_a_staged_file_that_vanished_from_the_ssd_does_not_stop_the_others() -> None:
    with rig(start=False) as made:
        lost = made.put("lost", noise(BLOCK))
        name = next(one for one in made.ssd.directory.contents() if one.inode == lost)
        os.unlink(made.ssd.directory.content(name.inode, name.version))
        others = [made.put(f"other-{number}", noise(BLOCK, number)) for number in range(3)]
        made.ssd.start()
        made.ssd.drainer.hurry(30)
        wait_until(lambda: not any(is_staged(made, inode) for inode in others), "the others are stored")
        assert is_staged(made, lost)
        assert made.ssd.drainer.last_error is not None
        assert made.ssd.drainer._thread is not None
        assert made.ssd.drainer._thread.is_alive()


@pytest.mark.allows_warnings(DRAIN_FAILED)
def test_with_three_disks_of_4_plus_2_gone_nothing_is_stored() -> None:
    with rig(**WIDE) as made:
        for disk in (0, 1, 2):
            shutil.rmtree(made.root / f"d{disk}")
        inode = made.put("file", noise(2 * BLOCK))
        with pytest.raises(TieredError, match="needs 4 disks at least; 3 of 6"):
            made.ssd.flush(1.0)
        assert is_staged(made, inode)


def test_with_two_gone_it_is_stored_and_stays_on_the_ssd_until_it_is_whole() -> None:
    with rig(**WIDE) as made:
        tier, metadata = made.tier, made.volume.metadata
        whole, data = made.put("before", noise(BLOCK, 1)), noise(2 * BLOCK)
        made.flush()
        for disk in (0, 1):
            (made.root / f"d{disk}").rename(made.root / f"away{disk}")
        inode = made.put("file", data)
        made.flush()
        assert not is_staged(made, inode)
        assert [tier.evict(inode), tier.evict_bytes(1 << 40)] == [False, 1], "only what was stored before may go"
        assert [tier.state_of(found) for found in (whole, inode)] == [FileState.ABSENT, FileState.RESIDENT]
        assert tier.resident_bytes() == 2 * BLOCK, "the room that it takes still counts"
        for disk in (0, 1):
            (made.root / f"away{disk}").rename(made.root / f"d{disk}")
        wait_until(lambda: metadata.shortage().blocks == 0, "all is healed")
        assert tier.evict_bytes(1 << 40) == 1
        assert made.get(inode) == data


# ---- room ------------------------------------------------------------------------------------------------------------


def test_writing_ten_times_the_cache_waits_and_loses_nothing() -> None:
    capacity, size, count = 4 * MIB, 512 * KIB, 80
    with rig(capacity=capacity, block_bytes=256 * KIB) as made:

        def write(first: int) -> list[InodeId]:
            found = []
            for number in range(first, first + count // 4):
                found.append(made.put(f"file-{number}", noise(size, number)))
                made.ssd.evictor.turn()  # its thread looks four times a second, and this takes less
            return found

        inodes = [
            inode
            for part in in_threads([lambda at=at: write(at) for at in range(0, count, count // 4)])  # type: ignore[misc]
            for inode in part
        ]
        assert count * size == 10 * capacity
        assert made.ssd.room.waits > 0, "nobody had to wait: the cache was not too small"
        made.flush()
        wait_until(lambda: made.ssd.evictor.clean_bytes() <= capacity, "the cache is within its bounds")
        assert made.ssd.evictor.evicted_files > 0
        for number, inode in enumerate(inodes):
            assert made.get(inode) == noise(size, number)


def test_a_writer_that_waits_for_room_in_vain_is_told_so() -> None:
    with rig() as made:
        room = Room("/tmp", 1, made.files)
        assert room.settle(2)
        with pytest.raises(NoSpaceError, match="full of data"):
            room.wait_for_room(0.01)
        assert room.waits == 1
        assert not room.settle(0)
        room.wait_for_room(0.01)


def test_a_file_that_can_never_fit_is_refused_before_it_is_fetched() -> None:
    with rig(capacity=MIB) as made:
        inode = made.put("large", noise(8 * BLOCK))
        made.flush()
        made.tier.evict(inode)
        made.ssd.room.capacity_bytes = BLOCK
        made.files.free = {str(made.root / "cache"): 0}
        with pytest.raises(NoSpaceError, match="does not fit"):
            made.get(inode)
        made.files.free = {}
        assert made.get(inode) == noise(8 * BLOCK)


def test_one_pass_over_many_files_leaves_the_working_set_on_the_ssd() -> None:
    size, working = 64 * KIB, 12
    with rig(capacity=24 * size) as made:
        inodes = [made.put(f"file-{number}", noise(size, number)) for number in range(60)]
        made.flush()
        made.tier.evict_bytes(GIB)
        for _ in range(3):
            for inode in inodes[:working]:
                made.get(inode)
        made.blocks.reads.clear()
        for inode in inodes[working:]:
            made.get(inode)
            made.ssd.evictor.turn()
        scanned = len(made.blocks.reads)
        assert scanned == 60 - working
        for inode in inodes[:working]:
            made.get(inode)
        assert len(made.blocks.reads) - scanned <= working // 4


def test_pins_are_honoured_and_survive_the_tier() -> None:
    with volume_folder() as root:
        with opened(root) as made:
            inodes = [made.put(f"file-{number}", noise(BLOCK, number)) for number in range(6)]
            made.flush()
            made.tier.warm(inodes[2], pin=True)
            made.tier.evict_bytes(GIB)
            assert [made.state(inode) is FileState.RESIDENT for inode in inodes] == [n == 2 for n in range(6)]
        with opened(root) as made:
            made.tier.evict_bytes(GIB)
            assert made.state(inodes[2]) is FileState.RESIDENT
            made.tier.unpin(inodes[2])
            made.tier.evict_bytes(GIB)
            assert made.state(inodes[2]) is FileState.ABSENT


def test_a_database_in_the_tier_is_a_database_afterwards() -> None:
    """Many small writes over one long-open descriptor, with drains in between."""
    with rig() as made:
        inode, file = made.create("db")
        database = sqlite3.connect(f"/proc/self/fd/{file.descriptor}", isolation_level=None)
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("CREATE TABLE rows (number INTEGER)")
        for number in range(50):
            database.execute("INSERT INTO rows VALUES (?)", (number,))
            file.drain_not_before_s = 0.0
        database.close()
        made.tier.release(file, writer=True)
        made.flush()
        assert made.tier.evict(inode)
        (made.root / "out.db").write_bytes(made.get(inode))
        copy = sqlite3.connect(made.root / "out.db")
        assert copy.execute("SELECT count(*), sum(number) FROM rows").fetchone() == (50, 1225)
        copy.close()


@pytest.mark.allows_warnings("writers are told that the SSD is full: the file system of /tmp has 10.0 MiB free")
def test_nobody_waits_for_a_disk_that_others_have_filled(caplog: pytest.LogCaptureFixture) -> None:
    files = LyingFiles()
    files.free["/"] = 10 * MIB
    room = Room("/tmp", GIB, files)
    assert room.settle(0)
    for _ in range(2):
        with pytest.raises(NoSpaceError, match=r"/tmp has 10\.0 MiB free, of which 256 MiB must stay free"):
            room.wait_for_room()
    assert room.waits == 0
    assert len(caplog.records) == 1, "the reason is logged once"
    others = [True]
    room.on_pressure(lambda: None, lambda: others[0])
    with pytest.raises(NoSpaceError, match="must stay free"):
        room.wait_for_room(0.0)
    assert room.waits == 1, "another cache may still leave room there"


@pytest.mark.allows_warnings("writers are told that the SSD is full")
def test_who_waits_for_a_drain_is_told_when_only_what_is_others_is_left() -> None:
    files = LyingFiles()
    files.free["/"] = 10 * MIB
    room = Room("/tmp", GIB, files)
    assert room.settle(MIB)

    def settle() -> None:
        room.settle(0)

    room.on_pressure(settle, lambda: False)  # what was ours has gone, and it is still full
    with pytest.raises(NoSpaceError, match="make room there"):
        room.wait_for_room()
    assert room.waits == 1


def test_a_disk_that_others_have_filled_is_told_from_one_full_of_ours() -> None:
    files = LyingFiles()
    room = Room("/tmp", GIB, files)
    files.free["/"] = GIB
    assert room.settle(GIB)
    with pytest.raises(NoSpaceError, match="full of data that the store did not take"):
        room.wait_for_room(0.0)
