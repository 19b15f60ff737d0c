"""How long a read of several chunks waits for the ones that have not answered. Pure.

A block can be read from any k of its chunks, so a disk that is slow need not be waited for: what it has is decoded from
the others. How slow is too slow is told by its siblings, which were asked at the same moment: once some have answered,
the rest may take `sibling_s` more, and each further answer gives them that again. Before any has answered the machine is
busy, or the read is of one chunk only: `first_s`. And where the others do not suffice there is nothing but to wait: `last_s`.
"""

from dataclasses import dataclass

from tieredfs.limits import CHUNK_STALL_S, READ_FIRST_S, READ_SIBLING_S


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without an answer after which the chunks that are still awaited are left behind."""

    sibling_s: float = READ_SIBLING_S
    first_s: float = READ_FIRST_S
    last_s: float = CHUNK_STALL_S

    def with_(self, *, answered: int, awaited: int, spare: int) -> float:
        """`answered`: siblings that have come; `awaited`: those that have not; `spare`: chunks that the read can do without."""
        if awaited > spare:
            return self.last_s
        return self.sibling_s if answered else self.first_s
