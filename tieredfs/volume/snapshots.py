"""Snapshots: a directory as it is at one moment, by reference, for ever; and back.

**Taking one.** A frozen copy is built out of sight, 256 names to a transaction, and then held against the tree in one snapshot of
the metadata (`meta.matching`). Where they are the same, that is the moment. Where little is different, what the tree has there is
kept from that snapshot and written to the copy afterwards: that is the moment, too, and nobody waits for it. Else the copy is
mended and held against the tree again. So names, attributes and what was written before are of one moment between the call and
its return. What is only staged is stored first. A file that is written to meanwhile has the content of a moment of its own,
between the call and its return; those that were still open are counted.

**Going back.** A copy of the snapshot is built out of sight and changes places with the directory in one transaction.

Both may die anywhere: what has no name yet, or none any more, is in the workplace of a session that is gone (`meta.workplaces`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from tieredfs.errors import (
    AlreadyExistsError,
    BusyError,
    InvalidRequestError,
    NotDirectoryError,
    NotFoundError,
    TooLargeError,
)
from tieredfs.format.records import InodeRecord
from tieredfs.host import crash
from tieredfs.kv.engine import Reader, Writer
from tieredfs.limits import SNAPSHOT_CHANGES_MAX, SNAPSHOT_PASSES_MAX
from tieredfs.meta import cloning, matching, snapshots, workplaces
from tieredfs.meta.cloning import Cloned, Copying, Late
from tieredfs.meta.matching import Captured, Compared, Difference
from tieredfs.meta.metadata import Metadata
from tieredfs.meta.names import SNAPSHOTS
from tieredfs.meta.snapshots import About, Snapshot
from tieredfs.model import NO_CACHE, FileKind, InodeId, Progress
from tieredfs.volume.cloning import COPY, Builder, CloneReport, crosses_quotas, workplace
from tieredfs.volume.filesystem import FileSystem

Store = Callable[[Sequence[InodeId]], Mapping[InodeId, int]]
"""Have a mount store what it has staged of these files, those that are open as they are. What it had, by version."""
Discard = Callable[[bytes], None]
"""Remove a tree, given by its path from the root of the volume, so that who has a file of it open keeps that; as far as it can."""

_BATCH: Final = 256
_STORE_BATCH: Final = 1000
_STORE_TRIES: Final = 3
_GONE: Final = b"gone"


def create(volume: FileSystem, path: bytes, name: bytes, progress: Progress, store: Store | None = None) -> Snapshot:
    """Take the snapshot `name` of the directory `path`, durably. `store`: of the mount that is used; without, files that are open
    for writing are waited for.

    Raises NotFoundError, NotDirectoryError, AlreadyExistsError (the name), InvalidRequestError, NameTooLongError (names that none
    can have; a directory of a snapshot), BusyError (the tree changes faster than it can be copied), DeadlineError (a file was not
    stored in time)."""
    parts = _parts(path)
    place_path = snapshots.place_of(parts, name)
    original = volume.stat(path)
    if original.kind is not FileKind.DIRECTORY:
        raise NotDirectoryError(f"{_shown(path)} is not a directory; `tieredfs clone` copies a file")
    metadata, clock = volume.volume.metadata, volume.volume.host.clock
    likenesses = metadata.inspect(lambda reader: snapshots.parents(reader, parts))
    if metadata.inspect(lambda reader: snapshots.find(reader, parts, name)) is not None:
        raise AlreadyExistsError(snapshots.taken(parts, name))
    with workplace(volume) as (_, place):
        about = _Taking(volume, original.inode, place, progress, store).run()
        crash.here("snapshot.built")
        naming = partial(
            snapshots.give_name,
            place=place,
            copy_name=COPY,
            parts=parts,
            name=name,
            about=about,
            likenesses=likenesses,
            new=[metadata.new_inode_id() for _ in likenesses],
            now_ns=clock.wall_ns(),
        )
        metadata.amend(naming)
        crash.here("snapshot.named")
        metadata.sync()
    return Snapshot(b"/".join(parts), name, place_path, about)


def listed(metadata: Metadata, path: bytes) -> list[Snapshot]:
    """The snapshots of a directory and of all below it, whether these still exist or not."""
    parts = [part for part in path.split(b"/") if part]
    return metadata.inspect(lambda reader: snapshots.listed(reader, parts))


def remove(volume: FileSystem, path: bytes, name: bytes, progress: Progress) -> int:
    """Remove a snapshot, durably; the number of its entries. It is gone at once, and then its entries are deleted. Raises
    NotFoundError."""
    parts = _parts(path)
    snapshots.check_name(name)
    metadata, clock = volume.volume.metadata, volume.volume.host.clock
    with workplace(volume) as (_, place):
        metadata.amend(lambda writer: snapshots.take_name(writer, parts, name, place, _GONE, clock.wall_ns()))
        crash.here("snapshot.unnamed")
        metadata.sync()
        return workplaces.remove_tree(metadata, place, _GONE, clock.wall_ns, progress)


def restore(
    volume: FileSystem,
    path: bytes,
    name: bytes,
    target: bytes,
    *,
    force: bool,
    progress: Progress,
    discard: Discard | None = None,
) -> CloneReport:
    """Make the directory `target` what the snapshot `name` of `path` is, durably and in one step. With `force`, instead of a
    directory that is there: that goes away, with all that is in it.

    Raises NotFoundError (no such snapshot; nothing to put it into), AlreadyExistsError, InvalidRequestError (the root)."""
    parts = _parts(path)
    snapshots.check_name(name)
    metadata = volume.volume.metadata
    source = metadata.inspect(lambda reader: snapshots.find(reader, parts, name))
    if source is None:
        raise NotFoundError(snapshots.missing(parts, name))
    is_there = _check_target(volume, target, force=force)
    with workplace(volume) as (where, place):
        crossing = crosses_quotas(volume, target, place)
        report = Builder(volume, progress, counted=crossing or is_there).build(source, place)
        crash.here("clone.built")
        if not is_there:
            volume.rename(where + b"/" + COPY, target, replace=False)
            return report
        above, _, last = b"/".join(_parts(target)).rpartition(b"/")
        with _quotas_settled(
            volume, volume.stat(target).inode, volume.stat(where + b"/" + COPY).inode, crossing=crossing
        ):
            metadata.rename(place, COPY, volume.stat(above).inode, last, exchange=True)
        crash.here("restore.swapped")
        metadata.sync()
        if discard is not None:
            discard(where + b"/" + COPY)
    return report


@contextlib.contextmanager
def _quotas_settled(volume: FileSystem, before: InodeId, after: InodeId, *, crossing: bool) -> Iterator[None]:
    """While two directories change places: the quota of the one is the other's, too, and what moves between quotas is counted."""
    metadata = volume.volume.metadata
    own = next((quota for quota in metadata.quotas_over(before) if quota.directory == before), None)
    if own is not None:
        metadata.give_quota(after, own)
    elif crossing:
        metadata.count_what_moves(before)
    try:
        yield
    except BaseException:
        if own is None and crossing:
            metadata.count_no_longer(before)
        raise


def _check_target(volume: FileSystem, target: bytes, *, force: bool) -> bool:
    """Whether a directory is there, to be replaced."""
    parts = _parts(target)
    if not parts:
        raise InvalidRequestError(
            "the root of the volume cannot be replaced; `--to` a new directory, or `tieredfs clone` of what you need of it"
        )
    volume.entries(b"/".join(parts[:-1]), b"", 1)
    try:
        found = volume.stat(target)
    except NotFoundError:
        return False
    if found.kind is not FileKind.DIRECTORY:
        raise AlreadyExistsError(
            f"{_shown(target)} is there, and is not a directory; remove it, or restore to another name"
        )
    if not force:
        raise AlreadyExistsError(
            f"{_shown(target)} is there: what changed in it since would be lost; --force to mean it, or --to a new name"
        )
    return True


def _parts(path: bytes) -> list[bytes]:
    """Raises InvalidRequestError for what is no part of the tree."""
    parts = [part for part in path.split(b"/") if part]
    if parts[:1] in ([SNAPSHOTS], [workplaces.HIDDEN]):
        raise InvalidRequestError(
            f"{_shown(path)} is not a part of the volume's own tree; `tieredfs clone` copies what is there"
        )
    return parts


def _shown(path: bytes) -> str:
    return "/" + path.strip(b"/").decode("utf-8", "backslashreplace")


def _captured(reader: Reader, differences: Sequence[Difference] = (), inodes: Sequence[InodeId] = ()) -> Captured:
    captured = Captured(reader)
    for difference in differences:
        captured.add_difference(difference, deep=False)
    for inode in inodes:
        captured.add_inode(inode)
    return captured.close()


class _Taking:
    """One snapshot being taken. `_settled`: files that were staged when their copies were brought up to date; their versions."""

    def __init__(
        self, volume: FileSystem, original: InodeId, place: InodeId, progress: Progress, store: Store | None
    ) -> None:
        self._volume = volume
        self._metadata = volume.volume.metadata
        self._clock = volume.volume.host.clock
        self._original = original
        self._place = place
        self._store = store
        self._builder = Builder(volume, progress, frozen=True)
        self._settled: dict[InodeId, int] = {}
        self._moment_ns = 0

    def run(self) -> About:
        self._builder.build(self._original, self._place)
        self._copy = self._metadata.lookup(self._place, COPY).inode
        self._settle(self._builder.late)
        self._follow()
        measured = self._metadata.inspect(lambda reader: matching.measure(reader, self._copy))
        counts = measured.file_count, measured.directory_count, measured.size_bytes
        return About(self._moment_ns, *counts, open_file_count=len(self._settled))

    def _follow(self) -> None:
        """Until the copy is the tree as it was at one moment."""
        for _ in range(SNAPSHOT_PASSES_MAX):
            found, captured = self._metadata.inspect(self._look)
            if not found.differences and self._settle(found.late):
                return
            late = None if captured is None else self._mend_at_once(found, captured)
            if late is not None:
                self._settle(late)
                return
            self._mend(found)
        raise BusyError(
            f"the directory changed in each of {SNAPSHOT_PASSES_MAX} passes over its {found.entry_count} entries"
        )

    def _look(self, reader: Reader) -> tuple[Compared, Captured | None]:
        """What is different, and what the tree has there, unless that is too much. This is the moment, if it is the last look."""
        self._moment_ns = self._clock.wall_ns()
        found = matching.compare(reader, self._original, self._copy, self._settled)
        if len(found.late) > SNAPSHOT_CHANGES_MAX:
            return found, None
        try:
            captured = Captured(reader, SNAPSHOT_CHANGES_MAX)
            for difference in found.differences:
                captured.add_difference(difference, deep=True)
            return found, captured.close()
        except TooLargeError:
            return found, None

    def _mend_at_once(self, found: Compared, captured: Captured) -> list[Late] | None:
        """Make the copy what the tree was when it was looked at. What is only staged is kept from being deleted until it is copied;
        None: that of some file is lost already."""
        ids = [self._metadata.new_inode_id() for _ in range(SNAPSHOT_CHANGES_MAX)]

        def change(writer: Writer) -> list[Late] | None:
            copying = Copying(iter(ids), self._clock.wall_ns(), frozen=True, source=captured)
            cloned = Cloned(linked=dict(found.linked))
            for difference in found.differences:
                matching.mend(writer, difference, self._place, cloned, copying)
            matching.fill(writer, copying, cloned, SNAPSHOT_CHANGES_MAX)
            late = list(dict.fromkeys(found.late + cloned.late))
            held = [matching.hold(writer, each, self._place) for each in late]
            return late if all(held) else None

        return self._metadata.amend(change)

    def _mend(self, found: Compared) -> None:
        """A part of the differences in each transaction, while others go on."""
        linked, late = found.linked, found.late
        for start in range(0, len(found.differences), _BATCH):
            batch = found.differences[start : start + _BATCH]
            new = [self._metadata.new_inode_id() for _ in batch]
            captured = self._metadata.inspect(partial(_captured, differences=batch))
            mending = partial(self._mend_batch, batch=batch, linked=linked, new=new, captured=captured)
            cloned = self._metadata.amend(mending)
            self._builder.linked, self._builder.late = cloned.linked, []
            self._builder.fill(cloned.directories)
            linked = self._builder.linked
            late = late + cloned.late + self._builder.late
        self._settle(late)

    def _mend_batch(
        self,
        writer: Writer,
        batch: Sequence[Difference],
        linked: Mapping[InodeId, InodeId],
        new: Sequence[InodeId],
        captured: Captured,
    ) -> Cloned:
        cloned = Cloned(linked=dict(linked))
        copying = Copying(iter(new), self._clock.wall_ns(), frozen=True, source=captured)
        for difference in batch:
            matching.mend(writer, difference, self._place, cloned, copying)
        return cloned

    # ---- what is only staged ----------------------------------------------------------------------------------------

    def _settle(self, late: Sequence[Late]) -> bool:
        """Have files stored and bring their copies up to date. False: one of them is gone."""
        self._have_stored({each.source for each in late})
        complete = True
        for start in range(0, len(late), _BATCH):
            complete &= self._refresh(late[start : start + _BATCH])
        return complete

    def _refresh(self, late: Sequence[Late]) -> bool:
        captured = self._metadata.inspect(partial(_captured, inodes=[each.source for each in late]))

        def change(writer: Writer) -> list[InodeRecord | None]:
            copying = Copying(iter(()), self._clock.wall_ns(), frozen=True, source=captured)
            return [cloning.refresh(writer, each.source, each.copy, copying) for each in late]

        originals = self._metadata.amend(change)
        for each, record in zip(late, originals, strict=True):
            self._settled.pop(each.source, None)
            if record is not None and record.staged_in != NO_CACHE:
                self._settled[each.source] = record.version
        return None not in originals

    def _have_stored(self, waiting: set[InodeId]) -> None:
        for _ in range(_STORE_TRIES if self._store is not None else 0):
            asked = sorted(self._staged(waiting))
            waiting = set(asked)
            for start in range(0, len(asked), _STORE_BATCH):
                assert self._store is not None
                waiting -= self._store(asked[start : start + _STORE_BATCH]).keys()
        for inode in self._staged(waiting):
            with contextlib.suppress(NotFoundError):
                self._volume.wait_until_stored(inode)

    def _staged(self, wanted: set[InodeId]) -> set[InodeId]:
        return self._metadata.inspect(lambda reader: cloning.staged_of(reader, wanted)) if wanted else wanted
