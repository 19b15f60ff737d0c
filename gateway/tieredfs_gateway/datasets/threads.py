"""The threads of a reader: what they are given runs, or is refused once they are closed; nothing waits for a place in the queue."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from tieredfs.errors import InvalidRequestError

THREADS_MAX: Final = 64
NAME: Final = "tieredfs-dataset"

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
        """Results in order, with no more under way than there are threads twice, so that an error ends it soon."""
        waiting: deque[Future[U]] = deque()
        try:
            for item in items:
                waiting.append(self._submitted(work, item))
                if len(waiting) >= 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _submitted(self, work: Callable[[T], U], item: T) -> "Future[U]":
        return self.submit(lambda: work(item))

    def close(self) -> None:
        """Waits for what is running; what is not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
