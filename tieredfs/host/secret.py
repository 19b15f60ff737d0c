"""Secrets: from a file or from the environment, never from a command line, which every process of the machine can read."""

import os

from tieredfs.errors import ConfigurationError


def read_secret(variable: str, file: str | None = None, *, bytes_min: int) -> bytes:
    """The content of `file`, or of the file that `<variable>_FILE` names, or `variable` itself; white space around it is cut off.

    Raises ConfigurationError: there is none, or it is too short to be one.
    """
    path = file or os.environ.get(f"{variable}_FILE")
    if not path:
        secret = os.environb.get(variable.encode(), b"").strip()
    else:
        try:
            with open(path, "rb") as opened:
                secret = opened.read(1 << 16).strip()
        except OSError as error:
            raise ConfigurationError(f"the secret cannot be read from {path}: {error.strerror}") from error
    if not secret:
        raise ConfigurationError(f"a secret is needed: in the file that {variable}_FILE names, or in {variable}")
    if len(secret) < bytes_min:
        raise ConfigurationError(f"the secret has {len(secret)} bytes; it needs at least {bytes_min}")
    return secret
