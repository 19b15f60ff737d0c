"""Verbs on a volume, named by its META_URL: `format status gc fsck config destroy drain`."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tieredfs.cli.backend import Backend, Place
from tieredfs.cli.outcomes import PROBLEMS_FOUND
from tieredfs.cli.render import emit, plain, progress_bar, say
from tieredfs.cli.session import AsJson, MetaUrlArgument, backend_of, refuse_mounted
from tieredfs.cli.stuck import drain_reason, saying_why
from tieredfs.config import (
    DiskUrl,
    parse_code,
    parse_data_urls,
    parse_durability,
    parse_meta_url,
    parse_size,
    parse_volume_name,
)
from tieredfs.errors import ConfigurationError, NotAMountError, UnavailableError

CODE_HELP = "rs:k+m (k data chunks, any m may be lost) or replica:n."
DURABILITY_HELP = "What fsync waits for: ssd (this host's SSD) or store (all disks that take chunks)."


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs on volumes."""
    app.command("format")(format_volume)
    for verb in (status, drain, gc, fsck, config, destroy):
        app.command()(verb)


def is_url(text: str) -> bool:
    """Whether an argument that may be either is a URL and not a path."""
    return "://" in text


def format_volume(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[DATA_URL]...", help="More data URLs, as a shell expands them.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Where chunks go: disk:///path/d{0..5}, s3://bucket/prefix, node://host:port/path. Repeatable.",
            show_default=False,
        ),
    ] = None,
    code: Annotated[str, typer.Option(help=CODE_HELP)] = "rs:4+2",
    durability: Annotated[str, typer.Option(help=DURABILITY_HELP)] = "ssd",
    block_size: Annotated[str, typer.Option(help="How much is encoded at a time.")] = "64MiB",
    name: Annotated[str, typer.Option(help="What the mount table calls it.")] = "volume",
    force: Annotated[bool, typer.Option("--force", help="Start over where a volume is: what it held is lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a volume: metadata in one file, chunks on several disks.

    Example: tieredfs format sqlite:///data/volume.db --data 'disk:///mnt/ssd{0..5}/tieredfs' --code rs:4+2

    Example: tieredfs format sqlite:///data/volume.db --data 'node://10.0.0.{5,6,7}:9400/mnt/ssd{0..1}/t' --code rs:4+2
    """
    url = str(parse_meta_url(meta_url))
    places = parse_data_urls([*(data or []), *(more or [])])
    data_urls = [str(place) for place in places]
    wanted = parse_code(code)
    if len(data_urls) < wanted.width:
        raise ConfigurationError(
            f"{wanted} puts each block on {wanted.width} disks and there are {len(data_urls)} data URLs: "
            f"name {wanted.width - len(data_urls)} more, or choose a narrower code"
        )
    backend = backend_of(context)
    for path in (url.partition("://")[2], *(place.path for place in places if isinstance(place, DiskUrl))):
        refuse_mounted(backend, path)
    made = backend.format_volume(
        url,
        data_urls,
        code=wanted,
        durability=parse_durability(durability),
        block_bytes=parse_size(block_size),
        name=parse_volume_name(name),
        force=force,
    )
    emit(made, as_json=as_json)


def mounts_of(backend: Backend, volume_name: str, volume_uuid: str) -> list[tuple[Place, object]]:
    """The mounts of a volume on this host with their daemons' own status (None: no daemon answers).

    The mount table knows names only; a daemon that says the uuid of its volume settles whose mount it is.
    """
    found: list[tuple[Place, object]] = []
    for mount in backend.mounts():
        if mount.volume_name != volume_name:
            continue
        try:
            answer = backend.ask(mount.mount_id, "status", {}, lambda _done, _total, _unit: None)
        except UnavailableError:
            answer = None
        if answer is None or _part(answer, "volume").get("uuid", volume_uuid) == volume_uuid:
            found.append((mount, answer))
    return found


def _part(answer: object, name: str) -> dict[str, object]:
    """A part of what a daemon said; empty where it did not say it."""
    part = answer.get(name) if isinstance(answer, dict) else None
    return part if isinstance(part, dict) else {}


def status(
    context: typer.Context,
    volume: Annotated[
        str | None, typer.Argument(metavar="[META_URL|PATH]", help="A volume, or a mount. Default: list the mounts.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a volume: space, disks, what is staged and not yet stored, who has it open, and its mounts here.

    Example: tieredfs status sqlite:///data/volume.db --json
    """
    backend = backend_of(context)
    if volume is None:
        emit([_row(mount) for mount in backend.mounts()], as_json=as_json, empty="nothing is mounted here")
        return
    if not is_url(volume):
        emit(backend.ask(_mount_of(backend, volume).mount_id, "status", {}, _no_progress), as_json=as_json)
        return
    with backend.open_volume(str(parse_meta_url(volume)), purpose="status") as opened:
        tree = plain(opened.status())
        settings = opened.config
    assert isinstance(tree, dict)
    purposes = {session["purpose"] for session in tree["sessions"]}
    tree["mounts"] = [
        {**_row(mount), "daemon": _without_volume(answer)}
        for mount, answer in mounts_of(backend, settings.name, settings.uuid)
        if answer is not None or f"mount {mount.mount_id}" in purposes  # else it may be of a volume with the same name
    ]
    emit(tree, as_json=as_json)


def _row(mount: Place) -> dict[str, object]:
    return {
        "mount_point": mount.mount_point,
        "volume_name": mount.volume_name,
        "mount_id": mount.mount_id,
        "read_only": mount.read_only,
    }


def _without_volume(answer: object) -> object:
    """What a daemon says of its mount; what it says of the volume stands above it already."""
    return {key: part for key, part in answer.items() if key != "volume"} if isinstance(answer, dict) else answer


def _no_progress(_done: int, _total: int, _unit: str) -> None:
    pass


def _mount_of(backend: Backend, path: str) -> Place:
    located = backend.locate(path)
    if located is None:
        raise NotAMountError(f"{path} is not below a TieredFS mount")
    return located[0]


def drain(
    context: typer.Context,
    volume: Annotated[
        str, typer.Argument(metavar="META_URL|PATH", help="A volume, or a path on a mount.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Wait until everything that is on SSDs only is in the store, on all disks that take chunks.

    If the store takes nothing, it says why.

    Example: tieredfs drain /mnt/train
    """
    backend = backend_of(context)
    if not is_url(volume):
        mount = _mount_of(backend, volume)
        with progress_bar("storing", as_json) as progress, saying_why(drain_reason(backend, mount.mount_id)):
            answer = backend.ask(mount.mount_id, "drain", {}, progress)
        emit(answer, as_json=as_json, empty="all is stored")
        return
    emit(_drain_volume(backend, str(parse_meta_url(volume)), as_json), as_json=as_json)


def _drain_volume(backend: Backend, url: str, as_json: bool) -> dict[str, object]:
    """Live daemons drain their own caches; what is staged in caches without one is drained here.

    A file that is open for writing stays staged, but what it holds now is stored as well; it is counted in the result.
    """
    with backend.open_volume(url, purpose="drain") as opened:
        before, settings = opened.staged(), opened.config
    live_caches: set[object] = set()
    for mount, answer in mounts_of(backend, settings.name, settings.uuid) if before.file_count else []:
        if answer is not None:
            live_caches.add(_part(answer, "cache").get("path"))
            title, reason = f"storing what {mount.mount_point} has staged", drain_reason(backend, mount.mount_id)
            with progress_bar(title, as_json) as progress, saying_why(reason):
                backend.ask(mount.mount_id, "drain", {}, progress)
    if before.file_count and _staged_without_daemon(backend, url, live_caches):
        with progress_bar("storing", as_json) as progress:
            backend.drain_volume(url, progress)
    with backend.open_volume(url, purpose="drain") as opened:
        after = opened.staged()
    return {"stored_file_count": max(0, before.file_count - after.file_count), "staged_file_count": after.file_count}


def _staged_without_daemon(backend: Backend, url: str, live_caches: set[object]) -> bool:
    with backend.open_volume(url, purpose="drain") as opened:
        tree = plain(opened.status())
    assert isinstance(tree, dict)
    return any(cache["staged_files"] and cache["path"] not in live_caches for cache in tree["caches"])


def gc(context: typer.Context, meta_url: MetaUrlArgument, as_json: AsJson = False) -> None:
    """Delete what nothing refers to: blocks of files deleted at least ten minutes ago, leftovers of processes that died.

    What was deleted since waits: the report says how much, and until when.

    Example: tieredfs gc sqlite:///data/volume.db
    """
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="gc") as volume:
        with progress_bar("collecting garbage", as_json) as progress:
            report = volume.collect_garbage(progress)
        emit(report, as_json=as_json)


def fsck(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild and correct what can be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every record and read every byte of every chunk. Exit code 1 when something is wrong.

    Example: tieredfs fsck sqlite:///data/volume.db --repair
    """
    opening = backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="fsck")
    with opening as volume, progress_bar("checking", as_json) as progress:
        report = volume.check(repair=repair, progress=progress)
    found = plain(report)
    assert isinstance(found, dict)
    emit({"clean": report.clean, **found}, as_json=as_json)
    if not report.clean:
        sys.stderr.write(_verdict(report.findings, repair) + "\n")
        raise typer.Exit(PROBLEMS_FOUND)


def _verdict(findings: Sequence[object], repair: bool) -> str:
    advice = "what is left needs a look at the findings" if repair else "`tieredfs fsck --repair` corrects what it can"
    return f"tieredfs: not clean: {len(findings)} findings; {advice}"


def config(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    code: Annotated[str | None, typer.Option(help=f"For blocks from now on: {CODE_HELP}")] = None,
    durability: Annotated[str | None, typer.Option(help=DURABILITY_HELP)] = None,
    block_size: Annotated[str | None, typer.Option(help="For blocks from now on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings of a volume, or change some: they act on what is written from now on.

    Example: tieredfs config sqlite:///data/volume.db --durability store
    """
    new_name = None if name is None else parse_volume_name(name)
    new_code = None if code is None else parse_code(code)
    new_durability = None if durability is None else parse_durability(durability)
    block_bytes = None if block_size is None else parse_size(block_size)
    with backend_of(context).open_volume(str(parse_meta_url(meta_url)), purpose="config") as volume:
        if (new_name, new_code, new_durability, block_bytes) == (None, None, None, None):
            emit(volume.config, as_json=as_json)
            return
        changed = volume.set_config(name=new_name, code=new_code, durability=new_durability, block_bytes=block_bytes)
        emit(changed, as_json=as_json)


def destroy(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a volume with everything in it. Refused while it is mounted. Asks for the volume's name, unless --yes.

    Example: tieredfs destroy sqlite:///data/volume.db
    """
    backend = backend_of(context)
    url = str(parse_meta_url(meta_url))
    with backend.open_volume(url, purpose="destroy") as volume:
        name = volume.config.name
    if not yes:
        _confirm(url, name)
    with progress_bar("deleting", as_json) as progress:
        backend.destroy_volume(url, progress=progress)
    if as_json:
        emit({"destroyed": url, "name": name}, as_json=True)
    else:
        say(f"volume {name} is gone")


def _confirm(url: str, name: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{url} would be deleted with everything in it; say --yes to mean it")
    answer = input(f"{url} and everything in it will be deleted. Type the volume's name ({name}) to go on: ")
    if answer.strip() != name:
        raise ConfigurationError("nothing was deleted: that is not its name")
