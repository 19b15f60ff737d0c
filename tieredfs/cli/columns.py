"""Lines of numbers that one watches: every interval a line, each value in its column, in four or five characters.

A `Column` names where in a report its value is, and how it is written. What is not known is a dash.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

_STEPS: Final = ((1 << 50, "P"), (1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def short_count(value: float) -> str:
    """`0`, `7`, `0.3`, `950`, `1.2k`, `34k`, `1.2M`."""
    if value < 0.05:
        return "0"
    if value < 9.95:
        return f"{value:.1f}".removesuffix(".0")
    for step, unit in ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "G")):
        scaled = value / step
        if scaled < 9.95:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5:
            return f"{scaled:.0f}{unit}"
    return f"{value:.0e}"


def short_size(value: float) -> str:
    """Bytes, powers of 1024: `0`, `512`, `1.2K`, `34M`."""
    for step, unit in _STEPS:
        if value >= 0.9995 * step:
            scaled = value / step
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def short_time(value: float) -> str:
    """Seconds: `12us`, `3.4ms`, `120ms`, `2.5s`, `75s`, `12m`, `3h`, `4d`."""
    if value < 0.9995:
        scaled, unit = (value * 1e6, "us") if value < 0.9995e-3 else (value * 1e3, "ms")
        return f"{scaled:.1f}{unit}" if unit == "ms" and scaled < 9.95 else f"{scaled:.0f}{unit}"
    if value < 99.5:
        return f"{value:.1f}s" if value < 9.95 else f"{value:.0f}s"
    for step, unit, most in ((60, "m", 99.5), (3600, "h", 99.5), (86400, "d", float("inf"))):
        if value / step < most:
            return f"{value / step:.0f}{unit}"
    raise AssertionError(value)


def short_ratio(value: float) -> str:
    """`0%`, `45%`, `100%`."""
    return f"{100 * value:.0f}%"


@dataclass(frozen=True, slots=True)
class Column:
    """`path`: where the value is in the report: `operations.per_s`."""

    group: str
    title: str
    width: int
    path: str
    write: Callable[[float], str]

    def cell(self, report: Mapping[str, object]) -> str:
        value = at(report, self.path)
        return "-" if not isinstance(value, int | float) else self.write(value)


def at(report: object, path: str) -> object:
    """None for what is not there."""
    for name in path.split("."):
        report = report.get(name) if isinstance(report, Mapping) else None
    return report


def heading(columns: Sequence[Column]) -> Iterator[str]:
    """Two lines: groups over titles."""
    groups = [(group, list(members)) for group, members in groupby(columns, key=lambda column: column.group)]
    yield " ".join(_banner(group, sum(one.width + 1 for one in members) - 1) for group, members in groups)
    yield " ".join(column.title.rjust(column.width) for column in columns)


def _banner(group: str, width: int) -> str:
    return f" {group} ".center(width, "-") if len(group) + 2 <= width else group.center(width)[:width]


def line(columns: Sequence[Column], report: Mapping[str, object]) -> str:
    return " ".join(column.cell(report).rjust(column.width) for column in columns)
