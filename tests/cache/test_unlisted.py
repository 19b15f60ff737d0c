"""What the list of staged contents lost, and the SSD still has, is found again; what is not the content any more is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cache.rigs import Rig, noise, opened, pack_named, volume_folder
from tieredfs.core.file_life import FileState
from tieredfs.curator import FindingKind
from tieredfs.errors import CorruptError
from tieredfs.format import keys, records
from tieredfs.format.segment import HEADER_BYTES, PackedHeader, encode_header, record_bytes
from tieredfs.host import isal
from tieredfs.kv.engine import Writer
from tieredfs.model import ROOT, InodeId, Place

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.allows_warnings("in the list of what is", "were not on the SSD any more"),
]

CONTENTS = {f"file-{number}": noise(size, number) for number, size in enumerate((0, 1, 4000, 4096, 70_000, 300_000))}
Loss = Callable[[Rig, InodeId], None]


def pack(made: Rig, contents: dict[str, bytes]) -> list[InodeId]:
    return pack_named(made.tier, made.volume, contents)


def segment(made: Rig) -> Path:
    (path,) = (made.root / "cache" / "segments").iterdir()
    return path


def place_of(made: Rig, inode: InodeId) -> Place:
    staged = made.meta.staged_as(made.tier.cache, inode)
    assert staged is not None
    assert staged.place is not None
    return staged.place


def write(made: Rig, change: Callable[[Writer], None]) -> None:
    made.volume._engine.write(change)


def key_of(made: Rig, inode: InodeId) -> bytes:
    return keys.staged(made.tier.cache, inode)


def fsck(made: Rig, *, repair: bool) -> set[FindingKind]:
    report = made.volume.check(repair=repair, progress=lambda *_: None)
    assert report.clean == (repair or not report.findings)
    return {finding.kind for finding in report.findings}


def gone(made: Rig, inode: InodeId) -> None:
    assert made.meta.staged_as(made.tier.cache, inode) is not None, "there is something to lose"
    write(made, lambda writer: writer.delete(key_of(made, inode)))


def torn_and_repaired(made: Rig, inode: InodeId) -> None:
    write(made, lambda writer: writer.put(key_of(made, inode), b"\2torn"))
    with pytest.raises(CorruptError):
        made.meta.staged(made.tier.cache)
    assert fsck(made, repair=True) == {FindingKind.STAGED}


def gone_and_repaired(made: Rig, inode: InodeId) -> None:
    gone(made, inode)
    assert fsck(made, repair=False) == {FindingKind.STAGED}
    assert fsck(made, repair=True) == {FindingKind.STAGED}


def of_another_version_and_repaired(made: Rig, inode: InodeId) -> None:
    wrong = records.encode_staged(7, 1, place_of(made, inode))
    write(made, lambda writer: writer.put(key_of(made, inode), wrong))
    assert fsck(made, repair=True) == {FindingKind.STAGED}


@pytest.mark.parametrize("lose", [gone, gone_and_repaired, torn_and_repaired, of_another_version_and_repaired])
def test_a_content_in_a_segment_outlives_its_record(lose: Loss) -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            inodes = pack(made, CONTENTS)
            for inode in inodes[1::2]:
                lose(made, inode)
        with opened(root, start=False) as made:
            recovered = made.ssd.recovered
            assert (recovered.staged, recovered.rolled_back, recovered.listed_again) == (6, (), 3)
            assert fsck(made, repair=False) == set()
            with opened(root, cache="other", start=False) as other:
                assert [other.get(inode) for inode in inodes] == list(CONTENTS.values())
        with opened(root) as made:
            assert made.ssd.recovered.listed_again == 0
            assert [made.get(inode) for inode in inodes] == list(CONTENTS.values())
            made.flush()
            assert {made.state(inode) for inode in inodes} <= {FileState.ABSENT, FileState.RESIDENT}, "all are stored"
            assert [made.get(inode) for inode in inodes] == list(CONTENTS.values())


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("lose", [gone, gone_and_repaired])
def test_a_content_with_a_local_file_outlives_its_record(lose: Loss, *, same_boot: bool) -> None:
    """It is no copy, which is evicted, or removed when the machine was down."""
    with volume_folder() as root:
        with opened(root, start=False) as made:
            pack(made, CONTENTS)
            written, taken_out = made.put("written", noise(5000)), pack(made, {"small": noise(900)})[0]
            made.change(taken_out, b"CHANGED")
            for inode in (written, taken_out):
                lose(made, inode)
        if not same_boot:
            (root / "cache" / "boot").write_bytes(b"another boot\n")
        with opened(root) as made:
            assert (made.ssd.recovered.rolled_back, made.ssd.recovered.listed_again) == ((), 2)
            made.flush()
            for inode in (written, taken_out):
                assert made.tier.evict(inode)
            assert [made.get(written), made.get(taken_out)] == [noise(5000), b"CHANGED" + noise(900)[7:]]


def test_what_was_stored_deleted_superseded_or_never_recorded_is_not_brought_back() -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            stored, deleted, superseded, kept = pack(made, dict(list(CONTENTS.items())[2:]))
            made.tier.pack([b"never recorded"], [made.meta.new_inode_id()], 1)
            made.meta.unlink(ROOT, b"file-3", made.volume.session)
            made.meta.reclaim_orphan(deleted, made.volume.session)
            made.change(superseded, b"CHANGED")
            gone(made, superseded)
            made.meta.abandon_write(stored, 1)
        (local,) = (root / "cache" / "content").glob(f"*/{superseded:016x}.*")
        local.unlink()
        with opened(root, start=False) as made:
            assert (made.ssd.recovered.staged, made.ssd.recovered.listed_again) == (1, 0)
            assert fsck(made, repair=True) == {FindingKind.STAGED}, "of the superseded one, which is lost"
        with opened(root, start=False) as made:
            assert (made.ssd.recovered.rolled_back, made.ssd.recovered.listed_again) == ((superseded,), 0)
            assert [made.get(stored), made.get(superseded)] == [b"", b""]
            assert made.get(kept) == CONTENTS["file-5"]
            assert fsck(made, repair=False) == set()


def test_a_content_whose_bytes_are_rotten_is_not_believed() -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            rotten, headless, whole = pack(made, {"rotten": noise(5000), "headless": noise(3000), "whole": noise(9000)})
            path, places = segment(made), [place_of(made, inode) for inode in (rotten, headless)]
            for inode in (rotten, headless, whole):
                gone(made, inode)
        raw = bytearray(path.read_bytes())
        raw[places[0].offset + HEADER_BYTES + 4999] ^= 1
        raw[places[1].offset + 20] ^= 1
        path.write_bytes(raw)
        with opened(root, start=False) as made:
            assert (made.ssd.recovered.staged, made.ssd.recovered.listed_again) == (1, 1)
            assert made.get(whole) == noise(9000), "it is behind a header that cannot be read"
            fsck(made, repair=True)
        with opened(root, start=False) as made:
            assert sorted(made.ssd.recovered.rolled_back) == [rotten, headless]
            assert made.get(whole) == noise(9000)


@pytest.mark.parametrize("same_bytes", [True, False])
def test_of_two_contents_that_claim_to_be_it_neither_is_believed(*, same_bytes: bool) -> None:
    """A content may itself look like a piece of a segment."""
    with volume_folder() as root:
        with opened(root, start=False) as made:
            (inode,) = pack(made, {"file": noise(5000)})
            claimed = noise(5000) if same_bytes else noise(5000, 2)
            header = encode_header(PackedHeader(inode, 1, 5000, isal.crc32c(claimed)))
            (outer,) = pack(made, {"outer": header + claimed})
            path, place = segment(made), place_of(made, outer)
            gone(made, inode)
        raw = bytearray(path.read_bytes())
        raw[place.offset : place.offset + 8] = bytes(8)  # so that what is inside comes to light
        path.write_bytes(raw)
        with opened(root, start=False) as made:
            assert made.ssd.recovered.rolled_back == (outer,)
            assert made.ssd.recovered.listed_again == int(same_bytes)
            if same_bytes:
                assert made.get(inode) == noise(5000)


def test_a_segment_is_searched_past_holes_and_what_was_in_it_before() -> None:
    with volume_folder() as root:
        with opened(root, start=False) as made:
            sizes = [1000 + 97 * number for number in range(300)]
            inodes = pack(made, {f"f{number}": noise(size, number) for number, size in enumerate(sizes)})
            places = [place_of(made, inode) for inode in inodes]
            kept = inodes[::40]
            for number, inode in enumerate(inodes):
                if inode not in kept:
                    made.meta.unlink(ROOT, b"f%d" % number, made.volume.session)
                    made.meta.reclaim_orphan(inode, made.volume.session)
                    made.tier.discard(inode)
            made.tier.segments._end_current()
            made.tier.segments.shrink()
            assert segment(made).stat().st_blocks * 512 < sum(map(record_bytes, sizes)) // 2, "it has holes"
            for inode in kept:
                gone(made, inode)
        with opened(root, start=False) as made:
            assert made.ssd.recovered.listed_again == made.ssd.recovered.staged == len(kept)
            assert [place_of(made, inode) for inode in kept] == places[::40]
            assert [made.get(inode) for inode in kept] == [
                noise(size, 40 * number) for number, size in enumerate(sizes[::40])
            ]
