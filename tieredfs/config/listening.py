"""Where servers listen: HOST:PORT."""

from typing import Final

from tieredfs.errors import ConfigurationError

_ANYWHERE: Final = {"0.0.0.0", "::", "*"}


def parse_listen(text: str) -> tuple[str, int]:
    """Raises ConfigurationError."""
    host, port = _host_and_port(text)
    if port == 0:
        raise ConfigurationError(f"{text!r} is no HOST:PORT: 127.0.0.1:9000, say")
    return host, port


def parse_announced(text: str) -> tuple[str, int]:
    """Where a server listens that tells others, so it is an address that they can reach; port 0: any that is free.

    Raises ConfigurationError."""
    host, port = _host_and_port(text)
    if host in _ANYWHERE:
        raise ConfigurationError(
            f"{text!r} is no address that other hosts can reach: name that of this host, 10.0.0.5:9410, say"
        )
    return host, port


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port[:6]) < 1 << 16):
        raise ConfigurationError(f"{text!r} is no HOST:PORT: 127.0.0.1:9000, say")
    return host.strip("[]"), int(port)
