"""Time as an argument. Wall time is for records; monotonic time is for waiting and for measuring.

**Wall time is the time of inodes**, for what the kernel stamps on this machine (a content, by its local file) is compared with
what is stamped here (a name, an attribute): by make(1), by rsync, and by a volume's own "which is later". The kernel stamps by
its last tick, 1 to 10 ms ago. Since Linux 6.13 it does so only while nobody has looked at the inode since; else it takes the true
time, and nothing that it stamps afterwards is earlier (`Documentation/filesystems/multigrain-ts.rst`). So the true time would be
ahead of what is written next, and the tick (CLOCK_REALTIME_COARSE) behind what was written before. Only an inode tells what the
next inode gets: a file in memory is touched, and asked. That takes 2.5 us of processor time in a loop (time.time_ns(): 0.1), and
more where the processor did something else before: a directory made in the metadata takes 10 to 19 us more, of 156 to 184.
"""

import fcntl
import os
import time
from typing import Final, Protocol

_OURS: Final = "the file in memory"
_descriptors: Final[dict[str, int]] = {}


class Clock(Protocol):
    """Safe from any thread. `monotonic_s` never goes back; `wall_ns` may."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for times at rest. What comes later on this machine has the same time or a later one, whoever
        stamps it, this clock or the kernel; two calls may well have the same."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start, for deadlines."""
        ...

    def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The kernel's clocks."""

    def wall_ns(self) -> int:
        try:
            descriptor = _file_in_memory()
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime_ns
        except (AttributeError, OSError):  # no such files here (macOS), or no descriptor left
            return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)


def _file_in_memory() -> int:
    """One for a process and what it forks, made when it is first wanted, and again when somebody has closed it, as daemons close
    all that is open. Without a lock, which a fork could find taken. Raises OSError, AttributeError."""
    ours = _descriptors.get(_OURS)
    if ours is not None:
        if _is_sealed(ours):
            return ours
        _descriptors.pop(_OURS, None)
    made = os.memfd_create("tieredfs-clock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, _seals())
    ours = _descriptors.setdefault(_OURS, made)
    if ours != made:
        os.close(made)
    return ours


def _is_sealed(descriptor: int) -> bool:
    """Nobody's file but one in memory is, should the number be another file's by now. To compare inodes takes 2.5 us, this 0.3."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _seals() == _seals()  # the system may add some
    except OSError:
        return False


def _seals() -> int:
    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
