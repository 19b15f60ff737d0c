"""Setuid, setgid and file capabilities: what goes when somebody changes a file. The kernel leaves it to a file system that
agreed to it (the `kernel` driver), and where libfuse 2 truncates within open (the `fuse-python` driver).

Setgid without group execute stays, whoever writes: since Linux 6.2 it goes where the caller is not of the file's group, but FUSE
tells one group of a caller only.
"""

import contextlib
from typing import Final

from tieredfs.errors import NoAttributeError
from tieredfs.fuse.operations import Operations
from tieredfs.model import AttributeChange, InodeId

_SETUID: Final = 0o4000
_SETGID: Final = 0o2000
_GROUP_EXECUTE: Final = 0o010
CAPABILITY: Final = b"security.capability"


def mode_without_privilege(mode: int) -> int:
    """`mode` after somebody wrote: no setuid, and no setgid where it means "run as the group" (with group execute)."""
    mode &= ~_SETUID
    return mode & ~_SETGID if mode & _GROUP_EXECUTE else mode


def drop_privilege(operations: Operations, inode: InodeId) -> None:
    """After a write or truncation by somebody who may not keep them."""
    attributes = operations.attributes(inode)
    mode = mode_without_privilege(attributes.mode)
    if mode != attributes.mode:
        operations.set_attributes(inode, AttributeChange(mode=mode), None, None)
    with contextlib.suppress(NoAttributeError):
        operations.remove_xattr(inode, CAPABILITY)
