"""The command line. `main` is the console script.

What it needs is imported when it runs, so that an interrupt from the keyboard in that half second ends it like any other:
130, and no traceback.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tieredfs.cli.backend import Backend

__all__ = ["INTERRUPTED", "main"]

INTERRUPTED: Final = 130
"""What a shell sees of a command that was interrupted from the keyboard."""


def main(arguments: Sequence[str] | None = None, backend: "Backend | None" = None) -> int:
    """Run one command and return its exit code. `backend`: another than the real one, for tests."""
    try:
        _open_closed_streams()
        from tieredfs.cli.app import run

        return run(arguments, backend)
    except KeyboardInterrupt:
        sys.stderr.write("tieredfs: interrupted\n")
        return INTERRUPTED


def _open_closed_streams() -> None:
    """A program that was started with a closed standard output or error (`>&-`, some daemons) has None there."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the run
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
