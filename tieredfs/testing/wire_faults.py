"""A wire that fails on purpose between an HTTP client and a server, and counts it, so that a test can prove its fault happened.

It carries HTTP/1.1 as bytes and understands just enough to know where a request begins and ends. Nothing is altered until
told. Every connection has a thread, which ends with it; `close` ends all of them.
"""

import contextlib
import enum
import re
import select
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final

_PIECE_BYTES: Final = 1 << 16
_HEAD_BYTES_MAX: Final = 1 << 16
_STOP_WAIT_S: Final = 10.0
_BUSY: Final = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 49\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message/></Error>   "
)


class WireFault(enum.Enum):
    """What becomes of a request."""

    BUSY = "answered 503 SlowDown; the server does not see it"
    HANG = "swallowed, and never answered"
    RESET = "the connection is reset before the server sees it"
    TORN = "the answer breaks off after some bytes, with the connection"
    LOST = "the server carries it out; its answer is lost, with the connection"


@dataclass(slots=True)
class _Plan:
    fault: WireFault
    times: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    head: bytes
    body_bytes: int


class FaultyWire:
    """Listens on `port` of the loopback and speaks to the server at `upstream_port`. Safe from any thread."""

    def __init__(self, upstream_port: int) -> None:
        self.requests: Counter[str] = Counter()
        """Requests by method, faulty ones too."""
        self.happened: Counter[WireFault] = Counter()
        self.connections = 0
        self._upstream_port = upstream_port
        self._plans: dict[str, _Plan] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="wire", daemon=True)]
        self._threads[0].start()

    def fail(self, method: str, fault: WireFault, times: int = 1 << 30, after_bytes: int = 0) -> None:
        """The next `times` requests of that method meet `fault`. `after_bytes`: where a TORN answer breaks off."""
        with self._lock:
            self._plans[method] = _Plan(fault, times, after_bytes)

    def heal(self) -> None:
        with self._lock:
            self._plans.clear()

    def close(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join(_STOP_WAIT_S)

    # ---- connections ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(client,), name="wire", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._upstream_port), _STOP_WAIT_S)
            with server:
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while request := self._next_request(client, server):
                    plan = self._meet(request)
                    if not self._carry(client, server, request, plan):
                        return

    def _meet(self, request: _Request) -> _Plan | None:
        with self._lock:
            self.requests[request.method] += 1
            plan = self._plans.get(request.method)
            if plan is None or plan.times == 0:
                return None
            plan.times -= 1
            self.happened[plan.fault] += 1
            return plan

    def _next_request(self, client: socket.socket, server: socket.socket) -> _Request | None:
        """Carries the rest of the last answer meanwhile. None: one side has gone."""
        head = b""
        while len(head) < _HEAD_BYTES_MAX:
            ready = self._ready(client, server)
            if server in ready and not _pass(server, client):
                return None
            if client in ready:
                piece = client.recv(_PIECE_BYTES)
                head += piece
                if not piece:
                    return None
            start, end, rest = head.partition(b"\r\n\r\n")
            if end:
                found = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", start)
                left = (int(found[1]) if found else 0) - len(rest)
                return _Request(head.split(b" ")[0].decode(), head, left)
        return None

    def _carry(self, client: socket.socket, server: socket.socket, request: _Request, plan: _Plan | None) -> bool:
        """Whether the connection goes on."""
        fault = None if plan is None else plan.fault
        if fault is WireFault.RESET:
            _reset(client)
            return False
        if fault is WireFault.HANG:
            self._stopping.wait(2 * _STOP_WAIT_S * 6)
            return False
        if fault is WireFault.BUSY:
            _send_continue(client, request)
            self._body(client, None, request.body_bytes, server)
            client.sendall(_BUSY)
            return True
        server.sendall(request.head)
        self._body(client, server, request.body_bytes, server)
        if fault is WireFault.LOST:
            server.settimeout(_STOP_WAIT_S)
            server.recv(_PIECE_BYTES)
            _reset(client)
            return False
        if plan is not None and fault is WireFault.TORN:
            self._tear(client, server, plan.after_bytes)
            return False
        return True

    def _body(self, client: socket.socket, target: socket.socket | None, left: int, server: socket.socket) -> None:
        while left > 0:
            ready = self._ready(client, server)
            if server in ready and not _pass(server, client):  # `100 Continue`, or a refusal
                raise OSError("the server has gone")
            if client in ready:
                piece = client.recv(min(_PIECE_BYTES, left))
                if not piece:
                    raise OSError("the client has gone")
                left -= len(piece)
                if target is not None:
                    target.sendall(piece)

    def _tear(self, client: socket.socket, server: socket.socket, after_bytes: int) -> None:
        left = after_bytes
        while left > 0:
            if not self._ready(server, server):
                return
            piece = server.recv(min(_PIECE_BYTES, left))
            if not piece:
                return
            client.sendall(piece)
            left -= len(piece)

    def _ready(self, *ends: socket.socket) -> list[socket.socket]:
        while not self._stopping.is_set():
            ready, _, _ = select.select(set(ends), [], [], 0.1)
            if ready:
                return list(ready)
        raise OSError("the wire is closed")


def _pass(source: socket.socket, target: socket.socket) -> bool:
    piece = source.recv(_PIECE_BYTES)
    target.sendall(piece)
    return bool(piece)


def _send_continue(client: socket.socket, request: _Request) -> None:
    if re.search(rb"(?i)\r\nexpect: *100-continue", request.head):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def _reset(end: socket.socket) -> None:
    """A reset instead of an orderly end."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
