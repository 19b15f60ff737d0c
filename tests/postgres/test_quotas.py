"""Quotas in PostgreSQL: the tests of `tests/meta`, and several processes that fill one at the same time."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.meta import test_quotas as on_sqlite
from tests.meta.conftest import Volume, volume_in
from tests.meta.test_quotas import REGULAR, UNIT, QuotaMachine, make, used
from tests.postgres.borrowed import cases_of
from tests.postgres.server import Server
from tieredfs.config.postgres_url import parse_postgres_url
from tieredfs.errors import NotFoundError, QuotaExceededError
from tieredfs.host import local_host
from tieredfs.kv.postgres import PostgresEngine
from tieredfs.meta.metadata import Content, Creation, Metadata, Placement
from tieredfs.meta.placing import Wanted
from tieredfs.model import NOBODY, ROOT, CacheId, InodeId
from tieredfs.testing.metadata_check import broken_invariants

WAIT_S = 90.0


def opened(location: str, *, create: bool = False) -> PostgresEngine:
    return PostgresEngine(parse_postgres_url(location), create=create)


@pytest.fixture
def volume(server: Server, database: str) -> Iterator[Volume]:
    """Whatever the test did, the invariants hold afterwards."""
    location = server.url(database)
    volume = volume_in(opened(location, create=True), location)
    yield volume
    assert broken_invariants(volume.engine) == []
    volume.engine.close()


team = on_sqlite.team
CASES = cases_of(on_sqlite, "volume")
globals().update(CASES)


def test_the_cases_are_here() -> None:
    assert len(CASES) > 20


def test_any_history(server: Server, database: str) -> None:
    schemas = itertools.count()

    class OnPostgres(QuotaMachine):
        def open_volume(self) -> Volume:
            location = server.url(database, more=f"?schema=history{next(schemas)}")
            return volume_in(opened(location, create=True), location)

    short = settings(
        max_examples=8, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(OnPostgres, settings=short)
    assert next(schemas) >= 8


# ---- several processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """What a process made and removed until it was told that there is no room, or why it ended before."""

    made: int
    removed: int
    refused: str
    conflicts: int


@contextmanager
def side_by_side(
    target: Callable[..., None], calls: Sequence[tuple[object, ...]]
) -> Iterator[tuple["multiprocessing.Queue[Any]", Sequence[BaseProcess]]]:
    """Processes that carry out the calls, and the queue that each is given as its last argument."""
    spawn = multiprocessing.get_context("spawn")
    done: multiprocessing.Queue[Any] = spawn.Queue()
    processes = [spawn.Process(target=target, args=(*call, done)) for call in calls]
    try:
        for process in processes:
            process.start()
        yield done, processes
        for process in processes:
            process.join(WAIT_S)
    finally:
        for process in processes:
            process.kill()
            process.join(WAIT_S)


def fill(location: str, number: int, directory: InodeId, cache: CacheId, done: "multiprocessing.Queue[Filled]") -> None:
    """Files of a unit, as small uploads are made: every fifth is removed again, and every seventh replaced."""
    engine = opened(location)
    metadata = Metadata(engine, local_host().clock)
    session = metadata.open_session("host", number, "test").session
    creation = Creation(REGULAR, 0o644, 1, 2, staged_in=cache)
    made = removed = 0
    refused = ""
    try:
        while not refused:
            name = b"%d-%d" % (number, made)
            for _ in range(1 + (made % 7 == 6)):
                wanted = Wanted(Placement(metadata.new_inode_id(), directory, name, 0o644), Content(UNIT, 5, UNIT))
                (outcome,) = metadata.create_placed([wanted], creation, session, lambda _: False)
                if isinstance(outcome, Exception):
                    refused = refused or type(outcome).__name__
            made += not refused
            if not refused and made % 5 == 0:
                metadata.unlink(directory, name, NOBODY)
                removed += 1
    except Exception as error:  # noqa: BLE001 - the test is told
        refused = repr(error)
    done.put(Filled(made, removed, refused, engine.tally.conflicts))
    engine.close()


@pytest.mark.parametrize(("count", "limits"), [(2, (60, None)), (4, (None, 60)), (4, (60, 200))])
def test_processes_fill_a_quota_exactly(volume: Volume, count: int, limits: tuple[int | None, int | None]) -> None:
    """To the last unit, with a quota above that counts too, and without an end of retries."""
    above = make(volume.metadata, ROOT, b"above")
    directory = make(volume.metadata, above, b"team")
    units, inodes = limits
    volume.metadata.set_quota(b"above", 1 << 40, None)
    volume.metadata.set_quota(b"above/team", units and units * UNIT, inodes)
    with side_by_side(fill, [(volume.path, number, directory, volume.cache) for number in range(count)]) as (done, _):
        ended = [done.get(timeout=WAIT_S) for _ in range(count)]
    assert {each.refused for each in ended} == {QuotaExceededError.__name__}, ended
    assert sum(each.made - each.removed for each in ended) == 60
    assert used(volume.metadata, b"above/team") == (60 * UNIT, 60)
    assert used(volume.metadata, b"above") == (60 * UNIT, 61)
    assert volume.metadata.check_quota(b"above/team", repair=False).right


def grow(location: str, number: int, files: list[InodeId], cache: CacheId, done: "multiprocessing.Queue[Any]") -> None:
    """As mounts do: sizes that rise and fall are published, and never refused."""
    engine = opened(location)
    metadata = Metadata(engine, local_host().clock)
    try:
        for turn in range(12):
            for inode in files:
                version = metadata.begin_write(inode, cache, truncate=turn % 4 == 3, admitted=True).version
                metadata.publish(inode, version, (turn + number) * UNIT, 5)
        done.put("")
    except Exception as error:  # noqa: BLE001 - the test is told
        done.put(repr(error))
    engine.close()


def test_processes_that_write_beside_each_other_and_one_that_moves_the_limit(volume: Volume) -> None:
    directory = make(volume.metadata, ROOT, b"team")
    volume.metadata.set_quota(b"team", 1 << 40, None)
    files = [
        [on_sqlite.create_written(volume, directory, b"%d-%d" % (number, each), 1) for each in range(4)]
        for number in range(3)
    ]
    calls = [(volume.path, number, files[number], volume.cache) for number in range(3)]
    looks = 0
    with side_by_side(grow, calls) as (done, processes):
        while any(process.is_alive() for process in processes) and looks < 1000:
            looks += 1
            volume.metadata.set_quota(b"team", looks << 30, None)
            assert volume.metadata.check_quota(b"team", repair=False).right
            volume.metadata.rename(ROOT, b"team", ROOT, b"elsewhere")
            with pytest.raises(NotFoundError):
                volume.metadata.quota(b"team")
            volume.metadata.rename(ROOT, b"elsewhere", ROOT, b"team")
        assert [done.get(timeout=WAIT_S) for _ in processes] == ["", "", ""]
    assert looks > 1
    assert used(volume.metadata, b"team") == (4 * sum(11 + number for number in range(3)) * UNIT, 12)
