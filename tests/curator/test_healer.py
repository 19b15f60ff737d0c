"""What was written while disks were away becomes whole by itself: most urgent first, once, and after any death."""

import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.curator.care_volume import BLOCK_BYTES, REPLICA2, CareVolume, care_volume, killed_at, turn_name
from tieredfs.curator import FindingKind, Healer
from tieredfs.format import keys
from tieredfs.host.turn import NamedTurn
from tieredfs.meta import shortage
from tieredfs.model import BlockId, Code, CodeKind, DiskId
from tieredfs.testing.metadata_check import broken_invariants

LOST = (DiskId(2), DiskId(5))
OTHERS = (DiskId(1), DiskId(6))


def take_away(volume: CareVolume, *disks: DiskId) -> None:
    for disk in disks:
        volume.disk_path(disk).rename(volume.root / f"away{disk}")
    volume.reopen_disks()


def bring_back(volume: CareVolume, *disks: DiskId) -> None:
    for disk in disks:
        (volume.root / f"away{disk}").rename(volume.disk_path(disk))
    volume.reopen_disks()


def healer_of(volume: CareVolume) -> Healer:
    return Healer(volume.curator.holdings, turn_name(volume))


def assert_whole(volume: CareVolume) -> None:
    """Every block has all its chunks, each once and where its record says; any two disks may go."""
    assert volume.metadata.shortage().blocks == 0
    assert [block.missing for block in volume.all_blocks() if block.missing] == []
    assert volume.chunk_files() == volume.named_chunks()
    assert broken_invariants(volume.engine) == []
    volume.assert_clean()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CareVolume]:
    """Three blocks with nothing to spare: two of the six disks were away."""
    with care_volume(tmp_path) as volume:
        take_away(volume, *LOST)
        volume.fill(3)
        assert [(block.spare, len(block.chunks)) for block in volume.all_blocks()] == [(0, 4)] * 3
        yield volume


def test_disks_come_back_and_two_others_may_go(volume: CareVolume) -> None:
    assert (volume.metadata.shortage().blocks, volume.metadata.shortage().bare) == (3, 3)
    bring_back(volume, *LOST)
    healer = healer_of(volume)
    healer.turn()
    assert (healer.counts().healed_blocks, healer.counts().healed_chunks, healer.counts().failed) == (3, 6, 0)
    assert_whole(volume)
    take_away(volume, *OTHERS)
    volume.assert_contents()


def test_the_thread_does_it_by_itself(volume: CareVolume) -> None:
    healer = healer_of(volume)
    healer.start()
    healer.start()
    bring_back(volume, *LOST)
    healer._holdings.replace_disks(volume.stores)
    healer._holdings.blocks = volume.blocks  # what a volume's heartbeat does
    tick = threading.Event()
    for _ in range(3000):
        if not volume.metadata.shortage().blocks:
            break
        tick.wait(0.01)
    healer.close()
    assert_whole(volume)


def test_one_disk_that_is_back_heals_what_it_can(volume: CareVolume) -> None:
    bring_back(volume, LOST[0])
    healer_of(volume).turn()
    found = volume.metadata.shortage()
    assert (found.blocks, found.bare, found.least_spare) == (3, 0, 1)
    take_away(volume, OTHERS[0])
    volume.assert_contents()
    bring_back(volume, OTHERS[0], LOST[1])
    healer_of(volume).turn()
    assert_whole(volume)


def test_new_disks_serve_as_well(volume: CareVolume) -> None:
    for _ in LOST:
        volume.add_disk()
    healer_of(volume).turn()
    assert volume.metadata.shortage().blocks == 0
    take_away(volume, *OTHERS)
    volume.assert_contents()


def test_while_no_other_disk_takes_chunks_nothing_is_tried_again(volume: CareVolume) -> None:
    healer = healer_of(volume)
    for _ in range(5):
        healer.turn()
    assert (healer.counts().passes, healer.counts().failed) == (1, 0)


def test_without_short_blocks_there_is_no_pass(tmp_path: Path) -> None:
    with care_volume(tmp_path) as volume:
        volume.fill(1)
        healer = healer_of(volume)
        healer.turn()
        assert healer.counts().passes == 0


def test_what_can_lose_no_more_is_healed_first(tmp_path: Path) -> None:
    with care_volume(tmp_path) as volume:
        take_away(volume, LOST[0])
        volume.fill(2)
        take_away(volume, LOST[1])
        volume.store_file(b"bare", b"b" * BLOCK_BYTES)
        bare = volume.block_of(b"bare").block
        bring_back(volume, *LOST)
        order: list[BlockId] = []
        holdings, renew = volume.curator.holdings, volume.curator.holdings.renew
        holdings.renew = lambda block, indexes: (order.append(block.block), renew(block, indexes))[1]  # type: ignore[method-assign]
        Healer(holdings, turn_name(volume)).turn()
        assert (order[0], len(order)) == (bare, 3)
        assert_whole(volume)


def test_one_process_heals_at_a_time(volume: CareVolume) -> None:
    bring_back(volume, *LOST)
    healer, turn = healer_of(volume), NamedTurn.take(f"tieredfs-heal-{turn_name(volume)}")
    assert turn is not None
    healer.turn()
    assert healer.counts().passes == 0
    turn.close()
    healer.turn()
    assert_whole(volume)


def test_two_that_heal_the_same_blocks_all_the_same_do_no_harm(
    volume: CareVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two hosts, where each has a turn."""
    monkeypatch.setattr(NamedTurn, "take", classmethod(lambda cls, name: cls(socket.socket())))
    for number in range(12):
        volume.store_file(b"more-%d" % number, bytes([number]) * BLOCK_BYTES)
    bring_back(volume, *LOST)
    other = CareVolume(volume.root)
    healers = [healer_of(volume), healer_of(other)]
    threads = [threading.Thread(target=healer.turn) for healer in healers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.close()
    assert sum(healer.counts().healed_chunks for healer in healers) >= 30
    assert_whole(volume)
    volume.assert_contents()


@pytest.mark.parametrize("point", ["chunk.written", "rebuild.chunk-written", "rebuild.committed"])
def test_killed_while_it_heals_the_next_one_finishes(volume: CareVolume, point: str) -> None:
    bring_back(volume, *LOST)
    killed_at(point, volume.root, "heal")
    left = volume.metadata.shortage()
    assert left.blocks == 3, "one chunk of one block at most"
    assert left.missing_bytes == (5 if point == "rebuild.committed" else 6) * volume.all_blocks()[0].chunk_bytes
    assert broken_invariants(volume.engine) == []
    volume.reopen_disks()
    healer_of(volume).turn()
    assert volume.metadata.shortage().blocks == 0
    volume.curator.collect_garbage(lambda *_: None)
    assert_whole(volume)
    take_away(volume, *OTHERS)
    volume.assert_contents()


def test_a_deleted_file_is_not_healed(volume: CareVolume) -> None:
    volume.remove_file(b"file-1")
    bring_back(volume, *LOST)
    healer = healer_of(volume)
    healer.turn()
    assert healer.counts().healed_blocks == 2
    assert volume.metadata.shortage().blocks == 0
    assert broken_invariants(volume.engine) == []


def test_a_check_with_repair_and_the_healer_agree(volume: CareVolume) -> None:
    bring_back(volume, *LOST)
    assert {finding.kind for finding in volume.check().findings} == {FindingKind.CHUNK_UNPLACED}
    assert volume.check(repair=True).clean
    assert_whole(volume)


def test_a_rebuild_and_the_healer_agree(volume: CareVolume) -> None:
    """The disks do not come back: others take their place, and the lost ones leave the volume."""
    spares = [volume.add_disk() for _ in LOST]
    for disk in LOST:
        volume.curator.rebuild_disk(disk, lambda *_: None)
    volume.reopen_disks()
    healer_of(volume).turn()
    assert_whole(volume)
    take_away(volume, *spares)
    volume.assert_contents()


def test_blocks_of_a_volume_without_the_list_are_listed_by_a_check_with_repair(volume: CareVolume) -> None:
    """As an earlier version left it."""
    numbers = [block.block for block in volume.all_blocks()]
    volume.engine.write(lambda writer: [writer.delete(keys.short_block(0, number)) for number in numbers])
    volume.assert_contents()
    assert volume.metadata.shortage().blocks == 0, "the fault happened"
    found = [finding.kind for finding in volume.check().findings]
    assert found.count(FindingKind.SHORT_INDEX) == 3
    volume.check(repair=True)
    assert volume.metadata.shortage().blocks == 3, "the disks are still away"
    assert broken_invariants(volume.engine) == []
    bring_back(volume, *LOST)
    healer_of(volume).turn()
    assert_whole(volume)


def test_a_stale_entry_is_taken_off_the_list(volume: CareVolume) -> None:
    nobody = replace(volume.all_blocks()[0], block=BlockId(999))
    volume.engine.write(lambda writer: shortage.enter(writer, nobody, 1))
    assert volume.metadata.shortage().blocks == 4, "the fault happened"
    healer_of(volume).turn()
    assert volume.metadata.shortage().blocks == 3
    assert broken_invariants(volume.engine) == []


@pytest.mark.allows_warnings("lacks chunks and cannot be healed")
def test_a_block_that_is_lost_does_not_hold_up_the_others(volume: CareVolume, caplog: pytest.LogCaptureFixture) -> None:
    hopeless = volume.block_of(b"file-0")
    volume.path(hopeless, hopeless.chunks[0].index).unlink()
    bring_back(volume, *LOST)
    healer = healer_of(volume)
    with caplog.at_level(logging.ERROR):
        healer.turn()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert healer.counts().failed > 1, "told once, tried again"
    caplog.clear()
    assert volume.metadata.shortage().blocks == 1
    for name in (b"file-1", b"file-2"):
        assert volume.block_of(name).missing == []


def test_the_last_replica_is_enough_to_write_and_to_heal(tmp_path: Path) -> None:
    for code, disks in ((REPLICA2, 2), (Code(CodeKind.REPLICA, 1, 2), 3)):
        root = tmp_path / str(code)
        root.mkdir()
        with care_volume(root, disk_count=disks, code=code) as volume:
            away = [DiskId(number) for number in range(2, disks + 1)]
            take_away(volume, *away)
            volume.fill(2)
            assert [len(block.chunks) for block in volume.all_blocks()] == [1, 1]
            bring_back(volume, *away)
            healer_of(volume).turn()
            assert_whole(volume)
            take_away(volume, *[DiskId(number) for number in range(1, disks)])
            volume.assert_contents()
