"""A pooler as PgBouncer is with `pool_mode = transaction`: all clients share one connection to the server, an exchange each."""

import contextlib
import select
import socket
import struct
import threading
from typing import Final

WAIT_S = 30.0
_NO_ENCRYPTION: Final = {80877103, 80877104}
"""Numbers of SSLRequest and GSSENCRequest in the place of a protocol's version."""
_READY: Final = b"Z\0\0\0\5I"
_FORGET: Final = b"Q\0\0\0\x13DEALLOCATE ALL\0"


class TransactionPooler:
    """Before `127.0.0.1:target`. `forgets`: it lets no prepared statement outlive its exchange, as if each client had its own.
    It takes for granted that the server asks for no password and that a client reads all answers."""

    def __init__(self, target: int, *, forgets: bool) -> None:
        self._forgets = forgets
        self._server = socket.create_connection(("127.0.0.1", target), WAIT_S)
        self._greeting = b""
        self._turn = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.settimeout(WAIT_S)
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # the second: of select, when `close` has come first
            while (startup := client.recv(1 << 16)) and struct.unpack_from(">i", startup, 4)[0] in _NO_ENCRYPTION:
                client.sendall(b"N")
            with self._turn:
                self._greeting = self._greeting or self._answer_to(startup)
            client.sendall(self._greeting)
            while data := client.recv(1 << 20):
                if data.startswith(b"X"):  # Terminate: the server's connection is for the next one
                    return
                with self._turn:
                    client.sendall(self._answer_to(data))
                    while select.select([client], [], [], 0)[0]:
                        client.sendall(self._answer_to(client.recv(1 << 20)))
                    if self._forgets:
                        self._answer_to(_FORGET)

    def _answer_to(self, request: bytes) -> bytes:
        """Up to where the server is ready for the next, outside of a transaction."""
        self._server.sendall(request)
        answer = b""
        while not answer.endswith(_READY):
            piece = self._server.recv(1 << 20)
            if not piece:
                raise ConnectionError("the server has ended the connection")
            answer += piece
        return answer

    def close(self) -> None:
        for one in (self._listener, *self._clients, self._server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(WAIT_S)
