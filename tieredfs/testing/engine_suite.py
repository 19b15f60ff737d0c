"""The conformance suite of key-value engines: `tieredfs.kv.engine` as tests.

An engine's own test module subclasses `EngineSuite` and fills in the four hooks. Two of them reach around the engine
(`raw_items`, `raw_put`), so that a mistake in `put` cannot hide one in `get`. Processes are real, and so are kills.

    class TestMyEngine(EngineSuite):
        def create(self, location: str) -> Engine: ...
        ...
"""

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tieredfs.errors import InvalidRequestError
from tieredfs.kv.engine import Engine, Reader, Writer
from tieredfs.limits import KEY_BYTES_MAX
from tieredfs.testing import engine_workers
from tieredfs.testing.engine_workers import Opener, increment, pair_keys, read_counter

FIRST, LAST = b"", b"\xff" * 16
"""Below and above every key of the suite."""

THREADS, PROCESSES, TIMES = 6, 4, 60
PROCESS_WAIT_S = 60.0
AWKWARD_KEYS = [b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0b", b"ab", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\0"]
"""In the order of bytes; text collations, signed bytes and NUL-terminated strings would each order or merge some."""


def items(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.read(lambda reader: list(reader.scan(FIRST, LAST)))


def put(engine: Engine, *pairs: tuple[bytes, bytes]) -> None:
    def change(writer: Writer) -> None:
        for key, value in pairs:
            writer.put(key, value)

    engine.write(change)


class EngineSuite:
    """Subclass it as `Test...`. Every test gets a location of its own (a path below a fresh directory)."""

    # ---- hooks --------------------------------------------------------------------------------------------------

    def create(self, location: str) -> Engine:
        """Make a database at `location`, which has none, and open it."""
        raise NotImplementedError

    @property
    def opener(self) -> Opener:
        """Opens a database that exists; picklable."""
        raise NotImplementedError

    def raw_items(self, location: str) -> dict[bytes, bytes]:
        """Everything committed, read without the engine's code."""
        raise NotImplementedError

    def raw_put(self, location: str, key: bytes, value: bytes) -> None:
        """Commit one pair without the engine's code."""
        raise NotImplementedError

    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return str(tmp_path / "volume.db")

    @pytest.fixture
    def engine(self, location: str) -> Iterator[Engine]:
        engine = self.create(location)
        yield engine
        engine.close()

    # ---- one thread ---------------------------------------------------------------------------------------------

    def test_put_reaches_the_medium_and_get_comes_from_it(self, engine: Engine, location: str) -> None:
        put(engine, (b"key", b"value"))
        assert self.raw_items(location) == {b"key": b"value"}
        self.raw_put(location, b"other", b"theirs")
        assert engine.read(lambda reader: reader.get(b"other")) == b"theirs"

    def test_absent_keys(self, engine: Engine) -> None:
        assert engine.read(lambda reader: reader.get(b"none")) is None
        engine.write(lambda writer: writer.delete(b"none"))
        assert engine.read(lambda reader: reader.get_many([b"none", b"nor"])) == [None, None]
        assert items(engine) == []

    @pytest.mark.parametrize("value", [b"", b"\0", b"\xff" * 10, b"text\0with nul", bytes(range(256)) * 300])
    def test_values_are_bytes_and_nothing_else(self, engine: Engine, value: bytes) -> None:
        put(engine, (b"key", value))
        assert engine.read(lambda reader: reader.get(b"key")) == value

    def test_longest_key(self, engine: Engine) -> None:
        key = b"k" * KEY_BYTES_MAX
        put(engine, (key, b"v"))
        assert engine.read(lambda reader: reader.get(key)) == b"v"

    def test_overwrite_and_delete(self, engine: Engine, location: str) -> None:
        put(engine, (b"a", b"1"), (b"b", b"1"))
        put(engine, (b"a", b"2"))
        engine.write(lambda writer: writer.delete(b"b"))
        assert self.raw_items(location) == {b"a": b"2"}

    def test_get_many_keeps_order_and_repeats(self, engine: Engine) -> None:
        put(engine, *((b"%04d" % number, b"v%d" % number) for number in range(0, 400, 2)))
        asked = [b"%04d" % number for number in (7, 300, 2, 2, 399, 0, *range(398, -1, -1))]
        expected = [b"v%d" % int(key) if int(key) % 2 == 0 else None for key in asked]
        assert engine.read(lambda reader: reader.get_many(asked)) == expected
        assert engine.read(lambda reader: reader.get_many([])) == []

    def test_results_come_back(self, engine: Engine) -> None:
        assert engine.read(lambda _: 7) == 7
        assert engine.write(lambda _: "text") == "text"

    def test_reopened_database_has_what_was_committed(self, engine: Engine, location: str) -> None:
        put(engine, (b"key", b"value"))
        engine.sync()
        engine.close()
        again = self.opener(location)
        assert items(again) == [(b"key", b"value")]
        again.close()

    # ---- scans --------------------------------------------------------------------------------------------------

    def test_order_is_that_of_bytes(self, engine: Engine) -> None:
        put(engine, *((key, b"") for key in reversed(AWKWARD_KEYS)))
        assert [key for key, _ in items(engine)] == sorted(AWKWARD_KEYS) == AWKWARD_KEYS

    @pytest.mark.parametrize("reverse", [False, True])
    def test_scan_bounds(self, engine: Engine, reverse: bool) -> None:
        put(engine, *((key, key) for key in AWKWARD_KEYS))
        for start, end in itertools.product([FIRST, *AWKWARD_KEYS, LAST], repeat=2):
            expected = sorted((key for key in AWKWARD_KEYS if start <= key < end), reverse=reverse)
            found = engine.read(lambda reader, a=start, b=end: list(reader.scan(a, b, reverse=reverse)))  # type: ignore[misc]
            assert found == [(key, key) for key in expected]

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("limit", [0, 1, 2, 1023, 1024, 1025, 2048, 3000, 3001, None])
    def test_scan_limits_across_any_paging(self, engine: Engine, limit: int | None, reverse: bool) -> None:
        keys = [b"%06d" % number for number in range(3000)]
        put(engine, *((key, b"v") for key in keys))
        ordered = keys[::-1] if reverse else keys
        found = engine.read(lambda reader: list(reader.scan(FIRST, LAST, limit=limit, reverse=reverse)))
        assert [key for key, _ in found] == ordered[:limit]

    def test_abandoned_scan_harms_nobody(self, engine: Engine) -> None:
        put(engine, *((b"%06d" % number, b"v") for number in range(3000)))
        assert engine.read(lambda reader: next(reader.scan(FIRST, LAST))) == (b"000000", b"v")
        engine.write(lambda writer: next(writer.scan(FIRST, LAST)) and writer.put(b"x", b"y"))  # type: ignore[func-returns-value]
        assert engine.read(lambda reader: reader.get(b"x")) == b"y"

    # ---- transactions -------------------------------------------------------------------------------------------

    def test_failed_transaction_writes_nothing(self, engine: Engine, location: str) -> None:
        put(engine, (b"kept", b"1"))

        def change(writer: Writer) -> None:
            writer.put(b"new", b"1")
            writer.put(b"kept", b"2")
            writer.delete(b"kept")
            raise InvalidRequestError("on purpose")

        with pytest.raises(InvalidRequestError, match="on purpose"):
            engine.write(change)
        assert self.raw_items(location) == {b"kept": b"1"}
        put(engine, (b"after", b"3"))
        assert items(engine) == [(b"after", b"3"), (b"kept", b"1")]

    def test_failed_read_passes_its_error_and_leaves_no_transaction(self, engine: Engine) -> None:
        def look(reader: Reader) -> None:
            reader.get(b"key")
            raise InvalidRequestError("on purpose")

        with pytest.raises(InvalidRequestError):
            engine.read(look)
        put(engine, (b"key", b"new"))
        assert engine.read(lambda reader: reader.get(b"key")) == b"new"

    def test_transaction_reads_its_own_writes(self, engine: Engine) -> None:
        put(engine, (b"a", b"1"), (b"b", b"1"), (b"c", b"1"))

        def change(writer: Writer) -> list[tuple[bytes, bytes]]:
            writer.put(b"b", b"2")
            writer.delete(b"a")
            writer.put(b"d", b"2")
            assert writer.get(b"a") is None
            assert writer.get_many([b"b", b"d"]) == [b"2", b"2"]
            return list(writer.scan(FIRST, LAST))

        assert engine.write(change) == [(b"b", b"2"), (b"c", b"1"), (b"d", b"2")]

    def test_deleting_what_a_scan_yields(self, engine: Engine) -> None:
        put(engine, *((b"%06d" % number, b"v") for number in range(2500)))

        def change(writer: Writer) -> int:
            count = 0
            for key, _ in writer.scan(FIRST, LAST):
                writer.delete(key)
                count += 1
            return count

        assert engine.write(change) == 2500
        assert items(engine) == []

    def test_a_reader_keeps_its_snapshot_while_others_commit(self, engine: Engine) -> None:
        put(engine, (b"a", b"old"), (b"b", b"old"))

        def look(reader: Reader) -> tuple[bytes | None, bytes | None, int]:
            first = reader.get(b"a")
            thread = threading.Thread(target=put, args=(engine, (b"a", b"new"), (b"b", b"new"), (b"c", b"new")))
            thread.start()
            thread.join(PROCESS_WAIT_S)
            assert not thread.is_alive(), "a reader does not hold up writers"
            return first, reader.get(b"b"), len(list(reader.scan(FIRST, LAST)))

        assert engine.read(look) == (b"old", b"old", 2)
        assert [value for _, value in items(engine)] == [b"new"] * 3

    # ---- many at once -------------------------------------------------------------------------------------------

    def test_threads_lose_no_increment(self, engine: Engine) -> None:
        threads = [
            threading.Thread(target=lambda: [engine.write(increment) for _ in range(TIMES)]) for _ in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PROCESS_WAIT_S)
        self.check_counter(engine, THREADS * TIMES)

    def test_processes_lose_no_increment(self, engine: Engine, location: str) -> None:
        context = multiprocessing.get_context("spawn")
        arguments = (self.opener, location, TIMES)
        processes = [
            context.Process(target=engine_workers.increment_many, args=arguments, daemon=True) for _ in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PROCESS_WAIT_S)
        assert [process.exitcode for process in processes] == [0] * PROCESSES
        self.check_counter(engine, PROCESSES * TIMES)

    def check_counter(self, engine: Engine, expected: int) -> None:
        seen = [key for key, _ in items(engine) if key.startswith(b"seen")]
        assert engine.read(read_counter) == expected
        assert len(seen) == expected, "each count was reached once"

    def test_readers_never_see_half_a_transaction(self, engine: Engine) -> None:
        accounts = [b"account-%d" % number for number in range(8)]
        put(engine, *((account, b"\x64") for account in accounts))
        sums: list[int] = []
        done = threading.Event()

        def move(number: int) -> None:
            def change(writer: Writer) -> None:
                source, target = accounts[number % 8], accounts[(number * 3 + 1) % 8]
                left = (writer.get(source) or b"\0")[0]
                if left and source != target:
                    writer.put(source, bytes([left - 1]))
                    writer.put(target, bytes([(writer.get(target) or b"\0")[0] + 1]))

            engine.write(change)

        def watch() -> None:
            while not done.is_set():
                sums.append(sum(value[0] for _, value in items(engine)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(200):
            move(number)
        done.set()
        watcher.join(PROCESS_WAIT_S)
        assert sums
        assert set(sums) == {800}

    def test_killed_writer_loses_nothing_it_acknowledged(self, engine: Engine, location: str) -> None:
        """SIGKILL in the middle of commits, thrice: pairs stay pairs, and the survivors can write at once."""
        for _ in range(3):
            acknowledged = self.write_until_killed(location)
            pairs = {key for key, _ in items(engine)}
            assert all(set(pair_keys(number)) <= pairs for number in range(acknowledged + 1))
            assert {key[1:] for key in pairs if key[:1] == b"a"} == {key[1:] for key in pairs if key[:1] == b"z"}
            engine.write(increment)
        assert engine.read(read_counter) == 3

    def write_until_killed(self, location: str) -> int:
        """The number of the last pair that the killed process reported as committed."""
        program = (
            "import pickle, sys; from tieredfs.testing import engine_workers; "
            "engine_workers.write_pairs(pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2])"
        )
        arguments = [sys.executable, "-c", program, pickle.dumps(self.opener).hex(), location]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in itertools.islice(process.stdout, 20):
                last = int(line)
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().splitlines()
            assert process.wait(PROCESS_WAIT_S) == -signal.SIGKILL
        return int(rest[-1]) if rest else last

    def test_syncs_from_many_threads_return(self, engine: Engine) -> None:
        def work(number: int) -> None:
            put(engine, (b"key-%d" % number, b"v"))
            engine.sync()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PROCESS_WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
        assert len(items(engine)) == THREADS

    # ---- against a model ----------------------------------------------------------------------------------------

    def test_any_history_is_that_of_a_dict(self, tmp_path: Path) -> None:
        numbers = itertools.count()

        def machine() -> EngineMachine:
            location = str(tmp_path / f"model-{next(numbers)}.db")
            return EngineMachine(self.create(location), lambda: self.raw_items(location))

        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # it takes any callable
            settings=settings(
                max_examples=20,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


_keys = st.binary(min_size=1, max_size=3) | st.sampled_from(AWKWARD_KEYS)
_changes = st.lists(st.tuples(_keys, st.none() | st.binary(max_size=4)), max_size=6)


class EngineMachine(RuleBasedStateMachine):
    """Transactions of random puts and deletes, some of which fail, against a dict."""

    def __init__(self, engine: Engine, raw_items: Callable[[], dict[bytes, bytes]]) -> None:
        super().__init__()
        self.engine = engine
        self.raw_items = raw_items
        self.model: dict[bytes, bytes] = {}

    @rule(changes=_changes, fails=st.booleans())
    def write(self, changes: list[tuple[bytes, bytes | None]], fails: bool) -> None:
        def change(writer: Writer) -> None:
            for key, value in changes:
                if value is None:
                    writer.delete(key)
                else:
                    writer.put(key, value)
            if fails:
                raise InvalidRequestError("on purpose")

        if fails:
            with pytest.raises(InvalidRequestError):
                self.engine.write(change)
            return
        self.engine.write(change)
        for key, value in changes:
            self.model.pop(key, None)
            if value is not None:
                self.model[key] = value

    @rule(start=_keys, end=_keys, limit=st.none() | st.integers(0, 5), reverse=st.booleans())
    def scan(self, start: bytes, end: bytes, limit: int | None, reverse: bool) -> None:
        expected = sorted((pair for pair in self.model.items() if start <= pair[0] < end), reverse=reverse)[:limit]
        assert self.engine.read(lambda r: list(r.scan(start, end, limit=limit, reverse=reverse))) == expected

    @rule(keys=st.lists(_keys, max_size=40))
    def get_many(self, keys: list[bytes]) -> None:
        assert self.engine.read(lambda reader: reader.get_many(keys)) == [self.model.get(key) for key in keys]

    @rule(key=_keys)
    def get(self, key: bytes) -> None:
        assert self.engine.read(lambda reader: reader.get(key)) == self.model.get(key)

    @invariant()
    def medium_has_the_model(self) -> None:
        assert self.raw_items() == self.model

    def teardown(self) -> None:
        self.engine.close()
