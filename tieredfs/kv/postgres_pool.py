"""The connections of one engine in one process: few, borrowed by one thread at a time, the last one used first.

Safe from any thread. A child made by fork must leave its parent's alone, and makes a pool of its own.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tieredfs.config.postgres_url import PostgresUrl
from tieredfs.errors import UnavailableError
from tieredfs.host import Host
from tieredfs.host.waiting import about_to_wait
from tieredfs.kv.postgres_wire import Tally, Wire, connect
from tieredfs.limits import CONNECTION_IDLE_S, CONNECTIONS_MAX


class Pool:
    """`CONNECTIONS_MAX` wires at most. One idle for `CONNECTION_IDLE_S` is closed when somebody gives another one back."""

    def __init__(self, url: PostgresUrl, host: Host, tally: Tally) -> None:
        self.process = os.getpid()
        self.closed = False
        self._url = url
        self._host = host
        self._tally = tally
        self._lock = threading.Lock()
        self._places = threading.Semaphore(CONNECTIONS_MAX)
        self._idle: list[tuple[float, Wire]] = []

    @contextmanager
    def borrowed(self, wait_s: float) -> Iterator[Wire]:
        """A wire that works, as far as anybody knows. Raises UnavailableError where all are in use for `wait_s`, LostError,
        ConfigurationError."""
        if not self._places.acquire(blocking=False):
            about_to_wait()
            if not self._places.acquire(timeout=wait_s):
                raise UnavailableError(
                    f"metadata database {self._url.place}: all {CONNECTIONS_MAX} connections of this process were in use"
                    f" for {wait_s:.0f} s"
                )
        try:
            wire = self._taken() or self.new()
            try:
                yield wire
            finally:
                self._give_back(wire)
        finally:
            self._places.release()

    def new(self) -> Wire:
        """One beside the pool; the caller closes it. Raises LostError, ConfigurationError."""
        return connect(self._url, self._host.random.getrandbits(63), self._host.clock, self._tally)

    def _taken(self) -> Wire | None:
        with self._lock:
            return self._idle.pop()[1] if self._idle else None

    def _give_back(self, wire: Wire) -> None:
        now_s = self._host.clock.monotonic_s()
        surplus: list[Wire] = []
        with self._lock:
            if wire.usable and not self.closed:
                self._idle.append((now_s, wire))
            else:
                surplus.append(wire)
            while self._idle and self._idle[0][0] < now_s - CONNECTION_IDLE_S:
                surplus.append(self._idle.pop(0)[1])
        for one in surplus:
            one.close()

    def forget_idle(self) -> None:
        """The server went away: the others are as dead as the one that noticed."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, wire in idle:
            wire.close()

    def close(self, last_words: Callable[[Wire, list[int]], None]) -> None:
        """`last_words` are said through one idle wire, about the slots of all idle ones that committed something."""
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, []
        slots = [wire.slot for _, wire in idle if wire.commits]
        if slots:
            with suppress(Exception):
                last_words(idle[-1][1], slots)
        for _, wire in idle:
            wire.close()
