"""`tieredfs disk ...`: the disks of a volume."""

from typing import Annotated

import typer

from tieredfs.cli.render import emit, progress_bar
from tieredfs.cli.session import AsJson, MetaUrlArgument, backend_of, new_verbs, refuse_mounted
from tieredfs.config import DiskUrl, parse_data_url, parse_meta_url
from tieredfs.errors import ConfigurationError
from tieredfs.limits import DISKS_MAX
from tieredfs.model import DiskId

verbs = new_verbs("Add, empty, rebuild and list the disks of a volume.")

DiskArgument = Annotated[
    str, typer.Argument(metavar="DISK", help="Number of the disk, as `disk list` shows it.", show_default=False)
]


def _parse_disk(text: str) -> DiskId:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= DISKS_MAX):
        raise ConfigurationError(f"{text!r} is no disk: `tieredfs disk list META_URL` shows their numbers")
    return DiskId(int(text))


@verbs.command("list")
def list_disks(context: typer.Context, meta_url: MetaUrlArgument, as_json: AsJson = False) -> None:
    """List the disks: state, failure domain, reachable or not, space.

    Example: tieredfs disk list sqlite:///data/volume.db
    """
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="disk list") as volume:
        emit(volume.disks(), as_json=as_json, empty="no disks")


@verbs.command()
def add(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    data_url: Annotated[
        str,
        typer.Argument(
            metavar="DATA_URL", help="disk:///path, s3://bucket/prefix or node://host:port/path.", show_default=False
        ),
    ],
    domain: Annotated[
        str | None,
        typer.Option(help="What fails together with it. Default: a directory alone; all of a node, or of a bucket."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a disk to the volume; new chunks go there, too.

    Example: tieredfs disk add sqlite:///data/volume.db disk:///mnt/ssd7/tieredfs --domain shelf2

    Example: tieredfs disk add sqlite:///data/volume.db 's3://bucket/prefix?region=eu-central-1'

    Example: tieredfs disk add sqlite:///data/volume.db node://10.0.0.5:9400/mnt/ssd0/tieredfs
    """
    url = parse_data_url(data_url)
    if isinstance(url, DiskUrl):
        refuse_mounted(backend_of(context), url.path)
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="disk add") as volume:
        emit(volume.add_disk(str(url), domain), as_json=as_json)


@verbs.command()
def drain(context: typer.Context, meta_url: MetaUrlArgument, disk: DiskArgument, as_json: AsJson = False) -> None:
    """Move everything off a disk that still works; afterwards it may be removed.

    Example: tieredfs disk drain sqlite:///data/volume.db 3
    """
    number = _parse_disk(disk)
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="disk drain") as volume:
        with progress_bar(f"emptying disk {number}", as_json) as progress:
            report = volume.drain_disk(number, progress)
        emit(report, as_json=as_json, empty=f"disk {number} is empty")


@verbs.command()
def rebuild(context: typer.Context, meta_url: MetaUrlArgument, disk: DiskArgument, as_json: AsJson = False) -> None:
    """Declare a disk lost and rebuild its chunks on the others.

    Example: tieredfs disk rebuild sqlite:///data/volume.db 3
    """
    number = _parse_disk(disk)
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="disk rebuild") as volume:
        with progress_bar(f"rebuilding disk {number}", as_json) as progress:
            report = volume.rebuild_disk(number, progress)
        emit(report, as_json=as_json, empty=f"disk {number} is rebuilt")
