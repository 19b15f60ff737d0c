"""Saying why something takes long: a wait that says nothing is taken for a hang.

What is in the way is asked of whoever works, from a thread, while the caller waits; nothing is said while all goes well.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tieredfs.cli.backend import Backend
from tieredfs.cli.wording import printable
from tieredfs.errors import TieredError

FIRST_LOOK_S: Final = 3.0
"""A drain that fails tries again after two seconds: what is still in the way then is worth a line."""
LOOK_EVERY_S: Final = 2.0


@contextmanager
def saying_why(reason: Callable[[], str | None]) -> Iterator[None]:
    """While the block runs, a line on standard error for each new reason, the first one after `FIRST_LOOK_S`."""
    done = threading.Event()
    thread = threading.Thread(target=_say, args=(reason, done), name="saying-why", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _say(reason: Callable[[], str | None], done: threading.Event) -> None:
    said, pause_s = None, FIRST_LOOK_S
    while not done.wait(pause_s):
        pause_s = LOOK_EVERY_S
        try:
            found = reason()
        except TieredError:  # the call that is waited for says it better
            continue
        if found is not None and found != said and not done.is_set():
            said = found
            sys.stderr.write(f"still waiting: {printable(found)}\n")
            sys.stderr.flush()


def drain_reason(backend: Backend, mount_id: str) -> Callable[[], str | None]:
    """What is in the way of the oldest content that a mount could not store."""

    def ask() -> str | None:
        answer = backend.ask(mount_id, "status", {}, lambda _done, _total, _unit: None)
        drain = answer.get("drain") if isinstance(answer, dict) else None
        error = drain.get("last_error") if isinstance(drain, dict) else None
        return error if isinstance(error, str) else None

    return ask
