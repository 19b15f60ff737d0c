"""Recovery: after a crash, exactly what was acknowledged.

The metadata names what exists on this SSD only (`Metadata.staged`; what a damaged database does not list any more is looked
for first: `tieredfs.cache.unlisted`). For each such content there is a local file

- under that version;
- under a later one, when a power cut took back the last transactions but not the renaming: then it is this content, and
  perhaps more that nobody was promised;
- or, where the record names a place, in a segment, until it was taken out into a local file of that version or a later one;
- under an earlier one, when the crash came between record and renaming: then it is this content, unless the record says that
  the file was to be emptied;
- or not at all, when nothing was ever acknowledged, or the SSD lost it: then the last stored content is the content, which
  for a file that was just created is an empty one.

Everything else in the directory is a copy: kept if its inode still has that version and the machine has been up since (its
bytes are then certainly whole), deleted otherwise. Copies are judged before the boot is noted, so that a recovery which
is killed half-way is repeated by one that trusts no more than it did.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs.cache.local import LocalFile
from tieredfs.cache.tier import Tier
from tieredfs.cache.unlisted import in_batches, list_again
from tieredfs.core.file_life import FileState
from tieredfs.errors import NotFoundError
from tieredfs.model import Attributes, InodeId, StagedRecord

_log: Final = logging.getLogger("tieredfs.cache.recover")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery found. `rolled_back`: staged contents whose local file is gone; the last stored content is valid again.
    `listed_again`: staged contents whose record was lost (`tieredfs.cache.unlisted`)."""

    staged: int
    rolled_back: tuple[InodeId, ...]
    listed_again: int
    copies_kept: int
    files_removed: int


def recover(tier: Tier) -> Recovered:
    """Bring the tier's tables and the directory in line with the metadata. Before anybody uses the tier."""
    part = tier.part
    part.directory.clear_filling()
    found: dict[InodeId, list[int]] = {}
    for name in part.directory.contents():
        found.setdefault(name.inode, []).append(name.version)
    listed_again = list_again(part, found.keys())
    rolled_back: list[InodeId] = []
    staged = 0
    for record in tier.staged_records():
        try:
            attributes = part.metadata.attributes(record.inode)
        except NotFoundError:
            continue  # deleted, and the record with it, since the list was made
        versions = found.pop(record.inode, [])
        chosen = newest_of(record.version, versions)
        if record.place is not None and (chosen is None or chosen < record.version):
            _remove(tier, record.inode, versions)
            if tier.adopt_packed(record, attributes.mtime_ns):
                staged += 1
                continue
            chosen = None
        if chosen is not None:
            _adopt_staged(tier, record, attributes, chosen, versions)
            staged += 1
            continue
        part.metadata.abandon_write(record.inode, record.version)
        if attributes.size_bytes:
            rolled_back.append(record.inode)
    kept, removed = _sort_copies(tier, found)
    tier.segments.adopted()
    tier.adopt_pins(part.directory.load_pins())
    part.directory.note_boot()
    if rolled_back:
        _log.warning(
            "%d staged file(s) were not on the SSD any more and are back at their last stored content", len(rolled_back)
        )
    return Recovered(staged, tuple(rolled_back), listed_again, kept, removed)


def newest_of(version: int, versions: Sequence[int]) -> int | None:
    """Which of the local files `versions` is the staged content `version`; None: there is none. Pure.

    A later one was made from it by renaming, the next later one with the fewest changes; an earlier one is what it was to be
    made from.
    """
    later = [found for found in versions if found >= version]
    return min(later) if later else max(versions, default=None)


def _remove(tier: Tier, inode: InodeId, versions: Sequence[int]) -> None:
    for version in versions:
        tier.part.host.files.unlink(tier.part.directory.content(inode, version))


def _adopt_staged(
    tier: Tier, record: StagedRecord, attributes: Attributes, chosen: int, versions: Sequence[int]
) -> None:
    """Make a SEALED entry of a staged content whose local file has the version `chosen`."""
    part = tier.part
    path = part.directory.content(record.inode, record.version)
    if chosen != record.version:
        part.host.files.rename(part.directory.content(record.inode, chosen), path)
    for version in versions:
        if version not in {chosen, record.version}:
            part.host.files.unlink(part.directory.content(record.inode, version))
    if chosen < record.version and attributes.size_bytes == 0:
        _empty(tier, path, attributes)
    tier.adopt(_sealed(tier, record, path))


def _empty(tier: Tier, path: str, attributes: Attributes) -> None:
    """Carry out the truncation that the record speaks of."""
    files = tier.part.host.files
    descriptor = files.open(path, os.O_RDWR)
    try:
        files.truncate(descriptor, 0)
        os.utime(descriptor, ns=(attributes.atime_ns, attributes.mtime_ns))
    finally:
        files.close(descriptor)


def _sealed(tier: Tier, record: StagedRecord, path: str) -> LocalFile:
    part = tier.part
    status = part.host.files.stat_path(path)
    part.metadata.publish(record.inode, record.version, status.st_size, status.st_mtime_ns, status.st_blocks * 512)
    now_s = part.host.clock.monotonic_s()
    age_s = max(0.0, (part.host.clock.wall_ns() - record.since_ns) / 1e9)
    file = LocalFile(record.inode, FileState.SEALED, record.version, path, size_bytes=status.st_size)
    file.held_bytes = status.st_blocks * 512
    file.staged_since_s = now_s - age_s
    file.drain_not_before_s = now_s
    tier.room.staged(file)
    return file


def _sort_copies(tier: Tier, found: Mapping[InodeId, Sequence[int]]) -> tuple[int, int]:
    """Keep the copies that are some content and can be trusted; (kept, removed)."""
    part = tier.part
    kept = removed = 0
    for inodes in in_batches(found):
        valid = part.metadata.versions(inodes) if part.directory.same_boot else {}
        for inode in inodes:
            for version in found[inode]:
                path = part.directory.content(inode, version)
                if valid.get(inode) == version:
                    tier.adopt_resident(inode, version, part.host.files.stat_path(path).st_blocks * 512)
                    kept += 1
                else:
                    part.host.files.unlink(path)
                    removed += 1
    return kept, removed
