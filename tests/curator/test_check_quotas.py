"""Quotas under the audit: every record that is not what lies below is found, and a repair recounts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.curator.care_volume import CareVolume, care_volume
from tieredfs.curator import FindingKind
from tieredfs.format import keys, records
from tieredfs.kv.engine import Writer
from tieredfs.meta import inodes
from tieredfs.meta.metadata import Creation
from tieredfs.model import ROOT, FileKind, InodeId, Quota

UNIT = 4096


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CareVolume]:
    """`/team` with two files of a byte, one of them in `/team/run`, which has a quota, too."""
    with care_volume(tmp_path) as made:
        team = directory(made, b"team")
        run = directory(made, b"run", team)
        made.metadata.set_quota(b"/team", 1 << 30, None)
        made.metadata.set_quota(b"/team/run", 1 << 30, 100)
        made.store_file(b"a", b"1", team)
        made.store_file(b"b", b"2", run)
        assert [usage(made, path) for path in (b"team", b"team/run")] == [(2 * UNIT, 3), (UNIT, 1)]
        made.assert_clean()
        yield made


def directory(volume: CareVolume, name: bytes, parent: InodeId = ROOT) -> InodeId:
    return volume.metadata.create(parent, name, Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode


def usage(volume: CareVolume, path: bytes) -> tuple[int, int]:
    quota = volume.metadata.quota(path)
    return quota.used_bytes, quota.used_inodes


def inode(volume: CareVolume, path: bytes) -> InodeId:
    return volume.metadata.resolve(path).inode


def change_quota(path: bytes, **fields: Any) -> Callable[[CareVolume, Writer], None]:
    def apply(volume: CareVolume, writer: Writer) -> None:
        quota = volume.metadata.quota(path)._replace(**fields)
        writer.put(keys.quota(quota.directory), records.encode_quota(quota))

    return apply


def change_inode(path: bytes, **fields: Any) -> Callable[[CareVolume, Writer], None]:
    def apply(volume: CareVolume, writer: Writer) -> None:
        inodes.save(writer, inodes.read(writer, inode(volume, path))._replace(**fields))

    return apply


BROKEN: dict[str, Callable[[CareVolume, Writer], None]] = {
    "too many bytes": change_quota(b"team", used_bytes=77 * UNIT),
    "too few inodes": change_quota(b"team/run", used_inodes=0),
    "file not counted": change_inode(b"team/run/b", hints=records.MAY_HAVE_EXTENTS),
    "file counted elsewhere": change_inode(b"team/run/b", parent=ROOT),
    "directory denies its quota": change_inode(b"team/run", hints=records.MAY_BE_COUNTED),
    "file claims a quota": change_inode(b"team/a", hints=7 | records.HAS_QUOTA),
    "quota of nothing": lambda _, writer: writer.put(
        keys.quota(InodeId(999)), records.encode_quota(Quota(InodeId(999), b"/gone", 1, 1, 0, 0))
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_quota_is_found_and_mended(volume: CareVolume, case: str) -> None:
    volume.engine.write(lambda writer: BROKEN[case](volume, writer))
    found = volume.check()
    assert {finding.kind for finding in found.findings} == {FindingKind.QUOTA}
    assert not found.clean
    repaired = volume.check(repair=True)
    assert repaired.clean, repaired.findings
    volume.assert_clean()
    if case not in {"directory denies its quota"}:
        assert [usage(volume, path) for path in (b"team", b"team/run")] == [(2 * UNIT, 3), (UNIT, 1)]


def test_a_finding_names_the_directory(volume: CareVolume) -> None:
    volume.engine.write(lambda writer: BROKEN["too few inodes"](volume, writer))
    finding = volume.check().findings[0]
    assert "4096 bytes and 0 inodes used; 4096 and 1 are right (/team/run)" in finding.detail


def test_what_lost_its_name_counts_where_it_is_found_again(volume: CareVolume) -> None:
    """A quota of the whole volume that is full does not stop a repair."""
    volume.metadata.set_quota(b"/", None, 4)
    directory_inode, name = inode(volume, b"team"), keys.name(ROOT, b"team")
    volume.engine.write(lambda writer: writer.delete(name))
    assert not volume.check().clean
    assert volume.check(repair=True).clean
    volume.assert_clean()
    home = volume.metadata.resolve(b"/inode-%d" % directory_inode)
    assert home.inode == directory_inode
    assert usage(volume, b"/") == (2 * UNIT, 4)
    assert usage(volume, b"/inode-%d" % directory_inode) == (2 * UNIT, 3)


def test_a_damaged_quota_record_is_told(volume: CareVolume) -> None:
    key = keys.quota(inode(volume, b"team"))
    volume.engine.write(lambda writer: writer.put(key, b"\x01rot"))
    found = volume.check(repair=True).findings
    assert [(finding.kind, finding.repaired) for finding in found] == [(FindingKind.RECORD, False)]
    volume.metadata.delete_quota(b"team")
    volume.metadata.set_quota(b"team", 1 << 30, None)
    volume.assert_clean()
