"""The wall clock and the kernel's times of files are one."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests.descriptors import open_paths
from tieredfs.host import SystemClock, clock

THREADS = 8


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not asked for the time yet."""
    ours: dict[str, int] = {}
    monkeypatch.setattr(clock, "_descriptors", ours)
    yield
    for descriptor in ours.values():
        os.close(descriptor)


def _open_clocks() -> int:
    return sum("tieredfs-clock" in path for path in open_paths())


def _true(look: Callable[[], int]) -> bool:
    before_ns = time.time_ns()
    return before_ns <= look() <= time.time_ns()


def test_the_clock_and_the_times_of_files_are_in_the_order_of_events(tmp_path: Path) -> None:
    """Whether somebody has looked at a file since its last change (its times are finer then, since Linux 6.13) or not."""
    system = SystemClock()
    looked_at, unseen = tmp_path / "looked-at", [tmp_path / str(number) for number in range(200)]
    times = []
    for path in unseen:
        looked_at.write_bytes(b"x")
        times.append(looked_at.stat().st_mtime_ns)
        times.append(system.wall_ns())
        path.write_bytes(b"x")
        times += [path.stat().st_mtime_ns, system.wall_ns()]
    assert times == sorted(times)
    assert abs(times[-1] - time.time_ns()) < 60 * 10**9


@pytest.mark.usefixtures("fresh")
def test_threads_share_one_descriptor() -> None:
    barrier = Barrier(THREADS)

    def look(_: int) -> int:
        barrier.wait(10)
        return SystemClock().wall_ns()

    before = _open_clocks()
    with ThreadPoolExecutor(THREADS) as threads:
        assert all(threads.map(look, range(THREADS)))
    assert _open_clocks() - before == 1


@pytest.mark.usefixtures("fresh")
def test_without_files_in_memory_it_is_the_true_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert _true(SystemClock().wall_ns)


@pytest.mark.usefixtures("fresh")
def test_who_closes_all_descriptors_has_a_new_one() -> None:
    before = _open_clocks()
    system = SystemClock()
    times = [system.wall_ns()]
    os.close(clock._descriptors[clock._OURS])
    times += [system.wall_ns(), system.wall_ns()]
    assert times == sorted(times)
    assert _open_clocks() - before == 1
    assert not os.get_inheritable(clock._descriptors[clock._OURS])


@pytest.mark.usefixtures("fresh")
def test_a_file_that_has_its_number_by_then_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "of somebody else"
    path.write_bytes(b"x")
    os.utime(path, (1_000, 1_000))
    system = SystemClock()
    before_ns = system.wall_ns()
    number = clock._descriptors[clock._OURS]
    with path.open("rb") as file:
        os.dup2(file.fileno(), number)
    assert system.wall_ns() >= before_ns
    os.close(number)
    assert path.stat().st_mtime == 1_000
