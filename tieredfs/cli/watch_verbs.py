"""Verbs that watch a mount: `stats` and `top`. Each interval is one call to its daemon, which measures only while it lasts.

They end with a Ctrl-C or when the mount is gone, and that is no failure. A daemon that died is replaced by its keeper: one
interval is lost, and the next one is asked of its successor.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Annotated, Final

import typer

from tieredfs.cli.backend import Backend, Place
from tieredfs.cli.columns import Column, at, heading, line, short_count, short_ratio, short_size, short_time
from tieredfs.cli.render import plain, say, say_screen
from tieredfs.cli.session import backend_of
from tieredfs.cli.volume_verbs import is_url, mounts_of
from tieredfs.config import parse_duration, parse_meta_url
from tieredfs.errors import ConfigurationError, NotAMountError, UnavailableError
from tieredfs.limits import WATCH_INTERVAL_MAX_S, WATCH_INTERVAL_MIN_S, WATCHED_ROWS_MAX

Where = Annotated[
    str, typer.Argument(metavar="MOUNTPOINT|META_URL", help="A mount, or a volume that is mounted here once.")
]
Interval = Annotated[str, typer.Option(help="How long each line is about: 1, 500ms, 10s.")]
Count = Annotated[int, typer.Option(help="End after so many; 0: go on.", min=0)]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]

HEADING_EVERY: Final = 20
AWAY_MAX: Final = 6
"""So many calls in a row may find no daemon, and each waits `DAEMON_WAIT_S` for one: half a minute, for a machine that is busy."""

STATS: Final = (
    Column("daemon", "cpu", 4, "cpu_ratio", short_ratio),
    Column("daemon", "mem", 5, "resident_bytes", short_size),
    Column("operations a second", "all", 5, "operations.per_s", short_count),
    Column("operations a second", "mean", 5, "operations.mean_s", short_time),
    Column("operations a second", "look", 5, "kinds.look.per_s", short_count),
    Column("operations a second", "open", 5, "kinds.open.per_s", short_count),
    Column("operations a second", "list", 5, "kinds.list.per_s", short_count),
    Column("operations a second", "chng", 5, "kinds.change.per_s", short_count),
    Column("operations a second", "sync", 5, "kinds.sync.per_s", short_count),
    Column("opens", "pass", 5, "passthrough_opens_per_s", short_count),
    Column("opens", "hit", 4, "hit_ratio", short_ratio),
    Column("by daemon", "read", 5, "read_bytes_per_s", short_size),
    Column("by daemon", "writ", 5, "written_bytes_per_s", short_size),
    Column("store", "fill", 5, "filled_bytes_per_s", short_size),
    Column("store", "drain", 5, "stored_bytes_per_s", short_size),
    Column("staged", "bytes", 5, "staged_bytes", short_size),
    Column("staged", "age", 5, "staged_oldest_age_s", short_time),
    Column("full", "wait", 4, "room_waits_per_s", short_count),
)

_USE: Final = (
    Column("", "ops/s", 6, "operations_per_s", short_count),
    Column("", "opens", 6, "opens_per_s", short_count),
    Column("", "busy", 5, "busy_ratio", short_ratio),
    Column("", "bytes", 6, "bytes_per_s", short_size),
)


def add_to(app: typer.Typer) -> None:
    """Give the application its verbs that watch."""
    for verb in (stats, top):
        app.command()(verb)


def stats(
    context: typer.Context,
    where: Where,
    interval: Interval = "1",
    count: Count = 0,
    as_json: AsJsonLines = False,
) -> None:
    """Show what a mount does, a line each interval, until Ctrl-C.

    all, mean: operations of programs, and how long one takes in the daemon. pass: opens that the kernel serves alone from then
    on; what it reads and writes is seen by nobody. hit: opens that had nothing to fetch. staged: on this SSD only. wait:
    openings for writing that waited for room.

    Example: tieredfs stats /mnt/train --interval 5

    Example: tieredfs stats /mnt/train --count 60 --json >> minute.jsonl
    """
    backend = backend_of(context)
    reports = _watch(backend, where, "activity", {"interval_s": _interval_s(interval)})
    with suppress(KeyboardInterrupt):  # that is how one stops watching
        for number, report in enumerate(islice(reports, count or None)):
            if as_json:
                say(json.dumps(report))
                continue
            if number % HEADING_EVERY == 0:
                for text in heading(STATS):
                    say(text)
            error = at(report, "drain_error")
            say(line(STATS, report) + (f"  {error}" if error else ""))


def top(
    context: typer.Context,
    where: Where,
    interval: Interval = "2",
    count: Count = 0,
    limit: Annotated[int, typer.Option(help="Rows of each table.", min=1, max=WATCHED_ROWS_MAX)] = 10,
    as_json: AsJsonLines = False,
) -> None:
    """Show who uses a mount most, and which files and directories, until Ctrl-C.

    What the kernel serves alone is seen by its opens only. Busy: the share of a second that the daemon worked for it, or waited.

    Example: tieredfs top /mnt/train
    """
    backend = backend_of(context)
    reports = _watch(backend, where, "top", {"interval_s": _interval_s(interval), "limit": limit})
    with suppress(KeyboardInterrupt):
        for report in islice(reports, count or None):
            if as_json:
                say(json.dumps(report))
            else:
                say_screen(list(_screen(report)))


# ---- watching --------------------------------------------------------------------------------------------------------


def _interval_s(text: str) -> float:
    interval_s = parse_duration(text)
    if not WATCH_INTERVAL_MIN_S <= interval_s <= WATCH_INTERVAL_MAX_S:
        raise ConfigurationError(
            f"--interval {text} is out of range: {WATCH_INTERVAL_MIN_S:g} to {WATCH_INTERVAL_MAX_S:g} seconds"
        )
    return interval_s


def _watch(backend: Backend, where: str, verb: str, arguments: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """A report for each interval, with the time at which it ended, while the mount is there."""
    mount = _mount_at(backend, where)
    failures = 0
    while True:
        try:
            answer = plain(backend.ask(mount.mount_id, verb, arguments, lambda _done, _total, _unit: None))
        except UnavailableError:
            if not any(one.mount_id == mount.mount_id for one in backend.mounts()):
                sys.stderr.write(f"tieredfs: {mount.mount_point} is unmounted\n")
                return
            failures += 1
            if failures > AWAY_MAX:
                raise
            continue
        failures = 0
        assert isinstance(answer, dict)
        yield {"time_s": round(time.time(), 3), "mount_point": mount.mount_point, **answer}


def _mount_at(backend: Backend, where: str) -> Place:
    """Raises NotAMountError, ConfigurationError where a volume has several mounts."""
    if not is_url(where):
        located = backend.locate(where)
        if located is None:
            raise NotAMountError(f"{where} is not below a TieredFS mount")
        return located[0]
    url = str(parse_meta_url(where))
    with backend.open_volume(url, purpose="stats") as volume:
        settings = volume.config
    found = [mount for mount, _ in mounts_of(backend, settings.name, settings.uuid)]
    if not found:
        raise NotAMountError(f"{url} is not mounted on this host")
    if len(found) > 1:
        points = ", ".join(mount.mount_point for mount in found)
        raise ConfigurationError(f"{url} is mounted {len(found)} times; name one: {points}")
    return found[0]


# ---- showing ---------------------------------------------------------------------------------------------------------


def _screen(report: Mapping[str, object]) -> Iterator[str]:
    moment = time.strftime("%H:%M:%S", time.localtime(float(str(report["time_s"]))))
    rate = at(report, "operations_per_s")
    yield f"{report['mount_point']}  {moment}  {short_count(float(str(rate)))} operations a second"
    for title, name in (("process", "processes"), ("path", "files"), ("directory", "directories")):
        yield ""
        yield f"{' '.join(column.title.rjust(column.width) for column in _USE)}  {title}"
        rows = at(report, name)
        for row in rows if isinstance(rows, list) else ():
            yield f"{line(_USE, row)}  {_name_of(row)}"


def _name_of(row: Mapping[str, object]) -> str:
    if "path" in row:
        return str(row["path"])
    return f"{row['process']} {row['command']}, user {row['uid']}" if row["process"] else str(row["command"])
