"""The life of one file on one SSD, as a table.

A content is *dirty* while the SSD has what the store has not (STAGING, SEALED, DRAINING), and *clean* when the store has
it too. Only a clean content without handles is evicted. Whoever opens for writing makes the content dirty under a new
version, and a drain commits only the version that it read: so a drain that is overtaken by a writer changes nothing.

    ABSENT --fill--> FILLING --whole--> RESIDENT --evict--> ABSENT
       \\__ write ______|__________________/ | ^
        v              v                     | | idle
      STAGING --seal--> SEALED --drain--> DRAINING --commit--> STORED
         ^________________________________|  (a writer came: the drain is void)

A small content may come into being SEALED, in a segment with others instead of a file of its own. Where the bytes lie is no state:
it goes the same ways, but is evicted as soon as it is stored, for a place among others is no copy. Who opens it for writing
has it taken out into a file first.

`next_state` is the only way from one state to another; a pair that is not in the table is a bug of ours.
"""

import enum
from typing import Final


class FileState(enum.Enum):
    """Where the bytes of one content are, seen from one SSD."""

    ABSENT = "evicted"
    """Not on this SSD."""
    FILLING = "filling"
    """Being fetched from the store; readers wait for the part that they want."""
    STAGING = "staging"
    """On this SSD only, and open for writing."""
    SEALED = "sealed"
    """On this SSD only, closed; waits for its drain."""
    DRAINING = "draining"
    """Being written to the store."""
    STORED = "stored"
    """In the store, on all disks that take chunks, and here, with handles open."""
    RESIDENT = "resident"
    """In the store, and here as a copy that may be evicted."""
    DISCARDED = "discarded"
    """The file was deleted; what is left here is unlinked with the last handle."""

    __hash__ = object.__hash__  # members are unique; Enum's own is Python code, 0.3 us a look at a table


class FileEvent(enum.Enum):
    """What happens to a content."""

    WRITTEN_WHOLE = "written whole, among others"
    FILL_BEGUN = "fill begun"
    FILL_WHOLE = "fill whole"
    FILL_FAILED = "fill failed"
    WRITE_BEGUN = "write begun"
    WRITERS_GONE = "writers gone"
    UNCHANGED = "nothing was written"
    DRAIN_BEGUN = "drain begun"
    DRAIN_COMMITTED = "drain committed"
    DRAIN_FAILED = "drain failed"
    IDLE = "last handle closed"
    READ_BEGUN = "read begun"
    EVICTED = "evicted"
    DELETED = "deleted"

    __hash__ = object.__hash__


_S, _E = FileState, FileEvent

TRANSITIONS: Final[dict[tuple[FileState, FileEvent], FileState]] = {
    (_S.ABSENT, _E.FILL_BEGUN): _S.FILLING,
    (_S.ABSENT, _E.WRITE_BEGUN): _S.STAGING,
    (_S.ABSENT, _E.WRITTEN_WHOLE): _S.SEALED,
    (_S.ABSENT, _E.EVICTED): _S.ABSENT,
    (_S.FILLING, _E.FILL_WHOLE): _S.STORED,
    (_S.FILLING, _E.FILL_FAILED): _S.ABSENT,
    (_S.STAGING, _E.WRITE_BEGUN): _S.STAGING,
    (_S.STAGING, _E.WRITERS_GONE): _S.SEALED,
    (_S.STAGING, _E.UNCHANGED): _S.STORED,
    (_S.SEALED, _E.WRITE_BEGUN): _S.STAGING,
    (_S.SEALED, _E.UNCHANGED): _S.STORED,
    (_S.SEALED, _E.DRAIN_BEGUN): _S.DRAINING,
    (_S.DRAINING, _E.WRITE_BEGUN): _S.STAGING,
    (_S.DRAINING, _E.DRAIN_COMMITTED): _S.STORED,
    (_S.DRAINING, _E.DRAIN_FAILED): _S.SEALED,
    (_S.STORED, _E.WRITE_BEGUN): _S.STAGING,
    (_S.STORED, _E.IDLE): _S.RESIDENT,
    (_S.STORED, _E.READ_BEGUN): _S.STORED,
    (_S.RESIDENT, _E.READ_BEGUN): _S.STORED,
    (_S.RESIDENT, _E.WRITE_BEGUN): _S.STAGING,
    (_S.RESIDENT, _E.EVICTED): _S.ABSENT,
    **{(state, _E.DELETED): _S.DISCARDED for state in FileState},
}

DIRTY: Final = frozenset({_S.STAGING, _S.SEALED, _S.DRAINING})
"""The SSD has what the store has not."""

WHOLE: Final = DIRTY | {_S.STORED, _S.RESIDENT}
"""Every byte of the content is in the local file."""


def next_state(state: FileState, event: FileEvent) -> FileState:
    """The state after `event`."""
    following = TRANSITIONS.get((state, event))
    assert following is not None, f"a content that is {state.value} cannot see {event.value!r}"
    return following
