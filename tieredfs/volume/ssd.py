"""`SsdTier`: the tier of one mount, wired: directory, filler, drainer, evictor, recovered and started in that order."""

import os

from tieredfs.cache.borrow import Neighbours
from tieredfs.cache.drain import Drainer
from tieredfs.cache.elsewhere import Elsewhere
from tieredfs.cache.evict import Evictor
from tieredfs.cache.fill import Filler
from tieredfs.cache.foresight import Foresight
from tieredfs.cache.layout import CacheDirectory, bell_path, is_here
from tieredfs.cache.pace import Pacer
from tieredfs.cache.part import TierPart
from tieredfs.cache.peers import Peers
from tieredfs.cache.recover import Recovered, recover
from tieredfs.cache.room import Room
from tieredfs.cache.tier import Tier
from tieredfs.core.budget import Traffic
from tieredfs.core.file_life import FileState
from tieredfs.errors import BusyError, DeadlineError
from tieredfs.host.bell import Bell
from tieredfs.limits import CACHE_BYTES_DEFAULT
from tieredfs.model import NO_CACHE, CacheId, Progress
from tieredfs.volume.places import slots_directory
from tieredfs.volume.volume import Volume


class SsdTier:
    """One cache directory at work. `start` after every handle of an earlier daemon is open again; `close` once."""

    def __init__(self, volume: Volume, path: str, capacity_bytes: int) -> None:
        """Take the directory and recover it. Raises BusyError, ForeignDataError, and what metadata raises."""
        files, self._heal = volume.host.files, volume.heal
        self.directory = CacheDirectory(path, volume.config.uuid, files)
        try:
            record = volume.metadata.register_cache(self.directory.uuid, volume.host.name, self.directory.path)
            neighbours = Neighbours(
                volume.metadata,
                volume.host,
                record.cache,
                root=slots_directory(volume.meta_url, volume.config.uuid),
                volume_uuid=volume.config.uuid,
            )
            self.filler = Filler(volume.blocks, files, volume.config.block_bytes, volume.memory.fill_buffers)
            peers = Peers(volume.metadata, volume.host, volume.config.uuid)
            self.elsewhere = Elsewhere(volume.metadata, volume.host, peers, self.filler)
            part = TierPart(
                volume.metadata, volume.blocks, volume.host, self.directory, record.cache, neighbours, self.elsewhere
            )
            self.room = Room(self.directory.path, capacity_bytes, files)
            self.tier = Tier(part, self.filler, self.room)
            self.pacer: Pacer | None = None
            self.drainer = Drainer(self.tier, volume.config.block_bytes, self._wrote)
            self.foresight = Foresight(self.tier, self.pace)
            self.evictor = Evictor(self.tier, self.drainer, self.foresight.make_room)
            self.room.on_pressure(self.evictor.wake, self._others_have_staged)
            self.recovered: Recovered = recover(self.tier)
            self._bell = Bell(bell_path(self.directory.path), self.drainer.hurry)
        except BaseException:
            self.directory.close()
            raise

    def start(self) -> None:
        self.drainer.start()
        self.evictor.start()
        self._heal()

    def hurry(self, cache: CacheId) -> None:
        """Somebody waits for what is staged in `cache`: this one, or another process's, of this host or of one that serves it."""
        if cache == self.tier.cache:
            self.drainer.hurry()
            return
        self.elsewhere.hurry(cache)

    def _others_have_staged(self) -> bool:
        """In other caches of this host."""
        part = self.tier.part
        others = (record for record in part.metadata.caches() if record.cache != part.cache)
        return any(is_here(record, part.host) and part.metadata.staged(record.cache) for record in others)

    def pace(self, traffic: Traffic, size_bytes: int) -> None:
        """Wait for the turn of so many bytes, if there is a budget. Raises DeadlineError."""
        if self.pacer is not None:
            self.pacer.take(traffic, size_bytes)

    def _wrote(self, size_bytes: int) -> None:
        """What is not stored yet does not wait for a budget; others wait for it."""
        if self.pacer is not None:
            self.pacer.charge(Traffic.CHECKPOINT, size_bytes)

    def flush(self, timeout_s: float) -> None:
        """Returns when nothing is staged here, and that is durable. Raises DeadlineError."""
        clock = self.tier.part.host.clock
        deadline_s = clock.monotonic_s() + timeout_s
        self.drainer.hurry(timeout_s)
        while self.tier.staged_records() or self._is_committing():
            if clock.monotonic_s() > deadline_s:
                reason = f" ({self.drainer.last_error})" if self.drainer.last_error else ""
                raise DeadlineError(f"staged data was not stored within {timeout_s:.0f} s{reason}")
            clock.sleep(0.02)

    def _is_committing(self) -> bool:
        """Committed, perhaps, but not yet durable."""
        return any(file.state is FileState.DRAINING for file in self.room.dirty_files())

    def close(self) -> None:
        """Stop; what is staged stays staged, for the next mount."""
        self._bell.close()
        self.foresight.close()
        self.evictor.close()
        self.drainer.close()
        self.filler.close()
        self.elsewhere.close()
        self.tier.segments.close()
        self.directory.close()


def drain_volume(meta_url: str, progress: Progress, *, timeout_s: float = 3600.0) -> int:
    """Store what is staged in caches of this host that no living process uses; the number of files stored.

    Caches in use are left to their users. Raises DeadlineError.
    """
    with Volume.open(meta_url, purpose="drain") as volume:
        return drain_abandoned(volume, progress, timeout_s)


def drain_abandoned(volume: Volume, progress: Progress, timeout_s: float, own: CacheId = NO_CACHE) -> int:
    """`drain_volume` for a volume that is open; `own` is this process's cache."""
    stored = 0
    for record in volume.metadata.caches():
        if record.cache == own or not is_here(record, volume.host) or not os.path.isdir(record.path):
            continue
        pending = len(volume.metadata.staged(record.cache))
        if not pending:
            continue
        try:
            ssd = SsdTier(volume, record.path, CACHE_BYTES_DEFAULT)
        except BusyError:
            continue
        ssd.start()
        try:
            _drain_with_progress(ssd, pending, progress, timeout_s)
        finally:
            ssd.close()
        stored += pending
    return stored


def _drain_with_progress(ssd: SsdTier, pending: int, progress: Progress, timeout_s: float) -> None:
    clock = ssd.tier.part.host.clock
    deadline_s = clock.monotonic_s() + timeout_s
    ssd.drainer.hurry(timeout_s)
    while left := len(ssd.tier.staged_records()):
        progress(pending - min(left, pending), pending, "files")
        if clock.monotonic_s() > deadline_s:
            reason = f" ({ssd.drainer.last_error})" if ssd.drainer.last_error else ""
            raise DeadlineError(f"{left} file(s) were not stored within {timeout_s:.0f} s{reason}")
        clock.sleep(0.1)
    progress(pending, pending, "files")
