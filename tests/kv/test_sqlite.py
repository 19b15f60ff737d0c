"""The SQLite engine: the suite, and what is its own: files, foreign locks, forks, shared syncs, checkpoints."""

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.descriptors import open_paths
from tieredfs.errors import (
    ConfigurationError,
    ConflictError,
    CorruptError,
    NewerFormatError,
    UnavailableError,
    VolumeNotFoundError,
)
from tieredfs.host import Host, LocalFiles, local_host
from tieredfs.host.shared_sync import SharedSync
from tieredfs.kv import sqlite
from tieredfs.kv.engine import Writer
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.testing.engine_suite import EngineSuite, items, put
from tieredfs.testing.engine_workers import Opener, increment, read_counter

WAIT_S = 30.0


class TestSqliteEngine(EngineSuite):
    def create(self, location: str) -> SqliteEngine:
        return SqliteEngine(location, create=True)

    @property
    def opener(self) -> Opener:
        return SqliteEngine

    def raw_items(self, location: str) -> dict[bytes, bytes]:
        with closing(sqlite3.connect(location)) as connection:
            return dict(connection.execute("SELECT k, v FROM kv"))

    def raw_put(self, location: str, key: bytes, value: bytes) -> None:
        with closing(sqlite3.connect(location)) as connection, connection:
            connection.execute("INSERT INTO kv VALUES (?, ?)", (key, value))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "volume.db")


@pytest.fixture
def engine(path: str) -> Iterator[SqliteEngine]:
    engine = SqliteEngine(path, create=True)
    yield engine
    engine.close()


# ---- files that are not what they should be --------------------------------------------------------------------------


def made(path: str) -> None:
    engine = SqliteEngine(path, create=True)
    put(engine, *((b"%06d" % number, b"v" * 100) for number in range(2000)))
    engine.close()


def descriptors_of(path: str) -> int:
    """How many this process holds of the database and what lies beside it (others come and go: of tests before)."""
    return sum(each.startswith(path) for each in open_paths())


def test_missing_file(path: str) -> None:
    with pytest.raises(VolumeNotFoundError):
        SqliteEngine(path)
    assert not os.path.exists(path)


def test_no_directory_to_create_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        SqliteEngine(str(tmp_path / "none" / "volume.db"), create=True)
    with pytest.raises(ConfigurationError):
        SqliteEngine(str(tmp_path), create=True)


def test_awkward_characters_in_the_path(tmp_path: Path) -> None:
    made(str(tmp_path / "50% of #1?.db"))
    assert sorted(os.listdir(tmp_path)) == ["50% of #1?.db"]


def test_create_opens_what_is_there(path: str) -> None:
    made(path)
    engine = SqliteEngine(path, create=True)
    assert len(items(engine)) == 2000
    engine.close()


@pytest.mark.parametrize("contents", [b"", b"hello", os.urandom(8192), b"SQLite format 3\0" + bytes(4080)])
def test_garbage(path: str, contents: bytes) -> None:
    Path(path).write_bytes(contents)
    with pytest.raises(CorruptError):
        SqliteEngine(path)
    if contents:
        with pytest.raises(CorruptError):
            SqliteEngine(path, create=True)
        assert Path(path).read_bytes() == contents, "what is not ours is left alone"


def test_database_of_another_program(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE kv(k, v)")
    for create in (False, True):
        with pytest.raises(CorruptError, match="not a metadata database"):
            SqliteEngine(path, create=create)


@pytest.mark.parametrize("keep", [100, 4096, 20_000])
def test_truncated(path: str, keep: int) -> None:
    made(path)
    assert os.path.getsize(path) > keep
    os.truncate(path, keep)
    with pytest.raises(CorruptError):
        SqliteEngine(path)


def test_rotten_page_is_an_error_when_it_is_read(path: str) -> None:
    made(path)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(os.path.getsize(path) - 4096))
    with pytest.raises(CorruptError):
        items(SqliteEngine(path))


def test_newer_schema(path: str) -> None:
    made(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=2")
    with pytest.raises(NewerFormatError):
        SqliteEngine(path)


# ---- other processes -------------------------------------------------------------------------------------------------


def test_waiting_for_a_foreign_lock_is_bounded(
    engine: SqliteEngine, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConflictError):
            put(engine, (b"key", b"value"))
        assert items(engine) == [], "readers are not held up"
        other.execute("ROLLBACK")
    put(engine, (b"key", b"value"))
    assert items(engine) == [(b"key", b"value")]


def test_waiting_for_a_writer_of_this_process_is_bounded(engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def slow(writer: Writer) -> None:
        entered.set()
        leave.wait(WAIT_S)

    thread = threading.Thread(target=engine.write, args=(slow,))
    thread.start()
    assert entered.wait(WAIT_S)
    with pytest.raises(ConflictError):
        put(engine, (b"key", b"value"))
    leave.set()
    thread.join(WAIT_S)
    put(engine, (b"key", b"value"))


def test_child_made_by_fork_has_connections_of_its_own(engine: SqliteEngine) -> None:
    put(engine, (b"parent", b"1"))
    child = os.fork()
    if child == 0:
        signal.alarm(int(WAIT_S))
        code = 1
        try:
            for _ in range(20):
                engine.write(increment)
            engine.sync()
            code = 0 if engine.read(lambda reader: reader.get(b"parent")) == b"1" else 2
        finally:
            os._exit(code)  # not one step of the parent's test run
    for _ in range(20):
        engine.write(increment)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.read(read_counter) == 40


def test_dead_threads_leave_no_connections(engine: SqliteEngine, path: str) -> None:
    put(engine, (b"key", b"value"))
    items(engine)
    before = descriptors_of(path)
    assert before
    for _ in range(50):
        thread = threading.Thread(target=items, args=(engine,))
        thread.start()
        thread.join(WAIT_S)
    assert descriptors_of(path) == before


def test_closed_engine_holds_no_descriptors_and_refuses(path: str) -> None:
    engine = SqliteEngine(path, create=True)
    put(engine, (b"key", b"value"))
    items(engine)
    assert descriptors_of(path)
    engine.close()
    engine.close()
    assert descriptors_of(path) == 0
    with pytest.raises(sqlite3.ProgrammingError):
        items(engine)
    with pytest.raises(sqlite3.ProgrammingError):
        put(engine, (b"key", b"value"))


# ---- durability ------------------------------------------------------------------------------------------------------


class CountingFiles(LocalFiles):
    """Counts syncs, and fails them when told to."""

    def __init__(self) -> None:
        self.syncs = 0
        self.fails = False

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        if self.fails:
            raise OSError(5, "on purpose")
        super().sync(descriptor)


def test_sync_is_one_sync_of_the_file_that_has_the_commits(path: str) -> None:
    files, real = CountingFiles(), local_host()
    engine = SqliteEngine(path, create=True, host=Host(real.clock, files, real.random))
    put(engine, (b"key", b"value"))
    assert files.syncs == 0
    engine.sync()
    assert files.syncs == 1
    assert b"value" in Path(path + "-wal").read_bytes()
    engine.close()


def test_failed_sync_is_never_followed_by_a_good_one(path: str) -> None:
    files, real = CountingFiles(), local_host()
    engine = SqliteEngine(path, create=True, host=Host(real.clock, files, real.random))
    files.fails = True
    with pytest.raises(UnavailableError):
        engine.sync()
    files.fails = False
    with pytest.raises(UnavailableError):
        engine.sync()
    assert files.syncs == 1
    engine.close()


def test_waiting_callers_share_one_sync() -> None:
    """Whoever arrives while a sync runs cannot use that one; all of them together need one more."""
    running, go_on = threading.Event(), threading.Event()
    count = 0

    def sync() -> None:
        nonlocal count
        count += 1
        if count == 1:
            running.set()
            assert go_on.wait(WAIT_S)

    shared = SharedSync(sync)
    threads = [threading.Thread(target=shared.wait) for _ in range(20)]
    threads[0].start()
    assert running.wait(WAIT_S)
    for thread in threads[1:]:
        thread.start()
    for _ in range(int(WAIT_S * 1000)):
        if shared.waiting == 19:
            break
        threading.Event().wait(0.001)
    assert shared.waiting == 19
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert count == 2


def wal_generation(path: str) -> int:
    """The checkpoint sequence number in the WAL's header: how often it has started over."""
    return int.from_bytes(Path(path + "-wal").read_bytes()[12:16], "big")


def test_wal_starts_over_after_a_checkpoint(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_ROWS", 200)
    engine = SqliteEngine(path, create=True)
    put(engine, (b"first", b""))
    before = wal_generation(path)
    for _ in range(3):
        for number in range(250):
            put(engine, (b"key-%d" % (number % 50), os.urandom(3000)))
        with engine.checkpoint_finished(WAIT_S):
            put(engine, (b"after", b""))
    assert wal_generation(path) >= before + 3
    assert len(items(engine)) == 52
    engine.close()
