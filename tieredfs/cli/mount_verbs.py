"""Verbs on a mount or a file, named by its path: `up mount umount info warmup evict`.

A path is looked up in the kernel's table first, and its daemon is asked for a sign of life before the path itself is
touched: a verb on a mount whose daemon is gone says so at once instead of waiting with it.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import typer

from tieredfs.cli.backend import Backend, Mounted, MountRequest, Place
from tieredfs.cli.outcomes import CONDITION, PROBLEMS_FOUND
from tieredfs.cli.render import emit, progress_bar, say
from tieredfs.cli.session import AsJson, MetaUrlArgument, backend_of, refuse_mounted
from tieredfs.cli.stuck import drain_reason, saying_why
from tieredfs.config import DiskUrl, SqliteUrl, format_size, parse_code, parse_meta_url, volume_name_from
from tieredfs.config.sizes import parse_positive_size
from tieredfs.errors import ConfigurationError, NotAMountError, NotFoundError, ReadOnlyError
from tieredfs.host import LocalFiles
from tieredfs.limits import BLOCK_BYTES_DEFAULT, CACHE_BYTES_DEFAULT, MEMORY_BYTES_DEFAULT
from tieredfs.model import Durability

DRIVERS = ("auto", "kernel", "fuse-python")
UP_CODE = "rs:4+2"
CACHE_DEFAULT = format_size(CACHE_BYTES_DEFAULT)
MEMORY_DEFAULT = format_size(MEMORY_BYTES_DEFAULT)

MountPoint = Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="An empty directory.", show_default=False)]
Driver = Annotated[str, typer.Option(help=f"One of {', '.join(DRIVERS)}; auto takes the fastest that works here.")]
CacheSize = Annotated[str, typer.Option(help="How much of the SSD may be used.")]
Memory = Annotated[str, typer.Option(help="Ceiling of the daemon's memory.")]
AllowOther = Annotated[bool, typer.Option("--allow-other", help="Other users may enter the mount.")]
Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or directories on a mount.")]


_WHY_KEPT: Final = {
    "kept_staged": "files that are not stored yet stay on the SSD: {}; `tieredfs drain PATH` first",
    "kept_open": "files that are open stay on the SSD: {}; close them and try again",
    "kept_bare": "files whose blocks could lose no disk more stay on the SSD: {}; bring the disks back, or rebuild them",
}
"""What `evict` says of files that stay."""


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs on mounts."""
    for verb in (up, mount, umount, info, clone, warmup, evict):
        app.command()(verb)


def up(
    context: typer.Context,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where everything is kept.", show_default=False)],
    mountpoint: MountPoint,
    driver: Driver = "auto",
    cache_size: CacheSize = CACHE_DEFAULT,
    memory: Memory = MEMORY_DEFAULT,
    allow_other: AllowOther = False,
    as_json: AsJson = False,
) -> None:
    """Make a volume in one directory, unless it is there already, and mount it: six disk directories, rs:4+2, a cache.

    Example: tieredfs up ~/tieredfs ~/train
    """
    backend = backend_of(context)
    home = os.path.abspath(directory)
    if os.path.lexists(home) and not os.path.isdir(home):
        raise ConfigurationError(f"{home} is not a directory; name a new one, which the volume will be in")
    refuse_mounted(backend, home)
    url = SqliteUrl(os.path.join(home, "volume.db"))
    request = _request(str(url), mountpoint, os.path.join(home, "cache"), cache_size, memory, driver, allow_other)
    if not os.path.exists(url.path):
        _format_in(backend, home, url)
    with contextlib.suppress(FileExistsError):  # a stale mount says so, too; mounting tells what it is
        LocalFiles().make_directory(request.mountpoint)
    mounted = backend.mount_volume(request)
    if as_json:
        emit(_description(str(url), mounted), as_json=True)
        return
    point = mounted.mountpoint
    say(_sentence(str(url), mounted))
    say(f"Save files there; `tieredfs info {point}/FILE` shows where they are, `tieredfs status {url}` the rest.")
    say(f"When you are done: `tieredfs umount --flush {point}`; the same command mounts it again.")


def _format_in(backend: Backend, home: str, url: SqliteUrl) -> None:
    LocalFiles().make_directory(home)
    code = parse_code(UP_CODE)
    backend.format_volume(
        str(url),
        [str(DiskUrl(os.path.join(home, "disks", f"d{index}"))) for index in range(code.width)],
        code=code,
        durability=Durability.SSD,
        block_bytes=BLOCK_BYTES_DEFAULT,
        name=volume_name_from(os.path.basename(home)),
        force=False,
    )


def mount(
    context: typer.Context,
    meta_url: MetaUrlArgument,
    mountpoint: MountPoint,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            help="Directory of the SSD tier. Default: beside the metadata file.",
            show_default=False,
        ),
    ] = None,
    cache_size: CacheSize = CACHE_DEFAULT,
    memory: Memory = MEMORY_DEFAULT,
    driver: Driver = "auto",
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, until the volume is unmounted.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nothing can be changed through this mount.")] = False,
    allow_other: AllowOther = False,
    as_json: AsJson = False,
) -> None:
    """Mount a volume. Returns when the mount is ready, or says why it is not.

    Example: tieredfs mount sqlite:///data/volume.db /mnt/train --cache-dir /mnt/nvme/cache --cache-size 500GiB
    """
    url = str(parse_meta_url(meta_url))
    cache = None if cache_dir is None else os.path.abspath(cache_dir)
    backend = backend_of(context)
    if cache is not None:
        refuse_mounted(backend, cache)
    request = _request(
        url, mountpoint, cache, cache_size, memory, driver, allow_other, foreground=foreground, read_only=read_only
    )
    mounted = backend.mount_volume(request)
    if as_json:
        emit(_description(url, mounted), as_json=True)
    else:
        say(f"{request.mountpoint} is unmounted" if foreground else _sentence(url, mounted))


def _request(
    url: str,
    mountpoint: str,
    cache_dir: str | None,
    cache_size: str,
    memory: str,
    driver: str,
    allow_other: bool,
    *,
    foreground: bool = False,
    read_only: bool = False,
) -> MountRequest:
    if driver not in DRIVERS:
        raise ConfigurationError(f"{driver!r} is no driver: one of {', '.join(DRIVERS)}")
    return MountRequest(
        meta_url=url,
        mountpoint=os.path.abspath(mountpoint),
        cache_dir=cache_dir,
        cache_bytes=parse_positive_size(cache_size),
        memory_bytes=parse_positive_size(memory),
        driver=driver,
        read_only=read_only,
        allow_other=allow_other,
        foreground=foreground,
    )


def _description(url: str, mounted: Mounted) -> dict[str, object]:
    return {
        "meta_url": url,
        "mount_point": mounted.mountpoint,
        "mount_id": mounted.mount_id,
        "driver": mounted.driver,
        "reason": mounted.reason,
    }


def _sentence(url: str, mounted: Mounted) -> str:
    return f"{url} is mounted at {mounted.mountpoint} by the {mounted.driver} driver ({mounted.reason})."


def umount(
    context: typer.Context,
    mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", show_default=False)],
    flush: Annotated[bool, typer.Option("--flush", help="First wait until everything staged is stored.")] = False,
    as_json: AsJson = False,
) -> None:
    """Unmount. What is staged stays safe on the SSD and is stored after the next mount, unless --flush does it first.

    Example: tieredfs umount --flush /mnt/train
    """
    point = os.path.abspath(mountpoint)
    backend = backend_of(context)
    mount = next((mount for mount in backend.mounts() if mount.mount_point == os.path.realpath(point)), None)
    with contextlib.ExitStack() as stack:
        if flush and mount is not None:
            stack.enter_context(saying_why(drain_reason(backend, mount.mount_id)))
        progress = stack.enter_context(progress_bar("storing what is staged" if flush else "unmounting", as_json))
        backend.unmount(point, flush=flush, progress=progress)
    if as_json:
        emit({"unmounted": point, "flushed": flush}, as_json=True)
    else:
        say(f"{point} is unmounted")


def place_of(backend: Backend, path: str) -> tuple[Place, str]:
    """The mount of a path, and the path from the volume's root. Symlinks are followed, but for the last component."""
    located = backend.locate(path)
    if located is None:
        raise NotAMountError(f"{path} is not below a TieredFS mount")
    found, absolute = located
    backend.ask(found.mount_id, "ping", {}, lambda _done, _total, _unit: None)  # alive: now the path may be touched
    if absolute != found.mount_point:
        absolute = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
        located = backend.locate(absolute)
        if located is None or located[0].mount_id != found.mount_id:
            raise NotAMountError(f"{path} leads out of the mount at {found.mount_point}, to {absolute}")
        found, absolute = located
    return found, found.relative(absolute)


@contextlib.contextmanager
def _naming(found: Place) -> Iterator[None]:
    """Daemons name paths from the root of their mount."""
    try:
        yield
    except NotFoundError as error:
        raise NotFoundError(f"{found.mount_point}: {error}") from error


def info(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or directory on a mount.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show where a file is: its state (staged or stored), extents, blocks, chunks and their disks, how much is cached.

    Example: tieredfs info /mnt/train/checkpoint.pt
    """
    backend = backend_of(context)
    found, relative = place_of(backend, path)
    with _naming(found):
        answer = backend.ask(found.mount_id, "info", {"path": relative}, lambda _done, _total, _unit: None)
    emit(answer, as_json=as_json)


def clone(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file or directory on a mount.", show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Where nothing is yet, on the same mount.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Copy a file or a tree by reference: no byte is read or stored again, and changing one does not change the other.

    Example: tieredfs clone /mnt/train/runs/7 /mnt/train/runs/7-before-surgery
    """
    backend = backend_of(context)
    found, source_path = place_of(backend, source)
    other, target_path = place_of(backend, target)
    if other.mount_id != found.mount_id:
        raise ConfigurationError(f"{source} and {target} are on two mounts; a copy by reference is within one volume")
    if found.read_only:
        raise ReadOnlyError(f"{found.mount_point} is mounted read-only")
    status = backend.ask(found.mount_id, "status", {}, lambda _done, _total, _unit: None)
    with progress_bar(f"cloning {source}", as_json) as progress:
        report = backend.clone(meta_url_of(status), source_path, target_path, progress)
    emit(report, as_json=as_json)


def meta_url_of(status: object) -> str:
    """What a daemon says of its volume."""
    volume = status.get("volume") if isinstance(status, dict) else None
    return str(volume["meta_url"]) if isinstance(volume, dict) else ""


def warmup(context: typer.Context, paths: Paths, as_json: AsJson = False) -> None:
    """Bring files onto the SSD before they are read. Exit code 1: some could not be.

    Example: tieredfs warmup /mnt/train/dataset
    """
    answers = _ask_by_mount(backend_of(context), "warmup", paths, as_json)
    if any(answer.get("failed") for answer in answers):
        raise typer.Exit(PROBLEMS_FOUND)


def evict(context: typer.Context, paths: Paths, as_json: AsJson = False) -> None:
    """Drop the SSD's copies of stored files. What is not yet stored stays, and what is open. Exit code 3: all of it stays.

    Example: tieredfs evict /mnt/train/dataset
    """
    answers = _ask_by_mount(backend_of(context), "evict", paths, as_json)
    kept = {key: sum(_count(one, key) for one in answers) for key in _WHY_KEPT}
    for key, count in kept.items():
        if count:
            sys.stderr.write(f"tieredfs: {_WHY_KEPT[key].format(count)}\n")
    if any(kept.values()) and not any(_count(one, "evicted") for one in answers):
        raise typer.Exit(CONDITION)


def _count(answer: Mapping[str, object], key: str) -> int:
    number = answer.get(key)
    return number if isinstance(number, int) else 0


def _ask_by_mount(backend: Backend, verb: str, paths: list[str], as_json: bool) -> list[Mapping[str, object]]:
    """The answers, which are printed: one mount's as it is, several by mount point. One call for each mount that has a path."""
    wanted: dict[str, tuple[Place, list[str]]] = {}
    for path in paths:
        found, relative = place_of(backend, path)
        wanted.setdefault(found.mount_id, (found, []))[1].append(relative)
    answers: dict[str, object] = {}
    for mount_id, (found, relatives) in wanted.items():
        with progress_bar(f"{verb} {found.mount_point}", as_json) as progress, _naming(found):
            answers[found.mount_point] = backend.ask(mount_id, verb, {"paths": relatives}, progress)
    emit(answers if len(answers) > 1 else next(iter(answers.values())), as_json=as_json, empty=f"{verb}: done")
    return [answer for answer in answers.values() if isinstance(answer, dict)]
