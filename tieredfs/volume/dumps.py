"""Dumps of a volume's metadata: into a file, and onto the volume's own disks, so that the loss of the database is not the loss
of all.

On disks a dump lies in up to `DUMP_COPIES` places, of different failure domains where there are such, and the newest
`DUMPS_KEPT` of each disk stay. A dump is one snapshot, taken while the volume is in use; it has its name when it is whole and
durable. It takes 1.6 us of CPU and 13 bytes a record (400,000 records of 100,000 files: 0.7 s, 5 MB). What it brings back
(`tieredfs.volume.loading`) is the volume as it was then.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tieredfs.chunk.directory import URL_PREFIX, dump_path, dumps_of, path_of_url
from tieredfs.errors import UnavailableError
from tieredfs.format import dump as dump_format
from tieredfs.format.dump import DumpHeader, Pair
from tieredfs.host import Files, Host, crash
from tieredfs.kv.engine import Reader
from tieredfs.limits import DUMP_COPIES, DUMPS_KEPT
from tieredfs.meta import dumping
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Disk, DiskState, Progress
from tieredfs.volume.status import DumpStatus

_PROGRESS_EVERY: Final = 8192
_UNITS: Final = "records"


@dataclass(frozen=True, slots=True)
class DumpReport:
    """What was written, and where. `problems`: of disks that would have got a copy and did not."""

    paths: tuple[str, ...]
    record_count: int
    size_bytes: int
    problems: tuple[str, ...] = ()


def dump_to_file(metadata: Metadata, host: Host, path: str, progress: Progress) -> DumpReport:
    """All metadata at this moment, durably, in place of what is at `path`. Raises UnavailableError."""
    return _dump(metadata, host.clock.wall_ns(), _Targets(host, [os.path.abspath(path)]), progress)


def dump_to_disks(metadata: Metadata, host: Host, disks: Sequence[Disk], progress: Progress) -> DumpReport:
    """A copy on some of these disks, which answer; older ones than the newest few go. Raises UnavailableError if none takes one."""
    taken_ns = host.clock.wall_ns()
    roots = [path_of_url(disk.url) for disk in chosen_disks(disks)]
    report = _dump(metadata, taken_ns, _Targets(host, [dump_path(root, taken_ns) for root in roots]), progress)
    for path in report.paths:
        _prune(host.files, os.path.dirname(os.path.dirname(path)))
    return report


def chosen_disks(disks: Sequence[Disk]) -> list[Disk]:
    """Where a dump goes: directories that stay, the first of each failure domain before any second one. Pure."""
    staying = [disk for disk in disks if disk.state is DiskState.ACTIVE and disk.url.startswith(URL_PREFIX)]
    first = list({disk.domain: disk for disk in reversed(staying)}.values())[::-1]
    return [*first, *(disk for disk in staying if disk not in first)][:DUMP_COPIES]


def newest_on_disks(host: Host, disks: Sequence[Disk]) -> DumpStatus | None:
    """None: there is none."""
    found: dict[int, list[str]] = {}
    for disk in disks:
        if disk.url.startswith(URL_PREFIX):
            root = path_of_url(disk.url)
            with contextlib.suppress(OSError):
                for taken_ns in dumps_of(host.files, root)[:1]:
                    found.setdefault(taken_ns, []).append(dump_path(root, taken_ns))
    if not found:
        return None
    newest_ns = max(found)
    return DumpStatus(max(0.0, (host.clock.wall_ns() - newest_ns) / 1e9), tuple(found[newest_ns]))


# ---- writing ---------------------------------------------------------------------------------------------------------


class _Target:
    """A file that has its name when it is whole. Raises OSError."""

    def __init__(self, host: Host, path: str) -> None:
        self.path = path
        self._files = host.files
        self._temporary = f"{path}.{os.getpid()}-{host.random.getrandbits(32):08x}"
        self._size_bytes = 0
        host.files.make_directory(os.path.dirname(path))
        self._descriptor = host.files.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def rewind(self) -> None:
        self._files.truncate(self._descriptor, 0)
        self._size_bytes = 0

    def write(self, piece: bytes) -> None:
        self._files.write(self._descriptor, [piece], self._size_bytes)
        self._size_bytes += len(piece)

    def publish(self) -> None:
        self._files.sync(self._descriptor)
        crash.here("dump.written")
        self._files.rename(self._temporary, self.path)
        self._files.sync_directory(os.path.dirname(self.path))
        self._files.close(self._descriptor)

    def give_up(self) -> None:
        self._files.close(self._descriptor)
        with contextlib.suppress(OSError):
            self._files.unlink(self._temporary)


class _Targets:
    """Several files of one content. One that fails is given up; when none is left, that is an error (UnavailableError)."""

    def __init__(self, host: Host, paths: Sequence[str]) -> None:
        self.problems: list[str] = []
        self._left: list[_Target] = []
        for path in paths:
            try:
                self._left.append(_Target(host, path))
            except OSError as error:
                self.problems.append(f"{path}: {error.strerror}")
        self._check()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(target.path for target in self._left)

    def each(self, act: Callable[[_Target], None]) -> None:
        for target in [*self._left]:
            try:
                act(target)
            except OSError as error:
                self._left.remove(target)
                target.give_up()
                self.problems.append(f"{target.path}: {error.strerror}")
        self._check()

    def give_up(self) -> None:
        for target in self._left:
            target.give_up()
        self._left.clear()

    def _check(self) -> None:
        if not self._left:
            problems = "; ".join(self.problems) or "there is no directory of the volume that takes one"
            raise UnavailableError(f"no dump was written: {problems}; make room there, or name another file")


def _dump(metadata: Metadata, taken_ns: int, targets: _Targets, progress: Progress) -> DumpReport:
    """One snapshot, read once for all targets."""
    config = metadata.config()
    header = DumpHeader(config.uuid, config.name, taken_ns)

    def write(reader: Reader) -> tuple[int, int]:
        targets.each(_Target.rewind)  # this may be done over
        counted, size_bytes = _Counted(progress), 0
        for piece in dump_format.encode(header, counted.passing(dumping.pairs(reader))):
            targets.each(partial(_write, piece))
            size_bytes += len(piece)
        return counted.count, size_bytes

    try:
        records, size_bytes = metadata.inspect(write)
        targets.each(_Target.publish)
    except BaseException:
        targets.give_up()
        raise
    return DumpReport(targets.paths, records, size_bytes, tuple(targets.problems))


def _write(piece: bytes, target: _Target) -> None:
    target.write(piece)


class _Counted:
    """Counts pairs on their way."""

    def __init__(self, progress: Progress) -> None:
        self.count = 0
        self._progress = progress

    def passing(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            self.count += 1
            if self.count % _PROGRESS_EVERY == 0:
                self._progress(self.count, 0, _UNITS)
            yield pair


def _prune(files: Files, root: str) -> None:
    with contextlib.suppress(OSError):
        for taken_ns in dumps_of(files, root)[DUMPS_KEPT:]:
            files.unlink(dump_path(root, taken_ns))
