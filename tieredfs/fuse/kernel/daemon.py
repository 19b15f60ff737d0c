"""The daemon's side of the keeper's protocol (`keeper.py`): what the main of a volume's daemon calls."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from tieredfs.errors import ConfigurationError, TieredError
from tieredfs.fuse.kernel.keeper import ENVIRONMENT, MESSAGE_BYTES_MAX, error_message
from tieredfs.fuse.kernel.ledger import Ledger
from tieredfs.fuse.kernel.session import Session, SessionOptions
from tieredfs.fuse.operations import Operations

_log: Final = logging.getLogger(__name__)
HAND_OVER_WAIT_S: Final = 60.0
"""How long the daemon waits for its keeper to mount."""

OpenOperations = Callable[[], AbstractContextManager[Operations]]


def serve_for_keeper(
    open_operations: OpenOperations,
    options: Callable[[], SessionOptions] = SessionOptions,
    observe: Callable[[Session, "Guard"], None] = lambda *_: None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Open the volume, serve the mount until it is gone, close the volume; returns the process's exit status.

    `open_operations` runs before anything is mounted (or, in a successor, while programs wait); a domain error or
    OSError from it reaches whoever started the keeper, as text. `options` is asked
    for when the volume is open. `observe` is given the session before it serves, and the guard;
    `on_ready` is called when INIT is being answered, or when every handle of an earlier daemon is bound again.
    """
    setting = os.environ.get(ENVIRONMENT)
    if setting is None:
        raise ConfigurationError(f"{ENVIRONMENT} is not set: this process is started by a mount's keeper")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(setting)) as channel:
        os.set_inheritable(channel.fileno(), False)
        try:
            with open_operations() as operations:
                device, memory, beat_s = _take_descriptors(channel)
                ledger = Ledger(memory)
                session = Session(operations, device, ledger, options())
                guard = Guard(channel, beat_s)
                observe(session, guard)

                def ready() -> None:
                    on_ready()
                    _say(channel, json.dumps({"say": "ready"}).encode())
                    guard.start()

                session.run(on_ready=ready)
                guard.close()
                ledger.close()
        except (TieredError, OSError) as error:
            _say(channel, error_message(error))
            return 1
    return 0


class Guard:
    """The keeper, seen from the daemon: it is told every `beat_s` that we live, and may itself have been killed."""

    def __init__(self, channel: socket.socket, beat_s: float) -> None:
        self._channel = channel
        self._beat_s = beat_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.lives = True
        """False: nobody would follow this daemon."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        self._channel.settimeout(self._beat_s)
        while not self._closing.wait(self._beat_s):
            try:
                self._channel.send(b'{"say": "alive"}')
            except TimeoutError:
                continue  # it lives, and does not listen just now
            except OSError:
                self.lives = False
                _log.warning("the keeper of this mount is gone: if this daemon dies too, so does the mount")
                return


def _take_descriptors(channel: socket.socket) -> tuple[int, int, float]:
    _say(channel, json.dumps({"say": "opened"}).encode())
    channel.settimeout(HAND_OVER_WAIT_S)
    message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, 2)
    if not message:
        raise ConnectionError("the keeper ended before it had mounted")
    said = json.loads(message)
    assert said["say"] == "serve"
    device, ledger = descriptors
    return device, ledger, float(said["beat_s"])


def _say(channel: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # the keeper is gone; the mount is served all the same
        channel.send(message)
