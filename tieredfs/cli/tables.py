"""Reports as tables, by rich: loaded when one is printed, for most commands print a line, or JSON."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tieredfs.cli.wording import cell, label


def tables_of(tree: dict[str, object] | list[object], width: int | None) -> str:
    """A report as text, in colours where standard output takes them. `width`: in columns; None: the terminal's."""
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        if isinstance(tree, dict):
            _print_mapping(console, tree)
        else:
            _print_list(console, tree)
    return captured.get()


def _print_mapping(console: Console, tree: Mapping[str, object]) -> None:
    scalars = {key: item for key, item in tree.items() if not isinstance(item, dict | list)}
    if scalars:
        grid = Table.grid(padding=(0, 2))
        for key, item in scalars.items():
            grid.add_row(Text(label(key), style="bold"), Text(cell(key, item)))
        console.print(grid)
    for key, item in tree.items():
        if isinstance(item, dict | list) and item:
            console.print()
            console.print(Text(label(key), style="bold underline"))
            if isinstance(item, dict):
                _print_mapping(console, item)
            else:
                _print_list(console, item)


def _print_list(console: Console, items: Sequence[object]) -> None:
    rows = [item for item in items if isinstance(item, dict)]
    if len(rows) < len(items):
        for item in items:
            console.print(Text(cell("", item)))
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
        table.add_column(label(key), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(key, row.get(key))) for key in columns))
    console.print(table)
