"""The database server goes down and comes back in the middle of a save, or under a mount that is written to; or it stays away."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import lt
from pathlib import Path

import pytest

from tests.checkpoint.rank_process import state_of
from tests.checkpoint.test_ranks import check_state, end, names_in, start
from tests.mount.volumes import lab, wait_until
from tests.postgres.server import Server
from tieredfs.config import parse_code
from tieredfs.errors import TieredError, UnavailableError
from tieredfs.host import crash
from tieredfs.kv import postgres
from tieredfs.limits import LOCK_WAIT_S
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs.volume.places import ENVIRONMENT
from tieredfs_client.checkpoint import CheckpointManager

pytestmark = pytest.mark.timeout(180)

WAIT_S = 60.0
RUN = "runs/r"
POINTS = [
    "checkpoint.begun",
    "checkpoint.gathered",
    "checkpoint.planned",
    "checkpoint.files-made",
    "checkpoint.part-written",
    "checkpoint.stored",
    "checkpoint.manifest-written",
    "checkpoint.committed",
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What volumes keep on this host."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "state"))


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """One that may be stopped."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def location(own: Server) -> Iterator[str]:
    """The only database there: a server that was ended as by a crash syncs every file that it has before it answers."""
    name = own.database()
    yield own.url(name)
    own.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(location: str, tmp_path: Path) -> str:
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(location, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=4 << 20)
    return location


def at_point(monkeypatch: pytest.MonkeyPatch, point: str, strike: Callable[[], None]) -> list[str]:
    """When a save of this process first comes to `point`, `strike` is called. The result: where that was."""
    struck: list[str] = []
    turn = threading.Lock()

    def here(name: str) -> None:
        with turn:
            if name != point or struck:
                return
            struck.append(name)
        strike()

    monkeypatch.setattr(crash, "here", here)
    return struck


def assert_nothing_is_left(url: str, steps: list[int]) -> None:
    """Those checkpoints are there and whole, the last is `latest`, and the volume has nothing else."""
    with FileSystem.at(url, purpose="test") as volume:
        with CheckpointManager(volume, RUN, job="look") as manager:
            assert [one.step for one in manager.checkpoints()] == steps
            for step in steps:
                assert manager.verify(step) == []
        with volume.open(RUN.encode() + b"/latest") as reading:
            name = bytearray(17)
            assert reading.read_into(0, memoryview(name)) == 17
        assert bytes(name) == b"step-%012d" % steps[-1]
        assert names_in(volume, RUN.encode() + b"/.attempts") == []
        volume.flush(WAIT_S)
        volume.volume.collect_garbage(lambda *_: None)
        assert volume.volume.metadata.orphans() == []
        assert volume.volume.check(repair=False, progress=lambda *_: None).findings == ()


@pytest.mark.parametrize("point", POINTS)
def test_a_save_outlives_a_restart_of_the_server(
    own: Server, url: str, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """As by a crash. Rank 0 goes on with its save when the server is down; rank 1 is another process."""
    started: list[Future[None]] = []
    with (
        ThreadPoolExecutor(1) as starting,
        start(url, 1, 2, [10, 20], job="j") as other,
        CheckpointManager(url, RUN, rank=0, world_size=2, job="j", deadline_s=WAIT_S) as manager,
    ):
        manager.save(10, state_of(10, 0, 2))

        def strike() -> None:
            own.stop(signal.SIGQUIT)
            started.append(starting.submit(own.start))

        struck = at_point(monkeypatch, point, strike)
        manager.save(20, state_of(20, 0, 2))
        assert struck == [point]
        started[0].result(WAIT_S)
        assert [report.get("text") for report in end(other).reports] == [None, None]
        check_state(manager.load(), 20, 0, 2)
    assert_nothing_is_left(url, [10, 20])


@pytest.mark.allows_warnings(".")
def test_a_save_without_a_server_fails_in_time_says_why_and_the_next_one_succeeds(
    own: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 1.0)
    managers = [CheckpointManager(url, RUN, rank=rank, world_size=2, job="j", deadline_s=WAIT_S) for rank in (0, 1)]

    def save(step: int) -> list[TieredError | None]:
        def one(rank: int) -> TieredError | None:
            try:
                managers[rank].save(step, state_of(step, rank, 2))
            except TieredError as error:
                return error
            return None

        with ThreadPoolExecutor(2) as ranks:
            return list(ranks.map(one, (0, 1)))

    assert save(10) == [None, None]
    struck = at_point(monkeypatch, "checkpoint.planned", own.stop)
    errors = save(20)
    assert struck
    assert all(isinstance(error, TieredError) for error in errors)
    told = [str(error) for error in errors if isinstance(error, UnavailableError)]
    assert told
    assert "look whether it runs" in told[0]
    own.start()
    assert save(30) == [None, None]
    for rank, manager in enumerate(managers):
        check_state(manager.load(), 30, rank, 2)
        manager.close()
    assert_nothing_is_left(url, [10, 30])


def test_what_is_synced_through_a_mount_outlives_restarts(own: Server, location: str) -> None:
    """Programs that write go on all the time, and wait while there is no server. Only when it was away for longer than a mount
    waits may one be told of an error."""
    with lab(location) as made:
        made.format("rs:2+1", 3)
        made.mount()
        synced: dict[str, bytes] = {}
        refused: list[str] = []
        stop = threading.Event()
        tries = [0, 0, 0]

        def write(number: int) -> None:
            while not stop.is_set():
                name, content = f"{number}-{tries[number]}", os.urandom(3000 + tries[number])
                try:
                    with open(made.mnt / name, "wb", buffering=0) as file:
                        file.write(content)
                        os.fsync(file.fileno())
                    synced[name] = content
                except OSError:
                    refused.append(name)
                tries[number] += 1

        longest_s = 0.0
        with ThreadPoolExecutor(3) as writers:
            writing = [writers.submit(write, number) for number in range(3)]
            try:
                for _ in range(3):
                    before = list(tries)
                    wait_until(lambda before=before: all(map(lt, before, tries)), "each has gone on", WAIT_S)
                    begun_s = time.monotonic()
                    own.stop(signal.SIGQUIT)
                    own.start()
                    longest_s = max(longest_s, time.monotonic() - begun_s)
            finally:
                stop.set()
            for each in writing:
                each.result(WAIT_S)
        assert not refused or longest_s > LOCK_WAIT_S / 2
        made.unmount(flush=True)
        made.mount(cache_dir=str(made.root / "another-cache"))
        found = {path.name: path.read_bytes() for path in made.mnt.iterdir() if path.name not in refused}
        assert found == synced
        made.unmount(flush=True)
        assert made.json("fsck", made.url)["findings"] == []
