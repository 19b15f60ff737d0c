"""`tieredfs snapshot ...` and `tieredfs restore`: a directory as it was."""

import os
import sys
from typing import Annotated

import typer

from tieredfs.cli.backend import Backend, Place, RestoreRequest
from tieredfs.cli.mount_verbs import meta_url_of, place_of
from tieredfs.cli.outcomes import PROBLEMS_FOUND
from tieredfs.cli.render import emit, plain, progress_bar, say
from tieredfs.cli.session import AsJson, backend_of, new_verbs
from tieredfs.errors import ConfigurationError, ReadOnlyError, TieredError

verbs = new_verbs(
    "Take, list and remove snapshots of directories. A snapshot is read-only, costs no bytes while its original stays, and is\n"
    "a directory like others: MOUNT/.snapshots/PATH/@NAME, which no listing of MOUNT shows."
)

Directory = Annotated[
    str, typer.Argument(metavar="PATH", help="A directory on a mount; it may be gone by now.", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the snapshot, among those of PATH.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Give the application the verb that is not in the group."""
    app.command()(restore)


def _writable_place(backend: Backend, path: str) -> tuple[Place, str, str]:
    """The mount, the path from the volume's root, and the volume's META_URL."""
    found, relative = place_of(backend, path)
    if found.read_only:
        raise ReadOnlyError(f"{found.mount_point} is mounted read-only")
    return found, relative, _volume_of(backend, found)


def _volume_of(backend: Backend, found: Place) -> str:
    return meta_url_of(backend.ask(found.mount_id, "status", {}, lambda _done, _total, _unit: None))


@verbs.command()
def create(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory on a mount.", show_default=False)],
    name: Name,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot of a directory: all of it, as it is at one moment.

    Example: tieredfs snapshot create /mnt/train/runs/7 before-surgery
    """
    backend = backend_of(context)
    found, relative, url = _writable_place(backend, path)
    with progress_bar(f"taking a snapshot of {path}", as_json) as progress:
        taken = backend.create_snapshot(url, found.mount_id, relative, name, progress)
    row = _row(found, taken)
    emit(row, as_json=as_json)
    if not as_json:
        say(f"It is at {row['place']}; `tieredfs restore {path} {name}` goes back to it.")


@verbs.command("list")
def list_snapshots(
    context: typer.Context,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="Of it and of what is below. Default: all of the mounts here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List snapshots: of what, when they were taken, what is in them, where they are. Exit code 1: a mount could not be asked.

    Example: tieredfs snapshot list /mnt/train
    """
    backend = backend_of(context)
    rows: list[dict[str, object]] = []
    problems: list[str] = []
    if path is not None:
        found, relative = place_of(backend, path)
        rows = [_row(found, each) for each in backend.snapshots(_volume_of(backend, found), relative)]
    else:
        urls: set[str] = set()
        for found in backend.mounts():
            try:
                url = _volume_of(backend, found)
                rows += [] if url in urls else [_row(found, each) for each in backend.snapshots(url, "")]
                urls.add(url)
            except TieredError as error:
                problems.append(f"{found.mount_point}: {error}")
    emit(rows, as_json=as_json, empty="there are no snapshots")
    for problem in problems:
        sys.stderr.write(f"tieredfs: {problem}\n")
    if problems:
        raise typer.Exit(PROBLEMS_FOUND)


@verbs.command()
def rm(context: typer.Context, path: Directory, name: Name, as_json: AsJson = False) -> None:
    """Remove a snapshot. What nothing else refers to is deleted from the store by a later garbage collection.

    Example: tieredfs snapshot rm /mnt/train/runs/7 before-surgery
    """
    backend = backend_of(context)
    _, relative, url = _writable_place(backend, path)
    with progress_bar(f"removing {name}", as_json) as progress:
        count = backend.remove_snapshot(url, relative, name, progress)
    emit({"removed": name, "entry_count": count}, as_json=as_json)


def restore(
    context: typer.Context,
    path: Directory,
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="DEST", help="Where it goes, on the same mount. Default: PATH.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Instead of a directory that is there: what is in that is lost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a directory again what it was when a snapshot was taken, in one step, or put that somewhere else. No byte is copied.

    Example: tieredfs restore /mnt/train/runs/7 before-surgery --to /mnt/train/runs/7-again

    Example: tieredfs restore /mnt/train/runs/7 before-surgery --force
    """
    backend = backend_of(context)
    found, relative, url = _writable_place(backend, path)
    target = relative
    if to is not None:
        other, target = place_of(backend, to)
        if other.mount_id != found.mount_id:
            raise ConfigurationError(f"{path} and {to} are on two mounts; a snapshot is restored within its volume")
    whole = found.mount_point if found.relative(found.mount_point) == "" else None
    request = RestoreRequest(url, relative, name, target, force, whole)
    with progress_bar(f"restoring {name}", as_json) as progress:
        report = backend.restore_snapshot(request, progress)
    shown = plain(report)
    assert isinstance(shown, dict)
    emit({"restored": to or path, **shown}, as_json=as_json)


def _row(found: Place, snapshot: object) -> dict[str, object]:
    """A snapshot, with the paths that it has on the mount, if that shows all of the volume."""
    tree = plain(snapshot)
    assert isinstance(tree, dict)
    about = tree.pop("about")
    path, place = tree["path"], tree["place"]
    if found.relative(found.mount_point) == "":
        path, place = os.path.join(found.mount_point, path).rstrip("/"), os.path.join(found.mount_point, place)
    return {"path": path, "name": tree["name"], **about, "place": place}
