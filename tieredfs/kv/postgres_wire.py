"""`Wire`: one connection to a PostgreSQL server, as the engine needs it: exchanges, each of which is one round trip.

*One round trip.* An exchange sends any number of prepared statements at once, in libpq's pipeline mode, and returns all their
results. They are prepared on first use, in the same round trip, and bytes travel as bytes: parameters and results are in the
binary format. If one fails, the server skips the rest of its exchange, a `COMMIT` at its end among them.

*Nothing waits for ever.* The server ends a statement after `statement_timeout`, a wait for a lock after `lock_timeout`, and a
transaction that nobody goes on with; it looks whether we are still there while it works. TCP gives up on a silent peer; and
whatever else happens, `EXCHANGE_WAIT_S` ends an exchange on our side.

*Its slot.* A wire holds an advisory lock of a random number for as long as its server process lives. Whoever can take that
lock knows that nothing the wire sent will still be carried out (`postgres.py` asks, after a `COMMIT` without an answer).

For one thread at a time, and only in the process that made it. After an exchange that was interrupted, however, `usable` is
False and there is nothing to do but `close`.
"""

import select
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from psycopg import Error, pq
from psycopg.conninfo import make_conninfo

from tieredfs.config.postgres_url import PostgresUrl
from tieredfs.errors import ConfigurationError, UnavailableError
from tieredfs.host import Clock
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import CONNECT_WAIT_S, LOCK_WAIT_S, TRANSACTION_IDLE_S

EXCHANGE_WAIT_S: Final = LOCK_WAIT_S + 5.0
"""Longer than the server's own timeouts, so that it is heard where it can speak."""
BYTEA, BYTEA_ARRAY, INT8, INT8_ARRAY = 17, 1001, 20, 1016
"""Type numbers (pg_type.dat)."""
I64: Final = struct.Struct(">q")
_ARRAY: Final = struct.Struct(">iiiii")
_LENGTH: Final = struct.Struct(">i")
_FINE: Final = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK})

_SETTINGS: Final = {
    "statement_timeout": f"{LOCK_WAIT_S * 1000:.0f}",
    "lock_timeout": f"{LOCK_WAIT_S * 800:.0f}",  # shorter, so that a wait for a lock is told from slow work
    "idle_in_transaction_session_timeout": f"{TRANSACTION_IDLE_S * 1000:.0f}",
    "client_connection_check_interval": "5000",
    # What was seen as committed must not be undone by the death of the server, for those who saw it live on.
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # A scan of the whole table would conflict with every writer; an index tells the server what exactly was read.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
_LINK: Final = {
    "client_encoding": "UTF8",
    "target_session_attrs": "read-write",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": f"{LOCK_WAIT_S * 1000:.0f}",
}
_OURS_TO_MEND: Final = (
    "authentication",
    "does not exist",
    "no password",
    "pg_hba.conf",
    "permission denied for",
    "SSL, but",
    "sslmode",
    "certificate",
    "service file",
    "definition of service",
    "is not permitted to log in",
)
"""In messages of what asking again will not change: libpq keeps no code of a refusal."""


_GONE: Final = frozenset({"25006", "53200", "53300", "57P01", "57P02", "57P03", "57P05"})
"""What another connection may do better: of a server that became a standby, has no memory for this, or stops."""
_OTHERS_WERE_HERE: Final = frozenset({"42P05", "26000"})
"""On a new connection: its statement is prepared already, or what it prepared is not."""


class Statement(NamedTuple):
    """`types`: one of the type numbers above per parameter. An empty name: prepared each time."""

    name: bytes
    text: bytes
    types: tuple[int, ...] = ()


Call = tuple[Statement, tuple[bytes, ...]]
"""A statement and its parameters, in the binary format."""


class LostError(Exception):
    """The connection is gone, or never was; what had been sent may have been carried out."""


class RefusedError(LostError):
    """No connection could be made; those that there are may be well."""


class ServerError(Exception):
    """The server refused a statement, and lives. `state`: SQLSTATE."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


@dataclass(slots=True)
class Tally:
    """What the wires of an engine have done. Approximate where threads add at the same time."""

    round_trips: int = 0
    connections: int = 0
    conflicts: int = 0
    doubts: int = 0
    """Commits without an answer."""


def bytea_array(items: Sequence[bytes]) -> bytes:
    """One dimension, no NULLs (array_send in arrayfuncs.c). At least one item."""
    parts = [_ARRAY.pack(1, 0, BYTEA, len(items), 1)]
    for item in items:
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)


def int8_array(numbers: Sequence[int]) -> bytes:
    """As `bytea_array`."""
    return _ARRAY.pack(1, 0, INT8, len(numbers), 1) + b"".join(_LENGTH.pack(8) + I64.pack(n) for n in numbers)


def _conninfo(url: PostgresUrl, host: tuple[str, int] | None) -> bytes:
    given: dict[str, str] = {**_LINK, **dict(url.options), "application_name": "tieredfs"}
    if host is not None:
        given |= {"host": host[0], "port": str(host[1])}
    if url.user:
        given["user"] = url.user
    if url.database:
        given["dbname"] = url.database
    return make_conninfo("", **given).encode()


def connect(url: PostgresUrl, slot: int, clock: Clock, tally: Tally) -> "Wire":
    """The first of its hosts that answers and takes writes. Raises RefusedError; ConfigurationError for what would not go
    away (password, database, TLS)."""
    failures: list[str] = []
    for host in url.hosts or (None,):
        try:
            link = _linked(_conninfo(url, host), clock)
        except LostError as error:
            failures.append(" ".join(str(error).split()))
            continue
        tally.connections += 1
        wire = Wire(link, slot, clock, tally)
        try:
            wire.exchange([(_SET, _set_values(url, slot)), (HOLD_SLOT, (I64.pack(slot),))])
        except (LostError, ServerError) as error:
            wire.close()
            if isinstance(error, ServerError) and error.state in _OTHERS_WERE_HERE:
                raise pooled(url) from error
            failures.append(str(error))
            continue
        return wire
    message = "; ".join(dict.fromkeys(failures))
    if any(sign in message for sign in _OURS_TO_MEND):
        raise ConfigurationError(f"metadata database {url.place}: {message}")
    raise RefusedError(message)


def _linked(conninfo: bytes, clock: Clock) -> pq.abc.PGconn:
    about_to_wait()
    deadline_s = clock.monotonic_s() + CONNECT_WAIT_S
    link = pq.PGconn.connect_start(conninfo)
    waits_for = select.POLLOUT
    while True:
        if link.status == pq.ConnStatus.BAD:
            raise LostError(_message(link))
        poll = select.poll()
        poll.register(link.socket, waits_for)
        if not poll.poll(max(0.0, deadline_s - clock.monotonic_s()) * 1000):
            link.finish()
            raise LostError(f"no connection within {CONNECT_WAIT_S:.0f} s")
        match link.connect_poll():
            case pq.PollingStatus.OK:
                link.nonblocking = 1
                link.enter_pipeline_mode()
                return link
            case pq.PollingStatus.READING:
                waits_for = select.POLLIN
            case pq.PollingStatus.WRITING:
                waits_for = select.POLLOUT
            case _:
                raise LostError(_message(link))


def _message(link: pq.abc.PGconn) -> str:
    return link.error_message.decode(errors="replace").strip() or "the connection failed"


HOLD_SLOT: Final = Statement(b"hold", b"SELECT pg_advisory_lock($1)", (INT8,))
_SLOT_SETTING: Final = "tieredfs.slot"
_SET: Final = Statement(
    b"",
    b"SELECT set_config(convert_from(name, 'UTF8'), convert_from(value, 'UTF8'), false)"
    b" FROM unnest($1, $2) AS given (name, value)",
    (BYTEA_ARRAY, BYTEA_ARRAY),
)
_SLOT: Final = Statement(b"slot", f"SELECT current_setting('{_SLOT_SETTING}', true)".encode())


def _set_values(url: PostgresUrl, slot: int) -> tuple[bytes, bytes]:
    """Not as `options` of the connection: poolers refuse these, or leave them out."""
    settings = {**_SETTINGS, "search_path": f'"{url.schema}"', _SLOT_SETTING: str(slot)}
    return bytea_array([name.encode() for name in settings]), bytea_array(
        [value.encode() for value in settings.values()]
    )


class Wire:
    """See the module. `slot`: the number of its advisory lock. `commits`: how many were tried through it."""

    def __init__(self, link: pq.abc.PGconn, slot: int, clock: Clock, tally: Tally) -> None:
        self.slot = slot
        self.commits = 0
        self.usable = True
        self._link = link
        self._clock = clock
        self._tally = tally
        self._prepared: set[bytes] = set()
        self._poll = select.poll()
        self._poll.register(link.socket, select.POLLIN)

    @property
    def server_version(self) -> int:
        """150004 is 15.4."""
        return self._link.server_version

    def close(self) -> None:
        self.usable = False
        self._link.finish()

    def is_alone(self) -> bool:
        """Whether what was set for this connection still is: a pooler that gives a server process to one client after the
        other, a transaction each, mixes their settings and locks. Raises ServerError, LostError."""
        (result,) = self.exchange([(_SLOT, ())])
        return result.get_value(0, 0) == str(self.slot).encode()

    def exchange(self, calls: Sequence[Call]) -> list[pq.abc.PGresult]:
        """One result per call. Raises ServerError of the first that failed, LostError; then those after it were skipped."""
        self.usable = False
        about_to_wait()
        self._tally.round_trips += 1
        try:
            kinds = self._send(calls)
            results = self._receive(kinds)
        except Error as error:
            raise LostError(" ".join(str(error).split())) from error
        if isinstance(results, ServerError) and results.state in _GONE:
            raise LostError(str(results))
        self.usable = True
        if isinstance(results, ServerError):
            raise results
        return results

    def _send(self, calls: Sequence[Call]) -> list[bytes | None]:
        """Of each command that was sent, the name that it prepares; None for one that executes."""
        kinds: list[bytes | None] = []
        prepared = set(self._prepared)
        for statement, values in calls:
            if not statement.name or statement.name not in prepared:
                self._link.send_prepare(statement.name, statement.text, statement.types)
                prepared.add(statement.name)
                kinds.append(statement.name)
            self._link.send_query_prepared(
                statement.name, values, [pq.Format.BINARY] * len(values), result_format=pq.Format.BINARY
            )
            kinds.append(None)
        self._link.pipeline_sync()
        return kinds

    def _receive(self, kinds: Sequence[bytes | None]) -> "list[pq.abc.PGresult] | ServerError":
        """All results up to the end of the exchange: what is left unread would be taken for the next one's."""
        deadline_s = self._clock.monotonic_s() + EXCHANGE_WAIT_S
        found: list[pq.abc.PGresult] = []
        failure: ServerError | None = None
        pending = iter(kinds)
        while True:
            self._await_result(deadline_s, failure)
            result = self._link.get_result()
            if result is None:  # the end of one command
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return found if failure is None else failure
            if result.status not in _FINE:
                # All that follows it was skipped. One that is ended by an operator may say so after its last result.
                if result.status != pq.ExecStatus.PIPELINE_ABORTED:
                    failure = failure or _server_error(result)
            elif (prepares := next(pending)) is None:
                found.append(result)
            else:
                self._prepared.add(prepares)

    def _await_result(self, deadline_s: float, failure: ServerError | None) -> None:
        link = self._link
        unsent = link.flush()
        while unsent or link.is_busy():
            if link.status == pq.ConnStatus.BAD:
                raise LostError(str(failure or _message(link)))
            if unsent:
                self._poll.modify(link.socket, select.POLLIN | select.POLLOUT)
            events = self._poll.poll(max(0.0, deadline_s - self._clock.monotonic_s()) * 1000)
            if unsent:
                self._poll.modify(link.socket, select.POLLIN)
            if not events:
                raise LostError(f"no answer within {EXCHANGE_WAIT_S:.0f} s")
            if events[0][1] & ~select.POLLOUT:
                try:
                    link.consume_input()
                except Error as error:
                    raise LostError(str(failure or " ".join(str(error).split()))) from error
            unsent = link.flush()
        if link.status == pq.ConnStatus.BAD:
            raise LostError(str(failure or _message(link)))


def _server_error(result: pq.abc.PGresult) -> ServerError:
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message).decode(errors="replace")
    return ServerError(state, message)


def pooled(url: PostgresUrl) -> ConfigurationError:
    """What to say of a pooler that gives a server process to one connection after the other."""
    return ConfigurationError(
        f"metadata database {url.place}: a pooler in front gives connections for a transaction; it must give them for a"
        " session (PgBouncer: pool_mode = session), or name the server itself"
    )


def unavailable(url: PostgresUrl, problem: object) -> UnavailableError:
    """What to say of a server that does not answer."""
    return UnavailableError(
        f"metadata database {url.place} does not answer: {problem}; look whether it runs and can be reached"
    )
