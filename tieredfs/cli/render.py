"""From values to what is printed: JSON for scripts, tables for people, bars for those who wait.

Our nouns carry their units last (`free_bytes`, `oldest_age_s`, `created_ns`, `cached_ratio`), so one renderer serves
every report: it reads the unit from the name. JSON has the bare numbers under the full names. Results go to standard
output; bars and errors to standard error, bars only when that is a terminal. What draws tables and bars is loaded when
one is drawn.
"""

import dataclasses
import enum
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from tieredfs.cli.backend import Progress as ProgressCall
from tieredfs.cli.wording import amount, printable
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
    if tree in ({}, [], None) or not isinstance(tree, dict | list):
        say(str(tree) if tree not in ({}, [], None) else empty)
        return
    from tieredfs.cli.tables import tables_of

    _write(tables_of(tree, None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL))


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


@contextmanager
def progress_bar(title: str, as_json: bool = False) -> Iterator[ProgressCall]:
    """A bar on standard error while the block runs, when that is a terminal; otherwise, and beside JSON, nothing."""
    if as_json or not sys.stderr.isatty():
        yield lambda _done, _total, _unit: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, amount="")

        def show(done: int, total: int, unit: str) -> None:
            progress.update(task, completed=done, total=total or None, amount=amount(done, total, unit))

        yield show
