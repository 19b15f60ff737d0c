"""`tieredfs gateway`, `gateway-token` and `dataset`: what the command line gets from here, by its entry point. Light to import."""

import os
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from tieredfs.cli.render import emit, say
from tieredfs.cli.session import AsJson, MetaUrlArgument
from tieredfs.config import parse_listen, parse_meta_url
from tieredfs.config.sizes import parse_positive_size
from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.dataset_verbs import dataset_verbs

SECRET_VARIABLE: Final = "TIEREDFS_GATEWAY_SECRET"
FREED_MEMORY_KEPT: Final = ("MIMALLOC_PURGE_DELAY", "10000")
"""Milliseconds, for Arrow's allocator, which reads it when it is loaded: what one split leaves, the next one takes. With its own
10 ms a trainer's epoch took 7 % longer, and twice as many page faults."""
LIFE_MAX_S: Final = 30 * 24 * 3600
SecretFile = Annotated[
    Path | None, typer.Option(help=f"File with the secret; else {SECRET_VARIABLE} is used.", exists=True)
]


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs."""
    app.command("gateway")(gateway)
    app.command("gateway-token")(gateway_token)
    app.add_typer(dataset_verbs, name="dataset")


def gateway(
    meta_url: MetaUrlArgument,
    listen: Annotated[str, typer.Option(help="HOST:PORT. Off this machine a secret is needed.")] = "127.0.0.1:8800",
    unix_socket: Annotated[
        str | None, typer.Option(help="Where trainers of this host get shared memory; 'none' for no such place.")
    ] = None,
    secret_file: SecretFile = None,
    transforms: Annotated[
        Path | None, typer.Option(help="TOML that names the transforms that may be asked for.", exists=True)
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.", exists=True)] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key, PEM.", exists=True)] = None,
    cache_size: Annotated[str, typer.Option(help="How much of the SSD may be used.")] = "100GiB",
    memory: Annotated[
        str, typer.Option(help="Ceiling of decoded rows; each of 8 datasets at once has an eighth.")
    ] = "4GiB",
    shared_memory: Annotated[str, typer.Option(help="Ceiling of what trainers of this host map.")] = "1GiB",
    bandwidth: Annotated[
        str | None, typer.Option(help="Bytes per second from and to the store, of all gateways of the volume together.")
    ] = None,
    flight_port: Annotated[int | None, typer.Option(help="Serve Arrow Flight there, too.", min=1, max=65_535)] = None,
    job_lease: Annotated[
        float, typer.Option(help="Seconds after which another gateway goes on with what this one died at.", min=1)
    ] = 30.0,
) -> None:
    """Serve datasets to trainers: decoded, filtered, shuffled, in batches. /docs shows the interface.

    Example: tieredfs gateway sqlite:///data/volume.db --listen 127.0.0.1:8800
    """
    os.environ.setdefault(*FREED_MEMORY_KEPT)
    from tieredfs_gateway.datasets.server import Serving, serve
    from tieredfs_gateway.datasets.tokens import check_secret
    from tieredfs_gateway.datasets.transforms import parse_transforms

    host, port = parse_listen(listen)
    if (cert is None) != (key is None):
        raise ConfigurationError("--cert and --key belong together")
    secret = read_secret(secret_file)
    if secret is not None:
        check_secret(secret)
    allowed = parse_transforms(transforms.read_text()) if transforms is not None else {}
    sizes = (parse_positive_size(cache_size), parse_positive_size(memory), parse_positive_size(shared_memory))
    place = "" if unix_socket == "none" else unix_socket
    rate = parse_positive_size(bandwidth) if bandwidth is not None else None
    asked = Serving(
        str(parse_meta_url(meta_url)),
        host,
        port,
        secret,
        place,
        allowed,
        cert,
        key,
        *sizes,
        rate,
        flight_port,
        job_lease,
    )
    serve(asked)


def read_secret(file: Path | None) -> bytes | None:
    """From the file, else from the environment; None when there is none."""
    if file is not None:
        return file.read_bytes().strip()
    return os.environb.get(SECRET_VARIABLE.encode())


def gateway_token(
    source: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", show_default=False, help="Datasets; '*' for all.")
    ],
    life: Annotated[int, typer.Option(help="Seconds until it expires.", min=1, max=LIFE_MAX_S)] = 3600,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a token that lets its holder read these datasets, and what is below them, for a while.

    Example: tieredfs gateway-token datasets/flights --life 86400 --secret-file secret
    """
    from tieredfs_gateway.datasets.tokens import make_token

    secret = read_secret(secret_file)
    if secret is None:
        raise ConfigurationError(f"a token needs the gateway's secret: {SECRET_VARIABLE} or --secret-file")
    expires_s = int(time.time()) + life
    token = make_token(secret, source, expires_s)
    if as_json:
        emit({"token": token, "expires_unix": expires_s, "sources": source}, as_json=True)
    else:
        say(token)
