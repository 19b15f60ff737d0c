"""Crash points: named places where a test ends the process as a power cut or SIGKILL would.

`CRASHES.md` has one row per point, and a test holds the two together and kills a real process at each. In production
`here` is one comparison with None.
"""

import os
import signal
from typing import Final

ENVIRONMENT: Final = "TIEREDFS_CRASH_AT"
"""`NAME` or `NAME:N`: kill this process at the N-th (from 1) arrival at the point."""

POINTS: Final = (
    "chunk.written",
    "chunk.published",
    "block.chunks-written",
    "create.committed",
    "create.file-made",
    "write.marked",
    "write.moved",
    "flush.published",
    "sync.data-durable",
    "seal.done",
    "drain.begun",
    "drain.block-written",
    "drain.committed",
    "fill.part-written",
    "fill.whole",
    "evict.begun",
    "unlink.committed",
    "rename.committed",
    "rebuild.chunk-written",
    "rebuild.committed",
    "gc.chunks-removed",
)
"""In the order of a file's life. A new call of `here` needs a name here and a row in `CRASHES.md`."""


def _parse(setting: str | None) -> tuple[str, int] | None:
    if not setting:
        return None
    name, _, count = setting.partition(":")
    if name not in POINTS:
        raise ValueError(f"{ENVIRONMENT}={setting!r}: no such crash point; one of {', '.join(POINTS)}")
    return name, int(count or 1)


_armed = _parse(os.environ.get(ENVIRONMENT))
_arrivals = 0


def here(point: str) -> None:
    """Die at `point` if it is armed; otherwise nothing."""
    if _armed is None:
        return
    global _arrivals  # noqa: PLW0603 - one count per process, and the process is about to die
    if point == _armed[0]:
        _arrivals += 1
        if _arrivals >= _armed[1]:
            os.kill(os.getpid(), signal.SIGKILL)
