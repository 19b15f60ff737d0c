"""HTTP/1.1 for other hosts that want what is staged on this one: `FORMAT.md`, "Staged contents".

A thread for each connection, and memory for `PEER_TRANSFERS_MAX` parts: a part is read with one call, its CRC32C computed, and
sent with another, all without the interpreter's lock. So what was checksummed is what is sent, whoever writes to the file
meanwhile (sendfile would save one copy, and send what a writer has put there since).

Nothing is anonymous: each call shows a token for what it asks. A connection that says nothing is closed, and nobody waits for long.
"""

import contextlib
import json
import logging
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from tieredfs.cache.peer_protocol import CHECKSUM_HEADER, STAGED_PATH, address_of
from tieredfs.cache.staged_files import StagedFiles
from tieredfs.chunk.node_protocol import STATUS_OF
from tieredfs.core.capability import Right, Verb, Verdict, judge
from tieredfs.errors import BusyError, ConfigurationError, TieredError
from tieredfs.host import Clock
from tieredfs.host.buffers import BufferPool
from tieredfs.host.isal import crc32c
from tieredfs.limits import (
    PEER_CONNECTIONS_MAX,
    PEER_IDLE_S,
    PEER_TRANSFER_WAIT_S,
    PEER_TRANSFERS_MAX,
    STAGED_PART_BYTES,
)
from tieredfs.model import InodeId

_log: Final = logging.getLogger("tieredfs.cache.peer_server")
_CONTENT: Final = re.compile(
    rf"{STAGED_PATH}/([^/]{{1,64}})/([^/]{{1,64}})/(([0-9a-f]{{16}})\.([0-9a-f]{{1,16}}))", re.ASCII
)
_BELL: Final = re.compile(rf"{STAGED_PATH}/([^/]{{1,64}})/([^/]{{1,64}})/bell", re.ASCII)
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})", re.ASCII)
_BACKLOG: Final = 128


class _RefusedError(Exception):
    """An HTTP status, a code of the protocol, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class PeerServer(socketserver.ThreadingTCPServer):
    """Listens from the beginning, serves in `serve_forever`. `address`: what to announce."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(
        self,
        files: StagedFiles,
        volume_uuid: str,
        secret: bytes,
        clock: Clock,
        at: tuple[str, int],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Raises BusyError (somebody listens there), ConfigurationError."""
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        host, port = at
        try:
            self.address_family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(place, _Handler)  # type: ignore[arg-type]  # of the family that was asked for
        except socket.gaierror as error:
            raise ConfigurationError(f"{host!r} is no address of this machine: {error.strerror}") from error
        except OSError as error:
            raise BusyError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.address = address_of(host, self.server_address[1], tls=tls is not None)
        self.files = files
        self.buffers = BufferPool(STAGED_PART_BYTES, PEER_TRANSFERS_MAX)
        self._volume_uuid = volume_uuid
        self._secret = secret
        self._clock = clock
        self._tls = tls

    def check(self, authorization: str, verb: Verb, volume: str, cache: str, content: str = "") -> None:
        """Raises _RefusedError: this call was not allowed, or is about another volume."""
        scheme, _, token = authorization.partition(" ")
        wanted = Right(verb, volume, cache, content)
        shown = token.strip() if scheme.lower() == "bearer" else ""
        verdict = judge(shown, self._secret, wanted, self._clock.wall_ns() / 1e9)
        if verdict is not Verdict.GOOD:
            raise _RefusedError(403 if verdict is Verdict.SCOPE else 401, "refused", verdict.value)
        if volume != self._volume_uuid:
            raise _RefusedError(404, "absent", "another volume is served here")

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # the handshake is for the connection's own thread
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            taken = len(self._connections) < PEER_CONNECTIONS_MAX
            if taken:
                self._connections.add(request)
        if taken:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)

    def server_close(self) -> None:
        """No answer is finished, and no connection goes on."""
        super().server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A connection that broke, or said nothing for too long."""
        _log.debug("a connection from %s ended early", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: PeerServer
    protocol_version = "HTTP/1.1"
    timeout = PEER_IDLE_S
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._ring)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
        _log.debug(format, *args)

    def _answer(self, call: Callable[[], None]) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # where the body ends, nobody looks
            self._refuse(400, "bad_request", "calls have no body here")
            return
        try:
            call()
        except _RefusedError as refusal:
            self._refuse(refusal.status, refusal.code, str(refusal))
        except TieredError as error:
            status, code = STATUS_OF.get(type(error), (503, "unavailable"))
            self._refuse(status, code, str(error))

    def _get(self) -> None:
        found = _CONTENT.fullmatch(self.path)
        if found is None:
            raise _RefusedError(404, "bad_request", "there is nothing at that path")
        volume, cache, name, inode, version = found.groups()
        self.server.check(self.headers.get("Authorization", ""), Verb.STAGED, volume, cache, name)
        content = cache, InodeId(int(inode, 16)), int(version, 16)
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, self.server.files.look(*content).encode())
        else:
            self._send_part(*content, *_range(wanted))

    def _send_part(self, cache: str, inode: InodeId, version: int, first: int, last: int) -> None:
        with self.server.buffers.lend(PEER_TRANSFER_WAIT_S) as buffer:
            target = buffer[: last + 1 - first]
            count = self.server.files.read_into(cache, inode, version, first, target)
            if count < len(target):
                raise _RefusedError(416, "absent", f"the content ends at {first + count}")
            self._send(206, target, {CHECKSUM_HEADER: f"{crc32c(target):08x}"})

    def _ring(self) -> None:
        found = _BELL.fullmatch(self.path)
        if found is None:
            raise _RefusedError(404, "bad_request", "there is nothing at that path")
        volume, cache = found.groups()
        self.server.check(self.headers.get("Authorization", ""), Verb.HURRY, volume, cache)
        self.server.files.ring(cache)
        self._send(204)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": code, "message": message}).encode())

    def _send(self, status: int, body: bytes | memoryview = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.connection.sendall(body)


def _range(text: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    first, last = (int(found[1]), int(found[2])) if found else (1, 0)
    if last < first or last + 1 - first > STAGED_PART_BYTES:
        raise _RefusedError(400, "bad_request", f"Range is bytes=FIRST-LAST, of at most {STAGED_PART_BYTES} bytes")
    return first, last


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """Raises ConfigurationError where they are not the two halves of a PEM certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")  # or it would ask the terminal
    except (ssl.SSLError, OSError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror or str(error)
        raise ConfigurationError(
            f"{cert} and {key} are no certificate (PEM) and its key without a password: {why}"
        ) from error
    return context
