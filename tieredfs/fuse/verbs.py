"""What a mount answers over its control socket: the verbs of the command line that act on a mount or a file.

Each verb takes JSON arguments and a progress sink, and returns a JSON value. Paths are relative to the mount's root, as
`os.fsdecode` spells them. Symlinks are not followed: what was named is what is meant.
"""

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Final

from tieredfs.cache.local import LocalFile, stamp_of
from tieredfs.core.file_life import DIRTY, FileState
from tieredfs.errors import DeadlineError, InvalidRequestError, NotFoundError, TieredError
from tieredfs.model import NO_CACHE, Attributes, Block, FileKind, InodeId, Progress
from tieredfs.volume import SsdTier, Volume

Verb = Callable[[Mapping[str, object], Progress], object]

_LIST_BATCH: Final = 1024
_WARM_WORKERS: Final = 4
_DRAIN_TICK_FIRST_S: Final = 0.01
_DRAIN_TICK_LAST_S: Final = 0.1
_DRAIN_TIMEOUT_S: Final = 24 * 3600.0
_STALL_S: Final = 300.0
"""A drain that stores nothing for so long is reported, not waited for."""


class MountVerbs:
    """The verbs of one mount. Safe from any thread."""

    def __init__(self, volume: Volume, ssd: SsdTier, describe: Callable[[], Mapping[str, object]]) -> None:
        """`describe`: what the driver knows of itself, for `status`."""
        self._volume = volume
        self._ssd = ssd
        self._describe = describe

    def table(self) -> dict[str, Verb]:
        return {
            "status": self.status,
            "info": self.info,
            "warmup": self.warm_up,
            "evict": self.evict,
            "drain": self.drain,
            "flush": self.drain,
            "store": self.store,
        }

    # ---- verbs ------------------------------------------------------------------------------------------------------

    def status(self, _arguments: Mapping[str, object], _progress: Progress) -> object:
        """The mount, its SSD, and the volume behind it."""
        tier, drainer, room = self._ssd.tier, self._ssd.drainer, self._ssd.room
        dirty = room.dirty_bytes()
        return {
            "mount": dict(self._describe()),
            "cache": {
                "path": self._ssd.directory.path,
                "capacity_bytes": room.capacity_bytes,
                "used_bytes": self._ssd.evictor.clean_bytes() + dirty,
                "resident_files": tier.resident_count(),
                "staged_files": len(room.dirty_files()),
                "staged_bytes": dirty,
                "full": room.is_full,
                "waits_for_room": room.waits,
                "evicted_files": self._ssd.evictor.evicted_files,
            },
            "drain": {
                "stored_files": drainer.stored_files,
                "stored_bytes": drainer.stored_bytes,
                "last_error": drainer.last_error,
            },
            "repair": asdict(self._volume.repairs()),
            "heal": asdict(self._volume.heals()),
            "memory": {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
            "volume": asdict(self._volume.status()),
        }

    def info(self, arguments: Mapping[str, object], _progress: Progress) -> object:
        """Everything about one file, or the sums of a directory."""
        path = _one_path(arguments)
        attributes = self._volume.metadata.resolve(path)
        found: dict[str, object] = {
            "path": os.fsdecode(path),
            "inode": attributes.inode,
            "kind": attributes.kind.name.lower(),
            "size_bytes": self._size(attributes),
        }
        if attributes.kind is FileKind.DIRECTORY:
            return found | self._sums(attributes.inode)
        if attributes.kind is FileKind.REGULAR:
            return found | self._content(attributes)
        return found

    def warm_up(self, arguments: Mapping[str, object], progress: Progress) -> object:
        """Bring files here; with `pin`, keep them."""
        pin = arguments.get("pin") is True
        files = list(self._regular_files(_paths(arguments)))
        done = 0

        def warm(inode: InodeId) -> str | None:
            try:
                self._ssd.tier.warm(inode, pin=pin)
            except NotFoundError:
                return None
            except TieredError as error:
                return str(error)
            return None

        problems: list[str] = []
        with ThreadPoolExecutor(_WARM_WORKERS, "warm") as pool:
            for problem in pool.map(warm, [attributes.inode for attributes in files]):
                done += 1
                progress(done, len(files), "files")
                if problem is not None:
                    problems.append(problem)
        size = sum(attributes.size_bytes for attributes in files)
        return {"files": len(files), "size_bytes": size, "failed": len(problems), "problems": problems[:20]}

    def evict(self, arguments: Mapping[str, object], progress: Progress) -> object:
        """Drop the SSD's copies. What is staged or open stays, or has a block that could lose no disk more; counted as that."""
        evicted = staged = opened = bare = absent = 0
        files = list(self._regular_files(_paths(arguments)))
        for number, attributes in enumerate(files, start=1):
            self._ssd.tier.unpin(attributes.inode)
            before = self._ssd.tier.state_of(attributes.inode)
            if before is FileState.ABSENT:
                absent += 1
            elif self._ssd.tier.evict(attributes.inode):
                evicted += 1
            elif before in DIRTY:
                staged += 1
            elif self._volume.metadata.is_bare(attributes.inode):
                bare += 1
            else:
                opened += 1
            progress(number, len(files), "files")
        return {
            "evicted": evicted,
            "kept": staged + opened + bare,
            "kept_staged": staged,
            "kept_open": opened,
            "kept_bare": bare,
            "absent": absent,
        }

    def drain(self, _arguments: Mapping[str, object], progress: Progress) -> object:
        """Returns when everything that was staged at the call is in the store."""
        files = self._ssd.room.dirty_files()
        self._store(files, progress)
        return {"files": len(files)}

    def store(self, arguments: Mapping[str, object], progress: Progress) -> object:
        """`drain` of some files, by inode. Those that were staged here, with their versions then: what is open was stored as it
        was at a moment since the call."""
        wanted = arguments.get("inodes")
        if not isinstance(wanted, list) or not all(isinstance(inode, int) for inode in wanted):
            raise InvalidRequestError("'inodes' must be a list of inodes")
        asked = set(wanted)
        files = [file for file in self._ssd.room.dirty_files() if file.inode in asked]
        versions = [(file.inode, file.version) for file in files]
        self._store(files, progress)
        return {"stored": versions}

    def _store(self, files: Sequence[LocalFile], progress: Progress) -> None:
        clock = self._volume.host.clock
        drainer = self._ssd.drainer
        pending = [(file, file.snapshots) for file in files]
        total = len(pending)
        started_s = moved_s = clock.monotonic_s()
        tick_s = _DRAIN_TICK_FIRST_S
        before = drainer.stored_files, drainer.stored_bytes
        while pending:
            drainer.hurry()
            pending = [(file, snapshots) for file, snapshots in pending if not _safe(file, snapshots)]
            now = drainer.stored_files, drainer.stored_bytes
            if now != before:
                before, moved_s = now, clock.monotonic_s()
            progress(total - len(pending), total, "files")
            if clock.monotonic_s() - moved_s > _STALL_S or clock.monotonic_s() - started_s > _DRAIN_TIMEOUT_S:
                reason = drainer.last_error or "files are still being written"
                raise DeadlineError(f"{len(pending)} file(s) are not stored: {reason}")
            if pending:
                clock.sleep(tick_s)
                tick_s = min(2 * tick_s, _DRAIN_TICK_LAST_S)
        self._volume.metadata.sync()

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _size(self, attributes: Attributes) -> int:
        live = self._ssd.tier.live(attributes.inode)
        return live.size_bytes if live else attributes.size_bytes

    def _sums(self, directory: InodeId) -> dict[str, object]:
        files = directories = staged = size = resident = 0
        for attributes in self._walk(directory):
            if attributes.kind is FileKind.DIRECTORY:
                directories += 1
                continue
            files += 1
            size += self._size(attributes)
            staged += attributes.staged_in != NO_CACHE
            resident += self._ssd.tier.state_of(attributes.inode) is not FileState.ABSENT
        return {
            "files": files,
            "directories": directories,
            "content_bytes": size,
            "staged_files": staged,
            "resident_files": resident,
        }

    def _content(self, attributes: Attributes) -> dict[str, object]:
        local = self._ssd.tier.state_of(attributes.inode)
        extents = self._volume.metadata.extents(attributes.inode)
        blocks = self._volume.metadata.blocks({extent.block for extent in extents})
        staged = attributes.staged_in != NO_CACHE
        here = local not in {FileState.ABSENT, FileState.FILLING}
        return {
            "state": "staged" if staged else "stored",
            "local": local.value,
            "cached_ratio": 1.0 if here or attributes.size_bytes == 0 else 0.0,
            "version": attributes.version,
            "stored_version": attributes.stored_version,
            "extents": [asdict(extent) | {"block": f"{extent.block:016x}", "end": extent.end} for extent in extents],
            "blocks": [
                {
                    "block": f"{block.block:016x}",
                    "code": str(block.code),
                    "size_bytes": block.size_bytes,
                    "chunk_bytes": block.chunk_bytes,
                    "missing_chunks": len(block.missing),
                    "spare_chunks": block.spare,
                }
                for block in blocks.values()
            ],
            "chunks": list(self._describe_chunks(blocks.values())),
        }

    def _describe_chunks(self, blocks: Iterable[Block]) -> Iterator[dict[str, object]]:
        disks = {disk.disk: disk for disk in self._volume.disks()}
        for block in blocks:
            for chunk in block.chunks:
                disk = disks.get(chunk.disk)
                yield {
                    "block": f"{block.block:016x}",
                    "index": chunk.index,
                    "disk": chunk.disk,
                    "url": disk.url if disk else None,
                    "reachable": bool(disk and disk.reachable),
                    "crc32c": f"{chunk.crc32c:08x}",
                }

    def _regular_files(self, paths: Sequence[bytes]) -> Iterator[Attributes]:
        for path in paths:
            attributes = self._volume.metadata.resolve(path)
            if attributes.kind is FileKind.DIRECTORY:
                yield from (found for found in self._walk(attributes.inode) if found.kind is FileKind.REGULAR)
            elif attributes.kind is FileKind.REGULAR:
                yield attributes

    def _walk(self, directory: InodeId) -> Iterator[Attributes]:
        """Everything below a directory, parents first, in no other order; what vanishes meanwhile is left out."""
        pending = [directory]
        while pending:
            current, after = pending.pop(), b""
            while True:
                try:
                    listed = self._volume.metadata.list_directory_plus(current, after, _LIST_BATCH)
                except TieredError:
                    break
                for entry, attributes in listed:
                    yield attributes
                    if entry.kind is FileKind.DIRECTORY:
                        pending.append(entry.inode)
                if len(listed) < _LIST_BATCH:
                    break
                after = listed[-1][0].name


def _safe(file: LocalFile, snapshots: int) -> bool:
    """Stored or gone; or still being written to, and stored as it was at some moment since there were `snapshots`."""
    if file.deleted or not file.dirty or file.snapshots > snapshots:
        return True
    try:
        stamp = stamp_of(os.stat(file.path))
    except OSError:
        return False  # it was renamed just now
    as_stored = stamp in {file.snapshot_stamp, file.fresh_stamp}
    if file.state is FileState.STAGING:
        if not as_stored:
            file.drain_not_before_s = 0.0
        return as_stored
    return file.mapped_since_s is not None and as_stored


def _paths(arguments: Mapping[str, object]) -> list[bytes]:
    paths = arguments.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InvalidRequestError("'paths' must be a list of paths")
    return [os.fsencode(path) for path in paths]


def _one_path(arguments: Mapping[str, object]) -> bytes:
    path = arguments.get("path")
    if not isinstance(path, str):
        raise InvalidRequestError("'path' must be a path")
    return os.fsencode(path)
