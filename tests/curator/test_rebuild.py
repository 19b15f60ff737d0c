"""Lost disks are rebuilt and disks to go are emptied, to the bit, again after any interruption, as far as can be."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.curator.care_volume import BLOCK_BYTES, REPLICA2, CareVolume, Progresses, care_volume, killed_at, nothing
from tieredfs.chunk.directory import DiskIdentity, format_disk
from tieredfs.curator import FindingKind
from tieredfs.errors import InvalidRequestError, NotFoundError, UnavailableError
from tieredfs.limits import DEAD_BLOCK_GRACE_S
from tieredfs.model import DiskId, DiskState


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CareVolume]:
    with care_volume(tmp_path, disk_count=8) as volume:
        volume.fill(8)
        yield volume


def chunks_on(volume: CareVolume, disk: int) -> int:
    return sum(chunk.disk == disk for block in volume.all_blocks() for chunk in block.chunks)


def state(volume: CareVolume, disk: int) -> DiskState:
    return next(record.state for record in volume.metadata.disks() if record.disk == disk)


def test_a_lost_disk_is_rebuilt(volume: CareVolume) -> None:
    expected = chunks_on(volume, 2)
    volume.lose_disk(DiskId(2))
    volume.assert_contents()
    assert not volume.check().clean
    progress = Progresses()
    report = volume.curator.rebuild_disk(DiskId(2), progress)
    assert (report.state, report.chunks_moved, report.losses) == (DiskState.REMOVED, expected, ())
    assert report.bytes_moved == expected * BLOCK_BYTES // 4
    assert progress.calls[-1] == (expected, expected, "blocks")
    json.dumps(dataclasses.asdict(report))
    assert chunks_on(volume, 2) == 0
    volume.assert_clean()
    volume.assert_contents()


def test_two_lost_disks_are_rebuilt_one_after_the_other(volume: CareVolume) -> None:
    volume.lose_disk(DiskId(1))
    volume.lose_disk(DiskId(5))
    for disk in (DiskId(1), DiskId(5)):
        assert volume.curator.rebuild_disk(disk, nothing).state is DiskState.REMOVED
    volume.assert_clean()
    volume.assert_contents()


def test_a_disk_whose_directory_was_made_anew_is_lost_too(volume: CareVolume) -> None:
    volume.lose_disk(DiskId(4))
    volume.disk_path(DiskId(4)).mkdir()
    volume.reopen_disks()
    assert FindingKind.DISK_UNREACHABLE in {finding.kind for finding in volume.check().findings}
    assert volume.curator.rebuild_disk(DiskId(4), nothing).state is DiskState.REMOVED
    volume.assert_clean()
    volume.assert_contents()


def test_a_disk_that_another_one_stands_in_for_is_not_used(volume: CareVolume) -> None:
    volume.lose_disk(DiskId(4))
    format_disk(volume.host, str(volume.disk_path(DiskId(4))), DiskIdentity("another volume", "another disk"))
    volume.reopen_disks()
    assert volume.stores[DiskId(4)][1] is None
    assert volume.curator.rebuild_disk(DiskId(4), nothing).state is DiskState.REMOVED
    volume.assert_clean()


def test_a_disk_is_emptied_by_copying(volume: CareVolume) -> None:
    expected = chunks_on(volume, 3)
    report = volume.curator.drain_disk(DiskId(3), nothing)
    assert (report.state, report.chunks_moved) == (DiskState.REMOVED, expected)
    assert not list(volume.disk_path(DiskId(3)).glob("chunks/*/*")), "nothing stays behind"
    volume.assert_clean()
    volume.assert_contents()


def test_a_disk_is_emptied_though_some_of_its_chunks_are_rotten(volume: CareVolume) -> None:
    block = next(block for block in volume.all_blocks() if any(chunk.disk == 3 for chunk in block.chunks))
    index = next(chunk.index for chunk in block.chunks if chunk.disk == 3)
    volume.path(block, index).write_bytes(b"rot")
    assert volume.curator.drain_disk(DiskId(3), nothing).losses == ()
    volume.assert_clean()
    volume.assert_contents()


def test_a_replica_volume_without_redundancy_left_is_emptied_by_copying(tmp_path: Path) -> None:
    with care_volume(tmp_path, disk_count=4, code=REPLICA2) as volume:
        volume.fill(4)
        block = next(block for block in volume.all_blocks() if block.chunks[0].disk == 1 or block.chunks[1].disk == 1)
        other = next(chunk for chunk in block.chunks if chunk.disk != 1)
        volume.path(block, other.index).unlink()
        assert volume.curator.drain_disk(DiskId(1), nothing).losses == ()
        assert volume.check(repair=True).clean
        volume.assert_contents()


def test_with_too_few_disks_it_says_so_and_goes_on_when_there_is_one_more(tmp_path: Path) -> None:
    with care_volume(tmp_path, disk_count=6) as volume:
        volume.fill(3)
        volume.lose_disk(DiskId(6))
        with pytest.raises(UnavailableError, match=r"disk 6 is not empty yet: 3 blocks .* run it again"):
            volume.curator.rebuild_disk(DiskId(6), nothing)
        assert state(volume, 6) is DiskState.LOST
        volume.assert_contents()
        volume.add_disk()
        assert volume.curator.rebuild_disk(DiskId(6), nothing).chunks_moved == 3
        volume.assert_clean()
        volume.assert_contents()


def test_blocks_beyond_repair_are_told_with_their_files_and_the_others_rebuilt(volume: CareVolume) -> None:
    unlucky = next(name for name in volume.contents if {1, 2} <= {chunk.disk for chunk in volume.block_of(name).chunks})
    block = volume.block_of(unlucky)
    others = [chunk.index for chunk in block.chunks if chunk.disk not in {1, 2}]
    volume.path(block, others[0]).unlink()
    volume.lose_disk(DiskId(1))
    volume.lose_disk(DiskId(2))
    with pytest.raises(UnavailableError, match="1 blocks could not be moved"):
        volume.curator.rebuild_disk(DiskId(1), nothing)  # the second disk may come back, for all that is known
    assert chunks_on(volume, 1) == 1, "the other blocks were rebuilt"
    for disk in (DiskId(2), DiskId(1)):
        report = volume.curator.rebuild_disk(disk, nothing)
        (loss,) = report.losses
        assert (loss.block, loss.paths, loss.file_count) == (block.block, (f"/{unlucky.decode()}",), 1)
        assert report.state is DiskState.LOST, "should the disk turn up, so does the block"
    del volume.contents[unlucky]
    volume.assert_contents()
    left = {finding.subject.split()[1] for finding in volume.check(repair=True).findings}
    assert left == {f"{block.block:x}"}, "nothing else is harmed"


def test_a_lost_block_that_nobody_refers_to_is_no_loss(volume: CareVolume) -> None:
    name = next(name for name in volume.contents if any(chunk.disk == 1 for chunk in volume.block_of(name).chunks))
    block = volume.block_of(name)
    for chunk in block.chunks[:3]:
        if chunk.disk != 1:
            volume.path(block, chunk.index).unlink()
    for chunk in block.chunks[3:]:
        if chunk.disk != 1:
            volume.path(block, chunk.index).unlink()
    volume.remove_file(name)
    volume.lose_disk(DiskId(1))
    report = volume.curator.rebuild_disk(DiskId(1), nothing)
    assert (report.state, report.chunks_dropped, report.losses) == (DiskState.REMOVED, 1, ())
    volume.clock.advance(DEAD_BLOCK_GRACE_S + 1)
    volume.curator.collect_garbage(nothing)
    volume.assert_clean()
    volume.assert_contents()


@pytest.mark.parametrize("point", ["chunk.written", "rebuild.chunk-written:3", "rebuild.committed:2"])
@pytest.mark.parametrize("job", ["rebuild", "drain"])
def test_killed_in_the_middle_it_finishes_the_next_time(tmp_path: Path, job: str, point: str) -> None:
    with care_volume(tmp_path, disk_count=8) as volume:
        volume.fill(8)
    killed_at(point, tmp_path, job, "2")
    with care_volume(tmp_path) as again:
        again.contents = {entry.name: b"" for entry in again.metadata.list_directory(1, b"", 100)}  # type: ignore[arg-type]
        before = {name: again.read_file(name) for name in again.contents}
        left = chunks_on(again, 2)
        assert state(again, 2) in {DiskState.LOST, DiskState.DRAINING}
        finish = again.curator.rebuild_disk if job == "rebuild" else again.curator.drain_disk
        assert finish(DiskId(2), nothing).chunks_moved == left
        again.curator.collect_garbage(nothing)
        again.assert_clean()
        again.contents = before
        again.assert_contents()
        assert again.chunk_files() == again.named_chunks()


def test_requests_that_make_no_sense(volume: CareVolume) -> None:
    with pytest.raises(NotFoundError):
        volume.curator.rebuild_disk(DiskId(99), nothing)
    volume.curator.drain_disk(DiskId(1), nothing)
    for job in (volume.curator.rebuild_disk, volume.curator.drain_disk):
        with pytest.raises(InvalidRequestError):
            job(DiskId(1), nothing)
