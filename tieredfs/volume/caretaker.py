"""The caretaker: what nobody asks for and somebody must do.

Every process that has a volume open for longer has one: a mount's daemon, a server, a rank of a training. One of each machine is at
work, whichever took the turn; when it ends, another does. It looks for SSD directories of this host whose process is
gone, and stores what they left staged. Now and then, in a process of its own, it collects garbage (sessions of dead processes end,
blocks that nobody refers to are deleted after their grace, chunks that nobody names are removed), and when the newest
dump of the metadata on the volume's disks is `DUMP_INTERVAL_S` old, it has another one made. Where the environment says so, one
process beside it serves what is staged on this host to others (`tieredfs.volume.peer_keeper`).
"""

import logging
import os
import threading
from typing import Final

from tieredfs.errors import TieredError, WaitInterruptedError
from tieredfs.host.turn import Turn
from tieredfs.limits import ABANDONED_LOOK_S, BACKPRESSURE_WAIT_S, CARE_FIRST_S, CARE_INTERVAL_S, DUMP_INTERVAL_S
from tieredfs.model import CacheId
from tieredfs.volume import care_process
from tieredfs.volume.care_process import DUMP, GARBAGE
from tieredfs.volume.peer_keeper import PeerKeeper
from tieredfs.volume.places import slots_directory
from tieredfs.volume.ssd import drain_abandoned
from tieredfs.volume.volume import Volume

_log: Final = logging.getLogger("tieredfs.volume.caretaker")
_TURN_NAME: Final = "care"


class Caretaker:
    """One thread per process and volume."""

    def __init__(self, volume: Volume, own: CacheId) -> None:
        """`own`: the cache of this process, which needs no care."""
        self._volume = volume
        self._own = own
        self._peer_keeper = PeerKeeper(volume)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)
        self._garbage_due_s = self._dump_due_s = volume.host.clock.monotonic_s() + CARE_FIRST_S * self._jitter()

    def start(self) -> None:
        self._thread.start()
        self._peer_keeper.start()

    def close(self) -> None:
        self._closing.set()
        self._peer_keeper.close()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        turn: Turn | None = None
        while not self._closing.wait(ABANDONED_LOOK_S * self._jitter()):
            try:
                turn = turn or self._new_turn()
                if turn.take():
                    self._care()
            except WaitInterruptedError:
                break
            except (TieredError, OSError) as error:
                _log.warning("some care was left for the next time: %s", error)
        if turn is not None:
            turn.close()

    def _new_turn(self) -> Turn:
        directory = slots_directory(self._volume.meta_url, self._volume.config.uuid)
        self._volume.host.files.make_directory(directory)
        return Turn(os.path.join(directory, _TURN_NAME))

    def _care(self) -> None:
        drain_abandoned(self._volume, self._progress, BACKPRESSURE_WAIT_S, self._own)
        jobs = []
        now_s = self._volume.host.clock.monotonic_s()
        if now_s >= self._garbage_due_s:
            self._garbage_due_s = now_s + CARE_INTERVAL_S * self._jitter()
            jobs.append(GARBAGE)
        if now_s >= self._dump_due_s:
            wanted = self._wants_dump()
            self._dump_due_s = now_s + (CARE_INTERVAL_S if wanted else CARE_FIRST_S) * self._jitter()
            if wanted:
                jobs.append(DUMP)
        if jobs:
            care_process.run(self._volume.meta_url, jobs, self._closing)

    def _wants_dump(self) -> bool:
        if not self._volume.takes_dumps():
            return False
        newest = self._volume.metadata_dump()
        return newest is None or newest.age_s >= DUMP_INTERVAL_S

    def _jitter(self) -> float:
        return 1 + self._volume.host.random.random() / 2

    def _progress(self, _done: int, _total: int, _unit: str) -> None:
        """Ends a drain that is under way when the process closes the volume."""
        if self._closing.is_set():
            raise WaitInterruptedError("the volume is closing")
