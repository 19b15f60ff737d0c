"""`tieredfs s3` and `tieredfs s3-key`: what the command line gets from here, by its entry point. Light to import."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tieredfs.cli.render import emit, say
from tieredfs.cli.session import AsJson, MetaUrlArgument, new_verbs
from tieredfs.config import parse_listen, parse_meta_url
from tieredfs.config.sizes import parse_positive_size
from tieredfs.errors import ConfigurationError, DeadlineError

FLUSH_WAIT_S = 10.0
PURPOSE = "s3-key"
WORKERS_DEFAULT_MAX = 8

key_verbs = new_verbs("Access keys of the S3 endpoint.")


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs."""
    app.command("s3")(s3)
    app.add_typer(key_verbs, name="s3-key")


def s3(
    meta_url: MetaUrlArgument,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT. Off this machine, give --cert and --key too.")
    ] = "127.0.0.1:9000",
    domain: Annotated[
        list[str] | None, typer.Option(help="Names of this endpoint: BUCKET.NAME is that bucket (virtual-host style).")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.", exists=True)] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key, PEM.", exists=True)] = None,
    access_log: Annotated[bool, typer.Option(help="A line per request on standard error.")] = True,
    workers: Annotated[
        int, typer.Option(help="Processes that serve; 0: one for each core, 8 at most.", min=0, max=64)
    ] = 0,
    cache_size: Annotated[str, typer.Option(help="How much of the SSD may be used, by all processes.")] = "100GiB",
    memory: Annotated[str, typer.Option(help="Ceiling of the volume's buffers, in each process.")] = "512MiB",
) -> None:
    """Serve the volume as S3: buckets are its top-level directories, keys are paths below them.

    Example: tieredfs s3 sqlite:///data/volume.db --listen 127.0.0.1:9000
    """
    from tieredfs_gateway.s3.serving import Serving
    from tieredfs_gateway.s3.starting import serve

    host, port = parse_listen(listen)
    if (cert is None) != (key is None):
        raise ConfigurationError("--cert and --key belong together")
    url = str(parse_meta_url(meta_url))
    sizes = parse_positive_size(cache_size), parse_positive_size(memory)
    count = workers or min(len(os.sched_getaffinity(0)), WORKERS_DEFAULT_MAX)
    serve(Serving(url, host, port, tuple(domain or ["localhost"]), cert, key, access_log, *sizes, workers=count))


@key_verbs.command("add")
def add_key(
    meta_url: MetaUrlArgument,
    bucket: Annotated[list[str] | None, typer.Option(help="Only this bucket (may be repeated).")] = None,
    prefix: Annotated[str, typer.Option(help="Only keys that begin with it.")] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Only reading.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an access key. Its secret is shown now and never again.

    Example: tieredfs s3-key add sqlite:///data/volume.db --bucket runs --read-only
    """
    from tieredfs.volume import FileSystem
    from tieredfs_gateway.s3.keystore import Keystore, Scope, make_key

    scope = Scope(tuple(bucket or ()), prefix, read_only)
    with FileSystem.at(str(parse_meta_url(meta_url)), purpose=PURPOSE) as volume:
        clock = volume.volume.host.clock
        made = make_key(scope, clock.wall_ns())
        Keystore(volume, clock).add(made)
        emit(made, as_json=as_json)  # at once: it is in force, and nobody will see its secret again
        try:
            volume.flush(FLUSH_WAIT_S)
        except DeadlineError as error:
            typer.echo(f"tieredfs: the key works; it is on the SSD only, until the store takes it: {error}", err=True)


@key_verbs.command("list")
def list_keys(meta_url: MetaUrlArgument, as_json: AsJson = False) -> None:
    """List the access keys and what they may do, without their secrets.

    Example: tieredfs s3-key list sqlite:///data/volume.db
    """
    from tieredfs.volume import FileSystem
    from tieredfs_gateway.s3.keystore import Keystore

    with FileSystem.at(str(parse_meta_url(meta_url)), purpose=PURPOSE) as volume:
        found = Keystore(volume, volume.volume.host.clock).listed()
    rows = [{"access_key_id": key.access_key_id, "scope": key.scope, "created_ns": key.created_ns} for key in found]
    emit(rows, as_json=as_json, empty="no access keys; `tieredfs s3-key add` makes one")


@key_verbs.command("rm")
def remove_key(
    meta_url: MetaUrlArgument,
    access_key_id: Annotated[str, typer.Argument(metavar="ACCESS_KEY_ID", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Remove an access key; what is signed with it is refused a second later.

    Example: tieredfs s3-key rm sqlite:///data/volume.db TFSABCDEFGHIJKLMNOPQ
    """
    from tieredfs.volume import FileSystem
    from tieredfs_gateway.s3.keystore import Keystore

    with FileSystem.at(str(parse_meta_url(meta_url)), purpose=PURPOSE) as volume:
        Keystore(volume, volume.volume.host.clock).remove(access_key_id)
    if as_json:
        emit({"removed": access_key_id}, as_json=True)
    else:
        say(f"access key {access_key_id} is removed")
