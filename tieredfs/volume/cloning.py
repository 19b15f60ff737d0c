"""`clone`: a file or a tree again, by reference: as fast as its names can be written, and no byte is stored twice.

The copy is built out of sight and gets its name by one rename when it is whole. Each of its files is its original as it was at one
moment; a tree that is written to meanwhile is not one moment (a snapshot is: `volume.snapshots`). What a process that died was
building is removed by the next clone, or by garbage collection, once its session has ended (`meta.workplaces`).
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tieredfs.errors import AlreadyExistsError, DeadlineError, NotFoundError
from tieredfs.host import crash
from tieredfs.kv.engine import Reader
from tieredfs.meta import cloning, workplaces
from tieredfs.meta.cloning import Cloned, Late
from tieredfs.meta.matching import Captured
from tieredfs.model import ROOT, InodeId, Progress
from tieredfs.volume.filesystem import FileSystem

_BATCH: Final = 256
"""Entries of one transaction: about 20 ms, in which others wait to write."""
COPY: Final = b"copy"
"""What is being built, in its workplace."""


@dataclass(frozen=True, slots=True)
class CloneReport:
    """`size_bytes`: of the files' contents, which are stored once, whoever refers to them."""

    file_count: int
    directory_count: int
    size_bytes: int


def clone(volume: FileSystem, source: bytes, target: bytes, progress: Progress) -> CloneReport:
    """Make `target` a copy of `source`, durably. What is staged of it is waited for.

    Raises NotFoundError (no source, or nothing to put the target into), AlreadyExistsError, NotDirectoryError, QuotaExceededError,
    DeadlineError (a file that is being written to was not stored in time)."""
    original = volume.stat(source)
    _check_target(volume, target)
    with workplace(volume) as (path, place):
        report = Builder(volume, progress, counted=crosses_quotas(volume, target, place)).build(original.inode, place)
        crash.here("clone.built")
        volume.rename(path + b"/" + COPY, target, replace=False)
    return report


def crosses_quotas(volume: FileSystem, target: bytes, place: InodeId) -> bool:
    """Whether other quotas hold what is in the parent directory of `target` than what is in `place`."""
    above = volume.stat(target.rstrip(b"/").rpartition(b"/")[0]).inode
    metadata = volume.volume.metadata
    return metadata.quotas_over(above) != metadata.quotas_over(place)


def _check_target(volume: FileSystem, target: bytes) -> None:
    parent = target.rstrip(b"/").rpartition(b"/")[0]
    volume.entries(parent, b"", 1)
    with contextlib.suppress(NotFoundError):
        volume.stat(target)
        raise AlreadyExistsError(f"{target.decode('utf-8', 'backslashreplace')} is there already")


@contextmanager
def workplace(volume: FileSystem) -> Iterator[tuple[bytes, InodeId]]:
    """A directory of this session's own, gone afterwards with whatever is in it."""
    metadata, now_ns = volume.volume.metadata, volume.volume.host.clock.wall_ns
    workplaces.remove_abandoned(metadata, now_ns)
    name = b"%d-%016x" % (volume.volume.session, volume.volume.host.random.getrandbits(64))
    path = workplaces.PLACES + b"/" + name
    place = volume.make_directories(path, mode=0o700).inode
    try:
        yield path, place
    finally:
        workplaces.remove_tree(metadata, volume.stat(workplaces.PLACES).inode, name, now_ns)


class Builder:
    """Copies breadth by breadth: what is remembered are directories that are still to be filled, and files with several names.

    `frozen`: what is built is a part of a snapshot; nothing is waited for, and `late` are the files that are only staged."""

    def __init__(self, volume: FileSystem, progress: Progress, *, counted: bool = False, frozen: bool = False) -> None:
        """`counted`: the copy is going to move to where other quotas hold, and they must know what it is."""
        self._volume = volume
        self._metadata = volume.volume.metadata
        self._clock = volume.volume.host.clock
        self._progress = progress
        self._frozen = frozen
        self._counted_to_move = counted
        self.linked: dict[InodeId, InodeId] = {}
        self.late: list[Late] = []
        self._files = self._directories = self._size_bytes = 0

    def build(self, original: InodeId, place: InodeId) -> CloneReport:
        """The copy is `COPY` in `place`."""
        waiting = self._clone_one(original, place, COPY).directories
        if waiting and self._counted_to_move:
            self._metadata.count_what_moves(waiting[0][1])
        self.fill(waiting)
        return CloneReport(self._files, self._directories, self._size_bytes)

    def fill(self, waiting: list[tuple[InodeId, InodeId]]) -> None:
        """Copy what is in directories, which are given with their copies."""
        while waiting:
            source, target = waiting.pop()
            after: bytes | None = b""
            while after is not None:
                try:
                    cloned = self._clone_batch(source, after, target)
                except NotFoundError:
                    if not self._frozen:
                        raise
                    break  # it was removed since; the comparison with the tree will find that
                waiting += cloned.directories
                after = cloned.last

    def _clone_batch(self, source: InodeId, after: bytes, target: InodeId) -> Cloned:
        copying = partial(
            cloning.clone_entries,
            source=source,
            after=after,
            target=target,
            new=[self._metadata.new_inode_id() for _ in range(_BATCH)],
            linked=self.linked,
            left_out=workplaces.HIDDEN if source == ROOT else b"",
            now_ns=self._clock.wall_ns(),
            frozen=self._frozen,
            originals=self._captured(source, after) if self._frozen else None,
        )
        cloned = self._counted(self._metadata.amend(copying))
        for name, inode in cloned.staged:
            with contextlib.suppress(NotFoundError):  # deleted since
                self._clone_one(inode, target, name)
        return cloned

    def _captured(self, source: InodeId, after: bytes) -> Captured:
        def capture(reader: Reader) -> Captured:
            captured = Captured(reader)
            captured.add_entries(source, after, _BATCH)
            return captured.close()

        return self._metadata.inspect(capture)

    def _clone_one(self, source: InodeId, target: InodeId, name: bytes) -> Cloned:
        while True:
            if not self._frozen:
                self._wait_until_stored(source, name)
            copying = partial(
                cloning.clone_one,
                source=source,
                target=target,
                name=name,
                new=self._metadata.new_inode_id(),
                linked=self.linked,
                now_ns=self._clock.wall_ns(),
                frozen=self._frozen,
            )
            cloned = self._counted(self._metadata.amend(copying))
            if not cloned.staged:  # else somebody has begun to write to it again
                return cloned

    def _wait_until_stored(self, source: InodeId, name: bytes) -> None:
        try:
            self._volume.wait_until_stored(source)
        except DeadlineError as error:
            shown = name.decode("utf-8", "backslashreplace")
            raise DeadlineError(f"{shown}: {error}; it is being written to, clone it when it is closed") from error

    def _counted(self, cloned: Cloned) -> Cloned:
        self.linked = cloned.linked
        self.late += cloned.late
        self._files += cloned.file_count
        self._directories += len(cloned.directories)
        self._size_bytes += cloned.size_bytes
        self._progress(self._files, 0, "files")
        return cloned
