"""Disks as the block layer sees them: which there are, which are well, and chunk I/O that keeps the two up to date.

A disk that raises UnavailableError rests for `DISK_REST_S`: new chunks go elsewhere and reads decode around it, so a
dead disk costs one failed call per rest, not one per request. A disk with a call that does not end (`stalled`) rests
until that call has ended. Chunks found missing or rotten are told to `on_damage`.

Safe from any thread: the map of disks is replaced whole, the tables of health are guarded.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from tieredfs.block.disk_times import DiskTimes
from tieredfs.chunk.store import ChunkInfo, ChunkName, ChunkStore
from tieredfs.core.placement import DiskOption
from tieredfs.errors import CorruptError, NotFoundError, UnavailableError
from tieredfs.host import Host
from tieredfs.limits import CHUNK_HEADER_BYTES, DISK_REST_S, STORE_FREE_RESERVE_BYTES
from tieredfs.model import Block, ChunkLocation, Disk, DiskId, DiskState

Disks = Mapping[DiskId, tuple[Disk, ChunkStore | None]]


def location_of(block: Block, index: int) -> ChunkLocation | None:
    return next((location for location in block.chunks if location.index == index), None)


class ChunkAccess:
    """Chunk I/O by disk id."""

    def __init__(self, disks: Disks, host: Host, on_damage: Callable[[Block, int], None]) -> None:
        self._disks = disks
        self._host = host
        self._on_damage = on_damage
        self.times = DiskTimes()
        self._lock = threading.Lock()
        self._rests_until: dict[DiskId, float] = {}
        self._stalled: Counter[DiskId] = Counter()

    def replace_disks(self, disks: Disks) -> None:
        self._disks = disks

    # ---- which disks ------------------------------------------------------------------------------------------------

    def disk_count(self) -> int:
        """Disks of the volume, whatever their state: what its code was chosen for."""
        return len(self._disks)

    def state(self, disk: DiskId) -> DiskState:
        """A disk that is not known (any more) is lost."""
        known = self._disks.get(disk)
        return DiskState.LOST if known is None else known[0].state

    def options(self, payload_bytes: int, *, wake: bool = False) -> list[DiskOption]:
        """Every disk, for placement of chunks of that size. `wake`: those that rest are to try, too."""
        disks = self._disks
        return [self._option(*disks[disk], payload_bytes, wake=wake) for disk in sorted(disks)]

    def _option(self, disk: Disk, store: ChunkStore | None, payload_bytes: int, *, wake: bool) -> DiskOption:
        if store is None or disk.state is not DiskState.ACTIVE or not self.is_well(disk.disk, wake=wake):
            return DiskOption(disk.disk, disk.domain, 0, usable=False, away=True)
        try:
            free_bytes = store.space().free_bytes - STORE_FREE_RESERVE_BYTES - CHUNK_HEADER_BYTES
        except UnavailableError:
            self._rest(disk.disk)
            return DiskOption(disk.disk, disk.domain, 0, usable=False, away=True)
        return DiskOption(disk.disk, disk.domain, max(free_bytes, 0), free_bytes > payload_bytes)

    def is_well(self, disk: DiskId, *, wake: bool = False) -> bool:
        """`wake`: whether it rests does not matter; a call that does not end does."""
        with self._lock:
            until = self._rests_until.get(disk)
            rested = wake or until is None or self._host.clock.monotonic_s() >= until
            return rested and not self._stalled[disk]

    def unreachable(self, block: Block) -> set[int]:
        """Indexes without a place, or on a disk that is gone or rests now.

        With too few others, the disks that rest are asked all the same: trying is better than refusing.
        """
        present = {location.index for location in block.chunks if self._answers(location.disk)}
        if len(present) < block.code.data_count:
            present = {location.index for location in block.chunks}
        return set(range(block.code.width)) - present

    def _answers(self, disk: DiskId) -> bool:
        _, store = self._disks.get(disk, (None, None))
        return store is not None and self.state(disk) is not DiskState.LOST and self.is_well(disk)

    # ---- chunk I/O --------------------------------------------------------------------------------------------------

    def put(self, disk: DiskId, info: ChunkInfo, payload: memoryview, cell_crcs: bytes) -> None:
        """`ChunkStore.put`, whatever the disk's health."""
        began_s = self._host.clock.monotonic_s()
        try:
            self._store(disk).put(info, payload, memoryview(cell_crcs))
        except UnavailableError:
            self._rest(disk)
            raise
        finally:
            self.times.note_write(disk, len(payload), self._host.clock.monotonic_s() - began_s)

    def read_into(self, block: Block, index: int, offset: int, target: memoryview) -> None:
        """`ChunkStore.read_into` of chunk `index`, whatever the disk's health. Raises the same."""
        location = location_of(block, index)
        if location is None:
            raise NotFoundError(f"chunk {index} of block {block.block:x} has no place")
        began_s = self._host.clock.monotonic_s()
        try:
            self._store(location.disk).read_into(ChunkName(block.block, index), offset, target)
        except UnavailableError:
            self._rest(location.disk)
            raise
        except (NotFoundError, CorruptError):
            self._on_damage(block, index)
            raise
        finally:
            self.times.note_read(location.disk, len(target), self._host.clock.monotonic_s() - began_s)

    def info(self, block: Block, location: ChunkLocation) -> ChunkInfo:
        return self._store(location.disk).info(ChunkName(block.block, location.index))

    def delete(self, disk: DiskId, name: ChunkName) -> None:
        try:
            self._store(disk).delete(name)
        except UnavailableError:
            self._rest(disk)
            raise

    def stalled(self, disk: DiskId, call: "Future[Any]") -> None:
        """`call` on the disk does not end: the disk is not used until it has."""
        with self._lock:
            self._stalled[disk] += 1
        call.add_done_callback(lambda _: self._moved_on(disk))

    def _moved_on(self, disk: DiskId) -> None:
        with self._lock:
            self._stalled[disk] -= 1

    def _store(self, disk: DiskId) -> ChunkStore:
        _, store = self._disks.get(disk, (None, None))
        if store is None:
            raise UnavailableError(f"disk {disk} is not there")
        return store

    def _rest(self, disk: DiskId) -> None:
        with self._lock:
            self._rests_until[disk] = self._host.clock.monotonic_s() + DISK_REST_S
