"""What a mount answers to who watches it: `counters` (at once), `activity` and `top` (after the interval that was asked for).

The daemon takes both looks itself, so that an interval is one call, and what is measured only while somebody watches is
measured exactly so long as the call lasts: a client that goes away ends its watching with its call.
"""

import os
import resource
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Final, TypeVar

from tieredfs.core.activity import Counters, between
from tieredfs.curator.paths import paths_of
from tieredfs.errors import InvalidRequestError, NotFoundError, NotSupportedError
from tieredfs.fuse.processes import ENDED, Process, process_of
from tieredfs.fuse.verbs import Verb
from tieredfs.fuse.watching import Callers, Note, Times, Use, Watchable
from tieredfs.limits import WATCH_INTERVAL_MAX_S, WATCH_INTERVAL_MIN_S, WATCHED_NAMES_MAX, WATCHED_ROWS_MAX
from tieredfs.model import FileKind, InodeId, Progress
from tieredfs.volume import SsdTier, Volume

Key = TypeVar("Key", bound=Hashable)
_LOOK_S: Final = 0.1
"""A client that went away is noticed so soon, once the server has noticed it."""
_PLACES_MAX: Final = 200
"""Inodes of which paths are looked up, the busiest first; directories are sums over these."""


class WatchVerbs:
    """Safe from any thread. `driver`: what can be watched, or None; asked for at each call, for it begins after the verbs."""

    def __init__(self, volume: Volume, ssd: SsdTier, driver: Callable[[], Watchable | None]) -> None:
        self._volume = volume
        self._ssd = ssd
        self._driver = driver
        self._clock = volume.host.clock

    def table(self) -> dict[str, Verb]:
        return {"counters": self.counters, "activity": self.activity, "top": self.top}

    def counters(self, _arguments: Mapping[str, object], _progress: Progress) -> object:
        """One look, and whose: `tieredfs.core.activity.Counters` and `volume_uuid`."""
        return asdict(self._look()) | {"volume_uuid": self._volume.config.uuid}

    def activity(self, arguments: Mapping[str, object], progress: Progress) -> object:
        """What happened in the next `interval_s` seconds: `tieredfs.core.activity.Activity`."""
        times = Times()
        before, after = self._watch(_interval_s(arguments), times.note, progress)
        return asdict(between(before, after, times.by_kind()))

    def top(self, arguments: Mapping[str, object], progress: Progress) -> object:
        """Who used what in the next `interval_s` seconds: processes, files and directories, `limit` of each, busiest first.

        Raises NotSupportedError under the portable driver.
        """
        if self._driver() is None:
            raise NotSupportedError("this mount's driver does not say who asks; `top` needs --driver kernel")
        limit = _limit(arguments)
        callers, known = Callers(), dict[int, Process]()

        def name_new(done: int, total: int, unit: str) -> None:
            """Ten times a second, for many end within one."""
            progress(done, total, unit)
            known.update({thread: process_of(thread) for thread in callers.processes() - known.keys()})

        before, after = self._watch(_interval_s(arguments), callers.note, name_new)
        name_new(0, 0, "")
        uses, interval_s = list(callers.uses()), after.at_s - before.at_s
        places = self._places(uses)
        files = _summed(uses, lambda use: places.get(use.inode, "others"))
        directories = _summed(uses, lambda use: _directory_of(places.get(use.inode, "others")))
        return {
            "interval_s": interval_s,
            "operations_per_s": sum(use.requests for use in uses) / interval_s,
            "processes": _processes(uses, known, interval_s, limit),
            "files": [{"path": path, **_row(found, interval_s)} for path, found in _busiest(files, limit)],
            "directories": [{"path": path, **_row(found, interval_s)} for path, found in _busiest(directories, limit)],
        }

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _watch(self, interval_s: float, note: Note, look: Progress) -> tuple[Counters, Counters]:
        """`look` is called ten times a second, and may raise."""
        driver = self._driver()
        with ExitStack() as stack:
            if driver is not None:
                stack.enter_context(driver.watched(note))
            before = self._look()
            until_s = before.at_s + interval_s
            while (left_s := until_s - self._clock.monotonic_s()) > 0:
                look(0, 0, "")
                self._clock.sleep(min(left_s, _LOOK_S))
            return before, self._look()

    def _look(self) -> Counters:
        """Some microseconds, and a stat for each file that is being written."""
        drainer, room, filler, driver = self._ssd.drainer, self._ssd.room, self._ssd.filler, self._driver()
        dirty = room.dirty_files()
        at_s = self._clock.monotonic_s()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counted = None if driver is None else driver.snapshot()
        return Counters(
            process=os.getpid(),
            at_s=at_s,
            requests=dict(counted.requests) if counted else None,
            passthrough_opens=counted.passthrough_opens if counted else 0,
            other_opens=counted.cached_opens + counted.direct_opens if counted else 0,
            read_bytes=counted.bytes_read if counted else 0,
            written_bytes=counted.bytes_written if counted else 0,
            fills=filler.fills,
            filled_bytes=filler.filled_bytes,
            stored_files=drainer.stored_files,
            stored_bytes=drainer.stored_bytes,
            evicted_files=self._ssd.evictor.evicted_files,
            room_waits=room.waits,
            cpu_s=usage.ru_utime + usage.ru_stime,
            disks={int(disk): counts for disk, counts in self._volume.blocks.disk_counts().items()},
            staged_files=len(dirty),
            staged_bytes=room.dirty_bytes(),
            staged_oldest_age_s=max((at_s - file.staged_since_s for file in dirty), default=0.0),
            ssd_full=room.is_full,
            resident_bytes=_resident_bytes(),
            drain_error=drainer.last_error,
        )

    def _places(self, uses: Iterable[Use]) -> dict[InodeId, str]:
        """Paths from the mount point of the inodes that were used most; a directory's ends with a slash."""
        busiest = _busiest(_summed(uses, lambda use: use.inode), _PLACES_MAX)
        wanted = [inode for inode, _ in busiest if inode]
        paths = self._volume.metadata.inspect(partial(paths_of, wanted=wanted, names_max=WATCHED_NAMES_MAX))
        return {inode: f"{path.rstrip('/')}/" if self._is_directory(inode) else path for inode, path in paths.items()}

    def _is_directory(self, inode: InodeId) -> bool:
        try:
            return self._volume.metadata.attributes(inode).kind is FileKind.DIRECTORY
        except NotFoundError:
            return False


def _interval_s(arguments: Mapping[str, object]) -> float:
    interval_s = arguments.get("interval_s")
    if not isinstance(interval_s, int | float) or not WATCH_INTERVAL_MIN_S <= interval_s <= WATCH_INTERVAL_MAX_S:
        raise InvalidRequestError(
            f"'interval_s' must be {WATCH_INTERVAL_MIN_S:g} to {WATCH_INTERVAL_MAX_S:g} seconds, not {interval_s!r}"
        )
    return float(interval_s)


def _limit(arguments: Mapping[str, object]) -> int:
    limit = arguments.get("limit", 10)
    if not isinstance(limit, int) or not 0 < limit <= WATCHED_ROWS_MAX:
        raise InvalidRequestError(f"'limit' must be 1 to {WATCHED_ROWS_MAX}, not {limit!r}")
    return limit


def _summed(uses: Iterable[Use], key_of: Callable[[Use], Key]) -> dict[Key, Use]:
    found: dict[Key, Use] = {}
    for use in uses:
        key = key_of(use)
        known = found.get(key)
        found[key] = use if known is None else known.with_more(use)
    return found


def _busiest(found: Mapping[Key, Use], limit: int) -> list[tuple[Key, Use]]:
    return sorted(found.items(), key=lambda one: (-one[1].requests, -one[1].duration_s))[:limit]


def _row(use: Use, interval_s: float) -> dict[str, object]:
    return {
        "operations_per_s": use.requests / interval_s,
        "opens_per_s": use.opens / interval_s,
        "busy_ratio": use.duration_s / interval_s,
        "bytes_per_s": use.moved_bytes / interval_s,
    }


def _processes(
    uses: Iterable[Use], known: Mapping[int, Process], interval_s: float, limit: int
) -> list[dict[str, object]]:
    """The kernel says which thread asked; threads of one process are one row."""
    busiest = _busiest(_summed(uses, lambda use: known.get(use.process, ENDED)), limit)
    return [
        {"process": process.number, "uid": use.uid, "command": process.command, **_row(use, interval_s)}
        for process, use in busiest
    ]


def _directory_of(path: str) -> str:
    return os.path.dirname(path) or path


def _resident_bytes() -> int:
    """Memory of this process now (proc(5), statm)."""
    with open("/proc/self/statm") as table:
        return int(table.read().split()[1]) * resource.getpagesize()
