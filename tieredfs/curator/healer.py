"""The healer: blocks that were written while disks were away get the chunks that they lack, as soon as disks take them.

It runs wherever a drain runs, by itself. What is to be done is in the metadata (`tieredfs.meta.shortage`), so nothing is forgotten
when a process dies, and nothing is searched for. What can lose no more chunks comes first and is not held back; the rest takes
half of the time at most, so that drains and readers have the disks for the other half. One block at a time, in the memory of
the drain: a buffer of its pool.

One process of a machine heals at a time: the one that has the turn. That spares work, it keeps nothing right: a chunk
that is made anew counts when the block's record has come to name it, and the record takes one for each index
(`tieredfs.block.repair`), so any number of healers, repairs and rebuilds may meet at one block.

Disks that come back are noticed by their process (`Volume` looks with each heartbeat); the healer asks the block store once a
second which disks take chunks. While those are the ones with which the last pass could do nothing, there is no next one.
"""

import logging
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from tieredfs.curator import amends
from tieredfs.curator.holdings import Holdings
from tieredfs.errors import DataLossError, NotFoundError, TieredError
from tieredfs.host.turn import NamedTurn
from tieredfs.limits import CARE_BATCH, FINDINGS_MAX, HEAL_AGAIN_S, HEAL_LOOK_S, REPAIR_STOP_S
from tieredfs.meta import shortage
from tieredfs.model import Block, BlockId, DiskId, ShortBlock

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HealCounts:
    """Since the healer was made."""

    passes: int = 0
    """Times that the list was gone through."""
    healed_blocks: int = 0
    """Blocks that got chunks; one that got them in two passes counts twice."""
    healed_chunks: int = 0
    failed: int = 0
    """Times that a block could not get its chunks, though there were disks for them."""


class Healer:
    """One per process and volume. Safe from any thread."""

    def __init__(self, holdings: Holdings, volume_uuid: str) -> None:
        self._holdings = holdings
        self._uuid = volume_uuid
        self._clock = holdings.host.clock
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._counts = HealCounts()
        self._hopeless: set[BlockId] = set()
        self._in_vain: frozenset[DiskId] | None = None
        self._again_s = 0.0

    def start(self) -> None:
        """Repeating it is harmless: every SSD tier of a process asks for it."""
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="healer", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Waits for the block under way, `REPAIR_STOP_S` at most; the rest is in the metadata."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(REPAIR_STOP_S)

    def counts(self) -> HealCounts:
        return self._counts

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.wait(HEAL_LOOK_S):
            try:
                self.turn()
            except TieredError as error:
                _log.warning("healing was left for the next time: %s", error)

    def turn(self) -> None:
        """One look, and passes until one heals nothing. The thread does no more, again and again."""
        if not self._holdings.metadata.inspect(shortage.exists):
            return
        takers = self._holdings.blocks.takers()
        if takers == self._in_vain and self._clock.monotonic_s() < self._again_s:
            return
        turn = NamedTurn.take(f"tieredfs-heal-{self._uuid}")
        if turn is None:
            return
        try:
            while self._one_pass() and not self._closing.is_set():
                pass
        finally:
            turn.close()
        self._in_vain, self._again_s = takers, self._clock.monotonic_s() + HEAL_AGAIN_S

    def _one_pass(self) -> int:
        """Through the list, most urgent first; the number of blocks that got chunks. After a page of those it ends, for what
        was written meanwhile may be more urgent than the rest."""
        self._counts = replace(self._counts, passes=self._counts.passes + 1)
        healed, after = 0, None
        while page := self._holdings.metadata.inspect(partial(shortage.listed, after=after, limit=CARE_BATCH)):
            for short in page:
                if self._closing.is_set():
                    return healed
                healed += self._heal(short)
            if healed >= CARE_BATCH:
                break
            after = page[-1]
        return healed

    def _heal(self, short: ShortBlock) -> bool:
        """Whether the block got a chunk."""
        holdings, number = self._holdings, short.block
        block = holdings.find_block(number)
        if block is None or not block.missing:  # gone, or healed by somebody else, since it was listed
            amend = partial(amends.short, block=number, now_ns=self._clock.wall_ns())
            holdings.metadata.amend(amend)
            return False
        wanted = holdings.blocks.placeable(block)
        if not wanted:
            return False
        started_s = self._clock.monotonic_s()
        chunks = self._renew(block, wanted)
        self._counts = replace(
            self._counts,
            healed_blocks=self._counts.healed_blocks + (chunks > 0),
            healed_chunks=self._counts.healed_chunks + chunks,
            failed=self._counts.failed + (chunks == 0),
        )
        if short.spare > shortage.BARE:
            self._closing.wait(self._clock.monotonic_s() - started_s)
        return chunks > 0

    def _renew(self, block: Block, wanted: list[int]) -> int:
        """How many chunks the block got."""
        try:
            self._holdings.renew(block, wanted)
        except NotFoundError:
            return 0
        except DataLossError as error:
            self._tell_loss(block.block, error)
        except TieredError as error:
            _log.info("block %x cannot be healed now: %s", block.block, error)
        now = self._holdings.find_block(block.block)
        return 0 if now is None else max(0, len(block.missing) - len(now.missing))

    def _tell_loss(self, block: BlockId, error: DataLossError) -> None:
        """Once, though it is tried again whenever the disks change: what is lost may be found."""
        if block not in self._hopeless and len(self._hopeless) < FINDINGS_MAX:
            self._hopeless.add(block)
            _log.error("block %x lacks chunks and cannot be healed: %s", block, error)
