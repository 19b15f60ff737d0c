"""`tieredfs quota ...`: limits of bytes and inodes for directories with all that is below them."""

import sys
from typing import Annotated, Final

import typer

from tieredfs.cli.outcomes import PROBLEMS_FOUND
from tieredfs.cli.render import emit
from tieredfs.cli.session import AsJson, MetaUrlArgument, backend_of, new_verbs
from tieredfs.config import parse_meta_url, parse_size
from tieredfs.errors import ConfigurationError
from tieredfs.limits import FILE_BYTES_MAX

verbs = new_verbs("Limit what directories may hold: bytes and inodes, of each with all that is below it.")

NO_LIMIT: Final = "none"
PathOption = Annotated[
    str,
    typer.Option("--path", metavar="DIR", help="A directory, from the volume's root: /team/run.", show_default=False),
]


def _parse_capacity(text: str | None) -> int | None:
    """None: not given; 0: no limit."""
    if text is None or text.strip().lower() == NO_LIMIT:
        return None if text is None else 0
    size_bytes = parse_size(text)
    if size_bytes == 0:
        raise ConfigurationError(
            f"--capacity {text} would let nothing be written; `--capacity none` takes the limit away"
        )
    return size_bytes


def _parse_inodes(text: str | None) -> int | None:
    if text is None or text.strip().lower() == NO_LIMIT:
        return None if text is None else 0
    digits = text.strip().replace("_", "").replace(",", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= FILE_BYTES_MAX):
        raise ConfigurationError(f"--inodes {text} is no number of inodes: write one from 1 to 2^63 - 1; like 1000000")
    if int(digits) == 0:
        raise ConfigurationError(f"--inodes {text} would let nothing be made; `--inodes none` takes the limit away")
    return int(digits)


@verbs.command("set")
def set_quota(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    path: PathOption,
    capacity: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes that it may hold, like 100GiB; `none` for no limit.")
    ] = None,
    inodes: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Files and directories that it may hold; `none` for no limit."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a directory a quota, or change what is given. What is there already counts, and may be more.

    Example: tieredfs quota set sqlite:///data/volume.db --path /team --capacity 100GiB --inodes 1000000

    Example: tieredfs quota set sqlite:///data/volume.db --path / --capacity 10TiB
    """
    limit_bytes, limit_inodes = _parse_capacity(capacity), _parse_inodes(inodes)
    if limit_bytes is None and limit_inodes is None:
        raise ConfigurationError("a quota limits something: give --capacity SIZE, --inodes NUMBER, or both")
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="quota set") as volume:
        emit(volume.quotas.set(path, limit_bytes, limit_inodes), as_json=as_json)


@verbs.command()
def get(context: typer.Context, meta_url: MetaUrlArgument, path: PathOption, as_json: AsJson = False) -> None:
    """Show the quota of a directory, and what is used of it.

    Example: tieredfs quota get sqlite:///data/volume.db --path /team
    """
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="quota get") as volume:
        emit(volume.quotas.get(path), as_json=as_json)


@verbs.command("list")
def list_quotas(context: typer.Context, meta_url: MetaUrlArgument, as_json: AsJson = False) -> None:
    """List all quotas of the volume.

    Example: tieredfs quota list sqlite:///data/volume.db
    """
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="quota list") as volume:
        emit(volume.quotas.list(), as_json=as_json, empty="no quotas")


@verbs.command()
def delete(context: typer.Context, meta_url: MetaUrlArgument, path: PathOption, as_json: AsJson = False) -> None:
    """Take the quota of a directory away; what is in the directory stays.

    Example: tieredfs quota delete sqlite:///data/volume.db --path /team
    """
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="quota delete") as volume:
        emit(volume.quotas.delete(path), as_json=as_json)


@verbs.command()
def check(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    path: Annotated[
        str | None,
        typer.Option(
            "--path", metavar="DIR", help="A directory with a quota. Default: all of them.", show_default=False
        ),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Write down what was counted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count what is below, and compare. Exit code 1: something was counted that the quota did not know.

    Example: tieredfs quota check sqlite:///data/volume.db

    Example: tieredfs quota check sqlite:///data/volume.db --path /team --repair
    """
    url = str(parse_meta_url(meta_url))
    with backend_of(context).open_volume(url, purpose="quota check") as volume:
        listed = [path] if path is not None else [quota.path for quota in volume.quotas.list()]
        deepest_first = sorted(listed, key=lambda each: each.count("/"), reverse=True)
        found = sorted(
            (volume.quotas.check(each, repair=repair) for each in deepest_first), key=lambda status: status.path
        )
        emit(found, as_json=as_json, empty="no quotas")
    if not all(status.right or status.repaired for status in found):
        sys.stderr.write(f"tieredfs: `tieredfs quota check {meta_url} --repair` writes down what was counted\n")
        raise typer.Exit(PROBLEMS_FOUND)
