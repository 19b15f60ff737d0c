"""The gateway over HTTP, with the standard library: JSON calls, and streams of batches as Arrow IPC.

A stream is read ahead by a thread of its own, at most `AHEAD` messages, so that the link works while the trainer does. A message
is a batch, or neighbours that the gateway sent as one, up to 2 MiB of them. A stream that ends without Arrow's end mark was cut:
it raises UnavailableError, and whoever reads knows from where to go on.
"""

import contextlib
import http.client
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import pyarrow as pa

from tieredfs.errors import ConfigurationError, UnavailableError
from tieredfs_client.dataset.failures import domain_error, parsed

CONNECT_WAIT_S: Final = 10.0
ANSWER_WAIT_S: Final = 300.0
"""Opening a large dataset, or counting a filter's rows, takes its time."""
BATCH_WAIT_S: Final = 150.0
AHEAD: Final = 4
END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
ROWS_KEY: Final = b"tieredfs.rows"
"""In the metadata of a message that is several batches: how many rows each has, decimal, with commas between."""
DOCUMENT_BYTES_MAX: Final = 64 << 20

TokenSource = str | Callable[[], str] | None
"""A token, or what gives one: tokens are short-lived."""


_IN_THIS_THREAD: Final = pa.ipc.IpcReadOptions(use_threads=False)
"""To wake two threads for each message, which decompress its columns, took 3% more CPU time and gave 3% fewer rows."""


class GatewayAddress:
    """Where a gateway is, and how this trainer shows who it is. Holds no connection: it may be pickled and forked."""

    def __init__(self, url: str, token: TokenSource = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"{url!r} is no address of a gateway: http://127.0.0.1:8800, say")
        self.url = url
        self._token = token
        self._is_tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")

    def token(self) -> str | None:
        return self._token() if callable(self._token) else self._token

    def call(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        """One request, one JSON answer. Raises the domain's errors, SessionUnknownError, OSError."""
        body = None if document is None else json.dumps(document).encode()
        with contextlib.closing(self._connect(ANSWER_WAIT_S)) as connection:
            response = self._ask(connection, method, path, body)
            answer = parsed(_small_body(response))
            return answer if isinstance(answer, dict) else {}

    def stream(self, path: str, query: Mapping[str, object]) -> "HttpStream":
        """Raises as `call` does."""
        connection = self._connect(BATCH_WAIT_S)
        try:
            response = self._ask(connection, "GET", f"{path}?{urlencode(query)}", None)
        except BaseException:
            connection.close()
            raise
        return HttpStream(connection, response)

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_WAIT_S)
        try:
            connection.connect()
        except OSError as error:
            raise UnavailableError(f"the gateway at {self.url} does not answer: {error}") from error
        assert connection.sock is not None
        connection.sock.settimeout(timeout_s)
        return connection

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        headers = {} if body is None else {"Content-Type": "application/json"}
        token = self.token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, self._prefix + path, body, headers)
            response = connection.getresponse()
            if response.status < 400:
                return response
            answer = parsed(_small_body(response))
        except (http.client.HTTPException, OSError) as error:
            raise UnavailableError(f"the gateway at {self.url} went away: {error!r}") from error
        raise domain_error(answer, response.status)


def _small_body(response: http.client.HTTPResponse) -> bytes:
    try:
        body = response.read(DOCUMENT_BYTES_MAX)
    except (http.client.HTTPException, OSError) as error:
        raise UnavailableError(f"the gateway went away: {error!r}") from error
    return body


class _Watched:
    """A response as a file, for Arrow. Keeps the last bytes, to know whether the stream ended or was cut."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self._last = b""
        self.received_bytes = 0
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        data = self._response.read(count)
        self._last = (self._last + data[-len(END) :])[-len(END) :]
        self.received_bytes += len(data)
        return data

    def has_ended(self) -> bool:
        return self._last == END


@dataclass(frozen=True, slots=True)
class Message:
    """What came as one: a batch, or neighbours with so many rows each."""

    rows: pa.RecordBatch
    row_counts: tuple[int, ...]

    @classmethod
    def of(cls, rows: pa.RecordBatch, metadata: Mapping[bytes, bytes] | None) -> "Message":
        """Raises ValueError."""
        text = None if metadata is None else metadata.get(ROWS_KEY)
        counts = (rows.num_rows,) if text is None else tuple(map(int, text.split(b",")))
        if sum(counts) != rows.num_rows or min(counts) < 0:
            raise ValueError(f"{rows.num_rows} rows came as {counts}")
        return cls(rows, counts)

    def cut(self) -> Iterator[pa.RecordBatch]:
        """Nothing is copied."""
        if len(self.row_counts) == 1:
            yield self.rows
            return
        at = 0
        for count in self.row_counts:
            yield self.rows.slice(at, count)
            at += count


class HttpStream:
    """Batches of one response, read ahead. For one thread at a time."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._file = _Watched(response)
        self._ready: queue.Queue[Message | BaseException | None] = queue.Queue(AHEAD)
        self._current: Iterator[pa.RecordBatch] = iter(())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="gateway-stream", daemon=True)
        self._thread.start()

    @property
    def received_bytes(self) -> int:
        return self._file.received_bytes

    def next(self) -> pa.RecordBatch | None:
        """None at the end. Raises UnavailableError."""
        while (batch := next(self._current, None)) is None:
            try:
                found = self._ready.get(timeout=BATCH_WAIT_S)
            except queue.Empty:
                raise UnavailableError(f"no batch in {BATCH_WAIT_S:.0f} s") from None
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return None
            self._current = found.cut()
        return batch

    def _messages(self) -> Iterator["Message"]:
        reader = pa.ipc.open_stream(pa.PythonFile(self._file, mode="r"), options=_IN_THIS_THREAD)
        for rows, metadata in reader.iter_batches_with_custom_metadata():
            yield Message.of(rows, metadata)
        if not self._file.has_ended():
            raise UnavailableError("the gateway's stream was cut")

    def _read_ahead(self) -> None:
        try:
            for message in self._messages():
                self._put(message)
                if self._stopped.is_set():
                    return
            self._put(None)
        except (http.client.HTTPException, OSError, pa.ArrowException, ValueError) as error:
            self._put(UnavailableError(f"the gateway's stream broke: {error!r}"))
        except UnavailableError as error:
            self._put(error)

    def _put(self, found: "Message | BaseException | None") -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(found, timeout=0.2)
                return

    def close(self) -> None:
        self._stopped.set()
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(CONNECT_WAIT_S)
        self._connection.close()
