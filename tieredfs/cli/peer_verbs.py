"""`tieredfs peer`: what is staged on this host, for other hosts of the volume."""

from pathlib import Path
from typing import Annotated

import typer

from tieredfs.chunk.node_protocol import SECRET_VARIABLE
from tieredfs.cli.session import MetaUrlArgument
from tieredfs.config import parse_meta_url


def add_to(app: typer.Typer) -> None:
    """Give the application its verb."""
    app.command()(peer)


def peer(
    meta_url: MetaUrlArgument,
    listen: Annotated[
        str,
        typer.Option(
            help="HOST:PORT, as other hosts reach it; port 0: any. With --cert and --key nobody can listen in."
        ),
    ] = "127.0.0.1:9410",
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the secret, the same as nodes have; else {SECRET_VARIABLE}_FILE or {SECRET_VARIABLE} says it.",
            exists=True,
        ),
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.", exists=True)] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key, PEM.", exists=True)] = None,
) -> None:
    """Serve what is staged on this host, and not stored yet, to the other hosts of the volume. Stays until it is ended.

    One a host is enough for all its mounts, servers and ranks. What processes that are gone left staged is stored meanwhile.

    Example: tieredfs peer postgresql://train@db.example/volumes --listen 10.0.0.5:9410 --secret-file /etc/tieredfs/secret
    """
    import logging

    from tieredfs.volume.peer_process import serve
    from tieredfs.volume.peering import Listening

    listening = Listening.asked(
        listen,
        secret_file=str(secret_file) if secret_file else None,
        cert=str(cert) if cert else None,
        key=str(key) if key else None,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    serve(str(parse_meta_url(meta_url)), listening)
