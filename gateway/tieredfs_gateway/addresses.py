"""What is looked at before anything listens: is the address of this machine, is it free, are certificate and key a pair.

Apart from what serves: a supervisor asks, too, and serves nothing itself; the status page asks, and reads no datasets.
"""

import contextlib
import ipaddress
import socket
import ssl
from pathlib import Path

from tieredfs.errors import BusyError, ConfigurationError


def is_loopback(host: str | None) -> bool:
    """Of this machine, hence without a link. Names are not looked up."""
    if host in (None, "localhost"):
        return host is not None
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


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
