"""`tieredfs status-page` and `status-token`: what the command line gets from here, by its entry point. Light to import."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tieredfs.cli.render import emit, say
from tieredfs.cli.session import AsJson, MetaUrlArgument
from tieredfs.config import parse_listen, parse_meta_url
from tieredfs.errors import ConfigurationError
from tieredfs_gateway.datasets.verbs import LIFE_MAX_S, SECRET_VARIABLE, SecretFile, read_secret


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs."""
    app.command("status-page")(status_page)
    app.command("status-token")(status_token)


def status_page(
    meta_url: MetaUrlArgument,
    listen: Annotated[str, typer.Option(help="HOST:PORT. Off this machine a secret is needed.")] = "127.0.0.1:8900",
    html: Annotated[
        Path | None, typer.Option(help="Write the page of this moment to a file, and end.", show_default=False)
    ] = None,
    secret_file: SecretFile = None,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.", exists=True)] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key, PEM.", exists=True)] = None,
) -> None:
    """Show a volume as a page of pictures: what is where, what is not yet safe, what is slow. /status.json has it as data.

    Example: tieredfs status-page sqlite:///data/volume.db --listen 127.0.0.1:8900

    Example: tieredfs status-page sqlite:///data/volume.db --html status.html
    """
    from tieredfs_gateway.status.server import Serving, serve, write_page

    url = str(parse_meta_url(meta_url))
    if html is not None:
        write_page(url, html)
        say(f"the status of {url} is in {html}")
        return
    host, port = parse_listen(listen)
    if (cert is None) != (key is None):
        raise ConfigurationError("--cert and --key belong together")
    serve(Serving(url, host, port, _secret(secret_file), cert, key))


def _secret(secret_file: Path | None) -> bytes | None:
    from tieredfs_gateway.datasets.tokens import check_secret

    secret = read_secret(secret_file)
    if secret is not None:
        check_secret(secret)
    return secret


def status_token(
    life: Annotated[int, typer.Option(help="Seconds until it expires.", min=1, max=LIFE_MAX_S)] = 86_400,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a token that lets its holder see the status page of a server with the same secret, for a while; and nothing else.

    Example: tieredfs status-token --life 86400 --secret-file secret
    """
    from tieredfs_gateway.datasets.tokens import make_token
    from tieredfs_gateway.status.place import SOURCE

    secret = _secret(secret_file)
    if secret is None:
        raise ConfigurationError(f"a token needs the page's secret: {SECRET_VARIABLE} or --secret-file")
    expires_s = int(time.time()) + life
    token = make_token(secret, [SOURCE], expires_s)
    if as_json:
        emit({"token": token, "expires_unix": expires_s}, as_json=True)
    else:
        say(token)
