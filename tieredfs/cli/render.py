"""From values to what is printed: JSON for scripts, tables for people, bars for those who wait.

Our nouns carry their units last (`free_bytes`, `oldest_age_s`, `created_ns`, `cached_ratio`), so one renderer serves
every report: it reads the unit from the name. JSON has the bare numbers under the full names. Results go to standard
output; bars and errors to standard error, bars only when that is a terminal.
"""

import dataclasses
import datetime
import enum
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tieredfs.cli.backend import Progress as ProgressCall
from tieredfs.config import format_duration, format_size
from tieredfs.model import Code

WIDTH_WITHOUT_TERMINAL: Final = 160
"""Tables in a pipe or a log are not squeezed into 80 columns."""
_CLEAR: Final = "\x1b[H\x1b[J"


class ReaderLeftError(Exception):
    """Standard output is a pipe that nobody reads any more (`| head`): no fault of anybody."""


def plain(value: object) -> object:
    """A tree of dataclasses, named tuples, enums and codes as what JSON can say. Bytes are names: decoded as paths are."""
    if isinstance(value, Code):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def emit(value: object, *, as_json: bool, empty: str = "nothing to show") -> None:
    """Print a report: JSON, or tables, or the word for an empty one."""
    tree = plain(value)
    if as_json:
        _write(json.dumps(_sayable(tree), indent=2, allow_nan=False) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
    with console.capture() as captured:
        if isinstance(tree, dict) and tree:
            _print_mapping(console, tree)
        elif isinstance(tree, list) and tree:
            _print_list(console, tree)
    _write(captured.get())
    if tree in ({}, [], None) or not isinstance(tree, dict | list):
        say(str(tree) if tree not in ({}, [], None) else empty)


def _sayable(tree: object) -> object:
    """JSON has no NaN and no infinity (the loss of a run that diverged): null, as in JavaScript and pandas."""
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    if isinstance(tree, dict):
        return {key: _sayable(item) for key, item in tree.items()}
    return [_sayable(item) for item in tree] if isinstance(tree, list) else tree


def say(line: str) -> None:
    """One line for people, on standard output."""
    _write(printable(line) + "\n")


def say_screen(lines: Sequence[str]) -> None:
    """Lines for people: on a terminal in place of what it shows, elsewhere after what was said before."""
    _write((_CLEAR if sys.stdout.isatty() else "") + "".join(f"{printable(line)}\n" for line in lines))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderLeftError from error


def printable(text: str) -> str:
    """Names may hold any bytes; a terminal gets no control characters and no lone surrogates."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _print_mapping(console: Console, tree: Mapping[str, object]) -> None:
    scalars = {key: item for key, item in tree.items() if not isinstance(item, dict | list)}
    if scalars:
        grid = Table.grid(padding=(0, 2))
        for key, item in scalars.items():
            grid.add_row(Text(_label(key), style="bold"), Text(_cell(key, item)))
        console.print(grid)
    for key, item in tree.items():
        if isinstance(item, dict | list) and item:
            console.print()
            console.print(Text(_label(key), style="bold underline"))
            if isinstance(item, dict):
                _print_mapping(console, item)
            else:
                _print_list(console, item)


def _print_list(console: Console, items: Sequence[object]) -> None:
    rows = [item for item in items if isinstance(item, dict)]
    if len(rows) < len(items):
        for item in items:
            console.print(Text(_cell("", item)))
        return
    if any(isinstance(item, dict) for row in rows for item in row.values()):
        for index, row in enumerate(rows):
            if index:
                console.print()
            _print_mapping(console, row)
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in columns:
        numeric = all(isinstance(row.get(key), int | float) and not isinstance(row.get(key), bool) for row in rows)
        table.add_column(_label(key), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(key, row.get(key))) for key in columns))
    console.print(table)


def _label(key: str) -> str:
    if key.endswith("_per_s"):
        return f"{_label(key.removesuffix('_per_s'))}/s"
    for suffix in ("_bytes", "_ns", "_s"):
        if key.endswith(suffix):
            key = key.removesuffix(suffix)
            break
    return printable(key.replace("_", " "))


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(_cell("", item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{_label(part)} {_cell(part, item)}" for part, item in value.items())
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


@contextmanager
def progress_bar(title: str, as_json: bool = False) -> Iterator[ProgressCall]:
    """A bar on standard error while the block runs, when that is a terminal; otherwise, and beside JSON, nothing."""
    if as_json or not sys.stderr.isatty():
        yield lambda _done, _total, _unit: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, amount="")

        def show(done: int, total: int, unit: str) -> None:
            progress.update(task, completed=done, total=total or None, amount=_amount(done, total, unit))

        yield show


def _amount(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{format_size(done)} of {format_size(total)}" if total else format_size(done)
    return f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
