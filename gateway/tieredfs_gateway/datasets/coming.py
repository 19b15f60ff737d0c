"""A reader tells the SSD tier what it will read: the rest of this epoch and the next one, split by split.

So files that are needed soon are fetched ahead, files that are needed last are evicted first, and files that are not worth their
room are read past the SSD. All of it is a hint (`FileSystem.expect`): what is read, and in which order, does not depend on it.

Single rows from everywhere (`full` over tar shards and raw files) have no order of splits, and are not announced.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from tieredfs.cache.foresight import Expectation
from tieredfs.core.foresight import USES_MAX, Use
from tieredfs.volume.filesystem import FileSystem
from tieredfs_gateway.datasets.dataset import Dataset
from tieredfs_gateway.datasets.versions import PinnedFile

GLANCE_BYTES: Final = 64 << 10
"""What looking into a file reads, where that is less than the file."""
FIRST_USES: Final = 64
"""Visits that a reader announces before its first batch, which would wait 25 ms for 2,000 of them..."""
FIRST_DONE: Final = 8
"""...and how many of them are over when it announces more: each time four times as many, up to what there is room for. All at once
took 25 ms of a thousand row groups, while a trainer waited for its second batch."""
GROWTH: Final = 4


class Schedule:
    """The expectation of one reader. Safe from any thread."""

    def __init__(self, volume: FileSystem) -> None:
        self._expectation: Expectation = volume.expect()
        self._lock = threading.Lock()
        self._visits: Callable[[], Iterable[Use]] = tuple
        self._done = 0
        """Visits since they were announced last..."""
        self._before = 0
        """...and before that."""
        self._enough = USES_MAX // 2
        """Visits until more are announced..."""
        self._count = USES_MAX
        """...and how many were."""
        self._has_begun = False

    def glance(self, files: Sequence[PinnedFile]) -> None:
        """Those files will be looked into, at their ends: nothing that is worth fetching a file for."""
        self._announce(lambda: (_use(file, GLANCE_BYTES) for file in files))

    def begin(self, dataset: Dataset, splits: Callable[[], Iterable[int]]) -> None:
        """Those splits will be read, in that order."""
        self._announce(lambda: _uses(dataset, splits()), is_first=not self._has_begun)
        self._has_begun = True

    def _announce(self, visits: Callable[[], Iterable[Use]], *, is_first: bool = False) -> None:
        with self._lock:
            self._visits, self._done, self._before = visits, 0, 0
            self._count, self._enough = (FIRST_USES, FIRST_DONE) if is_first else (USES_MAX, USES_MAX // 2)
            self._expectation.replace(islice(visits(), self._count))

    def visited(self, file: PinnedFile) -> None:
        """A visit is over."""
        self._expectation.used(file.attributes.inode)
        with self._lock:
            self._done += 1
            if self._done >= self._enough:
                self._before, self._done = self._before + self._done, 0
                self._count = min(GROWTH * self._count, USES_MAX)
                self._enough = self._count // 8 if self._count < USES_MAX else USES_MAX // 2
                self._expectation.replace(islice(self._visits(), self._before, self._before + self._count))

    def close(self) -> None:
        self._expectation.close()


def _uses(dataset: Dataset, splits: Iterable[int]) -> Iterator[Use]:
    for number in splits:
        yield _use(dataset.file_of(number), dataset.stored_bytes(number))


def _use(file: PinnedFile, read_bytes: int) -> Use:
    return Use(file.attributes.inode, file.size_bytes, min(read_bytes, file.size_bytes))
