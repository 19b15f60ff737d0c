"""The embedded engine: one SQLite file in WAL mode, used by any number of threads and processes of one host.

*Shape.* One table, `kv(k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID`: SQLite compares BLOBs as `memcmp` does, which is the
order of `bytes`. Pages of 4096 bytes (1024 and 2048 were no faster on either path: 4 puts and 3 gets commit in 37 us).

*Who may call at once.* Everybody. Writers of this process take turns under one lock on one connection, whose page
cache so stays warm; writers of other processes are waited for by polling `BEGIN IMMEDIATE`, `LOCK_WAIT_S` at most.
Readers borrow a connection each from a stack of idle ones, so there are as many as ever read at the same time, and a
thread that dies leaves none behind. A child made by fork gets connections of its own; the parent's it must not touch.

*Durability.* A commit writes to the WAL and does not sync it (`synchronous=NORMAL`): it survives this process, not a
power cut. `sync` then needs one `fdatasync` of the WAL, whoever wrote it, because a page leaves the WAL only after
SQLite has synced it into the database. Callers that arrive while a sync runs share the next one. (The alternative, an
empty commit at `synchronous=FULL`, takes the write lock and writes a frame: more work, and it waits behind writers.)

*Checkpoints* run in a thread of their own after `CHECKPOINT_ROWS` written rows, without holding up writers; only what
was written meanwhile is copied under the writer's lock, so that the WAL can start over. `mmap_size` stays 0: a reader
that follows a commit took 45 us with a map and 12 us without.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NoReturn, TypeVar

from tieredfs.errors import (
    ConfigurationError,
    ConflictError,
    CorruptError,
    DeadlineError,
    NewerFormatError,
    NoSpaceError,
    ReadOnlyError,
    TieredError,
    UnavailableError,
    VolumeNotFoundError,
)
from tieredfs.host import Host, local_host
from tieredfs.host.shared_sync import SharedSync
from tieredfs.host.waiting import about_to_wait
from tieredfs.kv import wal_index
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import KEY_BYTES_MAX, LOCK_WAIT_S, MIB

T = TypeVar("T")

APPLICATION_ID: Final = 0x54464B56
"""`TFKV`, in the file's header: this is a database of ours."""
SCHEMA_VERSION: Final = 1

PAGE_BYTES: Final = 4096
WRITER_CACHE_KIB: Final = 32 * 1024
READER_CACHE_KIB: Final = 4 * 1024
"""A reader's cache is dropped at each foreign commit, so a large one would hardly ever be full."""
CHECKPOINT_ROWS: Final = 8192
"""One to two pages of WAL per row, so 64 MiB; the same pages are written often, so rare checkpoints copy less."""
CHECKPOINT_PAGES_MAX: Final = 65_536
"""Where SQLite itself checkpoints, in a writer's commit, should our thread have fallen behind: 256 MiB of WAL."""
WAL_BYTES_KEPT: Final = 128 * MIB
"""To what a WAL that grew in a burst is cut back when it starts over."""
CHECKPOINT_PASSES: Final = 3
"""Beside the writers; each has less to copy than the one before it, and the one that writers wait for the least."""
BUSY_PAUSE_FIRST_S: Final = 0.000_05
BUSY_PAUSE_LAST_S: Final = 0.002
SCAN_PAGE_ROWS: Final = 1024
GET_MANY_ROWS: Final = 64
"""Keys of one `IN` statement: 0.95 us a key against 1.6 us for one at a time."""

_GET: Final = "SELECT v FROM kv WHERE k = ?"
_GET_MANY: Final = f"SELECT k, v FROM kv WHERE k IN ({','.join('?' * GET_MANY_ROWS)})"
_PUT: Final = "REPLACE INTO kv(k, v) VALUES (?, ?)"
_DELETE: Final = "DELETE FROM kv WHERE k = ?"
_FORWARD: Final = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"
_FORWARD_AFTER: Final = "SELECT k, v FROM kv WHERE k > ? AND k < ? ORDER BY k LIMIT ?"
_BACKWARD: Final = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k DESC LIMIT ?"

_DOMAIN_ERRORS: Final[dict[int, type[TieredError]]] = {
    sqlite3.SQLITE_BUSY: ConflictError,
    sqlite3.SQLITE_LOCKED: ConflictError,
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_NOTADB: CorruptError,
    sqlite3.SQLITE_FULL: NoSpaceError,
    sqlite3.SQLITE_READONLY: ReadOnlyError,
    sqlite3.SQLITE_IOERR_SHMSIZE: NoSpaceError,  # the wal-index, which the first to open the database makes
}
"""By extended or primary result code; anything else (I/O errors, no descriptors left) is `UnavailableError`."""


_ADVICE: Final[dict[type[TieredError], str]] = {
    CorruptError: "; `tieredfs load` makes it anew from a dump",  # no redundancy of ours covers this file
    NoSpaceError: "; make room on the file system that it is on",  # deleting files of the volume needs some, too
    ReadOnlyError: "; make it writable, and the file system that it is on",
}


def _raise_domain_error(error: sqlite3.Error, path: str) -> NoReturn:
    if isinstance(error, sqlite3.ProgrammingError):
        raise error  # ours: a closed engine, a wrong statement
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR)
    kind = _DOMAIN_ERRORS.get(code) or _DOMAIN_ERRORS.get(code & 0xFF, UnavailableError)
    raise kind(f"metadata database {path}: {error}{_ADVICE.get(kind, '')}") from error


class _Transaction:
    """`Reader` and `Writer` on one connection; made once for it, used by one transaction after another.

    Keys and values are given as `bytearray`: the module looks for an adapter for everything but a few types, and `bytes`
    is none of these (1.0 us more for a `put`)."""

    __slots__ = ("_execute", "connection", "control")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.control = connection.cursor().execute
        self._execute = connection.cursor().execute

    def get(self, key: bytes) -> bytes | None:
        row = self._execute(_GET, (bytearray(key),)).fetchone()
        return None if row is None else row[0]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if len(keys) < GET_MANY_ROWS // 4:
            return [self.get(key) for key in keys]
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), GET_MANY_ROWS):
            batch = [bytearray(key) for key in keys[start : start + GET_MANY_ROWS]]
            batch += batch[-1:] * (GET_MANY_ROWS - len(batch))
            found.update(self._execute(_GET_MANY, batch).fetchall())
        return [found.get(key) for key in keys]

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # Whole pages of rows, never an open statement: the caller may write between two pairs, or drop the iterator.
        left = limit if limit is not None else 1 << 62
        statement = _BACKWARD if reverse else _FORWARD
        while left > 0:
            asked = min(left, SCAN_PAGE_ROWS)
            rows = self._execute(statement, (bytearray(start), bytearray(end), asked)).fetchall()
            yield from rows
            if len(rows) < asked:
                return
            left -= asked
            if reverse:
                end = rows[-1][0]
            else:
                start, statement = rows[-1][0], _FORWARD_AFTER

    def put(self, key: bytes, value: bytes) -> None:
        assert len(key) <= KEY_BYTES_MAX, f"key of {len(key)} bytes"
        self._execute(_PUT, (bytearray(key), bytearray(value)))

    def delete(self, key: bytes) -> None:
        self._execute(_DELETE, (bytearray(key),))


def _connect(path: str, cache_kib: int) -> sqlite3.Connection:
    """Never creates the file. `timeout` serves what a reader may wait for: another process's recovery of the WAL."""
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode=rw",
        uri=True,
        timeout=LOCK_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=32,
    )
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA cache_size=-{cache_kib}")
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES_MAX}")
    connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES_KEPT}")
    return connection


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


class _Connections:
    """What one process has open of one database. Replaced, never reused, in a child made by fork."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.writer = _Transaction(_connect(path, WRITER_CACHE_KIB))
        self.writer_lock = threading.Lock()
        self.writers_stand_back = threading.Lock()
        """Held by a checkpoint that wants the writer's lock; one that writes in a loop hardly lets go of it."""
        self.idle_readers: list[_Transaction] = []
        self.checkpointing = threading.Lock()
        self.rows_at_checkpoint = 0
        self.closed = False

    def take_reader(self) -> _Transaction:
        try:
            return self.idle_readers.pop()
        except IndexError:
            return _Transaction(_connect(self.path, READER_CACHE_KIB))

    def give_back(self, reader: _Transaction) -> None:
        self.idle_readers.append(reader)
        if self.closed:
            self.close_readers()

    def close_readers(self) -> None:
        while self.idle_readers:
            self.idle_readers.pop().connection.close()


class SqliteEngine:
    """`tieredfs.kv.engine.Engine` over the SQLite file `path`."""

    def __init__(self, path: str, *, create: bool = False, host: Host | None = None) -> None:
        """Raises VolumeNotFoundError (no file), CorruptError, NewerFormatError, ConfigurationError (no place for one).

        `create`: make the database if there is none; an existing one is opened all the same.
        """
        self.path = os.path.abspath(path)
        self._host = host or local_host()
        self._fork_lock = threading.Lock()
        if create:
            self._create()
        elif not os.path.isfile(self.path):
            raise VolumeNotFoundError(
                f"no metadata database at {self.path}; "
                f"`tieredfs format` makes a volume, `tieredfs load` brings a lost one back from a dump"
            )
        try:
            self._open()
        except sqlite3.Error as error:
            _raise_domain_error(error, self.path)

    # ---- opening ---------------------------------------------------------------------------------------------

    def _create(self) -> None:
        """Make the file and its schema, if there is none; of two creators at once one finds it made."""
        if os.path.isfile(self.path) and os.path.getsize(self.path) > 0:
            return
        if not os.path.isdir(os.path.dirname(self.path)) or os.path.isdir(self.path):
            raise ConfigurationError(f"{self.path}: not a place where a database file can be made")
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=LOCK_WAIT_S)
            try:
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("CREATE TABLE IF NOT EXISTS kv(k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                connection.execute("COMMIT")
            finally:
                connection.close()
        except sqlite3.Error as error:
            _raise_domain_error(error, self.path)
        self._host.files.sync_directory(os.path.dirname(self.path))

    def _open(self) -> None:
        self._connections = _Connections(self.path)
        self._check_schema()
        # From here on `_begin_immediate` waits, in steps that suit transactions of 40 us; SQLite's begin with 1 ms.
        self._connections.writer.control("PRAGMA busy_timeout=0")
        # Our writer keeps the WAL from being deleted, so this descriptor stays that of the one in use.
        self._wal = self._host.files.open(f"{self.path}-wal", os.O_RDONLY)
        self._host.files.sync_directory(os.path.dirname(self.path))
        self._wal_index = wal_index.opened(f"{self.path}-shm")
        self.stamp = self._wal_index.stamp
        self.is_next = wal_index.is_next
        """`tieredfs.kv.engine.Stamped`."""
        self._shared_sync = SharedSync(lambda: self._host.files.sync(self._wal))
        self._process = os.getpid()

    def _check_schema(self) -> None:
        control = self._connections.writer.control
        application = control("PRAGMA application_id").fetchone()[0]
        version = control("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise CorruptError(f"{self.path} is not a metadata database of TieredFS (application id {application:#x})")
        if version > SCHEMA_VERSION:
            raise NewerFormatError(f"{self.path} has schema {version}; this program knows {SCHEMA_VERSION}")
        if version < 1:
            raise CorruptError(f"{self.path} has schema {version}, which never was")
        # Makes the WAL file exist, and finds a file that is shorter than its header says.
        self._begin_immediate(self._connections.writer)
        control("COMMIT")

    def _after_fork(self) -> None:
        with self._fork_lock:
            if self._process != os.getpid():
                self._reopen_in_child()

    def _reopen_in_child(self) -> None:
        _ABANDONED.append((self._connections, self._shared_sync))
        self._host.files.close(self._wal)  # never locked by SQLite, so closing it drops no lock
        self._open()

    def _own(self) -> _Connections:
        if self._process != os.getpid():
            self._after_fork()
        return self._connections

    # ---- transactions ----------------------------------------------------------------------------------------

    def read(self, function: Callable[[Reader], T]) -> T:
        connections = self._own()
        if connections.closed:
            raise sqlite3.ProgrammingError("the engine is closed")
        try:
            reader = connections.take_reader()
            try:
                reader.control("BEGIN")
                try:
                    return function(reader)
                finally:
                    reader.control("COMMIT")
            finally:
                connections.give_back(reader)
        except sqlite3.Error as error:
            _raise_domain_error(error, self.path)

    def write(self, function: Callable[[Writer], T]) -> T:
        connections = self._own()
        self._await_turn(connections)
        writer = connections.writer
        try:
            if connections.closed:
                raise sqlite3.ProgrammingError("the engine is closed")
            self._begin_immediate(writer)
            try:
                result = function(writer)
                writer.control("COMMIT")
            except BaseException:
                if writer.connection.in_transaction:  # some errors end the transaction by themselves
                    writer.control("ROLLBACK")
                raise
            due = writer.connection.total_changes - connections.rows_at_checkpoint >= CHECKPOINT_ROWS
        except sqlite3.Error as error:
            _raise_domain_error(error, self.path)
        finally:
            connections.writer_lock.release()
        if due:
            self._start_checkpoint(connections)
        return result

    def _await_turn(self, connections: _Connections) -> None:
        """Take the lock of this process's writers. Raises ConflictError."""
        stand_back, lock = connections.writers_stand_back, connections.writer_lock
        if not stand_back.locked() and lock.acquire(blocking=False):
            return
        about_to_wait()
        if stand_back.acquire(timeout=LOCK_WAIT_S):
            stand_back.release()
        if not lock.acquire(timeout=LOCK_WAIT_S):
            raise ConflictError(f"metadata database {self.path}: no turn to write within {LOCK_WAIT_S:.0f} s")

    def _begin_immediate(self, writer: _Transaction) -> None:
        """Take the database's write lock, polling while another process has it; SQLITE_BUSY at the deadline."""
        pause_s = BUSY_PAUSE_FIRST_S
        deadline_s: float | None = None
        clock = self._host.clock
        while True:
            try:
                writer.control("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                about_to_wait()
                if deadline_s is None:
                    deadline_s = clock.monotonic_s() + LOCK_WAIT_S
                elif clock.monotonic_s() >= deadline_s:
                    raise
                # Jitter, so that processes that wait for each other do not stay in step.
                clock.sleep(pause_s * (0.5 + self._host.random.random()))
                pause_s = min(pause_s * 2, BUSY_PAUSE_LAST_S)
            else:
                return

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def _start_checkpoint(self, connections: _Connections) -> None:
        if connections.checkpointing.acquire(blocking=False):
            connections.rows_at_checkpoint = connections.writer.connection.total_changes
            threading.Thread(target=self._checkpoint, args=(connections,), name="kv-checkpoint", daemon=True).start()

    def _checkpoint(self, connections: _Connections) -> None:
        """Copy the WAL into the database beside the writers, then the rest of it while they wait."""
        reader = connections.take_reader()
        try:
            for _ in range(CHECKPOINT_PASSES):
                reader.control("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            with connections.writers_stand_back:
                if connections.writer_lock.acquire(timeout=LOCK_WAIT_S):
                    try:
                        if not connections.closed:
                            connections.writer.control("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                    finally:
                        connections.writer_lock.release()
        except sqlite3.Error:
            # Not this thread's to report: nothing is lost, and the next commit or sync meets the same disk and tells.
            pass
        finally:
            connections.give_back(reader)
            connections.checkpointing.release()

    @contextmanager
    def checkpoint_finished(self, timeout_s: float) -> Iterator[None]:
        """Wait for the checkpoint that is running, if one is, and keep the next from starting. Raises DeadlineError."""
        checkpointing = self._own().checkpointing
        if not checkpointing.acquire(timeout=timeout_s):
            raise DeadlineError(f"a checkpoint of {self.path} took longer than {timeout_s:.0f} s")
        try:
            yield
        finally:
            checkpointing.release()

    # ---- durability and the end ------------------------------------------------------------------------------

    def sync(self) -> None:
        self._own()
        self._shared_sync.wait()

    def close(self) -> None:
        connections = self._own()
        with self.checkpoint_finished(LOCK_WAIT_S), connections.writer_lock:
            if connections.closed:
                return
            connections.closed = True
            connections.writer.connection.close()
        connections.close_readers()
        wal_index.closed(self._wal_index)
        self._host.files.close(self._wal)


_ABANDONED: list[object] = []
"""Connections inherited through fork, kept alive for ever: SQLite forbids a child even to close them."""
