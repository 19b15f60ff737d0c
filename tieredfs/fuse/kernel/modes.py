"""How each open file does its I/O: a table of states per inode. Pure.

The kernel (Linux `fs/fuse/iomode.c`) keeps an I/O mode per inode and refuses an open that does not fit, which the
program would see as EIO. So the driver decides first, by the same rules:

- An inode with cached opens takes no passthrough open (ETXTBSY).
- An inode in passthrough takes only opens that name passthrough too, all with one backing file (EBUSY). FOPEN_DIRECT_IO
  beside FOPEN_PASSTHROUGH overrides it for reads and writes of that open: such an open is `VEILED` here: it names the
  inode's backing file to the kernel, but its bytes come through the daemon. Its memory maps show the inode's backing
  file.
- Plain direct opens fit beside cached ones. They never lead to passthrough: a shared memory map of a direct open puts
  the inode into cached mode without telling us (FUSE_DIRECT_IO_ALLOW_MMAP), so from there the next open is cached.

Page-cache pages belong to the inode, so opens of another backing file (content replaced below) are never cached
together.
"""

import enum
from typing import Final, NamedTuple


class Mode(enum.IntEnum):
    """Of one open file. In the hand-over table: never renumber."""

    CACHED = 1
    PASSTHROUGH = 2
    DIRECT = 3
    VEILED = 4


class State(enum.Enum):
    """Of one inode."""

    CLOSED = "closed"
    CACHED = "cached"
    PASSTHROUGH = "passthrough"
    DIRECT = "direct"

    __hash__ = object.__hash__  # members are unique; Enum's own is Python code, 0.3 us a look at a table


class Offered(enum.Enum):
    """A new open, seen from its inode: is its backing file the one that the inode's state is about, and is it whole?"""

    SAME_WHOLE = "same, whole"
    SAME_PART = "same, not whole"
    OTHER_WHOLE = "other, whole"
    OTHER_PART = "other, not whole"

    __hash__ = object.__hash__


OPENING: Final[dict[tuple[State, Offered], tuple[Mode, State]]] = {
    (State.CLOSED, Offered.SAME_WHOLE): (Mode.PASSTHROUGH, State.PASSTHROUGH),
    (State.CLOSED, Offered.SAME_PART): (Mode.CACHED, State.CACHED),
    (State.CACHED, Offered.SAME_WHOLE): (Mode.CACHED, State.CACHED),
    (State.CACHED, Offered.SAME_PART): (Mode.CACHED, State.CACHED),
    (State.CACHED, Offered.OTHER_WHOLE): (Mode.DIRECT, State.CACHED),
    (State.CACHED, Offered.OTHER_PART): (Mode.DIRECT, State.CACHED),
    (State.PASSTHROUGH, Offered.SAME_WHOLE): (Mode.PASSTHROUGH, State.PASSTHROUGH),
    (State.PASSTHROUGH, Offered.SAME_PART): (Mode.VEILED, State.PASSTHROUGH),
    (State.PASSTHROUGH, Offered.OTHER_WHOLE): (Mode.VEILED, State.PASSTHROUGH),
    (State.PASSTHROUGH, Offered.OTHER_PART): (Mode.VEILED, State.PASSTHROUGH),
    (State.DIRECT, Offered.SAME_WHOLE): (Mode.CACHED, State.CACHED),
    (State.DIRECT, Offered.SAME_PART): (Mode.CACHED, State.CACHED),
}
"""CLOSED and DIRECT are about no backing file, so every open is `SAME` to them."""

HOLDERS: Final[dict[State, frozenset[Mode]]] = {
    State.CLOSED: frozenset(),
    State.CACHED: frozenset({Mode.CACHED}),
    State.PASSTHROUGH: frozenset({Mode.PASSTHROUGH, Mode.VEILED}),
    State.DIRECT: frozenset({Mode.DIRECT}),
}
"""Which opens keep an inode in its state."""


class InodeModes(NamedTuple):
    """The opens of one inode. `backing` and `backing_id` count in CACHED and PASSTHROUGH, and in PASSTHROUGH."""

    state: State = State.CLOSED
    backing: int = 0
    backing_id: int = 0
    holders: int = 0
    """Opens that keep the state."""
    directs: int = 0
    """Plain direct opens beside a CACHED state; in DIRECT they are the holders."""


CLOSED: Final = InodeModes()


def offered(modes: InodeModes, backing: int, *, whole: bool) -> Offered:
    """How a new open of `backing` looks to an inode in `modes`."""
    same = modes.state in (State.CLOSED, State.DIRECT) or backing == modes.backing
    if same:
        return Offered.SAME_WHOLE if whole else Offered.SAME_PART
    return Offered.OTHER_WHOLE if whole else Offered.OTHER_PART


def mode_of_open(modes: InodeModes, backing: int, *, whole: bool) -> Mode:
    """The mode that a new open must take."""
    return OPENING[modes.state, offered(modes, backing, whole=whole)][0]


def after_open(modes: InodeModes, mode: Mode, backing: int, backing_id: int) -> InodeModes:
    """`modes` with one more open in `mode`, whether just decided or found in the hand-over table."""
    if mode is Mode.DIRECT:
        if modes.state in (State.CLOSED, State.DIRECT):
            return modes._replace(state=State.DIRECT, holders=modes.holders + 1)
        assert modes.state is State.CACHED
        return modes._replace(directs=modes.directs + 1)
    wanted = State.CACHED if mode is Mode.CACHED else State.PASSTHROUGH
    if modes.state is wanted:
        return modes._replace(holders=modes.holders + 1)
    if modes.state is State.DIRECT:
        assert wanted is State.CACHED
        return InodeModes(wanted, backing, 0, 1, modes.holders)
    assert modes.state is State.CLOSED
    return InodeModes(wanted, backing, backing_id, 1, 0)


def after_close(modes: InodeModes, mode: Mode) -> tuple[InodeModes, int]:
    """`modes` with one open in `mode` less, and the backing id to close now (0: none)."""
    if mode is Mode.DIRECT and modes.state is State.CACHED:
        assert modes.directs > 0
        return modes._replace(directs=modes.directs - 1), 0
    assert mode in HOLDERS[modes.state], f"{mode.name} open of an inode that is {modes.state.value}"
    if modes.holders > 1:
        return modes._replace(holders=modes.holders - 1), 0
    if modes.directs:
        return InodeModes(State.DIRECT, holders=modes.directs), 0
    return CLOSED, modes.backing_id
