"""Recovery: after a crash, exactly what was acknowledged.

The metadata names what exists on this SSD only (`Metadata.staged`). For each such content, the local file is there under
that version; or under an earlier one, when the crash came between the record and the renaming; or not at all, when
nothing was ever acknowledged, or the SSD lost it: then the last stored content is the content (a size of 0 means nothing
here, for that of an open file is not published). Everything else in the directory is a copy: kept if the machine has
been up since (its bytes are then certainly whole), deleted otherwise.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tieredfs.cache.layout import LocalName
from tieredfs.cache.local import LocalFile
from tieredfs.cache.tier import Tier
from tieredfs.core.file_life import FileState
from tieredfs.errors import NotFoundError
from tieredfs.model import InodeId, StagedRecord

_log: Final = logging.getLogger("tieredfs.cache.recover")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery found. `rolled_back`: staged contents whose local file is gone; the last stored content is valid again."""

    staged: int
    rolled_back: tuple[InodeId, ...]
    copies_kept: int
    files_removed: int


def recover(tier: Tier) -> Recovered:
    """Bring the tier's tables and the directory in line with the metadata. Before anybody uses the tier."""
    part = tier.part
    part.directory.clear_filling()
    found: dict[InodeId, list[int]] = {}
    for name in part.directory.contents():
        found.setdefault(name.inode, []).append(name.version)
    rolled_back: list[InodeId] = []
    staged = 0
    for record in tier.staged_records():
        versions = found.pop(record.inode, [])
        if _adopt_staged(tier, record, versions):
            staged += 1
        else:
            rolled_back.append(record.inode)
    kept, removed = _sort_copies(tier, found)
    tier.adopt_pins(part.directory.load_pins())
    if rolled_back:
        _log.warning(
            "%d staged file(s) were not on the SSD any more and are back at their last stored content", len(rolled_back)
        )
    return Recovered(staged, tuple(rolled_back), kept, removed)


def _adopt_staged(tier: Tier, record: StagedRecord, versions: Sequence[int]) -> bool:
    """Make a SEALED entry of a staged content; False when there is no local file for it and it was rolled back."""
    part = tier.part
    try:
        attributes = part.metadata.attributes(record.inode)
    except NotFoundError:
        return True  # deleted, and the record with it, since the list was made
    path = part.directory.content(record.inode, record.version)
    usable = [version for version in versions if version <= record.version]
    for version in versions:
        if not usable or version != max(usable):
            part.host.files.unlink(part.directory.content(record.inode, version))
    if usable:
        if max(usable) != record.version:
            part.host.files.rename(part.directory.content(record.inode, max(usable)), path)
    elif attributes.size_bytes == 0 and not part.metadata.extents(record.inode):
        part.host.files.save(path, b"")
    else:
        part.metadata.abandon_write(record.inode, record.version)
        return False
    tier.adopt(_sealed(tier, record, path))
    return True


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
    """Keep the newest copy of each inode if copies can be trusted; (kept, removed)."""
    part = tier.part
    kept = removed = 0
    for inode, versions in found.items():
        newest = max(versions)
        for version in versions:
            name = LocalName(inode, version)
            path = part.directory.content(name.inode, name.version)
            if part.directory.same_boot and version == newest:
                tier.adopt_resident(inode, version, part.host.files.stat_path(path).st_blocks * 512)
                kept += 1
            else:
                part.host.files.unlink(path)
                removed += 1
    return kept, removed
