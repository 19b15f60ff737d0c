"""The control plane of a mount: how the command line speaks to a daemon.

One abstract Unix socket per mount, `\\0tieredfs/<mount id>`: nothing to clean up, and gone with its daemon. Messages
are JSON objects, one a line. A request is `{"verb": ..., "arguments": {...}}`. Its answer is any number of
`{"progress": {"done", "total", "unit"}}`, then one `{"result": ...}` or `{"error": {"type", "message"}}`, where `type`
names a class of `tieredfs.errors`; the client raises it again. Paths travel as `os.fsdecode` makes them: JSON's escapes
carry its lone surrogates, so any bytes survive.

The last progress is repeated twice a second, so silence means that the daemon is gone or stuck, and a client that
leaves is noticed: the handler's next progress report raises `WaitInterruptedError`. The kernel says who is at the other
end (SO_PEERCRED); only the daemon's own user and root are served. Everything is bounded: connections, message sizes,
the time in which a request must arrive and an answer be taken. Whatever arrives, the server lives on.

Handlers run in threads of the server, several at once. Each must bound its own waits: the interpreter joins them.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from tieredfs.errors import (
    AccessDeniedError,
    BusyError,
    DeadlineError,
    InvalidRequestError,
    TieredError,
    UnavailableError,
    WaitInterruptedError,
    domain_errors,
)
from tieredfs.fuse.mountinfo import MOUNT_ID, MountInfo, find_mount, mount_source, our_mounts
from tieredfs.host import Clock, SystemClock

__all__ = ["ControlClient", "ControlServer", "MountInfo", "ProgressSink", "find_mount", "mount_source", "our_mounts"]

ProgressSink = Callable[[int, int, str], None]
"""done, total, unit. Raises WaitInterruptedError when nobody waits for the answer any more."""
Handler = Callable[[Mapping[str, object], ProgressSink], object]

CONNECTIONS_MAX: Final = 16
MESSAGE_BYTES_MAX: Final = 1 << 20
REQUEST_WAIT_S: Final = 10.0
"""A request line must arrive within this time of its connection."""
SEND_WAIT_S: Final = 10.0
PROGRESS_EVERY_S: Final = 0.5
SILENCE_MAX_S: Final = 30.0
"""A client that hears nothing for so long gives up: sixty repetitions of the last progress are missing."""
STALL_MAX_S: Final = 900.0
"""A client that hears the same progress for so long gives up, too."""
CLOSE_WAIT_S: Final = 5.0
CONNECT_EVERY_S: Final = 0.05

log = logging.getLogger(__name__)


def socket_address(mount_id: str) -> str:
    """The name in the abstract namespace of this network namespace."""
    assert MOUNT_ID.fullmatch(mount_id), mount_id
    return f"\0tieredfs/{mount_id}"


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as they are called here. Process 0: of a namespace that cannot be seen from here."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", credentials)
    return process, user


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"


def _decode(line: bytes) -> dict[str, object]:
    """Raises InvalidRequestError for anything but one JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"not a JSON message: {error}") from None
    if not isinstance(message, dict):
        raise InvalidRequestError("not a JSON object")
    return message


class _Lines:
    """Lines from a socket, each bounded in length and in time."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._pending = b""

    def next(self, timeout_s: float) -> bytes:
        """One line without its end; empty at the end of the stream. Raises DeadlineError, InvalidRequestError."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while b"\n" not in self._pending:
            if len(self._pending) > MESSAGE_BYTES_MAX:
                raise InvalidRequestError(f"a message of more than {MESSAGE_BYTES_MAX} bytes")
            remaining_s = deadline_s - self._clock.monotonic_s()
            if remaining_s <= 0:
                raise DeadlineError(f"no whole message in {timeout_s:.0f} s")
            self._connection.settimeout(remaining_s)
            try:
                received = self._connection.recv(1 << 16)
            except TimeoutError:
                continue
            if not received:
                return b""
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        return line


class _Watch:
    """The latest progress of one request, between the handler that reports it and the thread that sends it."""

    def __init__(self) -> None:
        self._latest = (0, 0, "")
        self._abandoned = threading.Event()

    def report(self, done: int, total: int, unit: str) -> None:
        if self._abandoned.is_set():
            raise WaitInterruptedError("nobody waits for this answer any more")
        self._latest = (done, total, unit)

    def abandon(self) -> None:
        self._abandoned.set()

    def message(self) -> bytes:
        done, total, unit = self._latest
        return _encode({"progress": {"done": done, "total": total, "unit": unit}})


class ControlServer:
    """Serves the control socket of one mount from construction to `close`. `handlers`: by verb; `ping` is built in.

    A handler returns something that JSON can say, or raises: a domain error goes to the client as itself, anything
    else is logged and goes as UnavailableError.
    """

    def __init__(
        self,
        mount_id: str,
        handlers: Mapping[str, Handler],
        *,
        clock: Clock | None = None,
        request_wait_s: float = REQUEST_WAIT_S,
        progress_every_s: float = PROGRESS_EVERY_S,
    ) -> None:
        self._handlers: dict[str, Handler] = {"ping": lambda _arguments, _progress: self._ping(), **handlers}
        self._clock = clock or SystemClock()
        self._request_wait_s = request_wait_s
        self._progress_every_s = progress_every_s
        self._mount_id = mount_id
        self._slots = threading.Semaphore(CONNECTIONS_MAX)
        self._workers = ThreadPoolExecutor(CONNECTIONS_MAX, "tieredfs-control-handler")
        self._stopping = threading.Event()
        self._listener = self._listen(mount_id)
        self._acceptor = threading.Thread(target=self._accept, name="tieredfs-control", daemon=True)
        self._acceptor.start()

    @staticmethod
    def _listen(mount_id: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(socket_address(mount_id))
            listener.listen(CONNECTIONS_MAX)
        except OSError as error:
            listener.close()
            raise BusyError(f"the control socket of mount {mount_id} is taken: {error.strerror}") from error
        return listener

    def close(self) -> None:
        """Stop accepting, and tell running handlers at their next report. Repeating it is harmless."""
        self._stopping.set()
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor, which `close` alone would not
        self._acceptor.join(CLOSE_WAIT_S)
        self._listener.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _ping(self) -> object:
        return {"mount_id": self._mount_id, "process": os.getpid(), "verbs": sorted(self._handlers)}

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping.is_set():
                    log.warning("control socket: cannot accept: %s", error)
                    self._stopping.wait(self._progress_every_s)  # out of descriptors, say: no busy loop
                continue
            free = self._slots.acquire(blocking=False)
            target = self._converse if free else self._turn_away
            threading.Thread(target=target, args=(connection,), name="tieredfs-control-connection", daemon=True).start()

    def _turn_away(self, connection: socket.socket) -> None:
        with connection:
            self._send(connection, _error(BusyError(f"{CONNECTIONS_MAX} commands are being served; try again")))

    def _converse(self, connection: socket.socket) -> None:
        """Requests of one client, one after another."""
        try:
            with connection:
                if _peer(connection)[1] not in {0, os.geteuid()}:
                    self._send(connection, _error(AccessDeniedError("only the user who mounted, or root, may ask")))
                    return
                lines = _Lines(connection, self._clock)
                while self._serve_one(connection, lines) and not self._stopping.is_set():
                    pass
        except OSError as error:
            log.info("control socket: a client left: %s", error)
        finally:
            self._slots.release()

    def _serve_one(self, connection: socket.socket, lines: _Lines) -> bool:
        """Answer one request. False: the connection is of no more use."""
        try:
            line = lines.next(self._request_wait_s)
        except TieredError as error:
            self._send(connection, _error(error))
            return False
        if not line:
            return False
        try:
            handler, arguments = self._understand(line)
        except InvalidRequestError as error:
            return self._send(connection, _error(error))
        watch = _Watch()
        try:
            future = self._workers.submit(handler, arguments, watch.report)
        except RuntimeError:
            return self._send(connection, _error(UnavailableError("this mount is going away")))
        return self._follow(connection, future, watch)

    def _understand(self, line: bytes) -> tuple[Handler, Mapping[str, object]]:
        request = _decode(line)
        verb, arguments = request.get("verb"), request.get("arguments", {})
        if not isinstance(verb, str) or not isinstance(arguments, dict):
            raise InvalidRequestError('a request is {"verb": string, "arguments": object}')
        if verb not in self._handlers:
            raise InvalidRequestError(f"no verb {verb[:40]!r}; there are {', '.join(sorted(self._handlers))}")
        return self._handlers[verb], arguments

    def _follow(self, connection: socket.socket, future: "Future[object]", watch: _Watch) -> bool:
        """Send progress until there is an answer, then that."""
        while not wait([future], self._progress_every_s).done:
            if self._stopping.is_set() or not self._send(connection, watch.message()):
                watch.abandon()
                future.cancel()
                return False
        return self._send(connection, _answer(future))

    @staticmethod
    def _send(connection: socket.socket, message: bytes) -> bool:
        """False when the client does not take it."""
        connection.settimeout(SEND_WAIT_S)
        try:
            connection.sendall(message)
        except OSError:
            return False
        return True


def _answer(future: "Future[object]") -> bytes:
    if future.cancelled():
        return _error(UnavailableError("this mount is going away"))
    error = future.exception()
    if error is None:
        try:
            message = _encode({"result": future.result()})
        except (TypeError, ValueError):
            log.exception("a handler's result cannot be said in JSON")
            return _error(UnavailableError("the daemon's answer cannot be said; its log has the reason"))
        if len(message) > MESSAGE_BYTES_MAX:
            return _error(UnavailableError(f"the daemon's answer is over {MESSAGE_BYTES_MAX} bytes; ask for less"))
        return message
    if isinstance(error, TieredError):
        return _error(error)
    log.error("a handler failed", exc_info=error)
    return _error(
        UnavailableError(f"the daemon failed on this request ({type(error).__name__}); its log has the reason")
    )


def _error(error: TieredError) -> bytes:
    return _encode({"error": {"type": type(error).__name__, "message": str(error)}})


_ERROR_OF: Final = {kind.__name__: kind for kind in domain_errors()}


class ControlClient:
    """Asks the daemon of one mount. One connection per call; safe from any thread."""

    def __init__(
        self,
        mount_id: str,
        *,
        clock: Clock | None = None,
        silence_max_s: float = SILENCE_MAX_S,
        stall_max_s: float = STALL_MAX_S,
        connect_wait_s: float = 0.0,
        is_mounted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`connect_wait_s`: how long to wait for a daemon that is not there, for its keeper may be starting another; no longer than
        `is_mounted` says so."""
        self._mount_id = mount_id
        self._clock = clock or SystemClock()
        self._silence_max_s = silence_max_s
        self._stall_max_s = stall_max_s
        self._connect_wait_s = connect_wait_s
        self._is_mounted = is_mounted

    def call(
        self, verb: str, arguments: Mapping[str, object] | None = None, progress: ProgressSink | None = None
    ) -> object:
        """The handler's result. Raises what it raised; UnavailableError when no daemon answers; DeadlineError when it
        does not get on."""
        request = _encode({"verb": verb, "arguments": dict(arguments or {})})
        if len(request) > MESSAGE_BYTES_MAX:
            raise InvalidRequestError(f"a request of over {MESSAGE_BYTES_MAX} bytes; ask in parts")
        with self._connect() as connection:
            with contextlib.suppress(OSError):  # turned away before it was read; the reason is in the first line
                connection.sendall(request)
            try:
                return self._listen(_Lines(connection, self._clock), progress)
            except OSError as error:
                raise self._gone(error.strerror or "connection lost") from error

    def ping(self) -> Mapping[str, object]:
        """Who answers: `mount_id`, `process`, `verbs`."""
        answer = self.call("ping")
        assert isinstance(answer, dict)
        return answer

    def process(self) -> int:
        """The daemon's, as it is called here; in its own namespace, of which `ping` speaks, it may be called otherwise. 0: it
        cannot be seen from here. Raises UnavailableError."""
        with self._connect() as connection:
            return _peer(connection)[0]

    def _connect(self) -> socket.socket:
        deadline_s = self._clock.monotonic_s() + self._connect_wait_s
        while True:
            try:
                return self._connect_once()
            except UnavailableError:
                if self._clock.monotonic_s() >= deadline_s or not self._is_mounted():
                    raise
            self._clock.sleep(CONNECT_EVERY_S)

    def _connect_once(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._silence_max_s)
            connection.connect(socket_address(self._mount_id))
            owner = _peer(connection)[1]
        except OSError as error:
            connection.close()
            raise self._gone(error.strerror or "no connection") from error
        if os.geteuid() not in {0, owner} and owner != 0:
            connection.close()
            raise AccessDeniedError(f"mount {self._mount_id} is served by user {owner}, not by you; ask as that user")
        return connection

    def _gone(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"no daemon answers for mount {self._mount_id} ({reason}); if it does not come back: "
            "`tieredfs umount MOUNTPOINT`, then mount again: what was acknowledged is recovered"
        )

    def _listen(self, lines: _Lines, progress: ProgressSink | None) -> object:
        latest: object = None
        changed_s = self._clock.monotonic_s()
        while True:
            message = self._receive(lines)
            if "result" in message:
                return message["result"]
            if "error" in message:
                raise _raised_from(message["error"])
            now_s = self._clock.monotonic_s()
            if message.get("progress") != latest:
                latest, changed_s = message.get("progress"), now_s
                if progress is not None and isinstance(latest, dict):
                    progress(int(latest.get("done", 0)), int(latest.get("total", 0)), str(latest.get("unit", "")))
            elif now_s - changed_s > self._stall_max_s:
                raise DeadlineError(f"no progress in {self._stall_max_s:.0f} s; the daemon's log may say why")

    def _receive(self, lines: _Lines) -> dict[str, object]:
        try:
            line = lines.next(self._silence_max_s)
        except DeadlineError as error:
            raise UnavailableError(f"the daemon of mount {self._mount_id} fell silent: {error}") from None
        if not line:
            raise self._gone("it closed the connection")
        return _decode(line)


def _raised_from(description: object) -> TieredError:
    if not isinstance(description, dict):
        return UnavailableError("the daemon answered with an error that says nothing")
    name, message = str(description.get("type")), str(description.get("message"))
    kind = _ERROR_OF.get(name)
    return kind(message) if kind else UnavailableError(f"{name}: {message}")
