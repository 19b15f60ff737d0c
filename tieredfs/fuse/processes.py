"""Who a thread belongs to: the kernel names the thread that made a request, people know processes by their command."""

import contextlib
from dataclasses import dataclass
from typing import Final

COMMAND_LENGTH_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Process:
    """`number`: its id; 0 for the kernel, and for all that ended before they were looked at."""

    number: int
    command: str


KERNEL: Final = Process(0, "(kernel)")
"""It writes pages back, and closes what programs let go of."""
ENDED: Final = Process(0, "(ended)")


def process_of(thread: int) -> Process:
    """The process of a thread (proc_pid_status(5), `Tgid`), and what it was started as."""
    if not thread:
        return KERNEL
    try:
        with open(f"/proc/{thread}/status") as status:
            group = next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))
        with open(f"/proc/{group}/cmdline", "rb") as file:
            words = file.read(4 * COMMAND_LENGTH_MAX).split(b"\0")
    except (OSError, StopIteration, ValueError):
        return ENDED
    command = b" ".join(word for word in words if word).decode("utf-8", "replace") or _name_of(group)
    if not command:
        return ENDED
    return Process(group, command if len(command) <= COMMAND_LENGTH_MAX else f"{command[: COMMAND_LENGTH_MAX - 1]}…")


def _name_of(process: int) -> str:
    """Of one without a command line: a thread of the kernel, or one that is ending; empty when it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/comm") as file:
        return f"({file.read().strip()})"
    return ""
