"""`set_times`: what utimensat(2) does to a content that is on this SSD only."""

import os

from tieredfs.cache.tier import Tier
from tieredfs.model import Attributes


def set_times(tier: Tier, attributes: Attributes) -> None:
    """The file was given these times: a staged local file must say the same, for it is asked when it is drained."""
    file = tier.find(attributes.inode)
    if file is None or not file.dirty:
        return
    with file.lock:
        if file.dirty and not (file.deleted and file.descriptor < 0):
            where = file.descriptor if file.descriptor >= 0 else file.path
            os.utime(where, ns=(attributes.atime_ns, attributes.mtime_ns))
            if file.published is not None:
                file.published = (file.published[0], attributes.mtime_ns)
