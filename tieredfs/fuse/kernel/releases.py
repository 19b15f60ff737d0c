"""Releases that wait until nobody else does.

A program that reads one file after another closes one and opens the next in a breath, so a RELEASE and an OPEN lie in the
queue together. Nobody waits for the RELEASE, the program waits for the OPEN; and while it reads, or waits for its disk, the
daemon has nothing to do. So the release of a file that was only read is put off until there is no other request. Only
what it cannot matter to passes it: names, attributes, and opens of other files. Whatever else comes finds it carried out, as
the kernel's order says.

What is put off is not answered, so the kernel sends it to the next daemon if this one dies before.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from tieredfs.fuse.kernel.wire import Op

LATE_MAX: Final = 8
"""Releases that are put off at most: where requests never end, the oldest is carried out for each new one."""
_PASSING: Final = frozenset(int(op) for op in (Op.LOOKUP, Op.GETATTR))
"""Closing what was only read changes neither names nor attributes."""
_OPEN: Final = int(Op.OPEN)


class Late(NamedTuple):
    """A RELEASE: the kernel's number of it, the inode, and the handle that is closed."""

    unique: int
    inode: int
    handle: int


class Releases:
    """Of one mount. Safe from any thread: who is relieved as leader may still be looking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late: deque[Late] = deque()

    def put_off(self, release: Late) -> None:
        with self._lock:
            self._late.append(release)

    def before(self, opcode: int, inode: int) -> Sequence[Late]:
        """What must be carried out before a request: it is taken out, and the caller's to do."""
        if not self._late:
            return ()
        with self._lock:
            if opcode in _PASSING or (opcode == _OPEN and all(late.inode != inode for late in self._late)):
                return (self._late.popleft(),) if len(self._late) > LATE_MAX else ()
            due = tuple(self._late)
            self._late.clear()
            return due

    def next(self) -> Late | None:
        """The oldest: nobody waits for anything else."""
        try:
            return self._late.popleft()
        except IndexError:
            return None
