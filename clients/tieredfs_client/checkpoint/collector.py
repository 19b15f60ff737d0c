"""Pausing Python's cycle collector while very many objects are made, none of which is in a cycle.

The collector runs by the number of objects made, whether they can be garbage or not; while a plan of 4096 ranks is made it ran
over all of the program's objects several times, and took a quarter of the processor time of the save (0.41 s with it, 0.31 s
without). A pause is for work of the processor's that ends by itself, never for waiting: the program's own garbage waits as long.

The save as a whole has a pause, too, which ends by itself when it lasts: each end of a pause lets the collector look over all
that was made meanwhile, and of a dozen now and then one over all of the program's objects (27 ms, in a save of 64 MiB by 4096
ranks that took 87).

The collector is the process's: pauses of several threads overlap, and the last one to end lets it go on. Safe from any thread.
"""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Final

BRIEFLY_S: Final = 0.25


class _Collector:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0
        self._goes_on = False

    def pause(self) -> None:
        with self._lock:
            if not self._pauses:
                self._goes_on = gc.isenabled()
                gc.disable()
            self._pauses += 1

    def resume(self) -> None:
        with self._lock:
            self._pauses -= 1
            if not self._pauses and self._goes_on:
                gc.enable()


_collector = _Collector()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """For a `with`, or as a decorator."""
    _collector.pause()
    try:
        yield
    finally:
        _collector.resume()


@contextlib.contextmanager
def collector_paused_briefly(limit_s: float = BRIEFLY_S) -> Iterator[None]:
    """For work that may wait, too: a pause of at most `limit_s`, however long the work goes on."""
    _collector.pause()
    left = [_collector.resume]  # taken by who ends the pause: `pop` is one step
    timer = threading.Timer(limit_s, _end, [left])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _end(left)


def _end(left: list[Callable[[], None]]) -> None:
    with contextlib.suppress(IndexError):
        left.pop()()
