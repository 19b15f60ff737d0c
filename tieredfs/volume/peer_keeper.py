"""Who starts the process that serves what is staged on this host to other hosts (`tieredfs.volume.peering`).

`TIEREDFS_PEER_LISTEN` in the environment of the processes that have the volume open for longer (mounts, servers, ranks) says that
there is to be one: then whoever of them takes the turn starts it, and starts it again when it ends.
"""

import os
import subprocess
import sys
import threading
from typing import Final

from tieredfs.cache.peers import LISTEN_VARIABLE
from tieredfs.host.turn import Turn
from tieredfs.volume.places import slots_directory
from tieredfs.volume.volume import Volume

_TURN_NAME: Final = "peer"
_LOOK_S: Final = 0.5
_END_S: Final = 5.0
_PAUSE_FIRST_S: Final = 1.0
_PAUSE_LAST_S: Final = 60.0


class PeerKeeper:
    """Keeps a process serving while this one lives, if the environment says so and no other process of the machine does."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peer-keeper", daemon=True)

    def start(self) -> None:
        if os.environ.get(LISTEN_VARIABLE):
            self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        directory = slots_directory(self._volume.meta_url, self._volume.config.uuid)
        self._volume.host.files.make_directory(directory)
        turn = Turn(os.path.join(directory, _TURN_NAME))
        try:
            while not turn.take():
                if self._closing.wait(_LOOK_S):
                    return
            self._keep_one()
        finally:
            turn.close()

    def _keep_one(self) -> None:
        pause_s = _PAUSE_FIRST_S
        while not self._closing.is_set():
            started_s = self._volume.host.clock.monotonic_s()
            self._serve()
            if self._volume.host.clock.monotonic_s() - started_s > _PAUSE_LAST_S:
                pause_s = _PAUSE_FIRST_S
            self._closing.wait(pause_s)
            pause_s = min(_PAUSE_LAST_S, 2 * pause_s)

    def _serve(self) -> None:
        """Until it ends, or we do. It says on our stderr why it cannot."""
        command = [sys.executable, "-m", "tieredfs.volume.peer_process", self._volume.meta_url, str(os.getpid())]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
            while child.poll() is None and not self._closing.wait(_LOOK_S):
                continue
            child.terminate()  # of one that has ended: nothing
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:  # it was stopped, perhaps; it holds nothing that must be kept
                child.kill()
