"""Watching requests: each is told of, to each who watches, and nothing is on their way when nobody does."""

import errno
from collections.abc import Mapping

import pytest

from tieredfs.core.activity import Kind
from tieredfs.fuse.kernel.metering import Metering
from tieredfs.fuse.kernel.request import DONE, Handler, Reply, Request
from tieredfs.fuse.kernel.wire import Op
from tieredfs.fuse.watching import PAIRS_MAX, Callers, Carried, Times
from tieredfs.model import InodeId


def read(request: Request) -> Reply:
    request.read_bytes += 100
    request.inode = InodeId(0)  # as a handler may
    return b"answer"


def refuse(_: Request) -> Reply:
    raise OSError(errno.ENOENT, "no such file")


PLAIN: Mapping[int, tuple[Handler, int]] = {int(Op.READ): (read, 40), int(Op.LOOKUP): (refuse, 2)}


class Table:
    def __init__(self) -> None:
        self.used: Mapping[int, tuple[Handler, int]] = PLAIN
        self.metering = Metering(PLAIN, self.use)

    def use(self, table: Mapping[int, tuple[Handler, int]]) -> None:
        self.used = table

    def carry_out(self, opcode: Op, request: Request) -> Reply:
        handler, least = self.used[opcode]
        assert least == PLAIN[opcode][1]
        return handler(request)


def request_of(inode: int = 5, process: int = 9, slot: int = 2) -> Request:
    request = Request(-1, slot)
    request.inode, request.process, request.uid = InodeId(inode), process, 1000
    return request


def test_nothing_is_in_the_way_when_nobody_watches() -> None:
    table = Table()
    with table.metering.watched(lambda _: None):
        assert table.used is not PLAIN
    assert table.used is PLAIN


def test_everybody_who_watches_is_told_of_every_request() -> None:
    table, first, second = Table(), list[Carried](), list[Carried]()
    with table.metering.watched(first.append):
        assert table.carry_out(Op.READ, request_of()) == b"answer"
        with table.metering.watched(second.append), pytest.raises(OSError, match="no such file"):
            table.carry_out(Op.LOOKUP, request_of(inode=6))
        table.carry_out(Op.READ, request_of(inode=7))
    assert [(one.name, one.inode, one.process, one.uid, one.slot, one.moved_bytes) for one in first] == [
        ("read", 5, 9, 1000, 2, 100),
        ("lookup", 6, 9, 1000, 2, 0),
        ("read", 7, 9, 1000, 2, 100),
    ]
    assert [one.inode for one in second] == [6]
    assert all(one.duration_ns > 0 for one in first)


def carried(name: str, inode: int, process: int = 9, slot: int = 0, duration_ns: int = 10) -> Carried:
    return Carried(slot, name, InodeId(inode), process, 1000, duration_ns, 1)


def test_times_are_added_up_by_kind() -> None:
    times = Times()
    for one in (carried("lookup", 1), carried("getattr", 2, slot=1), carried("open", 2), carried("forget", 2)):
        times.note(one)
    found = times.by_kind()
    assert {kind: spent.count for kind, spent in found.items()} == {Kind.LOOK: 2, Kind.OPEN: 1, Kind.HOUSEKEEPING: 1}
    assert found[Kind.LOOK].duration_s == pytest.approx(20e-9)
    assert found[Kind.LOOK].mean_s == pytest.approx(10e-9)


def test_callers_are_kept_apart_up_to_a_limit() -> None:
    callers = Callers()
    for inode in range(1, PAIRS_MAX + 11):
        callers.note(carried("open", inode))
    callers.note(carried("lookup", 1))
    callers.note(carried("forget", 2))
    uses = {(use.process, use.inode): use for use in callers.uses()}
    assert len(uses) == PAIRS_MAX + 1
    assert (uses[9, InodeId(1)].requests, uses[9, InodeId(1)].opens) == (2, 1)
    assert uses[0, InodeId(0)].requests == 10, "the rest is one"
    assert sum(use.requests for use in uses.values()) == PAIRS_MAX + 11, "the kernel's own are left out"
    assert callers.processes() == {0, 9}


def test_done_is_an_answer() -> None:
    table = Table()
    table.metering = Metering({int(Op.FLUSH): (lambda _: DONE, 0)}, table.use)
    with table.metering.watched(lambda _: None):
        assert table.used[Op.FLUSH][0](request_of()) == DONE
