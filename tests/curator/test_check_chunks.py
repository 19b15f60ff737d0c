"""The check finds each kind of damage to chunks, names it, repairs what the code allows, and touches nothing else."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curator.care_volume import BLOCK_BYTES, REPLICA2, CareVolume, Progresses, care_volume, damage, flip, memory
from tieredfs.chunk.store import ChunkName
from tieredfs.curator import FindingKind
from tieredfs.limits import CELL_BYTES, CHUNK_HEADER_BYTES
from tieredfs.meta.metadata import Creation
from tieredfs.model import ROOT, Block, DiskId, FileKind


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CareVolume]:
    with care_volume(tmp_path) as volume:
        volume.fill(3)
        yield volume


def swap(volume: CareVolume, block: Block, index: int, other: Block, other_index: int) -> None:
    one, two = volume.path(block, index), volume.path(other, other_index)
    first, second = one.read_bytes(), two.read_bytes()
    for path, raw in ((one, second), (two, first)):
        path.unlink()
        path.write_bytes(raw)


def test_a_healthy_volume_is_clean_and_everything_was_counted(volume: CareVolume) -> None:
    report = volume.assert_clean()
    assert (report.inodes_checked, report.blocks_checked, report.chunks_checked) == (4, 3, 18)
    assert report.bytes_checked == 18 * BLOCK_BYTES // 4
    json.dumps(dataclasses.asdict(report))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (flip(CHUNK_HEADER_BYTES + 12345), FindingKind.CHUNK_ROTTEN),
        (flip(40), FindingKind.CHUNK_ROTTEN),
        (flip(-1), FindingKind.CHUNK_ROTTEN),
        (lambda raw: raw.__delitem__(slice(-100, None)), FindingKind.CHUNK_ROTTEN),
        (lambda raw: raw.__delitem__(slice(100, None)), FindingKind.CHUNK_ROTTEN),
        (lambda raw: raw.clear(), FindingKind.CHUNK_ROTTEN),
        (lambda raw: raw.extend(b"more"), FindingKind.CHUNK_ROTTEN),
        (None, FindingKind.CHUNK_MISSING),
    ],
    ids=["payload", "header", "last-byte", "tail-cut", "header-cut", "empty", "longer", "deleted"],
)
@pytest.mark.parametrize("index", [0, 5])
def test_one_damaged_chunk_is_found_and_mended(
    volume: CareVolume, change: Callable[[bytearray], None] | None, kind: FindingKind, index: int
) -> None:
    block = volume.block_of(b"file-1")
    path = volume.path(block, index)
    before = path.read_bytes()
    if change is None:
        path.unlink()
    else:
        damage(path, change)
        assert path.read_bytes() != before
    found = volume.check()
    assert [finding.kind for finding in found.findings] == [kind]
    assert found.findings[0].subject == f"block {block.block:x} chunk {index}"
    assert not found.clean
    assert volume.check().findings == found.findings, "a check alone changes nothing"
    mended = volume.check(repair=True)
    assert mended.clean
    assert [finding.repaired for finding in mended.findings] == [True]
    assert mended.chunks_repaired == 1
    assert path.read_bytes() == before
    volume.assert_clean()
    volume.assert_contents()


def test_chunks_that_were_swapped_are_found_and_mended(volume: CareVolume) -> None:
    one, two = volume.block_of(b"file-0"), volume.block_of(b"file-1")
    swap(volume, one, 1, two, 1)  # the same index of two blocks
    swap(volume, one, 2, one, 5)  # two of one block
    report = volume.check(repair=True)
    assert (
        sorted(finding.subject for finding in report.findings)
        == sorted(f"block {block.block:x} chunk {index}" for block, index in ((one, 1), (one, 2), (one, 5), (two, 1)))
        or not report.clean
    )
    if not report.clean:  # three of one block's chunks are gone: more than its code can rebuild
        assert FindingKind.DATA_LOST in {finding.kind for finding in report.findings}
        swap(volume, one, 2, one, 5)
        assert volume.check(repair=True).clean
    volume.assert_clean()
    volume.assert_contents()


def test_a_whole_chunk_of_older_bytes_is_not_taken_for_the_right_one(volume: CareVolume) -> None:
    """Its header and checksums are its own; only the record tells."""
    block = volume.block_of(b"file-0")
    store = volume.stores[block.chunks[0].disk][1]
    assert store is not None
    info = store.info(ChunkName(block.block, 0))
    zeros = memoryview(bytearray(info.payload_bytes))
    from tieredfs.block.write import seal

    chunk = seal(block.block, 0, block.code, block.size_bytes, zeros)
    store.put(chunk.info, chunk.payload, memoryview(chunk.cell_crcs))
    report = volume.check(repair=True)
    assert [finding.kind for finding in report.findings] == [FindingKind.CHUNK_ROTTEN]
    volume.assert_clean()
    volume.assert_contents()


def test_what_cannot_be_repaired_is_named_by_path_and_the_rest_is_well(volume: CareVolume) -> None:
    directory = volume.metadata.create(ROOT, b"deep", Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
    inner = volume.metadata.create(directory, b"er", Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
    volume.store_file(b"lost \xff", b"z" * BLOCK_BYTES, inner)
    del volume.contents[b"lost \xff"]
    lost = volume.metadata.block(volume.metadata.extents(volume.metadata.lookup(inner, b"lost \xff").inode)[0].block)
    hurt = volume.block_of(b"file-2")
    for index in (0, 3, 4):
        volume.path(lost, index).unlink()
    volume.path(hurt, 1).unlink()
    volume.metadata.rename(inner, b"lost \xff", ROOT, b"moved \xff")  # the hint in the inode is wrong now
    report = volume.check(repair=True)
    assert not report.clean
    losses = [finding for finding in report.findings if finding.kind is FindingKind.DATA_LOST]
    assert [finding.subject for finding in losses] == [f"block {lost.block:x}"]
    assert "/moved \udcff" in losses[0].detail
    json.dumps(dataclasses.asdict(report))
    assert [f.repaired for f in report.findings if f.subject.startswith(f"block {hurt.block:x}")] == [True]
    assert {f.subject.split()[1] for f in report.findings} == {f"{lost.block:x}", f"{hurt.block:x}"}
    volume.assert_contents()


def test_files_that_share_a_lost_block_are_all_named(volume: CareVolume) -> None:
    block = volume.store_together({b"small-%d" % number: bytes([number]) * 5000 for number in range(9)})
    for index in (0, 1, 2):
        volume.path(block, index).unlink()
    (loss,) = [finding for finding in volume.check().findings if finding.kind is FindingKind.DATA_LOST]
    assert all(f"/small-{number}" in loss.detail for number in range(9))


def test_a_disk_that_does_not_answer_is_one_finding_and_its_chunks_stay_where_they_are(volume: CareVolume) -> None:
    volume.disk_path(DiskId(2)).rename(volume.root / "away")
    volume.reopen_disks()
    report = volume.check(repair=True)
    assert [(finding.kind, finding.subject) for finding in report.findings] == [
        (FindingKind.DISK_UNREACHABLE, "disk 2")
    ]
    assert not report.clean
    (volume.root / "away").rename(volume.disk_path(DiskId(2)))
    volume.reopen_disks()
    volume.assert_clean()


def test_too_many_disks_away_is_unavailable_and_not_lost(volume: CareVolume) -> None:
    for number in (1, 2, 3):
        volume.disk_path(DiskId(number)).rename(volume.root / f"away{number}")
    volume.reopen_disks()
    kinds = {finding.kind for finding in volume.check(repair=True).findings}
    assert kinds == {FindingKind.DISK_UNREACHABLE, FindingKind.DATA_UNAVAILABLE}


def test_a_block_written_thin_gets_its_missing_chunks(tmp_path: Path) -> None:
    with care_volume(tmp_path) as volume:
        volume.disk_path(DiskId(6)).rename(tmp_path / "away")
        volume.reopen_disks()
        volume.fill(2)
        assert all(len(block.chunks) == 5 for block in volume.all_blocks()), "the fault happened"
        (tmp_path / "away").rename(volume.disk_path(DiskId(6)))
        volume.reopen_disks()
        kinds = [finding.kind for finding in volume.check().findings]
        assert kinds == [FindingKind.CHUNK_UNPLACED] * 2
        assert volume.check(repair=True).clean
        assert all(len(block.chunks) == 6 for block in volume.all_blocks())
        assert volume.metadata.shortage().blocks == 0
        volume.assert_clean()
        volume.assert_contents()


def test_replicas_are_checked_and_mended_too(tmp_path: Path) -> None:
    with care_volume(tmp_path, disk_count=3, code=REPLICA2) as volume:
        volume.fill(2)
        block = volume.block_of(b"file-0")
        damage(volume.path(block, 1), flip(CHUNK_HEADER_BYTES + 7))
        assert volume.check(repair=True).chunks_repaired == 1
        volume.assert_clean()
        volume.assert_contents()


def test_progress_counts_blocks_up_to_their_number(volume: CareVolume) -> None:
    progress = Progresses()
    volume.curator.check(repair=False, progress=progress)
    assert [call for call in progress.calls if call[2] == "blocks"] == [(n, 3, "blocks") for n in (1, 2, 3)]


DAMAGE = st.sampled_from(["payload", "header", "cut", "delete", "zeros"])


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, BLOCK_BYTES), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_damage_within_tolerance_is_always_repaired_to_the_bit(
    data: st.DataObject, sizes: list[int], seed: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="care-", dir=memory()) as root, care_volume(Path(root)) as volume:
        for number, size in enumerate(sizes):
            volume.fill(0)
            volume.store_file(b"file-%d" % number, bytes((seed + at * at) % 251 for at in range(size)))
        before = {}
        for block in volume.all_blocks():
            for index in data.draw(st.sets(st.integers(0, 5), max_size=2)):
                path = volume.path(block, index)
                before[path] = path.read_bytes()
                hurt(path, data.draw(DAMAGE), data.draw(st.integers(0, 1 << 20)))
        report = volume.check(repair=True)
        assert report.clean
        assert len(report.findings) == len(before), "each was found"
        assert all(path.read_bytes() == raw for path, raw in before.items())
        volume.assert_clean()
        volume.assert_contents()


def hurt(path: Path, how: str, at: int) -> None:
    if how == "delete":
        path.unlink()
    elif how == "payload":
        damage(path, lambda raw: flip(CHUNK_HEADER_BYTES + at % (len(raw) - CHUNK_HEADER_BYTES))(raw))
    elif how == "header":
        damage(path, flip(at % CHUNK_HEADER_BYTES))
    elif how == "cut":
        damage(path, lambda raw: raw.__delitem__(slice(at % len(raw), None)))
    else:
        damage(path, lambda raw: raw.__setitem__(slice(None), bytes(len(raw))))


assert BLOCK_BYTES > CELL_BYTES
