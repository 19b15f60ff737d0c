"""The background repairer: damage that readers meet is repaired soon after, while they go on around it.

`BlockStore` tells of each chunk that it found missing or rotten (`note`, which returns at once); a thread repairs block
after block. One at a time: repair competes with readers for the same disks. What cannot be repaired now (a disk is
away, the store is full) is tried again after pauses that double, then dropped: the next read or check finds it again, so
the queue may forget, and it does not survive the process.

    repairer = Repairer(host)
    blocks = BlockStore(..., on_damage=repairer.note)
    repairer.start(Holdings(metadata, blocks, stores, session, host))
"""

import logging
import threading
from dataclasses import replace
from typing import Final

from tieredfs.core.care import Ailment, RepairCounts, RepairQueue
from tieredfs.curator.holdings import Holdings
from tieredfs.errors import DataLossError, NotFoundError, TieredError
from tieredfs.host import Host
from tieredfs.limits import REPAIR_QUEUE_MAX, REPAIR_STOP_S
from tieredfs.model import Block, BlockId

_log = logging.getLogger(__name__)

_WAIT_MAX_S: Final = 60.0
"""The longest sleep between looks at the clock."""


class Repairer:
    """Safe from any thread. What is noted before `start` waits."""

    def __init__(self, host: Host) -> None:
        self._clock = host.clock
        self._changed = threading.Condition()
        self._queue = RepairQueue(REPAIR_QUEUE_MAX)
        self._counts = RepairCounts()
        self._under_repair: BlockId | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None

    def note(self, block: Block, index: int) -> None:
        """A chunk was found missing or rotten. Returns at once; which chunks are bad is found out when its turn comes."""
        del index
        with self._changed:
            added = None  # the repair under way reads the block, and so notes what it is about to mend
            if block.block != self._under_repair:
                added = self._queue.add(block.block, self._clock.monotonic_s())
            self._count(noted=1, merged=int(added is None), refused=int(added is False))
            if added:
                self._changed.notify_all()

    def start(self, holdings: Holdings) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(holdings,), name="repairer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for the repair under way, `REPAIR_STOP_S` at most; what waits is forgotten."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(REPAIR_STOP_S)

    def counts(self) -> RepairCounts:
        with self._changed:
            return self._counts

    def waiting(self) -> int:
        """Blocks in the queue, without the one that is being repaired."""
        with self._changed:
            return len(self._queue)

    def _count(self, **more: int) -> None:
        """The caller has the lock."""
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + by for name, by in more.items()})

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self, holdings: Holdings) -> None:
        while (taken := self._next()) is not None:
            number, attempts = taken
            outcome = _repair(holdings, number)
            with self._changed:
                self._under_repair = None
                if outcome == "failed":
                    again = self._queue.put_back(number, attempts + 1, self._clock.monotonic_s())
                    outcome = "retried" if again else "given_up"
                self._count(**{outcome: 1})

    def _next(self) -> tuple[BlockId, int] | None:
        """Waits for a block that is due; None: time to stop."""
        with self._changed:
            while not self._stopping:
                now_s = self._clock.monotonic_s()
                taken = self._queue.take(now_s)
                if taken is not None:
                    self._under_repair = taken[0]
                    return taken
                due_s = self._queue.next_due_s()
                self._changed.wait(_WAIT_MAX_S if due_s is None else min(max(due_s - now_s, 0.0), _WAIT_MAX_S))
            return None


def _repair(holdings: Holdings, number: BlockId) -> str:
    """The field of `RepairCounts` that it ends up in, or `failed`: to be tried again.

    Chunks on a disk that does not answer are left alone, as `tieredfs.curator.scrub` explains.
    """
    try:
        block, ailments = holdings.examine(holdings.metadata.block(number))
        holdings.renew(block, [index for index, ailment in ailments.items() if ailment is not Ailment.UNREACHABLE])
    except NotFoundError:
        return "gone"
    except DataLossError as error:
        _log.error("block %x is damaged beyond repair: %s", number, error)
        return "lost"
    except TieredError as error:
        _log.info("block %x cannot be repaired now: %s", number, error)
        return "failed"
    return "repaired"
