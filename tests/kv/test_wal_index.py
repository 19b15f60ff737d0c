"""The stamp of the SQLite engine: it changes with every commit of anybody, and with nothing else; and nobody's locks are lost."""

import fcntl
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.kv import wal_index
from tieredfs.kv.engine import Stamped, Writer
from tieredfs.kv.sqlite import SqliteEngine

READ_LOCKS = (123, 5)
"""Offset and length of SQLite's five read-mark locks in `-shm` (walformat.html, "WAL-Index Locking")."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SqliteEngine]:
    made = SqliteEngine(str(tmp_path / "kv.db"), create=True)
    yield made
    made.close()


def test_it_is_stamped(engine: SqliteEngine) -> None:
    assert isinstance(engine, Stamped)


def test_every_commit_has_a_stamp_of_its_own(engine: SqliteEngine) -> None:
    seen = {engine.stamp()}
    for number in range(200):
        engine.write(lambda writer, number=number: writer.put(b"k", b"%d" % number))  # type: ignore[misc]
        assert engine.stamp() not in seen
        seen.add(engine.stamp())


def test_one_commit_is_told_from_more(engine: SqliteEngine) -> None:
    def put(number: int) -> None:
        engine.write(lambda writer: writer.put(b"k", b"%d" % number))

    older = engine.stamp()
    for number in range(100):
        if number % 10 == 5:
            engine._connections.writer.control("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        seen: list[bytes] = []

        def change(writer: Writer, number: int = number, seen: list[bytes] = seen) -> None:
            seen.append(engine.stamp())
            writer.put(b"k", b"%d" % number)

        engine.write(change)
        (before,) = seen
        after = engine.stamp()
        assert engine.is_next(before, after)
        assert not engine.is_next(before, before)
        assert not engine.is_next(after, before)
        assert number == 0 or not engine.is_next(older, after)
        older = before
    put(-1)
    put(-2)
    assert not engine.is_next(after, engine.stamp())
    torn = after[:48] + engine.stamp()[48:]
    assert not engine.is_next(before, torn), "a commit is under way"


def test_reading_and_failing_change_no_stamp(engine: SqliteEngine) -> None:
    engine.write(lambda writer: writer.put(b"k", b"v"))
    before = engine.stamp()
    engine.read(lambda reader: reader.get(b"k"))

    def fail(writer: object) -> None:
        writer.put(b"k", b"other")  # type: ignore[attr-defined]
        raise KeyError

    with pytest.raises(KeyError):
        engine.write(fail)
    assert engine.stamp() == before


def test_a_commit_of_another_process_changes_the_stamp(engine: SqliteEngine) -> None:
    before = engine.stamp()
    program = (
        "import sys\nfrom tieredfs.kv.sqlite import SqliteEngine\n"
        "SqliteEngine(sys.argv[1]).write(lambda writer: writer.put(b'k', b'v'))\n"
    )
    subprocess.run([sys.executable, "-c", program, engine.path], check=True, timeout=30)
    assert engine.stamp() != before


def _somebody_reads(path: str) -> bool:
    """Whether another process finds a read lock in `-shm`."""
    program = (
        "import fcntl, os, struct, sys\n"
        "asked = struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, int(sys.argv[2]), int(sys.argv[3]), 0)\n"
        "found = fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_GETLK, asked)\n"
        "sys.exit(struct.unpack('hhqqi4x', found)[0] != fcntl.F_UNLCK)\n"
    )
    arguments = [str(number) for number in READ_LOCKS]
    done = subprocess.run([sys.executable, "-c", program, f"{path}-shm", *arguments], check=False, timeout=30)
    return done.returncode == 1


def test_closing_one_engine_takes_no_locks_from_another_of_this_process(engine: SqliteEngine) -> None:
    """POSIX drops a process's locks on a file with any descriptor of it that is closed."""
    assert struct.calcsize("hhqqi4x") == 32
    assert fcntl.F_GETLK
    engine.write(lambda writer: writer.put(b"k", b"v"))
    reading = sqlite3.connect(engine.path, isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT * FROM kv").fetchall()
    assert _somebody_reads(engine.path)
    SqliteEngine(engine.path).close()
    assert _somebody_reads(engine.path), "the read lock of the open transaction is still there"
    reading.close()
    assert not _somebody_reads(engine.path)


def test_the_last_engine_takes_its_descriptor_along(tmp_path: Path) -> None:
    path = str(tmp_path / "kv.db")
    first, second = SqliteEngine(path, create=True), SqliteEngine(path)
    held = [index for index in wal_index._open.values() if index.users == 2]
    assert held
    first.close()
    second.stamp()
    descriptor = held[-1]._descriptor
    os.fstat(descriptor)
    second.close()
    assert all(index is not held[-1] for index in wal_index._open.values())


def test_a_child_made_by_fork_sees_its_own_and_its_parents_commits(engine: SqliteEngine) -> None:
    engine.write(lambda writer: writer.put(b"k", b"1"))
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        before = engine.stamp()
        engine.write(lambda writer: writer.put(b"k", b"2"))
        changed = engine.stamp() != before
        engine.close()
        os.write(theirs, b"y" if changed else b"n")
        os._exit(0)
    before = engine.stamp()
    os.waitpid(child, 0)
    assert os.read(ours, 1) == b"y"
    os.close(ours)
    os.close(theirs)
    assert engine.stamp() != before
    assert engine.read(lambda reader: reader.get(b"k")) == b"2"
