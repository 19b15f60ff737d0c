"""The caretaker of a mount: what nobody asks for and somebody must do.

Now and then it collects garbage: sessions of dead processes end, blocks that nobody refers to are deleted after their grace,
chunks that nobody names are removed. More often it looks for SSD directories of this host whose process is gone, and stores
what that left staged. And when the newest dump of the metadata on the volume's disks is `DUMP_INTERVAL_S` old, it has another one
made. Several mounts of one volume may do so at once; each waits a random while longer, so that they mostly do not.
"""

import logging
import threading
from typing import Final

from tieredfs.errors import TieredError, WaitInterruptedError
from tieredfs.limits import ABANDONED_LOOK_S, BACKPRESSURE_WAIT_S, CARE_FIRST_S, CARE_INTERVAL_S, DUMP_INTERVAL_S
from tieredfs.model import CacheId
from tieredfs.volume import dump_process
from tieredfs.volume.ssd import drain_abandoned
from tieredfs.volume.volume import Volume

_log: Final = logging.getLogger("tieredfs.volume.caretaker")


class Caretaker:
    """One thread per mount."""

    def __init__(self, volume: Volume, own: CacheId) -> None:
        """`own`: the cache of this mount, which needs no care."""
        self._volume = volume
        self._own = own
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        clock = self._volume.host.clock
        garbage_due_s = dump_due_s = clock.monotonic_s() + CARE_FIRST_S * self._jitter()
        while not self._closing.wait(ABANDONED_LOOK_S * self._jitter()):
            try:
                drain_abandoned(self._volume, self._progress, BACKPRESSURE_WAIT_S, self._own)
                if clock.monotonic_s() >= garbage_due_s:
                    garbage_due_s = clock.monotonic_s() + CARE_INTERVAL_S * self._jitter()
                    report = self._volume.collect_garbage(self._progress)
                    _log.info("garbage: %d dead blocks, %d stray chunks", report.blocks_deleted, report.chunks_deleted)
                if clock.monotonic_s() >= dump_due_s:
                    self._dump_if_old()
                    dump_due_s = clock.monotonic_s() + CARE_FIRST_S * self._jitter()
            except WaitInterruptedError:
                return
            except TieredError as error:
                _log.warning("some care was left for the next time: %s", error)

    def _dump_if_old(self) -> None:
        newest = self._volume.metadata_dump()
        if newest is None or newest.age_s >= DUMP_INTERVAL_S:
            dump_process.run(self._volume.meta_url, self._closing)

    def _jitter(self) -> float:
        return 1 + self._volume.host.random.random() / 2

    def _progress(self, _done: int, _total: int, _unit: str) -> None:
        """Ends a collection that is under way when the mount closes."""
        if self._closing.is_set():
            raise WaitInterruptedError("the mount is closing")
