"""One thread reads and carries out; before it waits, another reads on."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from tieredfs.fuse.kernel.readers import THREADS_MAX, Readers
from tieredfs.fuse.kernel.request import Request
from tieredfs.host.waiting import about_to_wait

pytestmark = [pytest.mark.timeout(60)]
QUICK, WAITS, SILENT = b"q", b"w", b"s"


class Served:
    """Readers over a socket whose messages say how a request behaves."""

    def __init__(self) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(20)
        self.device = device
        self.go = threading.Event()
        self.late: list[bytes] = []
        self.readers = Readers(device.fileno(), 2, self.serve, self.catch_up)
        self.thread = threading.Thread(target=self.readers.run, daemon=True)
        self.thread.start()

    def serve(self, request: Request) -> None:
        kind = bytes(request.view[:1])
        if kind == WAITS:
            about_to_wait()
        if kind != QUICK:
            assert self.go.wait(20)
        os.write(request.device, b"%d" % request.slot)

    def catch_up(self, request: Request) -> bool:
        if not self.late:
            return False
        os.write(request.device, self.late.pop(0))
        return True

    def ask(self, kind: bytes) -> int:
        self.kernel.send(kind)
        return int(self.kernel.recv(16))

    def close(self) -> None:
        self.go.set()
        self.kernel.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.device.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def test_quick_requests_are_served_by_one_thread(served: Served) -> None:
    assert len({served.ask(QUICK) for _ in range(200)}) == 1


def test_while_one_waits_another_reads_on_and_leads_from_then(served: Served) -> None:
    first = served.ask(QUICK)
    served.kernel.send(WAITS)
    others = {served.ask(QUICK) for _ in range(50)}
    assert len(others) == 1
    assert first not in others
    served.go.set()
    assert int(served.kernel.recv(16)) == first
    assert {served.ask(QUICK) for _ in range(50)} == others, "who came back follows"


def test_who_waits_and_does_not_say_so_is_relieved(served: Served) -> None:
    first = served.ask(QUICK)
    served.kernel.send(SILENT)
    others = {served.ask(QUICK) for _ in range(50)}
    assert len(others) == 1
    assert first not in others
    served.kernel.send(SILENT)
    assert served.ask(QUICK) not in {first, *others}, "as often as it takes"
    served.go.set()
    assert {int(served.kernel.recv(16)) for _ in range(2)} == {first, *others}
    assert served.ask(QUICK) >= 0


def test_as_many_as_wait_are_joined_by_one_more(served: Served) -> None:
    for _ in range(20):
        served.kernel.send(WAITS)
    served.ask(QUICK)
    assert 21 <= served.readers.threads <= THREADS_MAX
    served.go.set()
    slots = {int(served.kernel.recv(16)) for _ in range(20)}
    assert len(slots) == 20, "each waited in a thread of its own"


def test_what_was_put_off_is_done_piece_by_piece_when_there_is_no_request(served: Served) -> None:
    served.late += [b"late-1", b"late-2"]
    served.ask(QUICK)
    assert [served.kernel.recv(16) for _ in range(2)] == [b"late-1", b"late-2"]
    served.ask(QUICK)
