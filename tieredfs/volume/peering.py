"""Serving what is staged on this host to the other hosts of the volume: what one process of the machine does, if it is told to.

It is told by `tieredfs peer`, or started by `tieredfs.volume.peer_keeper`. It serves all cache directories of the host, those of
processes that are gone, too, and takes care of these (`tieredfs.volume.caretaker`). Its session has its address, so other hosts
find it, and stop looking for it when it is gone.
"""

import logging
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tieredfs.cache.peer_server import PeerServer, tls_context
from tieredfs.cache.staged_files import StagedFiles
from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.config import parse_announced
from tieredfs.core.capability import SECRET_BYTES_MIN
from tieredfs.errors import ConfigurationError, NotFoundError, TieredError
from tieredfs.host.secret import read_secret
from tieredfs.limits import SESSION_HEARTBEAT_S
from tieredfs.volume.volume import Volume

CERT_VARIABLE: Final = "TIEREDFS_PEER_CERT"
KEY_VARIABLE: Final = "TIEREDFS_PEER_KEY"
PURPOSE: Final = "peer"
_LOOK_S: Final = 0.5
_log: Final = logging.getLogger("tieredfs.volume.peering")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen, and with what secret. `tls`: None, readable on the wire."""

    at: tuple[str, int]
    secret: bytes
    tls: ssl.SSLContext | None = None

    @classmethod
    def asked(
        cls, listen: str, *, secret_file: str | None = None, cert: str | None = None, key: str | None = None
    ) -> "Listening":
        """Raises ConfigurationError."""
        if (cert is None) != (key is None):
            raise ConfigurationError("a certificate and its key belong together")
        tls = tls_context(cert, key) if cert is not None and key is not None else None
        return cls(parse_announced(listen), read_secret(SECRET_VARIABLE, secret_file, bytes_min=SECRET_BYTES_MIN), tls)


@contextmanager
def served(volume: Volume, listening: Listening) -> Iterator[PeerServer]:
    """What is staged on this host is served to others meanwhile. Raises BusyError, ConfigurationError."""
    files = StagedFiles(volume.metadata, volume.host)
    with PeerServer(
        files, volume.config.uuid, listening.secret, volume.host.clock, listening.at, listening.tls
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_LOOK_S,), name="peer-server", daemon=True)
        thread.start()
        try:
            volume.metadata.announce_peer(volume.session, server.address)
            yield server
        finally:
            server.shutdown()
            thread.join()


def announce_again(volume: Volume, server: PeerServer) -> None:
    """A session that was taken for dead, and has been revived, has lost its address."""
    try:
        if all(peer.session.session != volume.session for peer in volume.metadata.peers()):
            volume.metadata.announce_peer(volume.session, server.address)
    except NotFoundError:
        return  # not revived yet
    except TieredError as error:
        _log.warning("whether other hosts find this one is not known now: %s", error)


def serve_until(stopping: threading.Event, volume: Volume, listening: Listening, parent: int = 0) -> None:
    """Until `stopping` is set, or the process `parent` (if one is named) is not ours any more."""
    with served(volume, listening) as server:
        _log.info("serving what is staged on %s at %s", volume.host.name, server.address)
        waited_s = 0.0
        while not stopping.wait(_LOOK_S) and (not parent or os.getppid() == parent):
            waited_s += _LOOK_S
            if waited_s >= SESSION_HEARTBEAT_S:
                waited_s = 0.0
                announce_again(volume, server)


def stopping_by_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT. From the main thread."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
