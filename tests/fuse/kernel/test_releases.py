"""Which requests pass a release that was put off: those to which it cannot matter."""

import os
from pathlib import Path

import pytest

from tests.fuse.kernel.mounts import needs_root_mount, served
from tieredfs.fuse.kernel.releases import LATE_MAX, Late, Releases
from tieredfs.fuse.kernel.wire import Op
from tieredfs.testing.loopback import LoopbackOperations

FIRST, SECOND = Late(2, 10, 1), Late(4, 11, 2)


def two() -> Releases:
    releases = Releases()
    releases.put_off(FIRST)
    releases.put_off(SECOND)
    return releases


def test_names_attributes_and_opens_of_other_files_pass() -> None:
    releases = two()
    for opcode, inode in ((Op.LOOKUP, 10), (Op.GETATTR, 10), (Op.OPEN, 12)):
        assert not releases.before(opcode, inode)
    assert [releases.next(), releases.next(), releases.next()] == [FIRST, SECOND, None]


@pytest.mark.parametrize("opcode", [op for op in Op if op not in (Op.LOOKUP, Op.GETATTR, Op.OPEN)])
def test_nothing_else_passes(opcode: Op) -> None:
    releases = two()
    assert tuple(releases.before(opcode, 99)) == (FIRST, SECOND)
    assert releases.next() is None


def test_an_open_of_the_same_file_finds_it_closed() -> None:
    releases = two()
    assert tuple(releases.before(Op.OPEN, 11)) == (FIRST, SECOND)


def test_under_requests_without_end_no_more_than_so_many_wait() -> None:
    releases = Releases()
    for number in range(5 * LATE_MAX):
        assert len(releases.before(Op.OPEN, 1000 + number)) == (number > LATE_MAX)
        releases.put_off(Late(2 * number, number, number))


@needs_root_mount
@pytest.mark.timeout(60)
def test_everything_is_closed_in_the_end_and_each_request_answered(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    operations = LoopbackOperations(str(tmp_path / "below"))
    point = tmp_path / "point"
    with served(operations, point) as session:
        for number in range(20):
            (point / f"{number}").write_bytes(b"%d" % number)
        for number in range(200):
            assert (point / f"{number % 20}").read_bytes() == b"%d" % (number % 20)
        os.listdir(point)  # no request but names, attributes and opens finds a release undone
        found = session.snapshot()
        assert found.requests["release"] == 220
        assert found.open_handles <= 1, "of the listing itself"
    operations.close()
