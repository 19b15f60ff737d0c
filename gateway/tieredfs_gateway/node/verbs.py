"""`tieredfs node`: what the command line gets from here, by its entry point. Light to import."""

from pathlib import Path
from typing import Annotated

import typer

from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.config import DiskUrl, parse_data_urls, parse_listen
from tieredfs.core.capability import SECRET_BYTES_MIN
from tieredfs.errors import ConfigurationError
from tieredfs.host.secret import read_secret


def add_to(app: typer.Typer) -> None:
    """Give the application its verb."""
    app.command("node")(node)


def node(
    data: Annotated[
        list[str], typer.Option(help="A directory to serve: disk:///path/d{0..3}. Repeatable.", show_default=False)
    ],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT. Off this machine, give --cert and --key too.")
    ] = "127.0.0.1:9400",
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the secret; else {SECRET_VARIABLE}_FILE or {SECRET_VARIABLE} says it.", exists=True
        ),
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.", exists=True)] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key, PEM.", exists=True)] = None,
    access_log: Annotated[bool, typer.Option(help="A line per request on standard error.")] = True,
) -> None:
    """Serve directories of this machine as disks of volumes elsewhere: node://HOST:PORT/path/d0 is one of their DATA_URLs.

    Whoever mounts such a volume has the same secret. The node keeps no state but its directories.

    Example: tieredfs node --data 'disk:///mnt/ssd{0..3}/t' --listen 10.0.0.5:9400 --secret-file /etc/tieredfs/secret
    """
    from tieredfs_gateway.node.server import Serving, serve

    host, port = parse_listen(listen)
    if (cert is None) != (key is None):
        raise ConfigurationError("--cert and --key belong together")
    urls = parse_data_urls(data)
    foreign = [str(url) for url in urls if not isinstance(url, DiskUrl)]
    if foreign:
        raise ConfigurationError(f"a node serves directories of its machine; {foreign[0]} is none")
    roots = [url.path for url in urls if isinstance(url, DiskUrl)]
    secret = read_secret(SECRET_VARIABLE, str(secret_file) if secret_file else None, bytes_min=SECRET_BYTES_MIN)
    serve(Serving(roots, host, port, secret, cert, key, access_log))
