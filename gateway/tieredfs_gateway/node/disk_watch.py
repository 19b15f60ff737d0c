"""What the directories of a node are just now, for who watches it.

Each is asked in a thread that has nothing else to do. One that does not answer in time is told as that, and is not asked again
until it has answered, so that a device that hangs takes one thread and no more.
"""

import asyncio
import enum
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tieredfs.chunk.store import StoreSpace
from tieredfs.errors import TieredError
from tieredfs.limits import REMOTE_SPACE_WAIT_S
from tieredfs_gateway.node.disks import NodeDisks

THREADS_MAX: Final = 64


class DiskState(enum.Enum):
    """Of a directory that is served."""

    DISK = "disk"
    """It is a disk of a volume."""
    WAITING = "waiting"
    """It has no identity: it is to be made a disk, or nothing is mounted there."""
    FAILING = "failing"
    """It has one that cannot be read or is damaged, or its file system does not work."""
    SILENT = "silent"
    """It does not answer."""


@dataclass(frozen=True, slots=True)
class DiskLook:
    """`space`: None where it cannot be known."""

    path: str
    state: DiskState
    space: StoreSpace | None = None


class DiskWatch:
    """For one event loop. `close` does not wait for a directory that is silent."""

    def __init__(self, disks: NodeDisks) -> None:
        self._disks = disks
        self._executor = ThreadPoolExecutor(min(THREADS_MAX, len(disks.roots)), thread_name_prefix="disk-watch")
        self._asked: dict[str, Future[DiskLook]] = {}

    async def look(self) -> list[DiskLook]:
        for root in self._disks.roots:
            if root not in self._asked:
                self._asked[root] = self._executor.submit(_look, self._disks, root)
        asked = dict(self._asked)
        await asyncio.wait([asyncio.wrap_future(future) for future in asked.values()], timeout=REMOTE_SPACE_WAIT_S)
        return [self._answer(root, future) for root, future in asked.items()]

    def _answer(self, root: str, future: Future[DiskLook]) -> DiskLook:
        if not future.done():
            return DiskLook(root, DiskState.SILENT)
        if self._asked.get(root) is future:
            del self._asked[root]
        return future.result()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def _look(disks: NodeDisks, root: str) -> DiskLook:
    """Blocking."""
    try:
        state = DiskState.DISK if disks.is_disk(root) else DiskState.WAITING
    except TieredError:
        state = DiskState.FAILING
    try:
        return DiskLook(root, state, disks.space(root))
    except OSError:
        return DiskLook(root, state)
