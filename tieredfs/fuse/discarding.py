"""Removing through a mount a tree that was replaced behind its back.

A program may have files of that tree open. A mount knows them, so what it removes stays readable and writable for them, as
unlink(2) has it; what is removed in the metadata alone is gone for everybody.
"""

import os
import shutil
import time
from collections.abc import Callable
from typing import Final

_POLL_S: Final = 0.02
_WAIT_S: Final = 5.0


def discard_through(mount_point: bytes, target: bytes) -> Callable[[bytes], None]:
    """What removes a tree that `target` showed before, both by their paths from the root of the volume. It begins when the mount
    shows something else there, after 5 s at the latest: who looks a file up by the old name must not meet a tree that is half
    removed. What cannot be removed stays."""

    def discard(path: bytes) -> None:
        old, new = os.path.join(mount_point, path), os.path.join(mount_point, target)
        deadline_s = time.monotonic() + _WAIT_S
        while _is_same(old, new) is not False and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        shutil.rmtree(old, ignore_errors=True)

    return discard


def _is_same(old: bytes, new: bytes) -> bool | None:
    """None: one of them is not seen yet."""
    try:
        return os.lstat(old).st_ino == os.lstat(new).st_ino
    except OSError:
        return None
