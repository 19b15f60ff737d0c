"""The application: verbs gathered, errors translated once, for all of them."""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from typer.models import CommandInfo

import tieredfs
from tieredfs.cli import (
    bench_verbs,
    disk_verbs,
    dump_verbs,
    mount_verbs,
    peer_verbs,
    quota_verbs,
    snapshot_verbs,
    volume_verbs,
    watch_verbs,
)
from tieredfs.cli.backend import Backend, LocalBackend
from tieredfs.cli.outcomes import OK, error_line, exit_code_of
from tieredfs.cli.render import ReaderLeftError
from tieredfs.cli.session import new_verbs
from tieredfs.errors import TieredError

ENTRY_POINTS: Final = "tieredfs.cli"

app = new_verbs(
    "Tiered storage for training: a filesystem at the speed of its SSD over an erasure-coded store.\n\n"
    "Start with [bold]tieredfs up DIR MOUNTPOINT[/bold]. What acts on a volume takes its META_URL, what acts on a "
    "mount or a file takes its path. Exit codes: 0 done, 1 problems found, 2 request cannot be carried out, "
    "3 busy, full or away (try again), 4 stored bytes damaged."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tieredfs {tieredfs.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    assert not version, "the callback ends the run"


mount_verbs.add_to(app)
snapshot_verbs.add_to(app)
volume_verbs.add_to(app)
dump_verbs.add_to(app)
watch_verbs.add_to(app)
bench_verbs.add_to(app)
peer_verbs.add_to(app)
app.add_typer(disk_verbs.verbs, name="disk")
app.add_typer(quota_verbs.verbs, name="quota")
app.add_typer(snapshot_verbs.verbs, name="snapshot")


@functools.cache
def _add_front_ends() -> None:
    """Verbs of other packages: each has an entry point that takes the application. They import what is heavy when they run."""
    import importlib.metadata

    for front_end in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        front_end.load()(app)


def _application(arguments: Sequence[str]) -> typer.Typer:
    """What `arguments` ask for: where they begin with a verb or a group of ours, an application that has nothing else, for to find
    and to make the others takes longer than many a verb; else all."""
    word = arguments[0] if arguments else ""
    commands = [verb for verb in app.registered_commands if _name_of(verb) == word]
    groups = [group for group in app.registered_groups if group.name == word]
    if not commands and not groups:
        _add_front_ends()
        return app
    alone = new_verbs()
    alone.callback()(_options)
    alone.registered_commands, alone.registered_groups = commands, groups
    return alone


def _name_of(verb: CommandInfo) -> str:
    assert verb.callback is not None
    return verb.name or typer.main.get_command_name(verb.callback.__name__)


def run(arguments: Sequence[str] | None, backend: Backend | None) -> int:
    """One command; its exit code. Raises KeyboardInterrupt."""
    command = typer.main.get_command(_application(sys.argv[1:] if arguments is None else arguments))
    try:
        command.main(args=arguments, prog_name="tieredfs", obj=backend or LocalBackend())
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # of help and usage, which are printed for us
            return OK
        return stop.code if isinstance(stop.code, int) else OK
    except ReaderLeftError:  # nothing more can be said, not even by the flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (TieredError, OSError) as error:
        sys.stderr.write(error_line(error).encode("utf-8", "backslashreplace").decode() + "\n")
        return exit_code_of(error)
    return OK
