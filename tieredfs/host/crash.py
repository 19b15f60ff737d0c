"""Crash points: named places where a test ends the process as a power cut or SIGKILL would.

`CRASHES.md` has one row per point, and a test holds the two together and kills a real process at each. In production
`here` is two comparisons with None.
"""

import os
import signal
from typing import Final

ENVIRONMENT: Final = "TIEREDFS_CRASH_AT"
"""`NAME` or `NAME:N`: kill this process at the N-th (from 1) arrival at the point."""
TOKENS: Final = "TIEREDFS_CRASH_TOKENS"
"""A directory. Who arrives at a point and can remove the file of that name there dies: once per file, so that the
daemon's successor, which inherits the environment, lives. The file `NAME.all` ends the whole process group, the keeper
too, which is what the death of a machine looks like to processes."""

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
    "pack.written",
    "unpack.done",
    "place.committed",
    "link.committed",
    "remove.committed",
    "drain.begun",
    "drain.block-written",
    "drain.committed",
    "fill.part-written",
    "fill.whole",
    "evict.begun",
    "unlink.committed",
    "rename.committed",
    "clone.built",
    "snapshot.built",
    "snapshot.named",
    "snapshot.unnamed",
    "restore.swapped",
    "rebuild.chunk-written",
    "rebuild.committed",
    "gc.chunks-removed",
    "dump.written",
    "load.filled",
    "load.given",
    "checkpoint.begun",
    "checkpoint.rank-arrived",
    "checkpoint.gathered",
    "checkpoint.planned",
    "checkpoint.host-gathered",
    "checkpoint.files-made",
    "checkpoint.part-written",
    "checkpoint.packed-headed",
    "checkpoint.rank-stored",
    "checkpoint.host-stored",
    "checkpoint.stored",
    "checkpoint.manifest-written",
    "checkpoint.committed",
    "checkpoint.trashed",
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
_tokens = os.environ.get(TOKENS) or None
_arrivals = 0


def here(point: str) -> None:
    """Die at `point` if it is armed; otherwise nothing."""
    if _armed is not None:
        global _arrivals  # noqa: PLW0603 - one count per process, and the process is about to die
        if point == _armed[0]:
            _arrivals += 1
            if _arrivals >= _armed[1]:
                os.kill(os.getpid(), signal.SIGKILL)
    if _tokens is not None:
        if _take(f"{_tokens}/{point}.all"):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        if _take(f"{_tokens}/{point}"):
            os.kill(os.getpid(), signal.SIGKILL)


def _take(token: str) -> bool:
    """Whether this process, and nobody else, removed the file."""
    try:
        os.unlink(token)
    except FileNotFoundError:
        return False
    return True
