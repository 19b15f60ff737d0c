"""Several processes on one volume, and what is left of one that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.conftest import Volume
from tieredfs import errors
from tieredfs.meta.metadata import Creation
from tieredfs.model import ROOT, BlockId, FileKind, InodeId, SessionId

PROGRAM = str(Path(__file__).with_name("other_process.py"))
PROCESSES, FILES = 4, 60
WAIT_S = 60.0


def start(*arguments: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen([sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=environment)


def test_what_a_killed_process_held_is_reclaimed_with_its_session(volume: Volume) -> None:
    metadata = volume.metadata
    with start("hold", volume.path) as process:
        assert process.stdout is not None
        session, orphan, *blocks = (int(word) for word in process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        assert process.wait(WAIT_S) == -signal.SIGKILL
    assert [found.session for found in metadata.sessions()] == [session]
    assert metadata.orphans() == [(session, orphan)]
    assert metadata.attributes(InodeId(orphan)).link_count == 0
    assert all(metadata.reserved(BlockId(block)) for block in blocks)
    living = metadata.open_session("host", 2, "test").session
    mine = metadata.reserve_block(living)

    assert metadata.end_session(SessionId(session)) == [orphan]

    assert [found.session for found in metadata.sessions()] == [living]
    assert metadata.orphans() == []
    with pytest.raises(errors.NotFoundError):
        metadata.attributes(InodeId(orphan))
    assert [metadata.reserved(BlockId(block)) for block in (*blocks, mine)] == [False, False, True]
    assert [record.inode for record in metadata.staged()] == [metadata.lookup(ROOT, b"kept").inode]
    with pytest.raises(errors.NotFoundError):
        metadata.heartbeat(SessionId(session))
    assert metadata.end_session(SessionId(session)) == [], "again is harmless"


def test_processes_create_in_one_directory(volume: Volume) -> None:
    metadata = volume.metadata
    metadata.create(ROOT, b"moved--1", Creation(FileKind.REGULAR, 0o644, 0, 0))
    processes = [start("create", volume.path, f"p{number}", str(FILES)) for number in range(PROCESSES)]
    won = 0
    for process in processes:
        output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        won += int(output)
    entries = metadata.list_directory(ROOT, b"", 10_000)
    names = {entry.name for entry in entries}
    assert won == FILES, "each shared name was won once"
    expected = {b"p%d-%d" % (p, number) for p in range(PROCESSES) for number in range(FILES) if number % 3}
    assert names - {name for name in names if name.startswith(b"moved")} == expected | {
        b"shared-%d" % number for number in range(FILES)
    }
    assert len([name for name in names if name.startswith(b"moved")]) == 1, "renamed by many, and never lost or doubled"
    assert len({entry.inode for entry in entries}) == len(entries)
    assert metadata.attributes(ROOT).link_count == 2 + FILES


def test_heartbeats(volume: Volume) -> None:
    metadata = volume.metadata
    session = metadata.open_session("host", 3, "mount")
    assert (session.host, session.process, session.purpose) == ("host", 3, "mount")
    metadata.heartbeat(session.session)
    (found,) = metadata.sessions()
    assert found.started_ns == session.started_ns
    assert found.heartbeat_ns > session.heartbeat_ns


def test_child_made_by_fork_hands_out_ids_of_its_own(volume: Volume) -> None:
    metadata = volume.metadata
    creation = Creation(FileKind.REGULAR, 0o644, 0, 0)
    metadata.create(ROOT, b"before", creation)
    child = os.fork()
    if child == 0:
        signal.alarm(int(WAIT_S))
        code = 1
        try:
            for number in range(20):
                metadata.create(ROOT, b"child-%d" % number, creation)
            code = 0
        finally:
            os._exit(code)
    for number in range(20):
        metadata.create(ROOT, b"parent-%d" % number, creation)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    entries = metadata.list_directory(ROOT, b"", 100)
    assert len(entries) == len({entry.inode for entry in entries}) == 41


def test_count_of_inodes_is_shared_when_sessions_end(volume: Volume) -> None:
    from tieredfs.host import SystemClock
    from tieredfs.kv.sqlite import SqliteEngine
    from tieredfs.meta.metadata import Metadata

    engine = SqliteEngine(volume.path)
    other = Metadata(engine, SystemClock())
    session = other.open_session("host", 4, "test").session
    for number in range(10):
        other.create(ROOT, b"%d" % number, Creation(FileKind.REGULAR, 0o644, 0, 0))
    for number in range(10):
        other.unlink(ROOT, b"%d" % number, session)
    other.end_session(session)
    assert other.count_inodes() == 1
    engine.close()
