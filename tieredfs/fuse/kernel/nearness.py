"""A reader thread stays on the processor of the program that it serves, while that one asks densely.

A program that asks for one name after another sleeps while we work, and we sleep while it works: on one processor the
hand-over is a context switch, between two it is an interrupt that wakes an idle one. Measured in a virtual machine of two
processors, a LOOKUP answered from a constant by one thread: 72,000 a second on one processor, 11,000 between two, and
what the scheduler chooses by itself changes with our work per request: 60,000 with none, 13,000 with 20 us (28,000 on one
processor).

So every `LOOK_EVERY` requests of one program, if they came densely, the thread looks where that program runs and goes
there. Whoever asks sparsely, and a mount that several programs use at once, get the scheduler's choice. A thread lets go
before it waits or copies bytes (`let_go`), and before it starts threads, which would inherit where it is.
"""

import contextlib
import os
import time
from typing import Final

LOOK_EVERY: Final = 64
"""A look costs 20 us."""
DENSE_S: Final = 0.000_5
"""Between two requests, on average."""


class Nearness:
    """Of one thread, and used by it alone."""

    __slots__ = ("_allowed", "_pinned", "_since_s", "count", "process")

    def __init__(self) -> None:
        self.process = 0
        self.count = 0
        """Requests of `process` since the last look."""
        self._since_s = 0.0
        self._pinned = -1
        self._allowed: set[int] = set()

    def note(self, process: int) -> None:
        """A request of that program (a thread id) was read; 0: of nobody in particular."""
        if process == self.process:
            self.count += 1
            if self.count >= LOOK_EVERY:
                self._look()
        elif process:
            self.let_go()
            self.process = process
            self._since_s = time.monotonic()

    def let_go(self) -> None:
        """Run anywhere again."""
        self.count = self.process = 0
        if self._pinned >= 0:
            self._pinned = -1
            with contextlib.suppress(OSError):  # a cpuset that changed meanwhile has the last word
                os.sched_setaffinity(0, self._allowed)

    def _look(self) -> None:
        now_s = time.monotonic()
        dense = now_s - self._since_s < self.count * DENSE_S
        self.count, self._since_s = 0, now_s
        if not dense:
            self.let_go()
            return
        processor = processor_of(self.process)
        if processor in (-1, self._pinned):
            return
        with contextlib.suppress(OSError):  # not ours to use
            if self._pinned < 0:
                self._allowed = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {processor})
            self._pinned = processor


def processor_of(thread: int) -> int:
    """Where a thread runs, or ran last; -1: it is gone, or not ours to see."""
    try:
        with open(f"/proc/{thread}/stat", "rb", buffering=0) as file:
            fields = file.read(1024).rpartition(b")")[2].split()
        return int(fields[36])
    except (OSError, IndexError, ValueError):
        return -1
