"""The cluster engine: a PostgreSQL database, used by any number of threads, processes and hosts.

*Shape.* One table of keys and values (`postgres_schema`). A transaction reads as it goes; what it writes it keeps to itself,
and sends it with the commit: a transaction of n reads takes n + 1 round trips, one that only writes takes one, one that only
reads n + 1.

*Serializable.* The server's own SERIALIZABLE, which watches what was read and refuses one of two that cannot both be
(https://www.postgresql.org/docs/current/transaction-iso.html); then the function runs again. Readers too: nothing is known
of what they read until their commit. Such a server lets everybody begin, and sends the losers away when they have done their
work, so a counter that many increase is a fight. Therefore whoever met a conflict *queues* for a while: a lock on an empty
table, taken before the snapshot, lets queued writers through one after the other, and each sees what the one before it wrote
(900 increments by six threads: 5 conflicts and 1630 a second; without a queue 2180 conflicts and 940 a second). The queue is of
those who met one; a long transaction loses to short ones that never do. Who lost `ALONE_AFTER` times goes *alone*: it locks the
table that every commit writes to (next paragraph), so nobody commits between its snapshot and its own commit. A reader that lost
as often waits for a snapshot that nothing can spoil (`DEFERRABLE`).

*Commits without an answer.* The connection dies while `COMMIT` is under way: was it carried out? The function must not run
again if so. Each commit first writes a number into a row of its connection (`commits`), in the same transaction; and the
connection's advisory lock (`postgres_wire`) is free only when nothing that it sent will be carried out any more. So one waits
for that lock, on a new connection, and then reads the row. (The server's `pg_xact_status` cannot be relied on: transaction
numbers that were given out but not written down before a crash are given out again.)

*Durability.* A commit is on the server's disk when it returns, so `sync` has nothing to do. The contract would allow
`synchronous_commit=off` and a flush in `sync`. But a server that crashes would then undo what was committed and seen, ids that
were handed out among it, while those who saw them live on; an embedded database has no such case. So the price is paid: 2440
small commits a second by one thread and 4480 by six, where 5640 and 8440 would be possible.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Final, TypeVar

from psycopg import pq

from tieredfs.config.postgres_url import PostgresUrl
from tieredfs.errors import (
    ConfigurationError,
    ConflictError,
    CorruptError,
    NoSpaceError,
    TieredError,
    UnavailableError,
    VolumeNotFoundError,
)
from tieredfs.host import Host, local_host
from tieredfs.host.waiting import about_to_wait
from tieredfs.kv import postgres_schema as schema
from tieredfs.kv.engine import Reader, Writer
from tieredfs.kv.postgres_pool import Pool
from tieredfs.kv.postgres_wire import (
    BYTEA,
    BYTEA_ARRAY,
    I64,
    INT8,
    INT8_ARRAY,
    Call,
    LostError,
    RefusedError,
    ServerError,
    Statement,
    Tally,
    Wire,
    bytea_array,
    connect,
    int8_array,
    pooled,
    unavailable,
)
from tieredfs.limits import KEY_BYTES_MAX, LOCK_WAIT_S, OPEN_WAIT_S, TRANSACTION_RETRIES_MAX

T = TypeVar("T")

SCAN_PAGE_ROWS: Final = 1024
SEEN_MAX: Final = 4096
"""Values that a writing transaction keeps, so that it asks for none twice."""
QUEUE_S: Final = 1.0
"""So long after a conflict the writers of this process queue."""
ALONE_AFTER: Final = 8
"""A transaction that lost so many races is let through alone."""
ALONE_IDLE_S: Final = 5.0
"""Who is alone and asks nothing for so long is sent away: it has stopped, and all others wait."""
PAUSE_FIRST_S: Final = 0.02
PAUSE_LAST_S: Final = 1.0

_BEGIN_READ: Final = Statement(b"begin_read", b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY")
_BEGIN_READ_SAFE: Final = Statement(b"begin_safe", b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE")
_BEGIN_WRITE: Final = Statement(b"begin_write", b"BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE")
_QUEUE: Final = Statement(b"queue", b"LOCK TABLE turn IN EXCLUSIVE MODE")
_ALONE: Final = (
    Statement(b"hurry", b"SET LOCAL idle_in_transaction_session_timeout = %d" % (ALONE_IDLE_S * 1000)),
    Statement(b"alone", b"LOCK TABLE turn, commits IN EXCLUSIVE MODE"),
)
_COMMIT: Final = Statement(b"commit", b"COMMIT")
_ROLLBACK: Final = Statement(b"rollback", b"ROLLBACK")
_GET: Final = Statement(b"get", b"SELECT v FROM kv WHERE k = $1", (BYTEA,))
_GET_MANY: Final = Statement(b"get_many", b"SELECT k, v FROM kv WHERE k = ANY($1)", (BYTEA_ARRAY,))
_FORWARD: Final = Statement(
    b"forward", b"SELECT k, v FROM kv WHERE k >= $1 AND k < $2 ORDER BY k LIMIT $3", (BYTEA, BYTEA, INT8)
)
_BACKWARD: Final = Statement(
    b"backward", b"SELECT k, v FROM kv WHERE k >= $1 AND k < $2 ORDER BY k DESC LIMIT $3", (BYTEA, BYTEA, INT8)
)
_PUT: Final = Statement(
    b"put",
    b"INSERT INTO kv SELECT * FROM unnest($1, $2) ON CONFLICT (k) DO UPDATE SET v = EXCLUDED.v",
    (BYTEA_ARRAY, BYTEA_ARRAY),
)
_DELETE: Final = Statement(b"delete", b"DELETE FROM kv WHERE k = ANY($1)", (BYTEA_ARRAY,))
_MARK: Final = Statement(
    b"mark",
    b"INSERT INTO commits VALUES ($1, $2, now()) ON CONFLICT (slot) DO UPDATE SET number = EXCLUDED.number, at = now()",
    (INT8, INT8),
)
_FORGET_MARKS: Final = Statement(b"forget", b"DELETE FROM commits WHERE slot = ANY($1)", (INT8_ARRAY,))
_END_HOLDER: Final = Statement(
    b"end",
    b"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    b" AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    b" AND (classid::bigint << 32 | objid::bigint) = $1",
    (INT8,),
)
_AWAIT_END: Final = Statement(b"await", b"SELECT pg_advisory_lock($1)", (INT8,))
_LET_GO: Final = Statement(b"let_go", b"SELECT pg_advisory_unlock($1)", (INT8,))
_LAST_COMMIT: Final = Statement(b"last", b"SELECT number FROM commits WHERE slot = $1", (INT8,))

_CONFLICTS: Final = frozenset({"40001", "40P01", "55P03"})
"""serialization_failure, deadlock_detected, lock_not_available (`lock_timeout`)."""
_DOMAIN_ERRORS: Final[dict[str, type[TieredError]]] = {
    "53100": NoSpaceError,
    "42P01": VolumeNotFoundError,
    "42501": ConfigurationError,
    "XX001": CorruptError,
    "XX002": CorruptError,
}
"""By SQLSTATE (Appendix A of PostgreSQL's manual); any other is `UnavailableError`."""


def _domain_error(url: PostgresUrl, error: ServerError) -> TieredError:
    kind = _DOMAIN_ERRORS.get(error.state, ConflictError if error.state in _CONFLICTS else UnavailableError)
    return kind(f"metadata database {url.place}: {error} (SQLSTATE {error.state})")


class _Effort:
    """How often one transaction is tried, and how long."""

    def __init__(self, url: PostgresUrl, host: Host, tally: Tally, wait_s: float) -> None:
        self._url = url
        self._host = host
        self._tally = tally
        self._wait_s = wait_s
        self._deadline_s = host.clock.monotonic_s() + wait_s
        self._pause_s = PAUSE_FIRST_S
        self._conflicts = 0

    @property
    def lost_often(self) -> bool:
        return self._conflicts >= ALONE_AFTER

    def left_s(self) -> float:
        return max(0.0, self._deadline_s - self._host.clock.monotonic_s())

    def after_refusal(self, error: ServerError) -> None:
        """Returns if it is worth another attempt; raises ConflictError where it was, and what else the error means."""
        if error.state in _CONFLICTS:
            self._conflicts += 1
            self._tally.conflicts += 1
            if self._conflicts > TRANSACTION_RETRIES_MAX or not self.left_s():
                raise ConflictError(
                    f"metadata database {self._url.place}: a transaction lost {self._conflicts} races: {error}"
                ) from error
            return
        raise _domain_error(self._url, error) from error

    def after_loss(self, error: LostError) -> None:
        """Returns after a pause; raises UnavailableError at the end."""
        left_s = self.left_s()
        if not left_s:
            raise unavailable(self._url, f"{error} (tried for {self._wait_s:.0f} s)") from error
        about_to_wait()
        # Jitter, so that the processes of a cluster do not all come back to a new server in the same moment.
        self._host.clock.sleep(min(left_s, self._pause_s * (0.5 + self._host.random.random())))
        self._pause_s = min(self._pause_s * 2, PAUSE_LAST_S)


class _Reading:
    """`Reader`. The statements that begin the transaction travel with its first question."""

    def __init__(self, wire: Wire, *beginning: Statement) -> None:
        self._wire = wire
        self.unsent: list[Call] = [(statement, ()) for statement in beginning]
        self._failure: ServerError | LostError | None = None

    def get(self, key: bytes) -> bytes | None:
        found = self._ask(_GET, key)
        return found.get_value(0, 0) if found.ntuples else None

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        found = dict(_pairs(self._ask(_GET_MANY, bytea_array(keys))))
        return [found.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # Whole pages, no cursor: the caller may write between two pairs, or drop the iterator.
        left = limit if limit is not None else 1 << 62
        while left > 0 and start < end:
            asked = min(left, SCAN_PAGE_ROWS)
            page = _pairs(self._ask(_BACKWARD if reverse else _FORWARD, start, end, I64.pack(asked)))
            low, high = start, end
            if len(page) == asked and reverse:
                low = end = page[-1][0]
            elif len(page) == asked:
                high = start = page[-1][0] + b"\0"  # the very next key
            else:
                start = end
            rows = self._seen_by_us(page, low, high, reverse=reverse)[:left]
            yield from rows
            left -= len(rows)

    def _seen_by_us(
        self, page: list[tuple[bytes, bytes]], low: bytes, high: bytes, *, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """What the server has from `low` up to `high`, with what this transaction changed there."""
        del low, high, reverse
        return page

    def _ask(self, statement: Statement, *values: bytes) -> pq.abc.PGresult:
        try:
            results = self._wire.exchange([*self.unsent, (statement, values)])
        except (ServerError, LostError) as error:
            self._failure = error
            self.unsent.clear()
            raise
        self.unsent.clear()
        return results[-1]

    def commit(self) -> None:
        """What was read counts only now. Raises ServerError, LostError, that of a question too whose error went astray."""
        if self._failure is not None:
            raise self._failure
        if not self.unsent:
            self._wire.exchange([(_COMMIT, ())])

    def abandon(self) -> None:
        """Leave no transaction on the wire."""
        if not self.unsent and self._wire.usable:
            with suppress(ServerError, LostError):
                self._wire.exchange([(_ROLLBACK, ())])


class _Writing(_Reading):
    """`Writer`. Nothing is written before the commit."""

    def __init__(self, wire: Wire, *locking: Statement) -> None:
        super().__init__(wire, _BEGIN_WRITE, *locking)
        self._changed: dict[bytes, bytes | None] = {}
        self._seen: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> None:
        assert len(key) <= KEY_BYTES_MAX, f"key of {len(key)} bytes"
        self._changed[key] = value

    def delete(self, key: bytes) -> None:
        self._changed[key] = None

    def get(self, key: bytes) -> bytes | None:
        for known in (self._changed, self._seen):
            if key in known:
                return known[key]
        value = super().get(key)
        self._remember(key, value)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        unknown = [key for key in dict.fromkeys(keys) if key not in self._changed and key not in self._seen]
        found = dict(zip(unknown, super().get_many(unknown), strict=True))
        for key, value in found.items():
            self._remember(key, value)
        known = self._seen | found | self._changed
        return [known[key] for key in keys]

    def _remember(self, key: bytes, value: bytes | None) -> None:
        if len(self._seen) < SEEN_MAX:
            self._seen[key] = value

    def _seen_by_us(
        self, page: list[tuple[bytes, bytes]], low: bytes, high: bytes, *, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        ours = {key: value for key, value in self._changed.items() if low <= key < high}
        if not ours:
            return page
        merged = {key: value for key, value in (dict(page) | ours).items() if value is not None}
        return sorted(merged.items(), reverse=reverse)

    def changes(self) -> list[Call]:
        """In the order of keys, so that of two that write the same ones none waits for the other in a circle."""
        puts = sorted((key, value) for key, value in self._changed.items() if value is not None)
        deletes = sorted(key for key, value in self._changed.items() if value is None)
        calls: list[Call] = []
        if puts:
            calls.append((_PUT, (bytea_array([key for key, _ in puts]), bytea_array([value for _, value in puts]))))
        if deletes:
            calls.append((_DELETE, (bytea_array(deletes),)))
        return calls

    def commit_changes(self, changes: list[Call]) -> None:
        """Raises ServerError (nothing was written), LostError (perhaps it was)."""
        wire = self._wire
        wire.commits += 1
        mark = (_MARK, (I64.pack(wire.slot), I64.pack(wire.commits)))
        # The mark first: who waits there for one that is alone holds nothing that it needs.
        calls = [*self.unsent, mark, *changes, (_COMMIT, ())]
        self.unsent.clear()
        wire.exchange(calls)

    def check(self) -> None:
        """Raises the error of a question that `function` did not let pass."""
        if self._failure is not None:
            raise self._failure


def _pairs(result: pq.abc.PGresult) -> list[tuple[bytes, bytes]]:
    value = result.get_value
    return [(value(row, 0) or b"", value(row, 1) or b"") for row in range(result.ntuples)]


@contextmanager
def _opened(url: PostgresUrl, host: Host, tally: Tally) -> Iterator[Wire]:
    """A first wire, and with it what may be wrong in general."""
    effort = _Effort(url, host, tally, OPEN_WAIT_S)
    while True:
        try:
            wire = connect(url, host.random.getrandbits(63), host.clock, tally)
            break
        except LostError as error:
            effort.after_loss(error)
    try:
        schema.check_server(wire, url)
        _check_sessions(wire, url, host)
        yield wire
    except LostError as error:
        raise unavailable(url, error) from error
    except ServerError as error:
        raise _domain_error(url, error) from error
    finally:
        wire.close()


def _check_sessions(wire: Wire, url: PostgresUrl, host: Host) -> None:
    """Raises ConfigurationError: a pooler gives one server process to one connection after the other, so the locks that tell
    what became of a commit hold nothing. It gives out first what came back last: the two would share one. Where there is no
    room for a second connection now, nothing is found out."""
    with suppress(RefusedError), closing(connect(url, host.random.getrandbits(63), host.clock, Tally())) as another:
        if not (another.is_alone() and wire.is_alone()):
            raise pooled(url)


def drop(url: PostgresUrl, host: Host | None = None) -> None:
    """Delete the tables of a volume. Raises what opening it raises."""
    with _opened(url, host or local_host(), Tally()) as wire:
        schema.drop(wire, url)


class PostgresEngine:
    """`tieredfs.kv.engine.Engine` over the tables of one schema."""

    def __init__(self, url: PostgresUrl, *, create: bool = False, host: Host | None = None) -> None:
        """Raises VolumeNotFoundError (no tables), ConfigurationError (password, database, TLS, server too old or not
        durable), UnavailableError, NewerFormatError, ForeignDataError, CorruptError.

        `create`: make the tables if there are none; those that are there are opened all the same.
        """
        self.url = url
        self.tally = Tally()
        self._host = host or local_host()
        self._pool = Pool(url, self._host, self.tally)
        self._fork_lock = threading.Lock()
        self._queue_until_s = 0.0
        with _opened(url, self._host, self.tally) as wire:
            (schema.create if create else schema.check)(wire, url)

    def _own(self) -> Pool:
        pool = self._pool
        if pool.process != os.getpid():
            with self._fork_lock:
                if self._pool.process != os.getpid():
                    _ABANDONED.append(self._pool)
                    self._pool = Pool(self.url, self._host, self.tally)
                pool = self._pool
        assert not pool.closed, "the engine is closed"
        return pool

    # ---- transactions ----------------------------------------------------------------------------------------

    def _effort(self) -> _Effort:
        return _Effort(self.url, self._host, self.tally, LOCK_WAIT_S)

    def read(self, function: Callable[[Reader], T]) -> T:
        effort = self._effort()
        pool = self._own()
        while True:
            try:
                with pool.borrowed(effort.left_s()) as wire:
                    return _read_once(wire, function, _BEGIN_READ_SAFE if effort.lost_often else _BEGIN_READ)
            except ServerError as error:
                effort.after_refusal(error)
            except LostError as error:
                if not isinstance(error, RefusedError):
                    pool.forget_idle()
                effort.after_loss(error)

    def write(self, function: Callable[[Writer], T]) -> T:
        effort = self._effort()
        pool = self._own()
        clock = self._host.clock
        while True:
            try:
                with pool.borrowed(effort.left_s()) as wire:
                    queued = (_QUEUE,) if clock.monotonic_s() < self._queue_until_s else ()
                    return self._write_once(wire, function, _ALONE if effort.lost_often else queued)
            except ServerError as error:
                effort.after_refusal(error)
                self._queue_until_s = clock.monotonic_s() + QUEUE_S
            except LostError as error:
                if not isinstance(error, RefusedError):
                    pool.forget_idle()
                effort.after_loss(error)

    def _write_once(self, wire: Wire, function: Callable[[Writer], T], locking: Sequence[Statement]) -> T:
        transaction = _Writing(wire, *locking)
        try:
            result = function(transaction)
            transaction.check()
            changes = transaction.changes()
            if changes:
                try:
                    transaction.commit_changes(changes)
                except LostError as error:
                    if not self._was_carried_out(wire, error):
                        raise
            else:
                transaction.commit()
        except BaseException:
            transaction.abandon()
            raise
        return result

    def _was_carried_out(self, dead: Wire, error: LostError) -> bool:
        """Whether the last commit of a connection that is gone was, once nothing that it sent is under way any more.

        Raises UnavailableError when the server does not come back to say so."""
        self.tally.doubts += 1
        dead.close()
        effort = self._effort()
        try:
            while True:
                try:
                    return self._last_commit(dead.slot) == dead.commits
                except (LostError, ServerError) as reason:
                    effort.after_loss(LostError(str(reason)))
        except (UnavailableError, ConfigurationError) as reason:
            raise UnavailableError(
                f"metadata database {self.url.place} went away during a commit ({error}), and whether it was carried out "
                f"could not be found out: as a whole, or not at all ({reason})"
            ) from error

    def _last_commit(self, slot: int) -> int:
        """Raises LostError, ServerError."""
        wire, number = self._pool.new(), I64.pack(slot)
        try:
            wire.exchange([(_END_HOLDER, (number,))])
            calls = ((_AWAIT_END, (number,)), (_LAST_COMMIT, (number,)), (_LET_GO, (number,)))
            found = wire.exchange(calls)[1]
        finally:
            wire.close()
        return int(I64.unpack(found.get_value(0, 0) or b"")[0]) if found.ntuples else 0

    # ---- durability and the end ------------------------------------------------------------------------------

    def sync(self) -> None:
        """A commit that returned is durable already."""
        self._own()

    def close(self) -> None:
        if self._pool.process == os.getpid():
            self._pool.close(_forget_marks)


def _read_once(wire: Wire, function: Callable[[Reader], T], beginning: Statement) -> T:
    transaction = _Reading(wire, beginning)
    try:
        result = function(transaction)
        transaction.commit()
    except BaseException:
        transaction.abandon()
        raise
    return result


def _forget_marks(wire: Wire, slots: list[int]) -> None:
    wire.exchange([(_FORGET_MARKS, (int8_array(slots),))])


_ABANDONED: list[Pool] = []
"""Connections inherited through fork: closing them here would end the parent's, too."""
