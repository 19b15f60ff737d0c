"""Names of volumes: safe in a mount table, a file name and a shell, without escapes."""

import re
from typing import Final

from tieredfs.errors import ConfigurationError

NAME_CHARACTERS_MAX: Final = 63
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


def parse_volume_name(text: str) -> str:
    """Letters, digits, `.`, `_` and `-`, beginning with a letter or digit. Raises ConfigurationError."""
    if _NAME.fullmatch(text) is None:
        raise ConfigurationError(
            f"{text!r} is no volume name: up to {NAME_CHARACTERS_MAX} of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit"
        )
    return text


def volume_name_from(text: str) -> str:
    """The nearest name to any text (a directory's, say); `volume` when nothing is left of it."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:NAME_CHARACTERS_MAX]
    return safe or "volume"
