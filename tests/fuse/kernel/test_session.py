"""The dispatch loop against a kernel made of a socket: it can say what the real one never does."""

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tieredfs.fuse.kernel import wire
from tieredfs.fuse.kernel.ledger import Ledger, make_memory
from tieredfs.fuse.kernel.session import Session, SessionOptions
from tieredfs.fuse.kernel.wire import Init, Op
from tieredfs.fuse.operations import Span
from tieredfs.testing.loopback import LoopbackOperations

pytestmark = [pytest.mark.timeout(60)]

NO_ANSWER = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.NOTIFY_REPLY}
OFFER = wire.INIT_IN.pack(7, 45, 131072, 0xFFFFFFFF) + struct.pack("=I44x", 0xFFFFFFFF)


class Waiting(LoopbackOperations):
    """READ of handle 1 waits until it is let go, as one of a file that is being filled does."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.waiting = threading.Semaphore(0)
        self.go = threading.Event()

    def read(self, handle: int, offset: int, size: int) -> Span:
        self.waiting.release()
        assert self.go.wait(30)
        return Span(0, 0, 0)


class Kernel:
    """The other end of the device."""

    def __init__(self, directory: Path) -> None:
        self.socket, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.operations = Waiting(str(directory))
        self.memory = make_memory()
        self.session = Session(
            self.operations, self.device.fileno(), Ledger(self.memory), SessionOptions(reader_threads=2)
        )
        self.thread = threading.Thread(target=self.session.run, daemon=True)
        self.thread.start()
        self.unique = 0

    def send(self, opcode: int, body: bytes = b"", inode: int = 1, length: int | None = None) -> int:
        self.unique += 2
        size = wire.IN_HEADER_BYTES + len(body) if length is None else length
        self.socket.send(wire.IN_HEADER.pack(size, opcode, self.unique, inode, 0, 0, 1) + body)
        return self.unique

    def receive(self) -> tuple[int, int, bytes]:
        """unique, errno, body."""
        message = self.socket.recv(2 << 20)
        length, error, unique = wire.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[wire.OUT_HEADER_BYTES :]

    def ask(self, opcode: int, body: bytes = b"", inode: int = 1, length: int | None = None) -> tuple[int, bytes]:
        unique = self.send(opcode, body, inode, length)
        answered, error, reply = self.receive()
        assert answered == unique
        return error, reply


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.operations.go.set()
    kernel.socket.close()
    kernel.thread.join(20)
    assert not kernel.thread.is_alive()
    kernel.device.close()
    os.close(kernel.memory)
    kernel.operations.close()


def test_init_takes_what_we_want_and_no_more(kernel: Kernel) -> None:
    error, body = kernel.ask(Op.INIT, OFFER)
    assert error == 0
    major, minor, _, low, _, _, max_write, _, pages, _, high, depth = wire.INIT_OUT.unpack(body)
    flags = Init(low | high << 32)
    assert (major, minor, max_write, pages, depth) == (7, wire.PROTOCOL_MINOR, 1 << 20, 256, 1)
    assert Init.PASSTHROUGH in flags
    assert Init.HAS_RESEND in flags
    assert not low & (1 << 16), "writeback cache excludes passthrough"
    assert not low & (1 << 1 | 1 << 10), "locks stay with the kernel"
    agreement = Ledger(kernel.memory).agreement()
    assert agreement is not None
    assert agreement.flags == flags


def test_an_old_kernel_is_told_so(kernel: Kernel) -> None:
    assert kernel.ask(Op.INIT, wire.INIT_IN.pack(7, 8, 131072, 0))[0] == errno.EPROTO


def test_unknown_operations_are_enosys(kernel: Kernel) -> None:
    for opcode in (0, 7, 53, 63, 64, 4096, 0xFFFFFFFF):
        assert kernel.ask(opcode) == (errno.ENOSYS, b"")


def test_requests_shorter_than_their_structures_are_einval(kernel: Kernel) -> None:
    least = {op: need for op, (_, need) in kernel.session._handlers.items() if need}
    assert len(least) > 20
    for opcode, need in least.items():
        assert kernel.ask(opcode, b"x" * (need - 1)) == (errno.EINVAL, b"")
        assert kernel.ask(opcode, b"\0" * need, length=4)[0] == errno.EINVAL


def test_names_without_an_end_are_einval(kernel: Kernel) -> None:
    assert kernel.ask(Op.LOOKUP, b"name")[0] == errno.EINVAL
    assert kernel.ask(Op.LOOKUP, b"\0\0")[0] == errno.EINVAL
    assert kernel.ask(Op.RENAME, wire.RENAME_IN.pack(1) + b"one\0two")[0] == errno.EINVAL


def test_waiting_requests_do_not_starve_the_others(kernel: Kernel) -> None:
    waits = 20
    for _ in range(waits):
        kernel.send(Op.READ, wire.READ_IN.pack(1, 0, 4096, 0, 0, 0))
    for _ in range(waits):
        assert kernel.operations.waiting.acquire(timeout=20)
    assert kernel.ask(Op.GETATTR, wire.GETATTR_IN.pack(0, 0))[0] == 0
    assert kernel.session.snapshot().threads > waits
    kernel.operations.go.set()
    assert {kernel.receive()[1] for _ in range(waits)} == {0}


@pytest.mark.allows_warnings("kernel passthrough is off")
def test_what_was_opened_before_is_answered_again_when_resent(kernel: Kernel) -> None:
    kernel.ask(Op.INIT, wire.INIT_IN.pack(7, 36, 131072, 0))
    body = wire.CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0) + b"file\0"
    unique = kernel.send(Op.CREATE, body)
    _, error, first = kernel.receive()
    assert error == 0
    kernel.session._handles._by_unique[unique] = next(kernel.session._ledger.files())[1]
    kernel.socket.send(
        wire.IN_HEADER.pack(wire.IN_HEADER_BYTES + len(body), Op.CREATE, unique | wire.UNIQUE_RESEND, 1, 0, 0, 1) + body
    )
    answered, error, again = kernel.receive()
    assert (answered, error) == (unique | wire.UNIQUE_RESEND, 0)
    handles = {wire.OPEN_OUT.unpack(answer[-wire.OPEN_OUT.size :])[0] for answer in (first, again)}
    assert len(handles) == 1
    assert len(kernel.session._handles) == 1


@pytest.mark.allows_warnings("failed unexpectedly")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    opcode=st.sampled_from(sorted(set(Op) - {Op.READ, Op.INIT})),
    body=st.binary(max_size=200),
    inode=st.integers(0, (1 << 64) - 1) | st.just(1),
)
def test_nonsense_gets_one_answer_and_the_daemon_lives(kernel: Kernel, opcode: Op, body: bytes, inode: int) -> None:
    if opcode in NO_ANSWER:
        kernel.send(opcode, body, inode)
    else:
        error, _ = kernel.ask(opcode, body, inode)
        assert 0 <= error < 512
    assert kernel.ask(Op.STATFS)[0] == 0
