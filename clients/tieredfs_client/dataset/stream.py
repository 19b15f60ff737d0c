"""A session that comes back: opened again when the gateway forgot it or was restarted, streams gone on with where they were
cut.

What makes that exact: batches are numbered, a position needs no replay, and the version is named, so that a changed dataset is
an error instead of other batches. Waits are bounded: without progress for `retry_s` the last error is raised.
"""

import base64
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa

from tieredfs.errors import TieredError, UnavailableError
from tieredfs_client.dataset.failures import SessionUnknownError, is_worth_waiting
from tieredfs_client.dataset.http import GatewayAddress
from tieredfs_client.dataset.shared import SharedConnection, is_same_host
from tieredfs_client.dataset.turns import EpochSize

PAUSE_FIRST_S: Final = 0.05
PAUSE_MOST_S: Final = 2.0
T = TypeVar("T")


class Stream(Protocol):
    """Batches of one stride of an epoch."""

    @property
    def received_bytes(self) -> int: ...
    def next(self) -> pa.RecordBatch | None: ...
    def close(self) -> None: ...


def pause_s(attempt: int) -> float:
    """Before attempt 1, 2 ...: doubled each time, up to a limit, and scattered, so that trainers do not come all at once."""
    most: float = min(PAUSE_MOST_S, PAUSE_FIRST_S * 2.0 ** min(attempt - 1, 16))
    return most * random.uniform(0.5, 1.0)


class GatewaySession:
    """What a trainer has opened. May be pickled and forked: connections belong to the process that made them."""

    def __init__(
        self, address: GatewayAddress, asked: dict[str, Any], transport: str, codec: str, retry_s: float
    ) -> None:
        self._address = address
        self._asked = asked
        self._transport = transport
        self._codec = codec
        self._retry_s = retry_s
        self._answer: dict[str, Any] | None = None
        self._schema: pa.Schema | None = None
        self._size: EpochSize | None = None
        self._local = threading.local()
        self.reconnects = 0

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        del kept["_local"]
        kept["_schema"] = None
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    # ---- what is known of the dataset ---------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """Raises what opening raises."""
        return str(self._opened()["version"])

    def pin(self, version: str) -> None:
        """Only this version will do, unless another one is open already."""
        if self._answer is None or self._answer["version"] == version:
            self._asked = self._asked | {"version": version}

    @property
    def schema(self) -> pa.Schema:
        if self._schema is None:
            raw = base64.b64decode(self._opened()["schema_ipc"])
            self._schema = pa.ipc.read_schema(pa.py_buffer(raw))
        return self._schema

    @property
    def skipped(self) -> dict[str, str]:
        return dict(self._opened()["skipped"])

    def size(self) -> EpochSize:
        if self._size is None:
            answer = self.patiently(lambda: self._address.call("GET", f"/v1/sessions/{self._id()}/count"))
            self._size = EpochSize(int(answer["rows"]), int(answer["batches"]))
        return self._size

    def _opened(self) -> dict[str, Any]:
        return self._answer or self.patiently(self._open)

    def _open(self) -> dict[str, Any]:
        if self._answer is None:
            answer = self._address.call("POST", "/v1/sessions", self._asked)
            self.pin(str(answer["version"]))
            self._answer = answer
        return self._answer

    def _id(self) -> str:
        return str(self._open()["session"])

    # ---- patience ---------------------------------------------------------------------------------------------------------

    def patiently(self, work: Callable[[], T]) -> T:
        """Raises what waiting cannot cure, and the last error when there was no success for `retry_s`."""
        attempt, deadline_s = 0, time.monotonic() + self._retry_s
        while True:
            try:
                return work()
            except (TieredError, SessionUnknownError, OSError) as error:
                attempt += 1
                if not is_worth_waiting(error) or time.monotonic() >= deadline_s:
                    raise _for_others(error) from error
                if attempt > 1 or isinstance(error, SessionUnknownError):
                    self._answer = None
                self.reconnects += 1
                if attempt > 1 or not isinstance(error, SessionUnknownError):
                    time.sleep(pause_s(attempt))

    # ---- streams ------------------------------------------------------------------------------------------------------------

    def stream(self, epoch: int, batch: int, stride: int, limit: int | None = None, *, views: bool = False) -> Stream:
        """One attempt. `views`: values where they lie, if that can be. Raises the domain's errors, SessionUnknownError, OSError."""
        answer = self._open()
        shared = None if limit is not None else self._shared(answer)
        if shared is not None:
            return shared.read(answer["session"], self._address.token(), epoch, batch, stride, views=views)
        query = {"epoch": epoch, "batch": batch, "stride": stride, "codec": self._codec}
        if limit is not None:
            query["limit"] = limit
        else:
            query["joined"] = "true"
        return self._address.stream(f"/v1/sessions/{answer['session']}/batches", query)

    def _shared(self, answer: dict[str, Any]) -> SharedConnection | None:
        """A connection of this thread, new or one whose stream has ended; None where there is no shared memory to be had. One whose
        stream is under way stays that stream's: two loops over one dataset have two."""
        offer = answer.get("local")
        if self._transport == "http" or not is_same_host(offer):
            self._accept_none()
            return None
        assert offer is not None
        known: tuple[str, SharedConnection] | None = getattr(self._local, "connection", None)
        if known is not None and known[0] == offer["socket"] and known[1].is_free:
            return known[1]
        try:
            made = SharedConnection(offer["socket"])
        except OSError:
            self._accept_none()
            return None
        if known is not None and not known[1].is_reading:
            known[1].close()
        self._local.connection = offer["socket"], made
        return made

    def _accept_none(self) -> None:
        if self._transport == "shared":
            raise UnavailableError("the gateway offers no shared memory here: it is on another host, or not reachable")

    def drop_connection(self) -> None:
        known = getattr(self._local, "connection", None)
        if known is not None:
            self._local.connection = None
            known[1].close()

    def close(self) -> None:
        """Tell the gateway; one that does not answer will find out by itself."""
        self.drop_connection()
        answer, self._answer = self._answer, None
        if answer is not None:
            with contextlib.suppress(TieredError, SessionUnknownError, OSError):
                self._address.call("DELETE", f"/v1/sessions/{answer['session']}")


class SteadyStream:
    """Batches `index`, `index + stride` ... of an epoch, each once, whatever happens to the gateway meanwhile."""

    def __init__(self, session: GatewaySession, epoch: int, index: int, stride: int, *, views: bool = False) -> None:
        self._session = session
        self._views = views
        self._epoch = epoch
        self._index = index
        self._stride = stride
        self._stream: Stream | None = None
        self._pid = os.getpid()
        self._received_bytes = 0

    def next(self) -> pa.RecordBatch | None:
        """None at the end. Raises what waiting cannot cure."""
        batch = self._session.patiently(self._attempt)
        self._index += self._stride
        return batch

    def _attempt(self) -> pa.RecordBatch | None:
        self._forget_parents()
        if self._stream is None:
            self._stream = self._session.stream(self._epoch, self._index, self._stride, views=self._views)
        try:
            return self._stream.next()
        except BaseException:
            self._leave()
            raise

    def _forget_parents(self) -> None:
        """In a child that has a running iterator by a fork: what is open is its parent's, and it goes on with a stream of its own.
        To take a packet, or to give a slab back that the parent still looks at, would change the parent's batches."""
        if self._pid != os.getpid():
            self._stream, self._pid = None, os.getpid()

    @property
    def received_bytes(self) -> int:
        return self._received_bytes + (self._stream.received_bytes if self._stream is not None else 0)

    def _leave(self) -> None:
        self._forget_parents()
        if self._stream is not None:
            self._received_bytes += self._stream.received_bytes
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        self._leave()


def _for_others(error: Exception) -> Exception:
    """What leaves this package speaks the domain."""
    if isinstance(error, TieredError):
        return error
    return UnavailableError(f"the gateway cannot be reached: {error}")
