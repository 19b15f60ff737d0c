"""Blocks over real disks: every loss pattern, every kind of damage, disks that fail, fill up and stall, and repair."""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.block.small_volume import BLOCK_BYTES, REPLICA3, RS42, RS96, SmallVolume
from tieredfs.chunk.store import ChunkName
from tieredfs.core.patience import Patience
from tieredfs.errors import (
    CorruptError,
    DataLossError,
    DeadlineError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
    TieredError,
    UnavailableError,
)
from tieredfs.limits import CELL_BYTES, CHUNK_ALIGNMENT_BYTES, CHUNK_HEADER_BYTES, DISK_REST_S, SCRATCH_COUNT
from tieredfs.model import Block, Code, CodeKind, DiskId, DiskState
from tieredfs.testing.chunk_faults import Stall
from tieredfs.testing.chunk_suite import pattern

Maker = Callable[..., SmallVolume]
REPLICA1 = Code(CodeKind.REPLICA, 1, 0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    made: list[SmallVolume] = []

    def build(*arguments: object, **settings: object) -> SmallVolume:
        made.append(SmallVolume(tmp_path / str(len(made)), *arguments, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for volume in made:
        volume.close()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to be within 10 s")


# ---- writing and reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "disk_count"), [(RS42, 6), (RS96, 15), (REPLICA3, 3), (Code(CodeKind.REPLICA, 1, 0), 1)]
)
@pytest.mark.parametrize("size_bytes", [1, CHUNK_ALIGNMENT_BYTES + 1, 5 * CELL_BYTES - 3, BLOCK_BYTES])
def test_what_was_written_is_read(make: Maker, code: Code, disk_count: int, size_bytes: int) -> None:
    volume = make(code, disk_count)
    block = volume.store(pattern(size_bytes))
    assert volume.read(block) == pattern(size_bytes)
    assert len({location.disk for location in block.chunks}) == len(block.chunks) == code.width
    assert volume.blocks.check(block) == []
    assert volume.damage == []


def test_small_blocks_make_small_chunks(make: Maker) -> None:
    volume = make()
    block = volume.store(b"x")
    assert block.chunk_bytes == CHUNK_ALIGNMENT_BYTES
    assert {len(raw) for raw in volume.chunk_files(block).values()} == {CHUNK_HEADER_BYTES + CHUNK_ALIGNMENT_BYTES}


def test_what_a_buffer_held_before_is_not_stored(make: Maker) -> None:
    volume = make(block_bytes=4 * CHUNK_ALIGNMENT_BYTES)
    for _ in range(3):
        volume.store(b"\xee" * 4 * CHUNK_ALIGNMENT_BYTES)
    block = volume.store(b"x")
    assert set(volume.chunk_files(block)[0][CHUNK_HEADER_BYTES:]) == {ord("x"), 0}


def test_chunks_of_a_block_are_on_distinct_domains(make: Maker) -> None:
    volume = make(RS42, 12, domains=6)
    for _ in range(10):
        block = volume.store(b"x")
        assert len({location.disk % 6 for location in block.chunks}) == 6


def test_reading_beyond_the_end_is_refused(make: Maker) -> None:
    volume = make()
    block = volume.store(b"abc")
    for offset, length in ((0, 4), (3, 1), (-1, 1)):
        with pytest.raises(InvalidRequestError):
            volume.read(block, offset, length)
    assert volume.read(block, 3, 0) == b""


def test_one_directory_is_enough_for_a_code_that_would_like_more(make: Maker) -> None:
    volume = make(Code(CodeKind.REED_SOLOMON, 2, 1), 1)
    block = volume.store(pattern(BLOCK_BYTES))
    assert [location.disk for location in block.chunks] == [1, 1, 1]
    volume.rot(block, 0, CHUNK_HEADER_BYTES + 5)
    assert volume.read(block) == pattern(BLOCK_BYTES)
    assert volume.blocks.check(volume.blocks.repair(block)) == []


def test_threads_write_and_read_at_once(make: Maker) -> None:
    volume = make()
    wrong: list[int] = []

    def work(worker: int) -> None:
        for turn in range(4):
            data = pattern(random.Random(worker * 10 + turn).randrange(1, BLOCK_BYTES), worker * 10 + turn)
            if volume.read(volume.store(data)) != data:
                wrong.append(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(volume.metadata.blocks_by_id) == 20


def test_buffers_are_bounded(make: Maker) -> None:
    volume = make()
    with volume.blocks.lend(1), volume.blocks.lend(1), pytest.raises(DeadlineError), volume.blocks.lend(0.01):
        pass


def test_a_new_code_acts_on_what_is_written_from_now_on(make: Maker) -> None:
    volume = make(RS42, 6)
    old = volume.store(pattern(BLOCK_BYTES, 1))
    volume.metadata.config_now = replace(volume.metadata.config_now, code=REPLICA3)
    new = volume.store(pattern(BLOCK_BYTES, 2))
    assert new.code == REPLICA3
    assert volume.read(old) == pattern(BLOCK_BYTES, 1)
    assert volume.read(new) == pattern(BLOCK_BYTES, 2)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_every_loss_pattern_of_4_2_is_read_and_repaired(make: Maker) -> None:
    volume = make()
    data = pattern(BLOCK_BYTES - 12345)
    for lost in itertools.chain(itertools.combinations(range(6), 1), itertools.combinations(range(6), 2)):
        block = volume.store(data)
        before = volume.chunk_files(block)
        volume.lose(block, *lost)
        assert volume.read(block) == data
        assert {index for index in lost if index < 4} <= {index for _, index in volume.damage} <= set(lost)
        assert volume.blocks.check(block) == list(lost)
        assert volume.blocks.repair(block) == block, "in place"
        assert volume.chunk_files(block) == before, "bit-identical"
        volume.damage.clear()


def test_three_losses_of_4_2_are_data_loss(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    volume.lose(block, 0, 2, 5)
    with pytest.raises(DataLossError):
        volume.read(block)
    with pytest.raises(DataLossError):
        volume.blocks.repair(block)
    assert volume.read(block, block.chunk_bytes, 10) == pattern(BLOCK_BYTES)[block.chunk_bytes :][:10], (
        "chunk 1 is whole"
    )


@pytest.mark.parametrize("lost", [(0, 1, 2, 3, 4, 5), (0, 8, 9, 10, 13, 14), (3,), (9, 10, 11, 12, 13, 14)])
def test_9_6_survives_six_losses(make: Maker, lost: tuple[int, ...]) -> None:
    volume = make(RS96, 15)
    data = pattern(BLOCK_BYTES)
    block = volume.store(data)
    before = volume.chunk_files(block)
    volume.lose(block, *lost)
    assert volume.read(block) == data
    volume.blocks.repair(block)
    assert volume.chunk_files(block) == before


@pytest.mark.parametrize("lost", list(itertools.combinations(range(3), 2)))
def test_one_replica_of_three_is_enough(make: Maker, lost: tuple[int, int]) -> None:
    volume = make(REPLICA3, 3)
    data = pattern(BLOCK_BYTES)
    block = volume.store(data)
    before = volume.chunk_files(block)
    volume.lose(block, *lost)
    assert volume.read(block) == data
    volume.blocks.repair(block)
    assert volume.chunk_files(block) == before
    volume.lose(block, 0, 1, 2)
    with pytest.raises(DataLossError):
        volume.read(block)


@pytest.mark.parametrize("at", [0, 30, CHUNK_HEADER_BYTES - 1, CHUNK_HEADER_BYTES, -1])
def test_rot_is_read_around_told_and_repaired(make: Maker, at: int) -> None:
    volume = make()
    data = pattern(BLOCK_BYTES)
    block = volume.store(data)
    before = volume.chunk_files(block)
    volume.rot(block, 1, at)
    assert volume.read(block) == data
    assert set(volume.damage) == {(block.block, 1)}
    assert volume.blocks.check(block) == [1]
    volume.blocks.repair(block)
    assert volume.chunk_files(block) == before


def test_swapped_chunks_are_read_around(make: Maker) -> None:
    volume = make()
    block, other = volume.store(pattern(BLOCK_BYTES, 1)), volume.store(pattern(BLOCK_BYTES, 2))
    one, two = volume.path(block, 0), volume.path(other, 0)
    raw = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(raw)
    volume.drop_descriptors()
    assert volume.read(block) == pattern(BLOCK_BYTES, 1)
    assert volume.read(other) == pattern(BLOCK_BYTES, 2)
    assert len(volume.damage) == 2


def test_a_whole_chunk_with_other_content_than_the_record_says_is_found(make: Maker) -> None:
    """A chunk of an earlier life under the same name passes its own checks, not the record's."""
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES, 1))
    volume.metadata._next = block.block - 1
    volume.metadata.blocks_by_id.clear()
    stale = {location.index: volume.path(block, location.index).read_bytes() for location in block.chunks}
    again = volume.store(pattern(BLOCK_BYTES, 2))
    assert again.block == block.block
    volume.path(again, 2).write_bytes(stale[2])
    volume.drop_descriptors()
    assert volume.blocks.check(again) == [2]
    volume.blocks.repair(again)
    assert volume.read(again) == pattern(BLOCK_BYTES, 2)


@pytest.fixture(scope="module")
def degraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SmallVolume, bytes, list[Block]]]:
    """Blocks of one content with every loss of up to two chunks."""
    volume = SmallVolume(tmp_path_factory.mktemp("degraded"))
    data = pattern(BLOCK_BYTES - 777)
    blocks = []
    for lost in [(), *itertools.combinations(range(6), 1), *itertools.combinations(range(6), 2)]:
        block = volume.store(data)
        for index in lost:
            volume.path(block, index).unlink()
        blocks.append(block)
    volume.drop_descriptors()
    yield volume, data, blocks
    volume.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 21), st.integers(0, BLOCK_BYTES - 777), st.integers(0, BLOCK_BYTES))
def test_any_range_is_exact_under_any_loss(
    degraded: tuple[SmallVolume, bytes, list[Block]], which: int, offset: int, length: int
) -> None:
    volume, data, blocks = degraded
    length = min(length, len(data) - offset)
    assert volume.read(blocks[which], offset, length) == data[offset : offset + length]


# ---- disks in trouble ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UnavailableError("gone"), NoSpaceError("full")])
def test_a_chunk_whose_disk_fails_goes_to_another(make: Maker, error: TieredError) -> None:
    volume = make(RS42, 8)
    volume.stores[DiskId(1)].fail("put", error)
    volume.stores[DiskId(2)].fail("put", error)
    for _ in range(4):
        volume.clock.now_s += DISK_REST_S + 1
        block = volume.store(pattern(BLOCK_BYTES))
        assert {location.disk for location in block.chunks} == {3, 4, 5, 6, 7, 8}
        assert volume.read(block) == pattern(BLOCK_BYTES)
    assert volume.stores[DiskId(1)].happened["put"] + volume.stores[DiskId(2)].happened["put"] > 0


def test_with_five_disks_of_six_blocks_are_thinner_until_repaired(make: Maker) -> None:
    volume = make()
    volume.stores[DiskId(3)].fail("put", UnavailableError("gone"))
    block = volume.store(pattern(BLOCK_BYTES))
    assert volume.stores[DiskId(3)].happened["put"] == 1
    assert len(block.chunks) == 5
    assert volume.read(block) == pattern(BLOCK_BYTES)
    volume.stores[DiskId(3)].heal()
    volume.clock.now_s += DISK_REST_S
    repaired = volume.blocks.repair(block)
    assert len(repaired.chunks) == 6
    assert volume.metadata.block(block.block) == repaired
    assert volume.blocks.check(repaired) == []


@pytest.mark.parametrize(
    ("code", "disks", "gone"), [(RS42, 6, 2), (REPLICA3, 3, 2), (Code(CodeKind.REPLICA, 1, 1), 2, 1)]
)
def test_with_any_m_disks_gone_blocks_are_written_bare_and_become_whole(
    make: Maker, code: Code, disks: int, gone: int
) -> None:
    volume = make(code, disks)
    lost = [DiskId(number) for number in range(1, gone + 1)]
    for disk in lost:
        volume.stores[disk].fail("put", UnavailableError("gone"))
    block = volume.store(pattern(BLOCK_BYTES))
    assert {location.disk for location in block.chunks} == volume.stores.keys() - set(lost)
    assert (block.spare, len(block.missing)) == (0, gone)
    assert volume.read(block) == pattern(BLOCK_BYTES)
    assert volume.blocks.placeable(block) == []
    for disk in lost:
        volume.stores[disk].heal()
    volume.clock.now_s += DISK_REST_S
    assert volume.blocks.placeable(block) == block.missing
    whole = volume.blocks.restore(block, block.missing)
    assert (whole.spare, whole.missing) == (code.parity_count, [])
    assert volume.blocks.check(whole) == []
    for disk in [disk for disk in volume.stores if disk not in lost][:gone]:
        volume.take_away(disk)
    assert volume.read(whole) == pattern(BLOCK_BYTES)


def test_before_a_block_is_written_bare_disks_that_rest_are_tried(make: Maker) -> None:
    volume = make()
    for disk in (1, 2):
        volume.stores[DiskId(disk)].fail("put", UnavailableError("hiccup"), times=1)
    assert len(volume.store(pattern(BLOCK_BYTES)).chunks) == 4
    assert len(volume.store(pattern(BLOCK_BYTES)).chunks) == 6, "they rest, and yet they took theirs"


@pytest.mark.parametrize(("error", "count"), [(UnavailableError("gone"), 3), (NoSpaceError("full"), 2)])
def test_with_too_few_disks_nothing_is_acknowledged_and_nothing_left(
    make: Maker, error: TieredError, count: int
) -> None:
    """Room does not come back by itself, so a block is not written with nothing to spare for want of it."""
    volume = make()
    failing = [DiskId(number) for number in range(1, count + 1)]
    for disk in failing:
        volume.stores[disk].fail("put", error)
    with pytest.raises(type(error)):
        volume.store(pattern(BLOCK_BYTES))
    assert sum(volume.stores[disk].happened["put"] for disk in failing) == count
    assert volume.metadata.reserved_now == set()
    assert volume.all_chunk_names() == set()


def test_a_disk_that_is_missing_is_not_called_full(make: Maker) -> None:
    volume = make()
    for disk in (1, 2, 3):
        volume.take_away(DiskId(disk))
    with pytest.raises(UnavailableError, match="needs 4 disks at least; 3 of 6"):
        volume.store(b"x")


def test_full_disks_take_no_chunk_and_a_full_store_says_so(make: Maker) -> None:
    volume = make()
    volume.stores[DiskId(1)].free_bytes = 0
    assert len(volume.store(pattern(BLOCK_BYTES)).chunks) == 5
    for store in volume.stores.values():
        store.free_bytes = 0
    with pytest.raises(NoSpaceError):
        volume.store(b"x")
    assert volume.stores[DiskId(1)].calls["put"] == 0


def test_a_disk_that_does_not_answer_rests(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    disk = block.chunks[0].disk
    volume.stores[disk].fail("read_into", UnavailableError("gone"))
    for _ in range(5):
        assert volume.read(block) == pattern(BLOCK_BYTES)
    assert volume.stores[disk].happened["read_into"] == 1
    volume.clock.now_s += DISK_REST_S
    assert volume.read(block) == pattern(BLOCK_BYTES)
    assert volume.stores[disk].happened["read_into"] == 2
    assert volume.damage == [], "a disk that is away says nothing about its chunks"


def test_disks_that_rest_are_asked_when_the_others_do_not_suffice(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    for store in volume.stores.values():
        store.fail("read_into", UnavailableError("hiccup"), times=1)
    with pytest.raises(UnavailableError):
        volume.read(block)
    assert volume.read(block) == pattern(BLOCK_BYTES)
    assert sum(store.happened["read_into"] for store in volume.stores.values()) == 4, (
        "data chunks; then too few are left"
    )


def test_too_many_disks_away_is_unavailable_not_lost(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    for disk in (1, 2, 3):
        volume.take_away(DiskId(disk))
    with pytest.raises(UnavailableError):
        volume.read(block)


def test_a_stalled_write_is_left_behind_and_its_buffer_is_not_lent_again(make: Maker) -> None:
    volume = make(RS42, 7, stall_s=3.0)
    stalls = {disk: store.stall("put") for disk, store in volume.stores.items() if disk == 1}
    while not stalls[DiskId(1)].arrived.is_set():
        block = volume.store(pattern(BLOCK_BYTES, 1))
    assert 1 not in {location.disk for location in block.chunks}
    assert len(block.chunks) == 6
    others = [volume.store(pattern(BLOCK_BYTES, seed)) for seed in (2, 3, 4)]
    assert all(location.disk != 1 for other in others for location in other.chunks), "the disk rests"
    stalls[DiskId(1)].release()
    volume.blocks._executor.shutdown(wait=True)
    late = [name for disk, name in volume.all_chunk_names() if disk == 1 and name.block == block.block]
    assert len(late) == 1, "the late write was carried out after all"
    volume.stores[DiskId(1)].inner.read_into(late[0], 0, memoryview(bytearray(block.chunk_bytes)))  # and is whole
    assert volume.blocks._loans._pool.count == 2
    volume.blocks = volume.open()
    assert volume.read(block) == pattern(BLOCK_BYTES, 1)


# ---- disks that are slow ---------------------------------------------------------------------------------------------

HASTY = Patience(sibling_s=0.05, first_s=0.1, last_s=20.0)


def stall_reads(volume: SmallVolume, block: Block, *indexes: int) -> list[Stall]:
    """The next read of each of those chunks does not end."""
    return [volume.stores[location.disk].stall("read_into") for location in block.chunks if location.index in indexes]


@pytest.mark.parametrize(("code", "slow"), [(RS42, (1,)), (RS42, (0, 3)), (REPLICA3, (0, 1)), (REPLICA3, (2,))])
def test_a_slow_disk_is_read_around_and_its_late_bytes_reach_nobody(
    make: Maker, code: Code, slow: tuple[int, ...]
) -> None:
    volume = make(code, code.width, patience=HASTY)
    first, second = volume.store(pattern(BLOCK_BYTES, 1)), volume.store(pattern(BLOCK_BYTES, 2))
    stalls = stall_reads(volume, first, *slow)
    while not all(stall.arrived.is_set() for stall in stalls):  # replicas are chosen by chance
        assert volume.read(first) == pattern(BLOCK_BYTES, 1)
    calls = {disk: store.calls["read_into"] for disk, store in volume.stores.items()}
    slow_disks = {location.disk for location in first.chunks if location.index in slow}
    with volume.blocks.reading(second, 0, BLOCK_BYTES, volume.loans, 10) as content:
        assert {disk for disk in slow_disks if volume.stores[disk].calls["read_into"] != calls[disk]} == set(), (
            "they rest"
        )
        for stall in stalls:
            stall.release()
        wait_until(lambda: all(volume.blocks._access.is_well(disk) for disk in slow_disks))
        assert bytes(content) == pattern(BLOCK_BYTES, 2), "the late reads wrote into memory of their own"
    assert volume.loans._pool.count == 2
    assert volume.damage == [], "slow is not damaged"
    assert volume.read(first) == pattern(BLOCK_BYTES, 1)


def test_a_slow_source_of_a_decoding_is_done_without(make: Maker) -> None:
    volume = make(patience=HASTY)
    block = volume.store(pattern(BLOCK_BYTES))
    volume.lose(block, 0)
    (stall,) = stall_reads(volume, block, 4)
    assert volume.read(block) == pattern(BLOCK_BYTES)
    assert stall.arrived.is_set()
    assert volume.blocks._reader._scratch._pool.count == SCRATCH_COUNT + 1, "scratch that a late read writes to is out"
    stall.release()
    wait_until(lambda: volume.blocks._reader._scratch._pool.count == SCRATCH_COUNT)


def test_a_small_range_of_a_slow_disk_is_decoded(make: Maker) -> None:
    volume = make(patience=HASTY)
    block = volume.store(pattern(BLOCK_BYTES))
    (stall,) = stall_reads(volume, block, 2)
    offset = 2 * block.chunk_bytes + 5
    assert volume.read(block, offset, 1000) == pattern(BLOCK_BYTES)[offset : offset + 1000]
    assert stall.arrived.is_set()
    stall.release()


def test_more_slow_disks_than_the_code_bears_are_waited_for_within_bounds(make: Maker) -> None:
    volume = make(patience=replace(HASTY, last_s=0.2))
    block = volume.store(pattern(BLOCK_BYTES))
    stalls = stall_reads(volume, block, 0, 1, 2)
    with pytest.raises(UnavailableError):
        volume.read(block)
    for stall in stalls:
        assert stall.arrived.is_set()
        stall.release()
    wait_until(lambda: all(volume.blocks._access.is_well(disk) for disk in volume.stores))
    volume.patience = None
    volume.blocks = volume.open()
    assert volume.read(block) == pattern(BLOCK_BYTES)


def test_a_disk_that_is_slow_but_needed_is_waited_for(make: Maker) -> None:
    volume = make(patience=HASTY)
    block = volume.store(pattern(BLOCK_BYTES))
    volume.lose(block, 0, 5)
    (stall,) = stall_reads(volume, block, 3)
    release = threading.Timer(0.5, stall.release)
    release.start()
    assert volume.read(block) == pattern(BLOCK_BYTES)
    release.join()
    assert stall.arrived.is_set()


# ---- repair, moving, deleting ----------------------------------------------------------------------------------------


def test_a_lost_disk_is_rebuilt_on_the_others(make: Maker) -> None:
    volume = make(RS42, 8)
    blocks = [volume.store(pattern(BLOCK_BYTES, seed)) for seed in range(4)]
    lost = blocks[0].chunks[0].disk
    volume.set_state(lost, DiskState.LOST)
    volume.take_away(lost)
    for seed, block in enumerate(blocks):
        repaired = volume.blocks.repair(block)
        assert lost not in {location.disk for location in repaired.chunks}
        assert len({location.disk for location in repaired.chunks}) == 6
        assert volume.metadata.block(block.block) == repaired
        assert volume.read(repaired) == pattern(BLOCK_BYTES, seed)
        assert volume.blocks.check(repaired) == []


def test_a_draining_disk_is_emptied_by_copying(make: Maker) -> None:
    volume = make(RS42, 7)
    block = volume.store(pattern(BLOCK_BYTES))
    leaving = block.chunks[2]
    volume.set_state(leaving.disk, DiskState.DRAINING)
    reads = Counter({disk: store.calls["read_into"] for disk, store in volume.stores.items()})
    moved = volume.blocks.restore(block, [2])
    assert leaving.disk not in {location.disk for location in moved.chunks}
    assert volume.blocks.check(moved) == []
    assert list(volume.stores[leaving.disk].inner.names()) == []
    now = Counter({disk: store.calls["read_into"] for disk, store in volume.stores.items()})
    assert reads[leaving.disk] + 1 == now[leaving.disk]


def test_repair_that_loses_the_race_leaves_the_winners_chunk(make: Maker) -> None:
    volume = make(RS42, 8)
    block = volume.store(pattern(BLOCK_BYTES))
    volume.set_state(block.chunks[0].disk, DiskState.LOST)
    first = volume.blocks.restore(block, [0])
    volume.stores[first.chunks[0].disk].fail("put", NoSpaceError("full"), times=1)  # so that the second goes elsewhere
    second = volume.blocks.restore(block, [0])
    assert second == first
    assert volume.blocks.check(second) == []
    names = [(disk, name) for disk, name in volume.all_chunk_names() if name == ChunkName(block.block, 0)]
    assert (first.chunks[0].disk, ChunkName(block.block, 0)) in names
    assert len(names) <= 2, "the lost disk's own chunk may still lie there"


def test_repair_of_a_block_that_is_gone_leaves_no_chunk(make: Maker) -> None:
    volume = make(RS42, 8)
    block = volume.store(pattern(BLOCK_BYTES))
    volume.set_state(block.chunks[0].disk, DiskState.LOST)
    del volume.metadata.blocks_by_id[block.block]
    before = volume.all_chunk_names()
    with pytest.raises(NotFoundError):
        volume.blocks.repair(block)
    assert volume.all_chunk_names() == before


def test_repair_finds_no_room(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    volume.lose(block, 0)
    for store in volume.stores.values():
        store.fail("put", NoSpaceError("full"))
    with pytest.raises(NoSpaceError):
        volume.blocks.repair(block)
    assert volume.read(block) == pattern(BLOCK_BYTES)


def test_repair_does_not_store_what_the_record_does_not_vouch_for(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    volume.lose(block, 0)
    lied = replace(block, chunks=(replace(block.chunks[0], crc32c=1), *block.chunks[1:]))
    with pytest.raises(DataLossError, match="other bytes"):
        volume.blocks.restore(lied, [0])
    assert not volume.path(block, 0).exists()


def test_deleting_a_block_deletes_its_chunks_where_it_can(make: Maker) -> None:
    volume = make()
    block, kept = volume.store(pattern(BLOCK_BYTES, 1)), volume.store(pattern(BLOCK_BYTES, 2))
    away = block.chunks[0].disk
    volume.stores[away].fail("delete", UnavailableError("gone"))
    volume.blocks.delete(block)
    assert volume.stores[away].happened["delete"] == 1
    left = {(disk, name) for disk, name in volume.all_chunk_names() if name.block == block.block}
    assert left == {(away, ChunkName(block.block, 0))}
    assert volume.read(kept) == pattern(BLOCK_BYTES, 2)


def test_a_source_that_fails_while_decoding_is_replaced(make: Maker) -> None:
    volume = make()
    block = volume.store(pattern(BLOCK_BYTES))
    volume.lose(block, 0)
    disk = block.chunks[4].disk
    volume.stores[disk].fail("read_into", CorruptError("rot"))
    assert volume.read(block, 0, block.chunk_bytes) == pattern(BLOCK_BYTES)[: block.chunk_bytes]
    assert volume.stores[disk].happened["read_into"] == 1
    volume.lose(block, 1)
    with pytest.raises(DataLossError):
        volume.read(block)
    assert volume.stores[disk].happened["read_into"] == 2
