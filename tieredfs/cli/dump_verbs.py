"""`tieredfs dump` and `load`: the metadata in a file, and a volume from one."""

import sys
from typing import Annotated

import typer

from tieredfs.cli.render import emit, progress_bar
from tieredfs.cli.session import AsJson, MetaUrlArgument, backend_of
from tieredfs.config import parse_meta_url


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs on dumps."""
    for verb in (dump, load):
        app.command()(verb)


def dump(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="Where to. Default: onto three disks of the volume itself."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write all metadata of a volume as they are now; it may be in use. Mounts and servers do it every hour, onto its own disks.

    Example: tieredfs dump sqlite:///data/volume.db /backup/volume.dump
    """
    opening = backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="dump")
    with opening as volume, progress_bar("dumping", as_json) as progress:
        report = volume.dump_to_disks(progress) if file is None else volume.dump_to_file(file, progress)
    emit(report, as_json=as_json)


def load(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Dumps, or DATA_URLs of the volume: the newest is taken.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Make the metadata anew from a dump: the volume as it was then. End all that use it first; older metadata are shut out.

    Example: tieredfs load sqlite:///data/volume.db 'disk:///mnt/ssd{0..5}/tieredfs'
    """
    with progress_bar("loading", as_json) as progress:
        report = backend_of(context).load_volume(str(parse_meta_url(meta_url)), sources, progress)
    emit(report, as_json=as_json)
    sys.stderr.write(_advice(sorted(report.away), meta_url))


def _advice(away: list[int], meta_url: str) -> str:
    """What to do next."""
    rebuild = "".join(
        f"tieredfs: disk {disk} was not here: `tieredfs disk rebuild {meta_url} {disk}`\n" for disk in away
    )
    return f"{rebuild}tieredfs: `tieredfs fsck {meta_url}` names the files that were deleted or replaced since and cannot be read\n"
