"""HTTP/1.1 to one storage node: a few connections that are kept, requests that are signed, and calls that end.

Every wait for bytes is bounded, and so is the call as a whole: before each receive the socket is given the time that is left.
Bodies go from the caller's memory to the socket and from the socket into it (`readinto1` of http.client's reader hands large
views to recv(2)): bodies of 16 MiB cost 0.28 s of CPU a GiB so, 0.30 with urllib3, 0.65 with httpx. A connection that was
kept may have been closed by the node meanwhile, so what fails on one before its answer begins is sent again on a fresh one;
every call of the protocol may be repeated.

Safe from any thread: a connection is lent to one call at a time.
"""

import http.client
import json
import ssl
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tieredfs.chunk.node_protocol import ERROR_OF
from tieredfs.config import NodeUrl
from tieredfs.core.capability import Right, make_token
from tieredfs.errors import UnavailableError
from tieredfs.host import Clock
from tieredfs.limits import MIB, REMOTE_CALL_S, REMOTE_CONNECT_S, REMOTE_SILENCE_S

_IDLE_MAX: Final = 16
_SEND_STEP_BYTES: Final = MIB
_SMALL_BYTES_MAX: Final = 16 * MIB
"""Of an answer that is read as a whole: a listing of a 256th of a disk."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `body`: pieces that are sent one after another. `silence_s`: how long the answer may let wait for itself."""

    method: str
    path: str
    right: Right
    headers: dict[str, str] | None = None
    body: Sequence[bytes | memoryview] = ()
    silence_s: float = REMOTE_SILENCE_S


class Answer:
    """A status and a body that is still on the wire."""

    def __init__(self, response: http.client.HTTPResponse, connection: "_Connection") -> None:
        self.headers = response.headers
        self._response = response
        self._connection = connection

    def read_into(self, view: memoryview) -> None:
        """Fill `view`. Raises UnavailableError, OSError."""
        response, done = self._response, 0
        while done < len(view):
            self._connection.allow(REMOTE_SILENCE_S)
            count = response.fp.readinto1(view[done:])
            if not count or response.length is None or count > response.length:
                raise UnavailableError("the answer broke off")
            response.length -= count
            done += count

    def read(self) -> bytes:
        """All of a small body."""
        length = self._response.length
        if length is None or length > _SMALL_BYTES_MAX:
            raise UnavailableError("that is no answer of a storage node")
        raw = bytearray(length)
        self.read_into(memoryview(raw))
        return bytes(raw)

    def finish(self) -> bool:
        """Whether the connection can be used again."""
        if self._response.length:
            return False
        self._response.read()
        return not self._response.will_close


class _Connection:
    """A connection and the end of the call that has it."""

    def __init__(self, url: NodeUrl, context: ssl.SSLContext | None, clock: Clock) -> None:
        host = url.host.strip("[]")
        if context is None:
            self.http = http.client.HTTPConnection(host, url.port, timeout=REMOTE_CONNECT_S)
        else:
            self.http = http.client.HTTPSConnection(host, url.port, timeout=REMOTE_CONNECT_S, context=context)
        self._clock = clock
        self._deadline_s = 0.0

    def begin(self) -> None:
        self._deadline_s = self._clock.monotonic_s() + REMOTE_CALL_S
        if self.http.sock is None:
            self.http.connect()

    def allow(self, silence_s: float) -> None:
        """The next step on the socket may take so long, or what is left of the call. Raises TimeoutError."""
        left_s = self._deadline_s - self._clock.monotonic_s()
        if left_s <= 0:
            raise TimeoutError(f"it took over {REMOTE_CALL_S:.0f} s")
        if self.http.sock is not None:  # None: the node said that it closes; the answer has the socket
            self.http.sock.settimeout(min(silence_s, left_s))

    def send(self, call: Call, token: str) -> None:
        self.allow(REMOTE_SILENCE_S)
        self.http.putrequest(call.method, call.path, skip_accept_encoding=True)
        self.http.putheader("Authorization", f"Bearer {token}")
        for name, value in (call.headers or {}).items():
            self.http.putheader(name, value)
        if call.body:
            self.http.putheader("Content-Length", str(sum(len(piece) for piece in call.body)))
        self.http.endheaders()
        for piece in call.body:
            view = memoryview(piece)
            for at in range(0, len(view), _SEND_STEP_BYTES):
                self.allow(REMOTE_SILENCE_S)
                self.http.send(view[at : at + _SEND_STEP_BYTES])


class NodeClient:
    """Calls to the node of a URL, with its secret. `close` ends idle connections; calls under way end by themselves."""

    def __init__(self, url: NodeUrl, secret: bytes, clock: Clock) -> None:
        self._url = url
        self._secret = secret
        self._clock = clock
        self._context = ssl.create_default_context() if url.tls else None
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)  # whoever forgets to close it leaves no socket behind

    @contextmanager
    def call(self, call: Call) -> Iterator[Answer]:
        """The answer, if it is a good one.

        Raises UnavailableError, and what the node's refusal means (`node_protocol.ERROR_OF`).
        """
        connection: _Connection | None = None
        reusable = False
        try:
            connection, answer = self._exchange(call)
            yield answer
            reusable = answer.finish()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"node {self._url.host}:{self._url.port} does not answer: {error!r}") from error
        finally:
            self._give_back(connection, reusable=reusable)

    def _exchange(self, call: Call) -> tuple[_Connection, Answer]:
        connection = self._take()
        if connection is not None:
            try:
                return connection, self._ask(connection, call)
            except TimeoutError:
                connection.http.close()
                raise
            except (OSError, http.client.HTTPException):  # it was kept for too long
                connection.http.close()
        connection = _Connection(self._url, self._context, self._clock)
        try:
            return connection, self._ask(connection, call)
        except BaseException:
            connection.http.close()
            raise

    def _ask(self, connection: _Connection, call: Call) -> Answer:
        connection.begin()
        token = make_token(self._secret, call.right, self._clock.wall_ns() / 1e9)
        sent = True
        try:
            connection.send(call, token)
        except (BrokenPipeError, ConnectionResetError):  # it refused before it had read all; it may have said why
            if not call.body:
                raise
            sent = False
        connection.allow(call.silence_s)
        response = connection.http.getresponse()
        answer = Answer(response, connection)
        if response.status >= 300:
            connection.allow(REMOTE_SILENCE_S)
            raw = answer.read()
            self._give_back(connection, reusable=answer.finish() and sent)
            raise _refusal(response.status, raw)
        return answer

    def _take(self) -> _Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: _Connection | None, *, reusable: bool) -> None:
        if connection is None:
            return
        with self._lock:
            if reusable and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
                return
        connection.http.close()

    def close(self) -> None:
        with self._lock:
            _close_all(self._idle)


def _close_all(idle: "list[_Connection]") -> None:
    while idle:
        idle.pop().http.close()


def total_of(content_range: str, where: str) -> int:
    """Length of the whole of which a range was sent. Raises UnavailableError."""
    total = content_range.rpartition("/")[2]
    if not (total.isascii() and total.isdigit()):
        raise UnavailableError(f"{where} does not answer like a storage node")
    return int(total)


def _refusal(status: int, raw: bytes) -> Exception:
    """The error that a node's answer means."""
    try:
        document: Any = json.loads(raw)
        code, message = str(document["error"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        return UnavailableError(f"that is no storage node: status {status}")
    return ERROR_OF.get(code, UnavailableError)(message)
