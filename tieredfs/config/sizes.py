"""Sizes and durations, as people write them.

Sizes are powers of 1024: `10GiB`, `10G` and `10g` are the same, as in every tool that formats or mounts. `10GB` is
refused rather than guessed at: it means two things. Durations are seconds unless a unit says otherwise.
"""

import re
from fractions import Fraction
from typing import Final

from tieredfs.errors import ConfigurationError

_UNIT_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_UNIT_SECONDS: Final = {
    "ms": Fraction(1, 1000),
    "": Fraction(1),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_SIZE: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([kmgtp]?)(i?)(b?)", re.IGNORECASE | re.ASCII)
_DURATION: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?(ms|s|min|m|h|d|)", re.IGNORECASE | re.ASCII)
_SIZE_MAX: Final = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Bytes: `4096`, `512M`, `10GiB`, `1.5T`. Raises ConfigurationError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is no size: write a number and a unit, like 512M, 10GiB or 1.5T")
    number, unit, binary, byte = match.groups()
    if byte and unit and not binary:
        raise ConfigurationError(f"{text!r} could mean two sizes: write {number}{unit.upper()}iB (powers of 1024)")
    if binary and not unit:
        raise ConfigurationError(f"{text!r} is no size: there is no unit before the 'i'; like 512M, 10GiB or 1.5T")
    size_bytes = Fraction(number) * _UNIT_BYTES[unit.lower()]
    if size_bytes.denominator != 1 and not unit:
        raise ConfigurationError(
            f"{text!r} is no size: there are no parts of a byte; a unit is missing, like {number}G"
        )
    if size_bytes > _SIZE_MAX:
        raise ConfigurationError(f"{text!r} is too large: at most 8191P")
    return int(size_bytes)


def parse_positive_size(text: str) -> int:
    """`parse_size` for what cannot be zero."""
    size_bytes = parse_size(text)
    if size_bytes == 0:
        raise ConfigurationError(f"{text!r} is too small: more than nothing is needed, like 10GiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """For people: three significant digits and a binary unit (`1.50 GiB`); exact below 1 KiB."""
    sign, value = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if value < 1024:
        return f"{sign}{value} B"
    scaled = float(value)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        scaled /= 1024
        if scaled < 999.5 or unit == "PiB":
            break
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{sign}{scaled:.{digits}f} {unit}"


def parse_duration(text: str) -> float:
    """Seconds: `30`, `1.5s`, `200ms`, `10m`, `2h`, `1d`. Raises ConfigurationError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is no duration: write a number and a unit, like 200ms, 30s, 10m or 2h")
    return float(Fraction(match[1]) * _UNIT_SECONDS[match[2].lower()])


def format_duration(duration_s: float) -> str:
    """For people, two units at most: `0.3 s`, `42 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`."""
    if duration_s < 0:
        return f"-{format_duration(-duration_s)}"
    if duration_s < 9.95:
        return f"{duration_s:.1f} s"
    whole_s = round(duration_s)
    for unit_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole_s >= unit_s:
            rest = whole_s % unit_s // part_s
            return f"{whole_s // unit_s} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole_s} s"
