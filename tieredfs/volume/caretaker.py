"""The caretaker: a mount collects garbage by itself, now and then.

Sessions of dead processes end, blocks that nobody refers to are deleted after their grace, chunks that nobody names are
removed. Several mounts of one volume may do so at once; each waits a random while longer, so that they mostly do not.
"""

import logging
import threading
from typing import Final

from tieredfs.errors import TieredError, WaitInterruptedError
from tieredfs.limits import CARE_FIRST_S, CARE_INTERVAL_S
from tieredfs.volume.volume import Volume

_log: Final = logging.getLogger("tieredfs.volume.caretaker")


class Caretaker:
    """One thread per mount."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait_s = CARE_FIRST_S
        while not self._closing.wait(wait_s * (1 + self._volume.host.random.random() / 2)):
            wait_s = CARE_INTERVAL_S
            try:
                report = self._volume.collect_garbage(self._progress)
            except WaitInterruptedError:
                return
            except TieredError as error:
                _log.warning("no garbage was collected this time: %s", error)
            else:
                _log.info("garbage: %d dead blocks, %d stray chunks", report.blocks_deleted, report.chunks_deleted)

    def _progress(self, _done: int, _total: int, _unit: str) -> None:
        """Ends a collection that is under way when the mount closes."""
        if self._closing.is_set():
            raise WaitInterruptedError("the mount is closing")
