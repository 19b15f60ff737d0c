"""`bench`: what a directory is worth, beside another one."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tieredfs.cli.render import emit, progress_bar
from tieredfs.cli.session import AsJson
from tieredfs.config import format_size
from tieredfs.config.sizes import parse_positive_size
from tieredfs.errors import ConfigurationError

if TYPE_CHECKING:
    from tieredfs.cli.measuring import Figure

FILES_MAX: Final = 1_000_000
ROUNDS_MAX: Final = 100


def add_to(app: typer.Typer) -> None:
    """Give the application its verb that measures."""
    app.command()(bench)


def bench(
    path: Annotated[str, typer.Argument(metavar="DIR", help="A directory on a mount, or on any file system.")],
    against: Annotated[
        str | None, typer.Option(metavar="DIR", help="Another, measured in turns with it.", show_default=False)
    ] = None,
    size: Annotated[str, typer.Option(help="Of the large file.")] = "1GiB",
    files: Annotated[int, typer.Option(help="How many small ones, 4 KiB each.", min=1, max=FILES_MAX)] = 2000,
    rounds: Annotated[int, typer.Option(help="Figures are medians over so many.", min=1, max=ROUNDS_MAX)] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure a directory: one large file written and read back, many small ones made, looked at, read and removed.

    What was just written is read from memory, where it fits. It cleans up after itself; only a SIGKILL leaves its
    .tieredfs-bench-* in DIR, which may be removed.

    Example: tieredfs bench /mnt/train --against /mnt/ssd
    """
    from tieredfs.cli.measuring import Load, measure

    folders = [_directory(name) for name in (path, against) if name is not None]
    load = Load(parse_positive_size(size), files)
    with progress_bar("measuring", as_json) as show:
        figures = measure(folders, load, rounds, lambda done, total: show(done, total, "steps"))
    if as_json:
        emit(
            {
                "directories": [str(folder) for folder in folders],
                "size_bytes": load.size_bytes,
                "files": load.files,
                "rounds": rounds,
                "figures": [
                    {"step": figure.step, "unit": figure.unit, "per_s": list(figure.per_s), "ratio": figure.ratio}
                    for figure in figures
                ],
            },
            as_json=True,
        )
        return
    emit([_row(figure) for figure in figures], as_json=False)


def _directory(name: str) -> Path:
    folder = Path(os.path.abspath(name))
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no directory; name one to measure")
    return folder


def _row(figure: "Figure") -> dict[str, str]:
    row = {"measure": figure.step}
    for side, per_s in zip(("directory", "against"), figure.per_s, strict=False):
        row[side] = f"{format_size(int(per_s))}/s" if figure.unit == "bytes" else f"{per_s:,.0f} {figure.unit}/s"
    if figure.ratio is not None:
        row["ratio"] = f"{figure.ratio:.2f}"
    return row
