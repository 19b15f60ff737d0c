"""The threads of a reader: what they are given runs, or is refused once they are closed; nothing waits for a place in the queue."""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, TypeVar

from tieredfs.errors import DeadlineError, InvalidRequestError
from tieredfs_gateway.datasets.shelf import WAIT_S

THREADS_MAX: Final = 64
NAME: Final = "tieredfs-dataset"

TASK_ITEMS: Final = 8

T = TypeVar("T")
U = TypeVar("U")

Submit = Callable[[Callable[[], None]], Any]
"""`Threads.submit`."""


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


def share_out(work: Callable[[T], None], items: Sequence[T], submit: Submit, helpers: int) -> None:
    """Work on every item: in this thread, and in up to `helpers` others. From any thread, of the pool too: it waits for nobody who
    has not begun. Raises the error of the first item that has one, and items that were not begun by then are left; DeadlineError
    when another thread has not ended an item after `WAIT_S`."""
    shared = _Shared(work, items)
    with contextlib.suppress(InvalidRequestError):  # the pool is being closed: then this thread does it alone
        for _ in range(min(helpers, len(items) - 1)):
            submit(shared.take_part)
    shared.take_part()
    shared.wait()


class _Shared(Generic[T]):
    def __init__(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        self._work = work
        self._items = items
        self._next = self._active = 0
        self._errors: dict[int, BaseException] = {}
        self._changed = threading.Condition()

    def take_part(self) -> None:
        """Who comes when no item is left has nothing to do."""
        while (number := self._begun()) is not None:
            error: BaseException | None = None
            try:
                self._work(self._items[number])
            except BaseException as problem:  # noqa: BLE001  `wait` raises it, where the work is needed
                error = problem
            with self._changed:
                self._active -= 1
                if error is not None:
                    self._errors[number] = error
                self._changed.notify_all()

    def _begun(self) -> int | None:
        with self._changed:
            if self._errors or self._next >= len(self._items):
                return None
            self._active += 1
            self._next += 1
            return self._next - 1

    def wait(self) -> None:
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._active, WAIT_S)
            if self._errors:
                raise self._errors[min(self._errors)]
            if not ended:
                raise DeadlineError(f"another thread did not read what is needed within {WAIT_S:.0f} s")
