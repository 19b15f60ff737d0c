"""What was measured, and how it is shown: alternating runs, ratios pair by pair, a table, a JSON file.

Two sides are never compared across runs. `alternate` runs them A B A B ... so that a disturbance of the machine meets
both; a ratio is formed within each pair, and the median of those ratios is the result. Rates are larger-is-better;
a figure with a ceiling (memory) is compared with the ceiling as its reference and passes at or below it.

`Series` and `Comparison` are plain values; only `write_json` and `print_table` touch the world.
"""

import enum
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SCHEMA_VERSION: Final = 1


class Bound(enum.Enum):
    """Which side of the target is good."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


class Verdict(enum.Enum):
    """`NOTED`: a comparison without a target, printed for the reader."""

    PASSED = "pass"
    FAILED = "FAIL"
    NOTED = "-"


@dataclass(frozen=True, slots=True)
class Series:
    """One side's figures in one row, in the order of the rounds."""

    side: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        assert self.values, f"no round of {self.side} was measured"

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Target:
    """What `subject` must reach against `reference`. Without a `ratio` the comparison is only printed."""

    subject: str
    reference: str
    ratio: float | None = None
    bound: Bound = Bound.AT_LEAST


@dataclass(frozen=True, slots=True)
class Comparison:
    """`ratios[i]` is subject over reference within round i."""

    target: Target
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> Verdict:
        if self.target.ratio is None:
            return Verdict.NOTED
        if self.target.bound is Bound.AT_LEAST:
            return Verdict.PASSED if self.median >= self.target.ratio else Verdict.FAILED
        return Verdict.PASSED if self.median <= self.target.ratio else Verdict.FAILED


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: its series, and what they are held against. `note` says what exactly was counted."""

    key: str
    title: str
    unit: str
    series: tuple[Series, ...]
    targets: tuple[Target, ...] = ()
    note: str = ""

    def side(self, name: str) -> Series | None:
        return next((series for series in self.series if series.side == name), None)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Only of targets both of whose sides were measured."""
        found = []
        for target in self.targets:
            subject, reference = self.side(target.subject), self.side(target.reference)
            if subject is not None and reference is not None:
                found.append(Comparison(target, pair_ratios(subject.values, reference.values)))
        return tuple(found)


def pair_ratios(subject: Sequence[float], reference: Sequence[float]) -> tuple[float, ...]:
    """Subject over reference, round by round. A reference of zero is a broken measurement, not a ratio."""
    assert len(subject) == len(reference), "both sides ran in every round"
    assert all(value > 0 for value in reference), "a reference measured nothing"
    return tuple(one / other for one, other in zip(subject, reference, strict=True))


def alternate(
    sides: Mapping[str, Callable[[], float]],
    repeats: int,
    warm_ups: int = 1,
    progress: Callable[[str], None] | None = None,
) -> tuple[Series, ...]:
    """Run every side once per round, in the given order; the first `warm_ups` rounds are thrown away."""
    assert repeats >= 1
    values: dict[str, list[float]] = {side: [] for side in sides}
    for round_index in range(-warm_ups, repeats):
        for side, measure in sides.items():
            if progress is not None:
                progress(f"{side}, {'warm-up' if round_index < 0 else f'round {round_index + 1} of {repeats}'}")
            value = measure()
            if round_index >= 0:
                values[side].append(value)
    return tuple(Series(side, tuple(figures)) for side, figures in values.items())


def figure(value: float) -> str:
    """Three significant digits, thousands separated: what a reader takes in."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(series: Series) -> str:
    """`median (min-max)`, or the one value."""
    if len(series.values) == 1:
        return figure(series.median)
    return f"{figure(series.median)} ({figure(min(series.values))}-{figure(max(series.values))})"


def table_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table's cells: measure, side, figure, against, ratio, target, verdict. One line per side."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        compared = row.comparisons()
        for index, series in enumerate(row.series):
            label = f"{row.title} [{row.unit}]" if index == 0 else ""
            own = [each for each in compared if each.target.subject == series.side]
            if not own:
                lines.append((label, series.side, spread(series), "", "", "", ""))
            for position, each in enumerate(own):
                first = position == 0
                head = (label if first else "", series.side if first else "", spread(series) if first else "")
                lines.append(
                    (*head, each.target.reference, figure(each.median), _wanted(each.target), each.verdict.value)
                )
    return lines


def _wanted(target: Target) -> str:
    return "" if target.ratio is None else f"{'>=' if target.bound is Bound.AT_LEAST else '<='} {target.ratio:g}"


def print_table(title: str, rows: Sequence[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("measure", "side", "median (min-max)", "against", "ratio", "wanted", ""):
        table.add_column(heading, justify="right" if heading in {"median (min-max)", "ratio", "wanted"} else "left")
    # Cells are text: rich would take "[op/s]" for markup.
    styles = {Verdict.PASSED.value: "green", Verdict.FAILED.value: "bold red"}
    for line in table_lines(rows):
        table.add_row(*(Text(cell) for cell in line), style=styles.get(line[-1]))
    # A pipe has no width: 120 columns are what the longest line needs.
    console = Console() if os.isatty(1) else Console(width=120)
    console.print(table)
    for note, titles in notes(rows).items():
        console.print(Text(f"  {'; '.join(titles)}: {note}"), style="dim", highlight=False)


def notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Each note once, with the rows that it belongs to."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            found.setdefault(row.note, []).append(row.title)
    return found


def failures(rows: Sequence[Row]) -> list[Comparison]:
    return [each for row in rows for each in row.comparisons() if each.verdict is Verdict.FAILED]


def document(name: str, machine: Mapping[str, str], settings: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON form. A reader checks `schema` first; fields are only ever added."""
    return {
        "schema": SCHEMA_VERSION,
        "name": name,
        "machine": dict(machine),
        "settings": dict(settings),
        "rows": [_row_document(row) for row in rows],
    }


def _row_document(row: Row) -> dict[str, Any]:
    return {
        "key": row.key,
        "title": row.title,
        "unit": row.unit,
        "note": row.note,
        "series": {
            series.side: {
                "values": list(series.values),
                "median": series.median,
                "min": min(series.values),
                "max": max(series.values),
            }
            for series in row.series
        },
        "comparisons": [
            {
                "subject": each.target.subject,
                "reference": each.target.reference,
                "ratios": list(each.ratios),
                "ratio": each.median,
                "target": each.target.ratio,
                "bound": each.target.bound.value,
                "verdict": each.verdict.value,
            }
            for each in row.comparisons()
        ],
    }


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Whole or not at all: a temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(contents, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
