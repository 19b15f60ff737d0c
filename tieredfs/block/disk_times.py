"""How long chunk I/O takes, by disk. It is always counted: 0.7 us beside the 100 us and more that a chunk takes.

Safe from any thread.
"""

import threading

from tieredfs.core.activity import DiskCounts
from tieredfs.model import DiskId


class _Tally:
    __slots__ = ("bytes", "count", "duration_s")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.duration_s = 0.0

    def add(self, size_bytes: int, duration_s: float) -> None:
        self.count += 1
        self.bytes += size_bytes
        self.duration_s += duration_s


class DiskTimes:
    """What one process did on its disks. A call that failed counts as well: how long a disk takes to say no is its speed, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tallies: dict[DiskId, tuple[_Tally, _Tally]] = {}

    def note_read(self, disk: DiskId, size_bytes: int, duration_s: float) -> None:
        with self._lock:
            self._of(disk)[0].add(size_bytes, duration_s)

    def note_write(self, disk: DiskId, size_bytes: int, duration_s: float) -> None:
        with self._lock:
            self._of(disk)[1].add(size_bytes, duration_s)

    def _of(self, disk: DiskId) -> tuple[_Tally, _Tally]:
        tallies = self._tallies.get(disk)
        if tallies is None:
            tallies = self._tallies[disk] = (_Tally(), _Tally())
        return tallies

    def counts(self) -> dict[DiskId, DiskCounts]:
        with self._lock:
            return {
                disk: DiskCounts(
                    read.count, read.bytes, read.duration_s, written.count, written.bytes, written.duration_s
                )
                for disk, (read, written) in self._tallies.items()
            }
