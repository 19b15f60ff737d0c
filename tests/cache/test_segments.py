"""Small contents in segments: through all that may happen to a content, and what segments take of the SSD."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.rigs import WIDE, FastClock, Rig, in_threads, noise, opened, pack_named, rig, volume_folder, wait_until
from tests.cache.test_elsewhere import serving, two_hosts
from tieredfs.cache import segments
from tieredfs.cache.recover import Recovered
from tieredfs.cache.segments import Segments, Whole
from tieredfs.core.file_life import FileState
from tieredfs.errors import CorruptError, NotFoundError
from tieredfs.format.segment import record_bytes
from tieredfs.host import Clock, SystemClock
from tieredfs.limits import GIB, KIB, MIB, SEGMENT_BYTES, SEGMENT_QUIET_S, SEGMENTS_IDLE_MAX
from tieredfs.model import ROOT, InodeId

pytestmark = pytest.mark.timeout(60)

SMALL = 64 * KIB


def pack(made: Rig, contents: dict[str, bytes]) -> list[InodeId]:
    return pack_named(made.tier, made.volume, contents)


def in_segments(made: Rig) -> list[Path]:
    return sorted((made.root / "cache" / "segments").iterdir())


def local_files(made: Rig) -> list[str]:
    return sorted(path.name for path in (made.root / "cache" / "content").glob("*/*"))


@pytest.fixture
def still() -> Iterator[Rig]:
    """Nothing is drained by itself."""
    with rig(start=False) as made:
        yield made


CONTENTS = {f"file-{number}": noise(size, number) for number, size in enumerate((0, 1, 4096, 5000, 100_000))}


def test_a_group_is_one_file_that_is_synced_once(still: Rig) -> None:
    pack(still, {"first": b"x"})
    still.files.synced.clear()
    inodes = pack(still, CONTENTS)
    assert len(in_segments(still)) == 1
    assert [path for path in still.files.synced if "segments" in path] == [str(in_segments(still)[0])]
    assert local_files(still) == []
    assert [still.get(inode) for inode in inodes] == list(CONTENTS.values())
    assert {still.state(inode) for inode in inodes} == {FileState.SEALED}


def test_a_group_may_have_more_contents_than_the_kernel_writes_at_once(still: Rig) -> None:
    contents = {f"f{number}": noise(100, number) for number in range(1200)}
    still.files.synced.clear()
    inodes = pack(still, contents)
    assert [path for path in still.files.synced if "segments/" in path].count(str(in_segments(still)[0])) == 2, (
        "made, filled"
    )
    assert [still.get(inode) for inode in inodes] == list(contents.values())


def test_it_is_drained_into_shared_blocks_and_leaves_nothing(still: Rig) -> None:
    inodes = pack(still, {f"f{number}": noise(1000, number) for number in range(40)})
    still.ssd.start()
    still.flush()
    assert {still.state(inode) for inode in inodes} == {FileState.ABSENT}
    assert still.blocks.writes == 1
    assert local_files(still) == []
    assert still.tier.room.dirty_bytes() == 0
    assert [still.get(inode) for inode in inodes] == [noise(1000, number) for number in range(40)]
    assert [block for block in still.block_sizes() if block] == [40_000]


def test_who_reads_keeps_what_he_opened(still: Rig) -> None:
    (inode,) = pack(still, {"f": b"one"})
    file = still.tier.open_read(inode)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(file.descriptor, b"x", 0)
    still.ssd.start()
    still.flush()
    pack(still, {f"other-{number}": bytes(60_000) for number in range(200)})
    assert os.pread(file.descriptor, 10, 0) == b"one"
    still.tier.release(file, writer=False)
    assert still.tier.active() != [] or still.tier.room.dirty_files() == []
    assert not still.tier.is_open(inode)


def test_who_writes_gets_a_file_of_his_own(still: Rig) -> None:
    inode, other = pack(still, {"f": noise(9000), "g": b"other"})
    still.change(inode, b"CHANGED", 4000)
    expected = noise(9000)[:4000] + b"CHANGED" + noise(9000)[4007:]
    assert still.get(inode) == expected
    assert local_files(still) == [f"{inode:016x}.2"]
    assert still.get(other) == b"other"
    still.ssd.start()
    still.flush()
    assert [still.get(inode), still.get(other)] == [expected, b"other"]


def test_a_writer_who_comes_during_the_drain_makes_it_void(still: Rig) -> None:
    inode, other = pack(still, {"f": noise(9000), "g": b"other"})
    still.blocks.hold(lambda kind, _: kind == "write")
    still.ssd.start()
    still.ssd.drainer.hurry(60)
    wait_until(lambda: still.blocks.waiting, "the drain writes a block")
    still.change(inode, b"CHANGED")
    still.blocks.open_all()
    still.flush()
    assert [still.get(inode), still.get(other)] == [b"CHANGED" + noise(9000)[7:], b"other"]


def test_deleted_during_the_drain_its_place_is_kept_for_the_drain(still: Rig) -> None:
    inode, other = pack(still, {"f": noise(9000), "g": b"other"})
    still.blocks.hold(lambda kind, _: kind == "write")
    still.ssd.start()
    still.ssd.drainer.hurry(60)
    wait_until(lambda: still.blocks.waiting, "the drain writes a block")
    still.meta.unlink(ROOT, b"f", still.volume.session)
    still.tier.mark_deleted(inode)
    still.meta.reclaim_orphan(inode, still.volume.session)
    still.meta.sync()
    still.tier.discard(inode)
    still.blocks.open_all()
    still.flush()
    assert still.get(other) == b"other"
    with pytest.raises(NotFoundError):
        still.get(inode)


def test_what_another_process_deleted_is_let_go_unread(still: Rig) -> None:
    contents = {f"f{number}": noise(1000, number) for number in range(10)}
    inodes = pack(still, contents)
    ordinary = [still.put(f"g{number}", noise(500, number)) for number in range(4)]
    for name, inode in [*[*zip(contents, inodes, strict=True)][::2], ("g0", ordinary[0])]:
        still.meta.unlink(ROOT, name.encode(), still.volume.session)
        still.meta.reclaim_orphan(inode, still.volume.session)
    still.ssd.start()
    still.flush()
    assert sum(still.block_sizes()) == 5 * 1000 + 3 * 500
    assert [still.get(inode) for inode in inodes[1::2]] == [noise(1000, number) for number in range(1, 10, 2)]
    assert local_files(still) == sorted(f"{inode:016x}.1" for inode in ordinary[1:] + inodes[1::2])
    assert still.tier.room.dirty_files() == []


def recovered(made: Rig) -> Recovered:
    return made.ssd.recovered


def test_recovery_finds_exactly_what_has_a_record() -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            inodes = pack(made, CONTENTS)
            made.tier.pack([b"never recorded"], [made.meta.new_inode_id()], 1)
            changed = pack(made, {"changed": b"before"})[0]
            made.change(changed, b"AFTER")
        with opened(root, start=False) as made:
            assert (recovered(made).staged, recovered(made).rolled_back) == (len(CONTENTS) + 1, ())
            assert [made.get(inode) for inode in inodes] == list(CONTENTS.values())
            assert made.get(changed) == b"AFTERe"
            before = in_segments(made)
            more = pack(made, {"more": b"more"})
            assert set(before) < set(in_segments(made)), "what was there before is not appended to"
        with opened(root) as made:
            assert made.get(more[0]) == b"more"
            made.flush()
            assert [made.get(inode) for inode in inodes] == list(CONTENTS.values())
        with opened(root, start=False) as made:
            assert recovered(made).staged == 0
            assert in_segments(made) == []


@pytest.mark.allows_warnings("staged file.* were not on the SSD any more")
def test_a_place_with_something_else_is_not_taken_for_the_content() -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            inodes = pack(made, {"torn": noise(5000), "whole": noise(5000, 2), "header": noise(5000, 3)})
            path = in_segments(made)[0]
        raw = bytearray(path.read_bytes())
        raw[4000] ^= 1
        raw[2 * record_bytes(5000) + 20] ^= 1
        path.write_bytes(raw)
        with opened(root, start=False) as made:
            assert recovered(made).rolled_back == (inodes[0], inodes[2])
            assert [made.get(inode) for inode in inodes] == [b"", noise(5000, 2), b""]
        path.unlink()
        with opened(root, start=False) as made:
            assert recovered(made).rolled_back == (inodes[1],)


@pytest.mark.allows_warnings("drain of 1 file.* failed")
def test_what_the_ssd_lost_is_told_and_holds_up_nobody(still: Rig) -> None:
    lost, other = pack(still, {"lost": noise(5000), "other": b"other"})
    with in_segments(still)[0].open("r+b") as file:
        file.seek(1000)
        file.write(b"rotten")
    with pytest.raises(CorruptError):
        still.get(lost)
    with pytest.raises(CorruptError):
        still.tier.open_write(lost, truncate=False)
    still.ssd.start()
    still.ssd.drainer.hurry(60)
    wait_until(lambda: still.state(other) is FileState.ABSENT, "the other one is stored")
    assert "checksum" in (still.ssd.drainer.last_error or "")
    assert still.get(other) == b"other"


# ---- others ---------------------------------------------------------------------------------------------------------


def test_another_process_reads_it_before_it_is_stored_and_after(still: Rig) -> None:
    inodes = pack(still, CONTENTS)
    with opened(still.root, cache="other") as other:
        assert [other.get(inode) for inode in inodes] == list(CONTENTS.values())
        file = other.tier.open_read(inodes[-1])
        still.ssd.start()
        still.flush()
        assert os.pread(file.descriptor, 200_000, 0) == CONTENTS["file-4"]
        other.tier.release(file, writer=False)
        assert [other.get(inode) for inode in inodes] == list(CONTENTS.values())
        other.change(inodes[0], b"written there")
        other.flush()
        assert still.get(inodes[0]) == b"written there"


def test_another_host_fetches_it_as_a_closed_content() -> None:
    with two_hosts(drains=False) as (owner, reader), serving(owner) as (_, asked):
        inodes = pack(owner, CONTENTS)
        assert [reader.get(inode) for inode in inodes] == list(CONTENTS.values())
        assert asked.looks == len(CONTENTS)
        assert sum(length for _, length in asked.parts) == sum(map(len, CONTENTS.values()))
        assert [reader.state(inode) for inode in inodes] == [FileState.RESIDENT] * len(inodes), "kept as copies"


def test_in_bare_blocks_it_stays_on_the_ssd_as_a_copy() -> None:
    """Disks are away: the store took as few chunks as reading needs, and the SSD has the one more."""
    with rig(start=False, **WIDE) as made:
        (inode,) = pack(made, {"f": noise(5000)})
        made.files.free |= {str(made.root / f"d{disk}"): 0 for disk in (0, 1)}
        away = [made.root / f"d{disk}" for disk in (0, 1)]
        for path in away:
            path.rename(path.with_suffix(".away"))
        made.ssd.start()
        made.flush()
        for path in away:
            path.with_suffix(".away").rename(path)
        bare = made.meta.is_bare(inode)
        assert made.state(inode) is (FileState.RESIDENT if bare else FileState.ABSENT)
        assert bare, "the store has it with k chunks"
        assert made.get(inode) == noise(5000)


def test_what_is_pinned_stays_on_the_ssd_as_a_copy(still: Rig) -> None:
    pinned, other = pack(still, {"pinned": noise(5000), "other": b"other"})
    still.tier.warm(pinned, pin=True)
    still.ssd.start()
    still.flush()
    assert [still.state(inode) for inode in (pinned, other)] == [FileState.RESIDENT, FileState.ABSENT]
    assert still.get(pinned) == noise(5000)


# ---- room -----------------------------------------------------------------------------------------------------------


class StillClock(SystemClock):
    """Moves when it is told to."""

    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


def many(made: Rig, segment_bytes: int = SMALL, clock: Clock | None = None) -> Segments:
    return Segments(made.ssd.directory, replace(made.host, clock=clock or made.host.clock), segment_bytes)


def wholes(count: int, size: int, first: int = 1) -> list[Whole]:
    return [Whole(InodeId(first + number), 1, noise(size, first + number)) for number in range(count)]


def test_segments_are_used_again_and_never_where_something_is_in_use(still: Rig) -> None:
    made = many(still)
    kept = made.write(wholes(1, 5000, first=10_000))
    names = set()
    for turn in range(100):
        places = made.write(wholes(5, 3000, first=turn))
        names |= {path.name for path in in_segments(still)}
        assert [made.read(place, InodeId(turn + n), 1) for n, place in enumerate(places)] == [
            noise(3000, turn + n) for n in range(5)
        ]
        made.release(places)
    assert made.read(kept[0], InodeId(10_000), 1) == noise(5000, 10_000)
    assert len(names) <= 3
    made.release(kept)
    made.close()
    assert in_segments(still) == []


def test_a_group_that_no_segment_has_room_for_goes_into_several(still: Rig) -> None:
    made = many(still)
    places = made.write(wholes(40, 6000))
    assert len({place.segment for place in places}) == 4
    assert [made.read(place, InodeId(1 + n), 1) for n, place in enumerate(places)] == [
        noise(6000, 1 + n) for n in range(40)
    ]
    made.release(places)
    assert len(in_segments(still)) <= SEGMENTS_IDLE_MAX + 1
    made.close()


def test_of_a_segment_that_is_mostly_dead_the_ssd_gets_its_room_back(still: Rig) -> None:
    """While the store takes nothing, one content that is in use must not hold thousands of others' room."""
    clock = StillClock()
    made = many(still, MIB, clock)
    places = made.write(wholes(180, 5000))
    more = made.write(wholes(60, 5000, first=1000))
    assert made.spare_bytes() + made.ready_bytes() >= MIB // 4
    made.release([place for number, place in enumerate(places) if number % 60])
    left = [place for number, place in enumerate(places) if not number % 60]
    before = made.spare_bytes()
    clock.now_s += SEGMENT_QUIET_S
    made.shrink()
    assert made.spare_bytes() < before - MIB // 2
    assert [made.read(place, InodeId(1 + 60 * n), 1) for n, place in enumerate(left)] == [
        noise(5000, 1 + 60 * n) for n in range(3)
    ]
    made.release(left)
    made.release(more)
    made.close()
    assert in_segments(still) == []


def test_while_room_is_short_who_writes_makes_no_segment_after_the_other(still: Rig) -> None:
    """Each is whole from the beginning, so to end one that is being filled takes room instead of giving it."""
    clock = StillClock()
    made = many(still, MIB, clock)
    places = []
    for turn in range(60):
        places += made.write(wholes(1, 5000, first=1 + turn))
        made.shrink()
        clock.now_s += SEGMENT_QUIET_S / 2
    assert len(in_segments(still)) == 1
    assert made.ready_bytes() > MIB // 2
    clock.now_s += SEGMENT_QUIET_S / 2
    made.shrink()
    assert made.ready_bytes() == 0
    assert made.spare_bytes() < MIB // 4, "nobody writes any more: its rest is given back"
    assert [made.read(place, InodeId(1 + n), 1) for n, place in enumerate(places)] == [
        noise(5000, 1 + n) for n in range(60)
    ]
    places += made.write(wholes(1, 5000, first=1000))
    assert places[-1].segment != places[0].segment
    made.release(places)
    made.close()
    assert in_segments(still) == []


def test_of_a_small_ssd_tier_segments_are_smaller() -> None:
    sizes = [segments.segment_bytes(capacity) for capacity in (1, 64 * MIB, 512 * MIB, GIB, 1024 * GIB)]
    assert sizes == [2 * MIB, 2 * MIB, 4 * MIB, SEGMENT_BYTES, SEGMENT_BYTES]


def test_what_segments_take_counts_and_a_full_ssd_shrinks_them() -> None:
    with volume_folder() as root, opened(root, capacity=64 * MIB, start=False, clock=FastClock()) as made:
        inodes = pack(made, {f"f{number}": noise(100_000, number) for number in range(45)})
        taken = sum(path.stat().st_blocks * 512 for path in in_segments(made))
        assert (
            made.tier.room.dirty_bytes() + made.tier.segments.spare_bytes() + made.tier.segments.ready_bytes() == taken
        )
        assert taken == len(in_segments(made)) * segments.segment_bytes(64 * MIB)
        made.ssd.start()
        made.flush()
        assert len(in_segments(made)) >= 2, "empty ones are kept to be used again"
        made.files.free[str(made.root / "cache")] = 0
        wait_until(lambda: in_segments(made) == [], "the evictor has seen that nobody writes any more")
        del made.files.free[str(made.root / "cache")]
        assert made.get(inodes[0]) == noise(100_000, 0)


def test_a_write_that_fails_takes_nothing_and_is_never_read(still: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = many(still)
    before = made.write(wholes(2, 1000))
    write = still.files.write

    def full(descriptor: int, buffers: list[bytes], offset: int) -> int:
        write(descriptor, buffers[:1], offset)
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(still.files, "write", full)
        for _ in range(3):
            with pytest.raises(OSError, match="no space"):
                made.write(wholes(2, 1000, first=50))
    assert len(in_segments(still)) == 1, "one that could not be made is not there"
    after = made.write(wholes(1, 1000, first=90))
    assert after[0].segment != before[0].segment
    assert made.read(before[1], InodeId(2), 1) == noise(1000, 2)
    made.release([*before, *after])
    made.close()


def test_many_threads_write_read_and_release(still: Rig) -> None:
    made = many(still)

    def work(first: int) -> int:
        good = 0
        for turn in range(30):
            number = first + turn * 10
            places = made.write(wholes(3, 2000, first=number))
            with made.held(places[0]):
                made.release(places)
                good += made.read(places[0], InodeId(number), 1) == noise(2000, number)
        return good

    calls = [lambda first=first: work(first) for first in (1, 100_000, 200_000, 300_000)]
    assert in_threads(calls) == [30] * 4
    made.close()
    assert in_segments(still) == []


def test_a_reader_elsewhere_notices_that_the_place_was_given_away(still: Rig) -> None:
    made = many(still)
    places = made.write(wholes(2, 1000))
    root = still.ssd.directory.path
    assert segments.read_packed(still.files, root, places[1], InodeId(2), 1) == noise(1000, 2)
    for inode, version in ((3, 1), (2, 2)):
        with pytest.raises(NotFoundError):
            segments.read_packed(still.files, root, places[1], InodeId(inode), version)
    made.release(places)
    for turn in range(3):
        made.release(made.write(wholes(20, 3000, first=500 + turn)))
    with pytest.raises(NotFoundError, match="not any more"):
        segments.read_packed(still.files, root, places[1], InodeId(2), 1)
    made.close()
    with pytest.raises(NotFoundError, match="not any more"):
        segments.read_packed(still.files, root, places[1], InodeId(2), 1)
