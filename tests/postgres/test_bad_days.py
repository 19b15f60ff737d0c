"""What a server, a network and an operator do to the PostgreSQL engine, and what it says or does about it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.mount.volumes import wait_until
from tests.postgres.pooler import TransactionPooler
from tests.postgres.proxy import Fate, Proxy
from tests.postgres.server import GUEST, NEWER, PASSWORD, Server, free_port
from tieredfs.config.postgres_url import PostgresUrl, parse_postgres_url
from tieredfs.errors import (
    ConfigurationError,
    ConflictError,
    ForeignDataError,
    NewerFormatError,
    UnavailableError,
    VolumeNotFoundError,
)
from tieredfs.host import SystemClock
from tieredfs.kv import postgres, postgres_schema, postgres_wire
from tieredfs.kv.engine import Reader, Writer
from tieredfs.kv.postgres import PostgresEngine, drop
from tieredfs.kv.postgres_wire import Statement, Tally
from tieredfs.limits import CONNECTIONS_MAX, TRANSACTION_RETRIES_MAX
from tieredfs.testing.engine_suite import items, put
from tieredfs.testing.engine_workers import increment, read_counter

WAIT_S = 60.0
THREADS, TIMES = 6, 40


@pytest.fixture
def url(server: Server, database: str) -> PostgresUrl:
    return parse_postgres_url(server.url(database))


@pytest.fixture
def engine(url: PostgresUrl) -> Iterator[PostgresEngine]:
    engine = PostgresEngine(url, create=True)
    yield engine
    engine.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def through_proxy(engine: PostgresEngine, server: Server, database: str, proxy: Proxy) -> Iterator[PostgresEngine]:
    """A second engine on the same database; the first one looks from outside."""
    engine = PostgresEngine(parse_postgres_url(server.url(database, port=proxy.port)))
    engine.write(increment)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """One that may be stopped and spoiled."""
    server = Server(NEWER)
    yield server
    server.close()


# ---- round trips -----------------------------------------------------------------------------------------------------


def round_trips(engine: PostgresEngine, work: Callable[[], object]) -> int:
    before = engine.tally.round_trips
    work()
    return engine.tally.round_trips - before


def test_round_trips_are_as_few_as_the_module_says(engine: PostgresEngine) -> None:
    many = [(b"%06d" % number, b"v" * 100) for number in range(2000)]
    keys = [key for key, _ in many]
    put(engine, (b"warm", b"up"))
    assert round_trips(engine, lambda: put(engine, *many)) == 1, "what is only written goes in one"
    assert round_trips(engine, lambda: engine.read(lambda reader: reader.get(b"warm"))) == 2
    assert round_trips(engine, lambda: engine.read(lambda reader: reader.get_many(keys))) == 2
    assert round_trips(engine, lambda: engine.write(increment)) == 2
    assert round_trips(engine, lambda: items(engine)) == 3 + 1 - 1, "two pages of rows and the commit"
    assert round_trips(engine, lambda: engine.write(lambda _: None)) == 0

    def twice(writer: Writer) -> None:
        writer.put(b"x", writer.get(b"a") or b"none")
        assert writer.get(b"x") == b"none"
        assert (writer.get(b"a"), writer.get_many([b"a", b"x"])) == (None, [None, b"none"])
        for key in keys:
            writer.delete(key)

    assert round_trips(engine, lambda: engine.write(twice)) == 2, "nothing is asked twice, and 2000 deletes are one"


def test_few_connections_for_many_threads(engine: PostgresEngine) -> None:
    before = engine.tally.connections

    def work() -> None:
        for _ in range(3):
            engine.write(increment)

    threads = [threading.Thread(target=work) for _ in range(3 * CONNECTIONS_MAX)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert engine.read(read_counter) == 9 * CONNECTIONS_MAX
    assert 1 < engine.tally.connections - before <= CONNECTIONS_MAX


# ---- serializable ----------------------------------------------------------------------------------------------------


def test_two_that_each_read_what_the_other_writes_are_not_both_carried_out(engine: PostgresEngine) -> None:
    """Write skew: under mere snapshots both would find the other one on call, and both would go home."""
    put(engine, (b"on-call-1", b"yes"), (b"on-call-2", b"yes"))
    together = threading.Barrier(2)

    def go_home(own: bytes, other: bytes) -> None:
        first = True

        def change(writer: Writer) -> None:
            nonlocal first
            somebody_else = writer.get(other) == b"yes"
            if first:
                first = False
                together.wait(WAIT_S)
            if somebody_else:
                writer.put(own, b"no")

        engine.write(change)

    doctors = [(b"on-call-1", b"on-call-2"), (b"on-call-2", b"on-call-1")]
    threads = [threading.Thread(target=go_home, args=doctor) for doctor in doctors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(value for _, value in items(engine)) == [b"no", b"yes"]
    assert engine.tally.conflicts >= 1


class Rival:
    """Writes to a key again and again, while another transaction is in the middle, and is never the one who loses."""

    def __init__(self, server: Server, database: str, engine: PostgresEngine) -> None:
        self._server, self._database = server, database
        self._engine = engine
        self.waiting: list[threading.Thread] = []

    def write(self, key: bytes, value: bytes) -> None:
        """Returns when it is written, or waits for a lock."""
        thread = threading.Thread(target=put, args=(self._engine, (key, value)))
        thread.start()
        wait_until(lambda: not thread.is_alive() or self._waits(), "the rival has written, or waits")
        if thread.is_alive():
            self.waiting.append(thread)

    def _waits(self) -> bool:
        question = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        return bool(self._server.sql(question, self._database))


@pytest.fixture
def rival(server: Server, database: str, engine: PostgresEngine) -> Iterator[Rival]:
    with contextlib.closing(PostgresEngine(engine.url)) as other:
        rival = Rival(server, database, other)
        yield rival
        for thread in rival.waiting:
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_who_lost_often_goes_alone(engine: PostgresEngine, rival: Rival) -> None:
    runs = 0

    def slow(writer: Writer) -> bytes | None:
        nonlocal runs
        runs += 1
        seen = writer.get(b"key")
        rival.write(b"key", b"%d" % runs)
        writer.put(b"key", b"mine")
        return seen

    assert engine.write(slow) == b"%d" % postgres.ALONE_AFTER, "what the rival wrote the last time"
    assert runs == postgres.ALONE_AFTER + 1
    (waiting,) = rival.waiting
    waiting.join(WAIT_S)
    assert items(engine) == [(b"key", b"%d" % runs)], "who waited went on behind it"


def test_who_reads_and_lost_often_waits_for_a_moment_that_nobody_spoils(
    server: Server, database: str, engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anomaly of a reader (Fekete, O'Neil and O'Neil, 2004): a deposit is there, and the withdrawal that did not see it is
    not, so that came first; but the reader began before it was carried out."""
    put(engine, (b"checking", b"0"), (b"savings", b"0"))
    monkeypatch.setattr(postgres, "ALONE_AFTER", 3)
    looks = 0
    seen_both, go_on = threading.Event(), threading.Event()

    def withdraw(writer: Writer) -> None:
        writer.get_many([b"checking", b"savings"])
        seen_both.set()
        go_on.wait(WAIT_S)
        writer.put(b"checking", b"-%d" % looks)

    def go_on_when_it_waits() -> None:
        question = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event = 'SafeSnapshot'"
        wait_until(lambda: server.sql(question, database), "the reader waits")
        go_on.set()

    def look(reader: Reader) -> list[bytes | None]:
        nonlocal looks
        looks += 1
        seen_both.clear()
        go_on.clear()
        withdrawal = threading.Thread(target=engine.write, args=(withdraw,))
        withdrawal.start()
        seen_both.wait(WAIT_S)
        put(engine, (b"savings", b"%d" % looks))
        if looks > postgres.ALONE_AFTER:
            threading.Thread(target=go_on_when_it_waits).start()
        reader.get(b"nothing")  # from here on it sees what is there now
        go_on.set()
        withdrawal.join(WAIT_S)
        return reader.get_many([b"checking", b"savings"])

    assert engine.read(look) == [b"-4", b"4"]
    assert looks == postgres.ALONE_AFTER + 1
    assert engine.tally.conflicts == postgres.ALONE_AFTER


def test_who_stopped_while_it_was_alone_is_sent_away(
    engine: PostgresEngine, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry = Statement(b"hurry", b"SET LOCAL idle_in_transaction_session_timeout = 300")
    monkeypatch.setattr(postgres, "_ALONE", (hurry, postgres._ALONE[1]))
    monkeypatch.setattr(postgres, "ALONE_AFTER", 0)
    runs = 0

    def stops(writer: Writer) -> None:
        nonlocal runs
        runs += 1
        writer.get(b"key")
        if runs == 1:
            rival.write(b"other", b"1")
            (waiting,) = rival.waiting
            waiting.join(WAIT_S)
        writer.put(b"key", b"mine")

    engine.write(stops)
    assert runs == 2
    assert items(engine) == [(b"key", b"mine"), (b"other", b"1")]


def test_endless_conflicts_end(engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "ALONE_AFTER", 1 << 30)
    runs = 0

    def hopeless(writer: Writer) -> None:
        nonlocal runs
        runs += 1
        writer.get(b"key")
        rival = threading.Thread(target=put, args=(other, (b"key", b"%d" % runs)))
        rival.start()
        rival.join(WAIT_S)
        writer.put(b"key", b"mine")

    other = PostgresEngine(engine.url)
    with pytest.raises(ConflictError, match="lost"):
        engine.write(hopeless)
    other.close()
    assert runs == TRANSACTION_RETRIES_MAX + 1
    assert items(engine) == [(b"key", b"%d" % runs)]


# ---- commits without an answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "runs_expected"),
    [(Fate.NEVER_ARRIVES, 2), (Fate.IS_CUT_IN_TWO, 2), (Fate.LOSES_ITS_ANSWER, 1)],
)
@pytest.mark.parametrize("reads", [False, True])
def test_a_commit_without_an_answer_is_carried_out_once(
    engine: PostgresEngine, through_proxy: PostgresEngine, proxy: Proxy, fate: Fate, runs_expected: int, reads: bool
) -> None:
    runs = 0

    def change(writer: Writer) -> int:
        nonlocal runs
        runs += 1
        if reads:
            increment(writer)
        else:
            writer.put(b"blind-%d" % runs, b"")
        return runs

    proxy.next_commit(fate)
    assert through_proxy.write(change) == runs_expected
    assert (proxy.struck, through_proxy.tally.doubts, runs) == (1, 1, runs_expected)
    assert engine.read(read_counter) == (2 if reads else 1)
    blind = [key for key, _ in items(engine) if key.startswith(b"blind")]
    assert blind == ([] if reads else [b"blind-%d" % runs_expected])
    assert through_proxy.write(increment) == engine.read(read_counter), "and it goes on"


def test_a_commit_that_nobody_can_tell_of_is_an_error(
    engine: PostgresEngine, through_proxy: PostgresEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 0.5)
    proxy.next_commit(Fate.LOSES_ITS_ANSWER, then_refuse=True)
    with pytest.raises(UnavailableError, match="whether it was carried out"):
        through_proxy.write(increment)
    assert engine.read(read_counter) == 2
    proxy.refuses = False
    assert through_proxy.write(increment) == 3


def test_a_lost_read_is_asked_again(engine: PostgresEngine, through_proxy: PostgresEngine, proxy: Proxy) -> None:
    proxy.next_commit(Fate.LOSES_ITS_ANSWER)
    assert through_proxy.read(read_counter) == 1
    assert (proxy.struck, through_proxy.tally.doubts) == (1, 0)


# ---- servers that go and come ----------------------------------------------------------------------------------------


def hammer(engine: PostgresEngine, trouble: Callable[[], None]) -> int:
    """Threads that increment while there is trouble; the number of increments that were acknowledged."""
    errors: list[BaseException] = []
    done = [0] * THREADS
    under_way = threading.Barrier(THREADS + 1)

    def work(number: int) -> None:
        try:
            engine.write(increment)
            done[number] += 1
            under_way.wait(WAIT_S)
            for _ in range(TIMES):
                engine.write(increment)
                done[number] += 1
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    under_way.wait(WAIT_S)
    trouble()
    for thread in threads:
        thread.join(WAIT_S)
    assert errors == []
    return sum(done)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_restarted_server_loses_no_increment_and_counts_none_twice(own_server: Server, number: int) -> None:
    engine = PostgresEngine(parse_postgres_url(own_server.url(own_server.database())), create=True)

    before = 0

    def restart() -> None:
        nonlocal before
        own_server.stop(number)
        before = engine.tally.connections
        own_server.start()

    assert hammer(engine, restart) == THREADS * (TIMES + 1) == engine.read(read_counter)
    assert engine.tally.connections > before > 0, "they had to connect again"
    engine.close()


def test_terminated_backends_lose_no_increment(engine: PostgresEngine, server: Server, database: str) -> None:
    before = 0

    def terminate() -> None:
        nonlocal before
        before = engine.tally.connections
        for _ in range(10):
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", database)

    assert hammer(engine, terminate) == THREADS * (TIMES + 1) == engine.read(read_counter)
    assert engine.tally.connections > before > 0


def test_a_server_that_stays_away_is_said_to(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 0.5)
    monkeypatch.setattr(postgres, "OPEN_WAIT_S", 0.1)
    url = parse_postgres_url(own_server.url(own_server.database()))
    engine = PostgresEngine(url, create=True)
    put(engine, (b"key", b"value"))
    own_server.stop()
    with pytest.raises(UnavailableError, match=r"does not answer.*look whether it runs"):
        put(engine, (b"key", b"other"))
    with pytest.raises(UnavailableError, match="does not answer"):
        PostgresEngine(url)
    own_server.start()
    assert engine.read(lambda reader: reader.get(b"key")) == b"value"
    engine.close()


def test_a_silent_server_is_not_waited_for_for_ever(url: PostgresUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(postgres, "OPEN_WAIT_S", 0.1)
    monkeypatch.setattr(postgres_wire, "CONNECT_WAIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(UnavailableError, match="no connection within"):
            PostgresEngine(PostgresUrl((("127.0.0.1", port),), url.user, url.database))


def test_the_next_host_is_asked_when_the_first_does_not_answer(engine: PostgresEngine, url: PostgresUrl) -> None:
    put(engine, (b"key", b"value"))
    two = PostgresEngine(PostgresUrl((("127.0.0.1", free_port()), *url.hosts), url.user, url.database))
    assert items(two) == [(b"key", b"value")]
    two.close()


def test_few_connections_allowed_are_waited_for(engine: PostgresEngine, server: Server, database: str) -> None:
    server.sql("DROP ROLE IF EXISTS few")
    server.sql("CREATE ROLE few LOGIN CONNECTION LIMIT 2")
    server.sql("GRANT USAGE ON SCHEMA tieredfs TO few", database=database)
    server.sql("GRANT ALL ON ALL TABLES IN SCHEMA tieredfs TO few", database=database)
    held = postgres_wire.connect(parse_postgres_url(server.url(database, user="few")), 1, SystemClock(), Tally())
    try:  # the last connection that it may have is enough to begin with
        few = PostgresEngine(parse_postgres_url(server.url(database, user="few")))
    finally:
        held.close()
    try:
        assert hammer(few, lambda: None) == THREADS * (TIMES + 1) == engine.read(read_counter)
    finally:
        few.close()
        server.sql("DROP OWNED BY few", database=database)
        server.sql("DROP ROLE few")


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_passwords_come_from_libpqs_places_and_are_never_shown(
    engine: PostgresEngine, server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql(f"DROP ROLE IF EXISTS {GUEST}")
    server.sql(f"CREATE ROLE {GUEST} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    url = parse_postgres_url(server.url(database, user=GUEST))
    with pytest.raises(ConfigurationError, match="no password"):
        PostgresEngine(url)
    monkeypatch.setenv("PGPASSWORD", "wrong word")
    with pytest.raises(ConfigurationError, match="password authentication failed") as caught:
        PostgresEngine(url)
    assert "wrong word" not in str(caught.value)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    guest = PostgresEngine(url)
    put(guest, (b"key", b"value"))
    guest.close()
    assert items(engine) == [(b"key", b"value")]


def test_a_password_file_named_by_the_url(engine: PostgresEngine, server: Server, database: str) -> None:
    server.sql(f"DROP ROLE IF EXISTS {GUEST}")
    server.sql(f"CREATE ROLE {GUEST} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    path = server.directory / "passwords"
    path.write_text(f"127.0.0.1:{server.port}:*:{GUEST}:{PASSWORD}\n")
    path.chmod(0o600)
    guest = PostgresEngine(parse_postgres_url(server.url(database, user=GUEST, more=f"?passfile={path}")))
    assert items(guest) == []
    guest.close()


@pytest.mark.parametrize(
    ("user", "database", "more", "said"),
    [
        ("tieredfs", "nowhere", "", 'database "nowhere" does not exist'),
        ("nobody", "postgres", "", 'role "nobody" does not exist'),
        ("tieredfs", "postgres", "?sslmode=require", "SSL"),
    ],
)
def test_what_asking_again_would_not_change(server: Server, user: str, database: str, more: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        PostgresEngine(parse_postgres_url(server.url(database, user=user, more=more)))


@pytest.mark.parametrize("forgets", [False, True])
def test_a_pooler_that_gives_connections_for_a_transaction_is_refused(
    engine: PostgresEngine, server: Server, database: str, *, forgets: bool
) -> None:
    put(engine, (b"key", b"value"))
    pooler = TransactionPooler(server.port, forgets=forgets)
    try:
        with pytest.raises(ConfigurationError, match="for a transaction; it must give them for a session"):
            PostgresEngine(parse_postgres_url(server.url(database, port=pooler.port)))
    finally:
        pooler.close()
    assert items(engine) == [(b"key", b"value")]


def test_the_settings_of_a_connection_do_not_travel_as_options(
    server: Server, database: str, url: PostgresUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer refuses a connection with `options`; told to ignore them, it would leave the time limits out."""
    asked: list[bytes] = []
    linked = postgres_wire._linked
    monkeypatch.setattr(
        postgres_wire, "_linked", lambda conninfo, clock: asked.append(conninfo) or linked(conninfo, clock)
    )
    engine = PostgresEngine(url, create=True)
    try:
        settings = b"SELECT current_setting('statement_timeout'), current_setting('search_path')"
        with engine._own().borrowed(WAIT_S) as wire:
            (found,) = wire.exchange([(postgres_wire.Statement(b"", settings), ())])
        assert (found.get_value(0, 0), found.get_value(0, 1)) == (b"30s", b'"tieredfs"')
    finally:
        engine.close()
    assert asked
    assert not any(b"options" in conninfo for conninfo in asked)


def test_a_database_without_a_volume(url: PostgresUrl) -> None:
    with pytest.raises(VolumeNotFoundError, match="schema tieredfs"):
        PostgresEngine(url)


def test_schemas_are_volumes_of_their_own_and_leave_no_trace(
    engine: PostgresEngine, server: Server, database: str
) -> None:
    other_url = parse_postgres_url(server.url(database, more="?schema=other"))
    other = PostgresEngine(other_url, create=True)
    put(other, (b"theirs", b""))
    put(engine, (b"ours", b""))
    other.close()
    drop(other_url)
    assert items(engine) == [(b"ours", b"")]
    with pytest.raises(VolumeNotFoundError):
        PostgresEngine(other_url)
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'other'", database=database) == []


def test_tables_of_somebody_else_are_left_alone(server: Server, database: str, url: PostgresUrl) -> None:
    server.sql("CREATE SCHEMA tieredfs", database=database)
    server.sql("CREATE TABLE tieredfs.kv (theirs int)", database=database)
    with pytest.raises(ForeignDataError, match="schema=NAME"):
        PostgresEngine(url, create=True)
    with pytest.raises(VolumeNotFoundError):
        drop(url)
    assert server.sql("SELECT count(*) FROM tieredfs.kv", database=database) == [(0,)]
    server.sql("CREATE TABLE tieredfs.about (format text, version bigint)", database=database)
    with pytest.raises(ForeignDataError):
        PostgresEngine(url, create=True)


def test_two_that_create_at_once_make_one(url: PostgresUrl) -> None:
    made: list[PostgresEngine] = []
    threads = [threading.Thread(target=lambda: made.append(PostgresEngine(url, create=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(made) == 4
    for engine in made:
        engine.write(increment)
    assert made[0].read(read_counter) == 4
    for engine in made:
        engine.close()


def test_a_newer_format_and_an_older_server(
    engine: PostgresEngine, server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql("UPDATE tieredfs.about SET version = 2", database=database)
    with pytest.raises(NewerFormatError):
        PostgresEngine(engine.url)
    monkeypatch.setattr(postgres_schema, "SERVER_VERSION_MIN", 990_000)
    with pytest.raises(ConfigurationError, match="99 or newer"):
        PostgresEngine(engine.url)


def test_a_server_that_does_not_keep_what_it_commits(own_server: Server) -> None:
    url = parse_postgres_url(own_server.url(own_server.database()))
    own_server.sql("ALTER SYSTEM SET fsync = off")
    own_server.stop()
    own_server.start()
    try:
        with pytest.raises(ConfigurationError, match="fsync=off"):
            PostgresEngine(url, create=True)
    finally:
        own_server.sql("ALTER SYSTEM RESET fsync")
        own_server.stop()
        own_server.start()


def test_one_that_may_not_make_a_schema_is_told_who_may(server: Server, database: str) -> None:
    server.sql("DROP ROLE IF EXISTS humble")
    server.sql("CREATE ROLE humble LOGIN")
    try:
        with pytest.raises(ConfigurationError, match="CREATE SCHEMA tieredfs AUTHORIZATION"):
            PostgresEngine(parse_postgres_url(server.url(database, user="humble")), create=True)
        server.sql("CREATE SCHEMA tieredfs AUTHORIZATION humble", database=database)
        humble = PostgresEngine(parse_postgres_url(server.url(database, user="humble")), create=True)
        assert humble.write(increment) == 1
        humble.close()
    finally:
        server.sql("DROP OWNED BY humble", database=database)
        server.sql("DROP ROLE humble")


# ---- processes -------------------------------------------------------------------------------------------------------


def test_a_child_made_by_fork_has_connections_of_its_own(engine: PostgresEngine) -> None:
    engine.write(increment)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            engine.write(increment)
            engine.close()
            status = 0
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    connections = engine.tally.connections
    assert engine.write(increment) == 3
    assert engine.tally.connections == connections, "the parent's own connection lives"


def test_a_process_that_ends_leaves_no_marks_and_one_that_is_killed_leaves_few(
    engine: PostgresEngine, server: Server, database: str
) -> None:
    engine.write(increment)
    assert server.sql("SELECT count(*) FROM tieredfs.commits", database=database) == [(1,)]
    engine.close()
    assert server.sql("SELECT count(*) FROM tieredfs.commits", database=database) == [(0,)]
    server.sql("INSERT INTO tieredfs.commits VALUES (1, 1, now() - interval '2 days')", database=database)
    PostgresEngine(engine.url).close()
    assert server.sql("SELECT count(*) FROM tieredfs.commits", database=database) == [(0,)]


def test_a_stopped_process_holds_nobody_up_for_long(engine: PostgresEngine, server: Server, database: str) -> None:
    """SIGSTOP in the middle of a transaction that has read what we write."""
    program = (
        "import sys, time\nfrom tieredfs.config.postgres_url import parse_postgres_url\n"
        "from tieredfs.kv.postgres import PostgresEngine\n"
        "def change(writer):\n    writer.get(b'key')\n    writer.put(b'key', b'theirs')\n"
        "    print('reading', flush=True)\n    time.sleep(60)\n"
        "PostgresEngine(parse_postgres_url(sys.argv[1])).write(change)\n"
    )
    command = [sys.executable, "-c", program, server.url(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reading\n"
            os.kill(process.pid, signal.SIGSTOP)
            put(engine, (b"key", b"ours"))
        finally:
            process.kill()
    assert items(engine) == [(b"key", b"ours")]
