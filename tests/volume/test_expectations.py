"""Expectations on a volume: what is fetched ahead, read past the SSD, evicted; and what keeps its rights."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tieredfs.cache.pace import Pacer
from tieredfs.config import parse_code
from tieredfs.core.budget import Budget, Traffic
from tieredfs.core.file_life import FileState
from tieredfs.core.foresight import Use
from tieredfs.host import SystemClock
from tieredfs.limits import KIB, MIB
from tieredfs.model import Attributes, Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs.volume.through import ThroughReading

FILE_BYTES = 256 * KIB
FILES = 8
ROOM = 4
"""Files that fit the tier below its watermark."""
WAIT_S = 20.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite://{tmp_path}/volume.db"
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 * MIB)
    return url


@pytest.fixture
def volume(url: str, tmp_path: Path) -> Iterator[FileSystem]:
    """Eight stored files, and an empty SSD with room for four of them."""
    with FileSystem.at(url, purpose="test") as writer:
        for number in range(FILES):
            with writer.create() as writing:
                os.pwrite(writing.descriptor, bytes([number]) * FILE_BYTES, 0)
                writing.commit(b"f%d" % number)
        with writer.create() as writing:
            os.pwrite(writing.descriptor, b"begin", 0)
            os.pwrite(writing.descriptor, b"end", 200 * KIB)
            writing.commit(b"holes")
        writer.flush(60)
    capacity = int((ROOM * FILE_BYTES + 64 * KIB) / 0.9)
    with FileSystem.at(url, purpose="test", cache_dir=str(tmp_path / "ssd"), cache_bytes=capacity) as opened:
        yield opened


def files(volume: FileSystem) -> list[Attributes]:
    return [volume.stat(b"f%d" % number) for number in range(FILES)]


def whole(found: Attributes) -> Use:
    return Use(found.inode, found.size_bytes, found.size_bytes)


def is_here(volume: FileSystem, found: Attributes) -> bool:
    return volume._tier.state_of(found.inode) is FileState.RESIDENT


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def content(volume: FileSystem, found: Attributes) -> tuple[bytes, bool]:
    """And whether it was read past the SSD."""
    with volume.open_version(found) as reading:
        target = bytearray(found.size_bytes)
        assert reading.read_into(0, memoryview(target)) == len(target)
        return bytes(target), isinstance(reading, ThroughReading)


def test_what_is_worth_it_is_fetched_ahead_and_the_rest_is_read_past_the_ssd(volume: FileSystem) -> None:
    found = files(volume)
    with volume.expect([whole(each) for each in found + found]):
        wait_until(lambda: all(is_here(volume, each) for each in found[:ROOM]), "the first four are fetched")
        for number, each in enumerate(found):
            assert content(volume, each) == (bytes([number]) * FILE_BYTES, number >= ROOM)
        assert [is_here(volume, each) for each in found] == [True] * ROOM + [False] * (FILES - ROOM)


def test_what_is_needed_sooner_takes_the_place_of_what_is_needed_last(volume: FileSystem) -> None:
    found = files(volume)
    for each in found[:ROOM]:
        volume._tier.warm(each.inode, pin=False)
    order = [found[4], found[4], found[0], found[1], found[2], found[3]]
    with volume.expect(map(whole, order)):
        wait_until(lambda: is_here(volume, found[4]), "it is fetched")
        assert [is_here(volume, each) for each in found[:5]] == [True, True, True, False, True]


def test_a_pin_stays_whatever_is_expected(volume: FileSystem) -> None:
    found = files(volume)
    for each in found[:ROOM]:
        volume._tier.warm(each.inode, pin=True)
    with volume.expect([whole(found[4])] * 9):
        assert content(volume, found[4])[1], "there is no room that it may take"
        assert all(is_here(volume, each) for each in found[:ROOM])


def test_expected_files_take_half_from_others_and_give_back_what_is_beyond_it(volume: FileSystem) -> None:
    found = files(volume)
    tier = volume._tier
    for each in found[:ROOM]:
        tier.warm(each.inode, pin=False)
    with volume.expect([whole(each) for each in found[4:]] * 3):
        wait_until(lambda: sum(is_here(volume, each) for each in found[4:]) == 2, "half of the SSD")
        time.sleep(0.1)
        assert [is_here(volume, each) for each in found[4:]] == [True, True, False, False]
        assert sum(is_here(volume, each) for each in found[:ROOM]) == 2
        volume._ssd.foresight.make_room(2 * FILE_BYTES)
        assert [is_here(volume, each) for each in found[4:6]] == [True, True]
        assert not any(is_here(volume, each) for each in found[:ROOM])


def test_after_the_last_expectation_the_ordinary_policy_has_every_file(volume: FileSystem) -> None:
    found = files(volume)
    with volume.expect([whole(each) for each in found[:ROOM] * 2]):
        wait_until(lambda: all(is_here(volume, each) for each in found[:ROOM]), "all are fetched")
    assert volume._ssd.foresight.make_room(ROOM * FILE_BYTES) == ROOM
    assert not content(volume, found[7])[1], "nobody expects it: it comes as ever"


def test_a_wrong_expectation_costs_nothing_but_reads(volume: FileSystem) -> None:
    found = files(volume)
    volume.remove(b"f1")
    wrong = [Use(found[0].inode, 1, 1), whole(found[1]), Use(found[2].inode, 1 << 50, 7), whole(found[3])]
    with volume.expect(wrong + wrong) as expectation:
        wait_until(lambda: is_here(volume, found[3]), "what can be fetched is")
        for number in (0, 2, 3, 4):
            assert content(volume, found[number])[0] == bytes([number]) * FILE_BYTES
        expectation.used(found[5].inode)
        expectation.replace([])
        assert content(volume, found[2]) == (bytes([2]) * FILE_BYTES, False)
    expectation.close()


def test_past_the_ssd_every_range_is_what_was_written_holes_too(volume: FileSystem) -> None:
    found = volume.stat(b"holes")
    expected = b"begin" + bytes(200 * KIB - 5) + b"end"
    with volume.expect([whole(found)]), volume.open_version(found) as reading:
        assert isinstance(reading, ThroughReading)
        assert reading.descriptor is None
        for offset, length in [
            (0, 5),
            (3, 10),
            (0, len(expected)),
            (200 * KIB - 9, 100),
            (64 * KIB - 1, 2),
            (300 * KIB, 1),
        ]:
            target = bytearray(length)
            done = reading.read_into(offset, memoryview(target))
            assert bytes(target[:done]) == expected[offset : offset + length]


class HandClock(SystemClock):
    """Time stands still but for what is added."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


def test_a_budget_lets_training_before_what_is_fetched_ahead_and_counts_both(volume: FileSystem) -> None:
    found, clock = files(volume), HandClock()
    volume._ssd.pacer = Pacer(Budget(FILE_BYTES, FILE_BYTES, {}), clock, volume.volume.companions)
    volume._ssd.pacer.charge(Traffic.CHECKPOINT, 2 * FILE_BYTES)
    read: list[bytes] = []
    with volume.expect([whole(each) for each in found[:1] * 2]):
        training = threading.Thread(target=lambda: read.append(content(volume, found[7])[0]))
        training.start()
        waiting = volume._ssd.pacer._buckets._waiting
        wait_until(lambda: all(map(len, (waiting[Traffic.TRAINING], waiting[Traffic.BACKFILL]))), "both wait")
        clock.now_s += 1.5
        training.join(WAIT_S)
        assert read == [bytes([7]) * FILE_BYTES]
        assert not is_here(volume, found[0])
        clock.now_s += 1.0
        wait_until(lambda: is_here(volume, found[0]), "its turn has come")
    assert volume.granted_bytes() == {
        Traffic.CHECKPOINT: 2 * FILE_BYTES,
        Traffic.TRAINING: FILE_BYTES,
        Traffic.BACKFILL: FILE_BYTES,
    }


def test_processes_with_one_purpose_share_a_link(url: str, volume: FileSystem) -> None:
    assert volume.volume.companions() == 1
    with FileSystem.at(url, purpose="test") as other, FileSystem.at(url, purpose="something else"):
        assert volume.volume.companions() == other.volume.companions() == 2
        clock = HandClock()
        pacer = Pacer(Budget(1000, 1000, {}), clock, volume.volume.companions)
        pacer.take(Traffic.TRAINING, 1000)
        pacer.charge(Traffic.CHECKPOINT, 1000)
        waiting = threading.Thread(target=lambda: pacer.take(Traffic.TRAINING, 1))
        waiting.start()
        clock.now_s += 1.9
        waiting.join(0.3)
        assert waiting.is_alive(), "half the rate: two seconds"
        clock.now_s += 0.2
        waiting.join(WAIT_S)
        assert not waiting.is_alive()
    assert volume.volume.companions() == 1
