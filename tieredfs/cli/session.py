"""What every verb has at hand: the backend of this run, and the words that the verbs share."""

from typing import Annotated

import typer

from tieredfs.cli.backend import Backend
from tieredfs.errors import ConfigurationError

META_URL_HELP = "The volume: sqlite:///absolute/path/volume.db or postgresql://user@host/database"

MetaUrlArgument = Annotated[str, typer.Argument(metavar="META_URL", help=META_URL_HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Verbs = typer.Typer


def backend_of(context: typer.Context) -> Backend:
    """The backend that `main` was given."""
    backend: Backend = context.obj
    return backend


def refuse_mounted(backend: Backend, path: str) -> None:
    """What a volume is made of cannot be in a mount: in its own, it would wait for itself. Raises ConfigurationError."""
    located = backend.locate(path)
    if located is not None:
        raise ConfigurationError(
            f"{path} is inside the TieredFS mount at {located[0].mount_point}; name a directory of a disk"
        )


def new_verbs(help_text: str | None = None) -> typer.Typer:
    """A group of verbs with our conventions: no completion options, tracebacks left to us, plain markup."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
