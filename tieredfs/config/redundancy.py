"""How much may be lost (`rs:4+2`, `replica:3`) and what `fsync` waits for (`ssd`, `store`)."""

import re
from typing import Final

from tieredfs.errors import ConfigurationError
from tieredfs.limits import CODE_WIDTH_MAX
from tieredfs.model import Code, CodeKind, Durability

_REED_SOLOMON: Final = re.compile(r"rs:([0-9]{1,4})\+([0-9]{1,4})", re.IGNORECASE | re.ASCII)
_REPLICA: Final = re.compile(r"replica:([0-9]{1,4})", re.IGNORECASE | re.ASCII)


def parse_code(text: str) -> Code:
    """`rs:k+m` (k data chunks, any m may be lost) or `replica:n`. Raises ConfigurationError."""
    text = text.strip()
    if match := _REED_SOLOMON.fullmatch(text):
        return _reed_solomon(text, int(match[1]), int(match[2]))
    if match := _REPLICA.fullmatch(text):
        return _replica(text, int(match[1]))
    raise ConfigurationError(f"{text!r} is no code: write rs:4+2 (four data chunks, any two may be lost) or replica:3")


def _reed_solomon(text: str, data_count: int, parity_count: int) -> Code:
    if data_count < 1:
        raise ConfigurationError(f"{text!r}: at least one data chunk is needed, like rs:4+2")
    if parity_count < 1:
        raise ConfigurationError(f"{text!r} survives no loss: write rs:{data_count}+1 or more, or replica:1 to say so")
    if data_count + parity_count > CODE_WIDTH_MAX:
        raise ConfigurationError(f"{text!r} is too wide: data and parity chunks are {CODE_WIDTH_MAX} at most")
    return Code(CodeKind.REED_SOLOMON, data_count, parity_count)


def _replica(text: str, count: int) -> Code:
    if not 1 <= count <= CODE_WIDTH_MAX:
        raise ConfigurationError(f"{text!r}: replicas are 1 to {CODE_WIDTH_MAX}, like replica:3")
    return Code(CodeKind.REPLICA, 1, count - 1)


def parse_durability(text: str) -> Durability:
    """`ssd` or `store`. Raises ConfigurationError."""
    try:
        return Durability[text.strip().upper()]
    except KeyError:
        choices = " or ".join(member.name.lower() for member in Durability)
        raise ConfigurationError(f"{text!r} is no durability: what fsync waits for is {choices}") from None
