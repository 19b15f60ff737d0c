"""A temporary directory that is gone afterwards, together with what was started in it."""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def workspace(parent: Path, prefix: str, keep: bool = False) -> Iterator[tuple[Path, contextlib.ExitStack]]:
    """A new directory below `parent`, and a stack of what must be stopped before it is removed (or kept).

    SIGTERM ends a run as Ctrl-C does. Once the clean-up has begun a second Ctrl-C waits for it, because an abandoned
    mount is worse than a moment of patience. Main thread only.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
    stack = contextlib.ExitStack()
    try:
        yield directory, stack
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            stack.close()
        finally:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
