"""What deserves attention, and what does not."""

from dataclasses import replace

import pytest

from tests.status.examples import MOUNT, WELL, disk, with_disks
from tieredfs.limits import GIB, MIB
from tieredfs.volume.status import CacheStatus, DumpStatus, SessionStatus, ShortStatus, StagedSummary, VolumeStatus
from tieredfs_gateway.status.concerns import Level, concerns_of, level_of
from tieredfs_gateway.status.looking import facts_of

STAGED = replace(
    WELL, staged=StagedSummary(3, 5 * MIB, 4.0), caches=(CacheStatus(1, "host-a", "/ssd", 3, 5 * MIB, 4.0),)
)


def said(status: VolumeStatus) -> list[tuple[Level, str]]:
    return [(concern.level, concern.text) for concern in concerns_of(status, (), None)]


@pytest.mark.parametrize("status", [WELL, STAGED])
def test_what_is_well_or_on_its_way_is_no_concern(status: VolumeStatus) -> None:
    assert concerns_of(status, [facts_of(MOUNT)], None) == ()
    assert level_of(()) is Level.GOOD


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (with_disks(5), Level.WATCH, "Disk 5 is away: it does not answer"),
        (with_disks(5, 6), Level.BAD, "No further disk may be lost"),
        (with_disks(4, 5, 6), Level.BAD, "3 disks are away, more than rs:4+2 can do without"),
        (
            replace(WELL, short=ShortStatus(1, 0, MIB, MIB, 70.0)),
            Level.WATCH,
            "1 block lacks chunks, the oldest for 1 m",
        ),
        (replace(WELL, short=ShortStatus(2000, 0, MIB, MIB, 70.0)), Level.WATCH, "2,000 blocks lack chunks"),
        (replace(WELL, short=ShortStatus(9, 2, MIB, MIB, 70.0)), Level.BAD, "2 blocks can lose no disk more"),
        (replace(WELL, disks=(disk(1, free_bytes=4 * GIB),)), Level.WATCH, "Disk 1 has 4.00 GiB free"),
        (replace(WELL, metadata_dump=None), Level.WATCH, "There is no dump of the metadata"),
        (replace(WELL, metadata_dump=DumpStatus(9000.0, ("x",))), Level.WATCH, "is 2 h 30 m old"),
        (
            replace(WELL, sessions=(SessionStatus(1, "host-a", 7, "s3", 90.0, False),)),
            Level.WATCH,
            "1 process has no heartbeat any more: s3 on host-a",
        ),
        (replace(STAGED, sessions=()), Level.WATCH, "on an SSD of host-a only, where nothing runs that stores them"),
        (
            replace(STAGED, caches=(CacheStatus(1, "host-a", "/ssd", 3, 5, 7200.0),)),
            Level.WATCH,
            "host-a has had content on its SSD only for 2 h",
        ),
    ],
)
def test_what_is_the_matter_is_said(status: VolumeStatus, level: Level, words: str) -> None:
    found = said(status)
    assert [one for one in found if one[0] is level and words in one[1]], found


def test_the_worst_comes_first() -> None:
    levels = [level for level, _ in said(replace(with_disks(5, 6), metadata_dump=None))]
    assert levels[0] is Level.BAD
    assert set(levels[1:]) == {Level.WATCH}
    assert level_of(concerns_of(with_disks(5, 6), (), None)) is Level.BAD


def test_mounts_have_concerns_too() -> None:
    mounts = [replace(MOUNT, answers=False), replace(MOUNT, ssd_full=True, drain_error="NoSpaceError: no room")]
    texts = [concern.text for concern in concerns_of(WELL, [facts_of(mount) for mount in mounts], None)]
    assert texts == [
        "The daemon of /mnt/train does not answer",
        "The SSD of /mnt/train is full: who writes waits for the store",
        "/mnt/train cannot store: NoSpaceError: no room",
    ]


def test_metadata_that_do_not_answer_are_said_first() -> None:
    found = concerns_of(WELL, (), "connection refused")
    assert (found[0].level, found[0].text) == (Level.BAD, "The metadata does not answer: connection refused")


def test_a_volume_without_disks_here_has_its_dumps_in_files() -> None:
    elsewhere = tuple(replace(one, url="node://10.0.0.5:9400/mnt/t") for one in WELL.disks)
    assert said(replace(WELL, metadata_dump=None, disks=elsewhere)) == []
