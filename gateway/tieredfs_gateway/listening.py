"""How the front ends of this package listen: Granian, with the same bounds for all of them.

Granian parses HTTP and moves bytes to and from sockets without the GIL. Heads of requests have a deadline, queues a length.
"""

import socket
import ssl
from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from tieredfs.errors import BusyError, ConfigurationError

HEAD_WAIT_MS: Final = 30_000
BACKLOG: Final = 1024
REQUESTS_MAX: Final = 1024
"""Under way at one time; Granian lets the others wait in its queue."""


def server_of(app: Any, host: str, port: int, *, cert: Path | None, key: Path | None) -> Server:
    """An HTTP/1 server of an ASGI application without a lifespan; `serve` it on a running event loop."""
    return Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=REQUESTS_MAX,
        http1_settings=HTTP1Settings(header_read_timeout=HEAD_WAIT_MS),
        log_level=LogLevels.error,
        ssl_cert=cert,
        ssl_key=key,
    )


def check_tls(cert: Path | None, key: Path | None) -> None:
    """Raises ConfigurationError where they are not the two halves of a PEM certificate."""
    if cert is None or key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")  # or it would ask the terminal
    except (ssl.SSLError, OSError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror or str(error)
        raise ConfigurationError(
            f"{cert} and {key} are no certificate (PEM) and its key without a password: {why}"
        ) from error


def check_free(host: str, port: int) -> None:
    """Granian shares ports with whoever listens already. Raises BusyError, ConfigurationError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"{host!r} is no address of this machine: {error.strerror}") from error
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise BusyError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen"
            ) from error
