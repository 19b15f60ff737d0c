"""The threads of a reader: what they are given runs, or is refused once they are closed; nothing waits for a place in the queue."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from tieredfs.errors import InvalidRequestError

THREADS_MAX: Final = 64
NAME: Final = "tieredfs-dataset"

TASK_ITEMS: Final = 8

T = TypeVar("T")
U = TypeVar("U")


class Threads:
    """A pool. Safe from any thread; `map` not from one of its own."""

    def __init__(self, count: int) -> None:
        self.count = max(1, min(count, THREADS_MAX))
        self._pool = ThreadPoolExecutor(self.count, NAME)

    def submit(self, work: Callable[[], U]) -> "Future[U]":
        """Raises InvalidRequestError when they are closed."""
        try:
            return self._pool.submit(work)
        except RuntimeError:
            raise InvalidRequestError("the reader is closed") from None

    def map(self, work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Results in order. A few items at a time are a task (handing over costs as much as opening a small file), and no more
        tasks are under way than there are threads twice, so that an error ends it soon."""
        waiting: deque[Future[list[U]]] = deque()
        try:
            left = iter(items)
            while task := list(itertools.islice(left, TASK_ITEMS)):
                waiting.append(self.submit(partial(_each, work, task)))
                if len(waiting) >= 2 * self.count:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Waits for what is running; what is not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


def _each(work: Callable[[T], U], items: list[T]) -> list[U]:
    return [work(item) for item in items]
