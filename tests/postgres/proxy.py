"""A TCP proxy that lets a commit through, or not, and then ends the connection: what a network does at the worst moment."""

import contextlib
import enum
import socket
import threading
from typing import Final

WAIT_S = 30.0
COMMIT: Final = b"\0commit\0"
"""In a Bind message: no portal's name, and that of the prepared statement."""


class Fate(enum.Enum):
    """Of the next commit that comes by."""

    PASSES = enum.auto()
    NEVER_ARRIVES = enum.auto()
    IS_CUT_IN_TWO = enum.auto()
    """All but its last words reach the server, which goes on waiting for them on a connection that stays open."""
    LOSES_ITS_ANSWER = enum.auto()


class Proxy:
    """Between a client and `127.0.0.1:target`. `struck`: how many commits had another fate than to pass."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._fate = Fate.PASSES
        self.struck = 0
        self.refuses = False
        self._closing = False
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def next_commit(self, fate: Fate, *, then_refuse: bool = False) -> None:
        with self._lock:
            self._fate, self._then_refuse = fate, then_refuse

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses or self._closing:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target), WAIT_S)
            self._open += [client, server]
            swallowing = threading.Event()
            for work in (self._requests, self._answers):
                thread = threading.Thread(target=work, args=(client, server, swallowing), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _requests(self, client: socket.socket, server: socket.socket, swallowing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                fate = self._fate_of(data)
                if fate is Fate.LOSES_ITS_ANSWER:
                    swallowing.set()
                elif fate is Fate.NEVER_ARRIVES:
                    break
                elif fate is Fate.IS_CUT_IN_TWO:
                    server.sendall(data[: data.index(COMMIT)])
                    _end(client)
                    return
                server.sendall(data)
        _end(server)

    def _fate_of(self, data: bytes) -> Fate:
        with self._lock:
            if COMMIT not in data or self._fate is Fate.PASSES:
                return Fate.PASSES
            fate, self._fate = self._fate, Fate.PASSES
            self.struck += 1
            self.refuses = self.refuses or self._then_refuse
            return fate

    @staticmethod
    def _answers(client: socket.socket, server: socket.socket, swallowing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if swallowing.is_set():
                    break
                client.sendall(data)
        _end(client)

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(WAIT_S)
        for one in self._open:
            _end(one)
        for thread in self._threads[1:]:
            thread.join(WAIT_S)
        for one in self._open:
            one.close()


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
