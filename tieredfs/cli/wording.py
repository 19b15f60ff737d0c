"""How single values are written for people. Our nouns carry their units last, so a value's name says its unit."""

import datetime

from tieredfs.config import format_duration, format_size


def printable(text: str) -> str:
    """Names may hold any bytes; a terminal gets no control characters and no lone surrogates."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def label(key: str) -> str:
    """What a value is called: its name without the unit."""
    if key.endswith("_per_s"):
        return f"{label(key.removesuffix('_per_s'))}/s"
    for suffix in ("_bytes", "_ns", "_s"):
        if key.endswith(suffix):
            key = key.removesuffix(suffix)
            break
    return printable(key.replace("_", " "))


def cell(key: str, value: object) -> str:
    """A value in the unit that its name `key` says."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(cell("", item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{label(part)} {cell(part, item)}" for part, item in value.items())
    if isinstance(value, int | float):
        return _number(key, value)
    return printable(str(value))


def _number(key: str, value: float) -> str:
    if key.endswith("_per_s"):
        what = key.removesuffix("_per_s")
        return f"{_number(what, value)}/s" if what == "bytes" or what.endswith("_bytes") else f"{value:,}"
    if key == "bytes" or key.endswith("_bytes") or key.startswith("bytes_"):
        return format_size(int(value))
    if key.endswith("_ns"):
        moment = datetime.datetime.fromtimestamp(value / 1e9, tz=datetime.UTC).astimezone()
        return moment.isoformat(sep=" ", timespec="seconds")
    if key.endswith("_s"):
        return format_duration(value)
    if key.endswith("_ratio"):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) and key.endswith(("count", "files", "opens")) else str(value)


def amount(done: int, total: int, unit: str) -> str:
    """How far long work is. `total` 0: unknown."""
    if unit == "bytes":
        return f"{format_size(done)} of {format_size(total)}" if total else format_size(done)
    return f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
