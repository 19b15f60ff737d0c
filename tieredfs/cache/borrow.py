"""Reading a content where it is staged: in the cache directory of another mount of this host.

Close-to-open between mounts needs no waiting for the drain: who opens a file after its writer closed it, and before it is
stored, reads the writer's local file.
"""

import os

from tieredfs.cache.layout import content_path
from tieredfs.errors import UnavailableError
from tieredfs.host import Host
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Attributes


def borrow(metadata: Metadata, host: Host, attributes: Attributes) -> int:
    """A descriptor of the staged file, for reading. Raises UnavailableError when it is on another host, or just moved."""
    record = next((record for record in metadata.caches() if record.cache == attributes.staged_in), None)
    if record is None or record.host != host.name:
        raise UnavailableError("the file is staged on another host and is not stored yet")
    try:
        return host.files.open(content_path(record.path, attributes.inode, attributes.version), os.O_RDONLY)
    except FileNotFoundError:
        raise UnavailableError("the staged file has just moved to the store: try again") from None
