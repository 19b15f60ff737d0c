"""The background repairer mends what readers meet, again and again where it cannot yet, and forgets what it must."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.curator.care_volume import CareVolume, care_volume, damage, flip
from tieredfs.core.care import RepairCounts, RepairQueue, pause_s
from tieredfs.curator import Repairer
from tieredfs.curator import repairer as repairer_module
from tieredfs.errors import UnavailableError
from tieredfs.limits import (
    CHUNK_HEADER_BYTES,
    DEAD_BLOCK_GRACE_S,
    REPAIR_ATTEMPTS_MAX,
    REPAIR_PAUSE_FIRST_S,
    REPAIR_PAUSE_LAST_S,
)
from tieredfs.model import Block, BlockId


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CareVolume]:
    with care_volume(tmp_path) as volume:
        volume.fill(3)
        yield volume


@pytest.fixture
def repairer(volume: CareVolume) -> Iterator[Repairer]:
    repairer = Repairer(volume.host)
    volume.on_damage = repairer.note
    yield repairer
    repairer.close()


def wait_until(ready: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(3000):
        if ready():
            return
        tick.wait(0.01)
    raise AssertionError("it did not happen within 30 s")


def test_what_a_reader_meets_is_repaired(volume: CareVolume, repairer: Repairer) -> None:
    block = volume.block_of(b"file-1")
    path = volume.path(block, 0)
    before = path.read_bytes()
    damage(path, flip(CHUNK_HEADER_BYTES))
    volume.reopen_disks()
    volume.assert_contents()
    assert (repairer.counts().noted, repairer.waiting()) == (1, 1), "noted, and waiting for the start"
    repairer.start(volume.curator.holdings)
    wait_until(lambda: repairer.counts().repaired == 1)
    assert repairer.waiting() == 0, "what the repair itself met is not noted again"
    assert path.read_bytes() == before
    volume.assert_clean()


def test_many_notes_of_one_block_are_one_repair(volume: CareVolume, repairer: Repairer) -> None:
    block = volume.block_of(b"file-1")
    for index in (0, 1, 1, 0, 1):
        repairer.note(block, index)
    for index in (0, 1):
        volume.path(block, index).unlink()
    repairer.start(volume.curator.holdings)
    wait_until(lambda: repairer.counts().repaired == 1)
    assert repairer.counts().merged >= 4
    volume.assert_clean()


def test_a_full_queue_refuses_and_says_so(volume: CareVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairer_module, "REPAIR_QUEUE_MAX", 2)
    repairer = Repairer(volume.host)
    for block in volume.all_blocks():
        repairer.note(block, 0)
    assert repairer.counts() == RepairCounts(noted=3, refused=1)
    assert repairer.waiting() == 2


@pytest.mark.allows_warnings("block .* is damaged beyond repair")
def test_blocks_that_are_gone_or_lost_end_there(volume: CareVolume, repairer: Repairer) -> None:
    gone, lost = volume.block_of(b"file-0"), volume.block_of(b"file-1")
    volume.remove_file(b"file-0")
    volume.clock.advance(DEAD_BLOCK_GRACE_S + 1)
    volume.curator.collect_garbage(lambda *_: None)
    for index in range(3):
        volume.path(lost, index).unlink()
    repairer.note(gone, 0)
    repairer.note(lost, 0)
    repairer.start(volume.curator.holdings)
    wait_until(lambda: repairer.counts().gone == 1 and repairer.counts().lost == 1)
    assert repairer.waiting() == 0


def test_what_fails_is_tried_again(volume: CareVolume, repairer: Repairer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tieredfs.core.care.REPAIR_PAUSE_FIRST_S", 0.01)
    block = volume.block_of(b"file-1")
    volume.path(block, 3).unlink()
    restore = volume.blocks.restore
    failures: list[int] = []

    def fail_twice(block: Block, indexes: set[int]) -> Block:
        if len(failures) < 2:
            failures.append(1)
            raise UnavailableError("not now")
        return restore(block, indexes)

    volume.blocks.restore = fail_twice  # type: ignore[method-assign,assignment]
    repairer.note(block, 3)
    repairer.start(volume.curator.holdings)
    wait_until(lambda: repairer.counts().repaired == 1)
    assert (len(failures), repairer.counts().retried) == (2, 2)
    volume.assert_clean()


def test_closing_stops_the_thread_and_is_harmless_before_the_start(volume: CareVolume) -> None:
    Repairer(volume.host).close()
    repairer = Repairer(volume.host)
    repairer.start(volume.curator.holdings)
    repairer.close()
    assert repairer._thread is not None
    assert not repairer._thread.is_alive()


# ---- the queue, without a clock --------------------------------------------------------------------------------------


def test_failed_blocks_wait_longer_each_time_and_others_go_first() -> None:
    queue = RepairQueue(10)
    for number in (1, 2):
        assert queue.add(BlockId(number), 0.0) is True
    assert queue.add(BlockId(1), 0.0) is None
    assert queue.take(0.0) == (1, 0)
    assert queue.put_back(BlockId(1), 1, 0.0)
    assert queue.take(0.0) == (2, 0)
    assert queue.take(REPAIR_PAUSE_FIRST_S / 2) is None
    assert queue.next_due_s() == REPAIR_PAUSE_FIRST_S
    assert queue.take(REPAIR_PAUSE_FIRST_S) == (1, 1)
    assert len(queue) == 0
    assert queue.next_due_s() is None


def test_pauses_double_and_are_bounded_and_attempts_end() -> None:
    pauses = [pause_s(attempt) for attempt in range(1, REPAIR_ATTEMPTS_MAX + 1)]
    assert pauses[:3] == [REPAIR_PAUSE_FIRST_S, 2 * REPAIR_PAUSE_FIRST_S, 4 * REPAIR_PAUSE_FIRST_S]
    assert max(pauses) == REPAIR_PAUSE_LAST_S
    assert not RepairQueue(1).put_back(BlockId(1), REPAIR_ATTEMPTS_MAX, 0.0)
