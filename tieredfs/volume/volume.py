"""`Volume`: an open volume, without an SSD tier of its own.

Opening makes a session, whose heartbeat says that this process lives; disks that cannot be opened are remembered with the
reason and looked for again with every heartbeat, and disks added by other processes appear the same way.
"""

import logging
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from tieredfs.block.store import BlockStore
from tieredfs.chunk.directory import DiskIdentity
from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.chunk.sites import domain_of, open_store, site_of
from tieredfs.chunk.store import ChunkStore
from tieredfs.config import DiskUrl, parse_data_url, parse_meta_url
from tieredfs.curator import HealCounts, Healer, Holdings, RepairCounts, Repairer
from tieredfs.errors import AlreadyExistsError, ConfigurationError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Host, local_host
from tieredfs.kv.databases import open_engine
from tieredfs.kv.engine import Engine
from tieredfs.limits import MEMORY_BYTES_DEFAULT, SESSION_HEARTBEAT_S, SESSION_TIMEOUT_S
from tieredfs.meta.metadata import Metadata
from tieredfs.model import (
    Block,
    CacheRecord,
    Code,
    Disk,
    DiskId,
    DiskState,
    Durability,
    Progress,
    SessionId,
    Shortage,
    StagedRecord,
    VolumeConfig,
)
from tieredfs.volume import dumps
from tieredfs.volume.dumps import DumpReport
from tieredfs.volume.memory import plan_memory
from tieredfs.volume.places import local_directory
from tieredfs.volume.quotas import Quotas
from tieredfs.volume.status import (
    CacheStatus,
    DiskStatus,
    DumpStatus,
    SessionStatus,
    ShortStatus,
    StagedSummary,
    VolumeStatus,
)

if TYPE_CHECKING:
    from tieredfs.curator import CheckReport, Curator, GarbageReport, RebuildReport

_OPENERS_MAX: Final = 32
_log: Final = logging.getLogger("tieredfs.volume")


class Volume:
    """Safe from any thread. A context manager; `close` ends the session."""

    def __init__(
        self, meta_url: str, engine: Engine, host: Host, purpose: str, *, adopt: bool, memory_bytes: int
    ) -> None:
        self.meta_url = meta_url
        self.host = host
        self.metadata = Metadata(engine, host.clock)
        self.quotas = Quotas(self.metadata)
        self._engine = engine
        self._config = self.metadata.config()
        self._repairer = Repairer(host)
        self.memory = plan_memory(memory_bytes, self._config)
        self._purpose = purpose
        self.session = self._begin_session(adopt=adopt)
        self.problems: dict[DiskId, str] = {}
        self._stores: dict[DiskId, tuple[Disk, ChunkStore | None]] = {}
        self._find_disks()
        self.blocks = BlockStore(
            self.metadata,
            self.session,
            self._stores,
            host,
            buffer_count=self.memory.drain_buffers,
            on_damage=self._damaged,
        )
        self._holdings = Holdings(self.metadata, self.blocks, self._stores, self.session, host)
        self._healer = Healer(self._holdings, self._config.uuid)
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @classmethod
    def open(
        cls,
        meta_url: str,
        *,
        purpose: str,
        host: Host | None = None,
        adopt: bool = False,
        memory_bytes: int = MEMORY_BYTES_DEFAULT,
    ) -> Self:
        """Open the volume at a metadata URL. `adopt`: take over the session of a dead process with the same purpose.

        Raises VolumeNotFoundError, NewerFormatError, CorruptError, ConfigurationError.
        """
        host = host or local_host()
        engine = open_engine(parse_meta_url(meta_url))
        try:
            volume = cls(meta_url, engine, host, purpose, adopt=adopt, memory_bytes=memory_bytes)
        except BaseException:
            engine.close()
            raise
        volume._repairer.start(volume._holdings)
        volume._heart.start()
        return volume

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._heart.join()
        self._healer.close()
        self._repairer.close()
        self.blocks.close()
        for _, store in self._stores.values():
            if store is not None:
                store.close()
        try:
            self.metadata.end_session(self.session)
        finally:
            self._engine.close()

    # ---- session and disks ------------------------------------------------------------------------------------------

    def _begin_session(self, *, adopt: bool) -> SessionId:
        if adopt:
            for session in self.metadata.sessions():
                if session.purpose == self._purpose:
                    self.metadata.heartbeat(session.session)
                    return session.session
        return self.metadata.open_session(self.host.name, os.getpid(), self._purpose).session

    def _beat(self) -> None:
        while not self._closing.wait(SESSION_HEARTBEAT_S):
            try:
                self._beat_once()
                self._refresh_disks()
            except TieredError as error:
                _log.warning("no heartbeat this time: %s", error)

    def _beat_once(self) -> None:
        """A process that was stopped for longer than sessions live finds its own ended, and goes on with a new one."""
        try:
            self.metadata.heartbeat(self.session)
        except NotFoundError:
            self.metadata.revive_session(self.session, self.host.name, os.getpid(), self._purpose)
            _log.warning(
                "this process did not run for so long that it was taken for dead; what it held unnamed is gone"
            )

    def _find_disks(self) -> bool:
        """Open the stores of disks that appeared; True if anything changed."""
        found: dict[DiskId, tuple[Disk, ChunkStore | None]] = {}
        for disk in self.metadata.disks():
            if disk.state is DiskState.REMOVED:
                self.problems.pop(disk.disk, None)
                continue
            known = self._stores.get(disk.disk)
            found[disk.disk] = (disk, known[1] if known else None)
        self._open_stores(found)
        changed = found != self._stores
        self._stores = found
        return changed

    def _refresh_disks(self) -> None:
        if self._find_disks():
            self.blocks.replace_disks(self._stores)
            self._holdings.replace_disks(self._stores)

    def _open_stores(self, found: dict[DiskId, tuple[Disk, ChunkStore | None]]) -> None:
        """All at once, so that many that do not answer take no longer than one: a heartbeat waits for them."""
        missing = [disk for disk, store in found.values() if store is None]
        if not missing:
            return
        opening = partial(self._open_store, elsewhere=[disk.url for disk, _ in found.values()])
        with ThreadPoolExecutor(min(len(missing), _OPENERS_MAX), thread_name_prefix="open-disk") as threads:
            for disk, store in zip(missing, threads.map(opening, missing), strict=True):
                found[disk.disk] = (disk, store)

    def _open_store(self, disk: Disk, elsewhere: Sequence[str]) -> ChunkStore | None:
        try:
            store = open_store(disk, self._config.uuid, self.host, elsewhere)
        except TieredError as error:
            if self.problems.get(disk.disk) != str(error):
                _log.info("disk %d is not usable: %s", disk.disk, error)
            self.problems[disk.disk] = str(error)
            return None
        self.problems.pop(disk.disk, None)
        return store

    def _damaged(self, block: Block, index: int) -> None:
        self._repairer.note(block, index)

    # ---- settings ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> VolumeConfig:
        """The settings as of opening, or of the last `set_config` through this object."""
        return self._config

    def set_config(
        self,
        *,
        name: str | None = None,
        code: Code | None = None,
        durability: Durability | None = None,
        block_bytes: int | None = None,
    ) -> VolumeConfig:
        """Change what is given; it acts on what is written from now on, and on mounts that start from now on."""
        old = self.metadata.config()
        self._config = replace(
            old,
            name=name or old.name,
            code=code or old.code,
            durability=durability or old.durability,
            block_bytes=block_bytes or old.block_bytes,
        )
        self.metadata.set_config(self._config)
        return self._config

    # ---- disks ------------------------------------------------------------------------------------------------------

    def add_disk(self, url: str, domain: str | None = None) -> Disk:
        """Make a directory, or a prefix of a bucket, a disk of this volume.

        Raises ForeignDataError, AlreadyExistsError, ConfigurationError, UnavailableError.
        """
        place = parse_data_url(url)
        known = {disk.url: disk.disk for disk in self.metadata.disks() if disk.state is not DiskState.REMOVED}
        if (number := known.get(str(place))) is not None:
            where = place.path if isinstance(place, DiskUrl) else str(place)
            raise AlreadyExistsError(f"{where} is disk {number} of this volume already")
        disk_uuid = str(uuid.uuid4())
        site_of(place, self.host).format(DiskIdentity(self._config.uuid, disk_uuid))
        disk = self.metadata.add_disk(disk_uuid, str(place), domain or domain_of(place, f"disk-{disk_uuid[:8]}"))
        self._refresh_disks()
        with suppress(UnavailableError, ConfigurationError):  # older dumps do not know the disk, and what will be on it
            self.dump_to_disks(lambda _done, _total, _unit: None)
        return disk

    def drain_disk(self, disk: DiskId, progress: Progress) -> "RebuildReport":
        """Move everything off a disk and remove it."""
        return self._cared(self.curator().drain_disk(disk, progress))

    def rebuild_disk(self, disk: DiskId, progress: Progress) -> "RebuildReport":
        """Give up a disk and rebuild its chunks on the others."""
        return self._cared(self.curator().rebuild_disk(disk, progress))

    def _cared(self, report: "RebuildReport") -> "RebuildReport":
        """The curator changed the state of a disk."""
        self._refresh_disks()
        return report

    def disks(self, *, count_chunks: bool = False) -> list[DiskStatus]:
        """Every disk that was not removed."""
        found = []
        for disk, store in self._stores.values():
            total = free = chunks = None
            problem = self.problems.get(disk.disk)
            if store is not None:
                try:
                    space = store.space()
                    total, free = space.total_bytes, space.free_bytes
                    chunks = sum(1 for _ in store.names()) if count_chunks else None
                except TieredError as error:
                    problem = str(error)
            found.append(
                DiskStatus(
                    disk.disk,
                    disk.url,
                    disk.domain,
                    disk.state.name.lower(),
                    problem is None,
                    problem,
                    total,
                    free,
                    chunks,
                )
            )
        return found

    def capacity(self) -> tuple[int, int]:
        """Total and free bytes that files may use, after redundancy. Disks that share a file system count it once each."""
        total = free = 0
        for _, store in self._stores.values():
            if store is not None:
                try:
                    space = store.space()
                except TieredError:
                    continue
                total += space.total_bytes
                free += space.free_bytes
        code = self._config.code
        return total * code.data_count // code.width, free * code.data_count // code.width

    # ---- dumps of the metadata --------------------------------------------------------------------------------------

    def dump_to_file(self, path: str, progress: Progress) -> DumpReport:
        """See `tieredfs.volume.dumps`. Raises UnavailableError."""
        return dumps.dump_to_file(self.metadata, self.host, path, progress)

    def dump_to_disks(self, progress: Progress) -> DumpReport:
        """See `tieredfs.volume.dumps`. Raises UnavailableError, ConfigurationError (no place for scratch on this host)."""
        scratch = local_directory(self.meta_url, self._config.uuid)
        return dumps.dump_to_shelves(self.metadata, self.host, self._shelves(), scratch, progress)

    def takes_dumps(self) -> bool:
        """Whether a disk answers that a dump could go to."""
        return bool(self._shelves())

    def metadata_dump(self) -> DumpStatus | None:
        """The newest one on the volume's own disks, which are all asked."""
        return dumps.newest_on(self.host, [store.dumps for _, store in self._stores.values() if store is not None])

    def _shelves(self) -> list[DumpShelf]:
        """Those that should rather get a dump come first."""
        stores = {disk: store for disk, store in self._stores.values() if store is not None}
        return [stores[disk].dumps for disk in dumps.in_order(stores)]

    # ---- care and status --------------------------------------------------------------------------------------------

    def curator(self) -> "Curator":
        from tieredfs.curator import Curator

        return Curator(self.metadata, self.blocks, self._stores, self.session, self.host)

    def collect_garbage(self, progress: Progress) -> "GarbageReport":
        return self.curator().collect_garbage(progress)

    def check(self, *, repair: bool, progress: Progress) -> "CheckReport":
        return self.curator().check(repair=repair, progress=progress)

    def repairs(self) -> RepairCounts:
        """What was found damaged by reads of this process, and mended."""
        return self._repairer.counts()

    def heal(self) -> None:
        """From now on, blocks that lack chunks get them: for processes that drain, as long as they live."""
        self._healer.start()

    def heals(self) -> HealCounts:
        """What this process healed."""
        return self._healer.counts()

    def short(self) -> ShortStatus:
        """Amount and age of what lacks chunks."""
        return self._short_status(self.metadata.shortage())

    def _short_status(self, found: Shortage) -> ShortStatus:
        now_ns = self.host.clock.wall_ns()
        age_s = 0.0 if found.since_ns is None else max(0.0, (now_ns - found.since_ns) / 1e9)
        return ShortStatus(found.blocks, found.bare, found.size_bytes, found.missing_bytes, age_s)

    def caches(self) -> list[CacheRecord]:
        return self.metadata.caches()

    def staged(self) -> StagedSummary:
        """Amount and age of what is on SSDs only."""
        return self._summary(self.metadata.staged())

    def _summary(self, records: Sequence[StagedRecord]) -> StagedSummary:
        size = 0
        for record in records:
            try:
                size += self.metadata.attributes(record.inode).size_bytes
            except NotFoundError:
                continue
        oldest_ns = min((record.since_ns for record in records), default=self.host.clock.wall_ns())
        return StagedSummary(len(records), size, max(0.0, (self.host.clock.wall_ns() - oldest_ns) / 1e9))

    def status(self) -> VolumeStatus:
        disks = tuple(self.disks())
        unreachable = sum(not disk.reachable for disk in disks)
        staged, shortage = self.staged(), self.metadata.shortage()
        spare = self._config.code.parity_count - unreachable
        return VolumeStatus(
            name=self._config.name,
            uuid=self._config.uuid,
            meta_url=self.meta_url,
            code=str(self._config.code),
            durability=self._config.durability.name.lower(),
            block_bytes=self._config.block_bytes,
            inode_count=self.metadata.count_inodes(),
            safe=staged.file_count == 0 and shortage.bare == 0,
            redundancy=max(0, spare if shortage.least_spare is None else min(spare, shortage.least_spare)),
            staged=staged,
            short=self._short_status(shortage),
            disks=disks,
            sessions=tuple(self._session_statuses()),
            caches=tuple(self._cache_statuses()),
            metadata_dump=self.metadata_dump(),
        )

    def companions(self) -> int:
        """Processes with a living session of the same purpose as ours, this one among them."""
        sessions = self.metadata.sessions()
        oldest_ns = self.host.clock.wall_ns() - int(SESSION_TIMEOUT_S * 1e9)
        purposes = {session.purpose for session in sessions if session.session == self.session}
        alive = [session for session in sessions if session.heartbeat_ns >= oldest_ns]
        return max(1, sum(session.purpose in purposes for session in alive))

    def _session_statuses(self) -> Iterator[SessionStatus]:
        now_ns = self.host.clock.wall_ns()
        for session in self.metadata.sessions():
            if session.session != self.session:
                age_s = (now_ns - session.heartbeat_ns) / 1e9
                alive = age_s < SESSION_TIMEOUT_S
                yield SessionStatus(session.session, session.host, session.process, session.purpose, age_s, alive)

    def _cache_statuses(self) -> Iterator[CacheStatus]:
        for cache in self.metadata.caches():
            staged = self._summary(self.metadata.staged(cache.cache))
            yield CacheStatus(
                cache.cache, cache.host, cache.path, staged.file_count, staged.size_bytes, staged.oldest_age_s
            )


@contextmanager
def opened(meta_url: str, purpose: str) -> Iterator[Volume]:
    """A volume for the time of a `with` block."""
    with Volume.open(meta_url, purpose=purpose) as volume:
        yield volume
