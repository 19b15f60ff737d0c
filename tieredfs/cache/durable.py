"""`make_durable`: what `fsync` does to a content that is on this SSD only."""

import os

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
