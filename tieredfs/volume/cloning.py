"""`clone`: a file or a tree again, by reference: as fast as its names can be written, and no byte is stored twice.

The copy is built out of sight and gets its name by one rename when it is whole. Each of its files is its original as it was at one
moment; a tree that is written to meanwhile is not one moment. What a process that died was building is removed by the next
clone, once its session has ended.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tieredfs.errors import AlreadyExistsError, DeadlineError, NotFoundError
from tieredfs.host import crash
from tieredfs.meta import cloning
from tieredfs.meta.cloning import Cloned
from tieredfs.model import ROOT, Attributes, InodeId, Progress
from tieredfs.volume.filesystem import FileSystem

_WORKPLACE: Final = b".tieredfs/clones"
_HIDDEN: Final = b".tieredfs"
"""Of the root: what front ends keep for themselves, and no part of the tree."""
_BATCH: Final = 256
"""Entries of one transaction: about 20 ms, in which others wait to write."""


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
    with _workplace(volume) as (path, place):
        above = volume.stat(target.rstrip(b"/").rpartition(b"/")[0]).inode
        counted = volume.volume.metadata.quotas_over(above) != volume.volume.metadata.quotas_over(place)
        report = _Builder(volume, progress, counted=counted).build(original, place)
        crash.here("clone.built")
        volume.rename(path + b"/copy", target, replace=False)
    return report


def _check_target(volume: FileSystem, target: bytes) -> None:
    parent = target.rstrip(b"/").rpartition(b"/")[0]
    volume.entries(parent, b"", 1)
    with contextlib.suppress(NotFoundError):
        volume.stat(target)
        raise AlreadyExistsError(f"{target.decode('utf-8', 'backslashreplace')} is there already")


@contextmanager
def _workplace(volume: FileSystem) -> Iterator[tuple[bytes, InodeId]]:
    """A directory of this session's own, gone afterwards."""
    _remove_abandoned(volume)
    path = b"%s/%d-%016x" % (_WORKPLACE, volume.volume.session, volume.volume.host.random.getrandbits(64))
    place = volume.make_directories(path, mode=0o700).inode
    try:
        yield path, place
    finally:
        with contextlib.suppress(NotFoundError):
            volume.remove_tree(path)


def _remove_abandoned(volume: FileSystem) -> None:
    alive = {b"%d" % session.session for session in volume.volume.metadata.sessions()}
    with contextlib.suppress(NotFoundError):
        for entry, _ in volume.entries(_WORKPLACE):
            if entry.name.partition(b"-")[0] not in alive:
                volume.remove_tree(_WORKPLACE + b"/" + entry.name)


class _Builder:
    """Copies breadth by breadth: what is remembered are directories that are still to be filled, and files with several names."""

    def __init__(self, volume: FileSystem, progress: Progress, *, counted: bool) -> None:
        """`counted`: the copy is going to move to where other quotas hold, and they must know what it is."""
        self._volume = volume
        self._metadata = volume.volume.metadata
        self._clock = volume.volume.host.clock
        self._progress = progress
        self._counted_to_move = counted
        self._linked: dict[InodeId, InodeId] = {}
        self._files = self._directories = self._size_bytes = 0

    def build(self, original: Attributes, place: InodeId) -> CloneReport:
        waiting = self._clone_one(original.inode, place, b"copy").directories
        if waiting and self._counted_to_move:
            self._metadata.count_what_moves(waiting[0][1])
        while waiting:
            source, target = waiting.pop()
            after: bytes | None = b""
            while after is not None:
                cloned = self._clone_batch(source, after, target)
                waiting += cloned.directories
                after = cloned.last
        return CloneReport(self._files, self._directories, self._size_bytes)

    def _clone_batch(self, source: InodeId, after: bytes, target: InodeId) -> Cloned:
        copying = partial(
            cloning.clone_entries,
            source=source,
            after=after,
            target=target,
            new=[self._metadata.new_inode_id() for _ in range(_BATCH)],
            linked=self._linked,
            left_out=_HIDDEN if source == ROOT else b"",
            now_ns=self._clock.wall_ns(),
        )
        cloned = self._counted(self._metadata.amend(copying))
        for name, inode in cloned.staged:
            with contextlib.suppress(NotFoundError):  # deleted since
                self._clone_one(inode, target, name)
        return cloned

    def _clone_one(self, source: InodeId, target: InodeId, name: bytes) -> Cloned:
        while True:
            try:
                self._volume.wait_until_stored(source)
            except DeadlineError as error:
                shown = name.decode("utf-8", "backslashreplace")
                raise DeadlineError(f"{shown}: {error}; it is being written to, clone it when it is closed") from error
            copying = partial(
                cloning.clone_one,
                source=source,
                target=target,
                name=name,
                new=self._metadata.new_inode_id(),
                linked=self._linked,
                now_ns=self._clock.wall_ns(),
            )
            cloned = self._counted(self._metadata.amend(copying))
            if not cloned.staged:  # else somebody has begun to write to it again
                return cloned

    def _counted(self, cloned: Cloned) -> Cloned:
        self._linked = cloned.linked
        self._files += cloned.file_count
        self._directories += len(cloned.directories)
        self._size_bytes += cloned.size_bytes
        self._progress(self._files, 0, "files")
        return cloned
