"""`make_durable`: what `fsync` does to a content that is on this SSD only; and its halves, for many that get records together."""

import os
from collections.abc import Sequence

from tieredfs.cache.local import LocalFile
from tieredfs.cache.part import TierPart
from tieredfs.host import crash


def make_durable(part: TierPart, file: LocalFile) -> None:
    """Data, name and metadata survive a power cut when this returns. Through a reader's handle too: the caller has one.

    Data first, metadata last: so a staged record that survives names a local file that does.
    """
    if not file.dirty:
        return
    files = part.host.files
    with file.lock:
        descriptor = os.dup(file.descriptor)
        name_durable, metadata_durable, version = file.name_durable, file.metadata_durable, file.version
    try:
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    crash.here("sync.data-durable")
    if not name_durable:
        part.directory.make_name_durable(file.inode)
    if not metadata_durable:
        part.metadata.sync()
    with file.lock:
        if file.version == version:
            file.name_durable = file.metadata_durable = True


def make_data_durable(part: TierPart, file: LocalFile) -> None:
    """The first half, for a content without a record. The caller has its only handle."""
    part.host.files.sync(file.descriptor)
    crash.here("sync.data-durable")


def make_data_durable_together(part: TierPart, files: Sequence[LocalFile]) -> "list[OSError | None] | None":
    """`make_data_durable` of several: what each raised. None: that cannot be done here."""
    failures = part.host.files.sync_together([file.descriptor for file in files])
    if failures is not None:
        crash.here("sync.data-durable")
    return failures


def make_names_durable(part: TierPart, files: Sequence[LocalFile]) -> None:
    """The second, before their records are made: one sync for all that lie in one directory, where 256 files lie that were made
    one after another."""
    waiting: dict[str, list[LocalFile]] = {}
    for file in files:
        if not file.name_durable:
            waiting.setdefault(part.directory.content_directory(file.inode), []).append(file)
    for together in waiting.values():
        part.directory.make_name_durable(together[0].inode)
        for file in together:
            file.name_durable = True
