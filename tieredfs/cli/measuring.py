"""How fast a directory is: one large file, and many small ones, written and read as any program does it.

It measures what a program sees, through the kernel, on any file system; nothing here knows of volumes. Everything happens in
a directory of its own below the one that is measured, which is removed at the end, on errors, Ctrl-C and SIGTERM too. What was
just written is read back from memory, if it fits there: these are figures of a warm page cache.
"""

import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tieredfs.config import format_size
from tieredfs.errors import CorruptError, NoSpaceError

PIECE_BYTES: Final = 1 << 20
SMALL_BYTES: Final = 4096
SPACE_FACTOR: Final = 1.1
"""Free space wanted before anything is written, by what will be."""


@dataclass(frozen=True, slots=True)
class Load:
    """`size_bytes`: of the large file. `files`: how many small ones, of `SMALL_BYTES` each."""

    size_bytes: int
    files: int

    @property
    def needed_bytes(self) -> int:
        return int((self.size_bytes + self.files * SMALL_BYTES) * SPACE_FACTOR)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is measured. `unit`: what `amount` counts and the figures are of, a second."""

    name: str
    unit: str
    amount: Callable[[Load], int]
    work: Callable[[Path, Load], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """`per_s`: the median over rounds, per directory in the order they were given."""

    step: str
    unit: str
    per_s: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """Of the first to the second."""
        return self.per_s[0] / self.per_s[1] if len(self.per_s) > 1 else None


# ---- the steps, in their order: each finds what those before it left ---------------------------------------------------


def _write(folder: Path, load: Load) -> None:
    piece = memoryview(_noise())
    with open(folder / "large", "wb", buffering=0) as file:
        for size in _pieces(load.size_bytes):
            file.write(piece[:size])
        os.fsync(file.fileno())


def _read(folder: Path, load: Load) -> None:
    piece = bytearray(PIECE_BYTES)
    left = load.size_bytes
    with open(folder / "large", "rb", buffering=0) as file:
        while read := file.readinto(piece):
            left -= read
    if left:
        raise CorruptError(f"{folder}: a file of {load.size_bytes} bytes was read as one of {load.size_bytes - left}")


def _create(folder: Path, load: Load) -> None:
    content = _noise()[:SMALL_BYTES]
    for name in _names(folder, load):
        with open(name, "wb", buffering=0) as file:
            file.write(content)


def _stat(folder: Path, load: Load) -> None:
    for name in _names(folder, load):
        os.stat(name)


def _open_read(folder: Path, load: Load) -> None:
    for name in _names(folder, load):
        with open(name, "rb", buffering=0) as file:
            file.read(SMALL_BYTES)


def _list(folder: Path, load: Load) -> None:
    with os.scandir(folder / "small") as entries:
        found = sum(1 for _ in entries)
    if found != load.files:
        raise CorruptError(f"{folder}: a directory of {load.files} files was listed as one of {found}")


def _remove(folder: Path, load: Load) -> None:
    for name in _names(folder, load):
        os.unlink(name)


STEPS: Final = (
    Step("write and fsync one file", "bytes", lambda load: load.size_bytes, _write),
    Step("read it back", "bytes", lambda load: load.size_bytes, _read),
    Step("create and write small files", "files", lambda load: load.files, _create),
    Step("stat them", "files", lambda load: load.files, _stat),
    Step("open and read them", "files", lambda load: load.files, _open_read),
    Step("list them", "files", lambda load: load.files, _list),
    Step("remove them", "files", lambda load: load.files, _remove),
)


def _noise() -> bytes:
    return os.urandom(PIECE_BYTES)


def _pieces(size_bytes: int) -> Iterator[int]:
    for offset in range(0, size_bytes, PIECE_BYTES):
        yield min(PIECE_BYTES, size_bytes - offset)


def _names(folder: Path, load: Load) -> Iterator[str]:
    for number in range(load.files):
        yield f"{folder}/small/{number}"


# ---- rounds ----------------------------------------------------------------------------------------------------------


def measure(folders: Sequence[Path], load: Load, rounds: int, advance: Callable[[int, int], None]) -> list[Figure]:
    """Each step in each of the directories, turn by turn. `advance` is told how many steps are done, of how many.

    Raises NoSpaceError before anything is written, CorruptError, and whatever OSError the file systems have."""
    for folder in folders:
        _check_space(folder, load)
    seconds: dict[tuple[int, int], list[float]] = {}
    done, total = 0, rounds * len(STEPS) * len(folders)
    for number in range(rounds):
        with _sigterm_as_exit(), _scratch(folders) as places:
            turns = list(range(len(places)))[:: -1 if number % 2 else 1]  # whoever is first pays for what was before
            for step_index, step in enumerate(STEPS):
                for index in turns:
                    advance(done, total)
                    begun_s = time.perf_counter()
                    step.work(places[index], load)
                    seconds.setdefault((step_index, index), []).append(time.perf_counter() - begun_s)
                    done += 1
    return [
        Figure(
            step.name,
            step.unit,
            tuple(step.amount(load) / statistics.median(seconds[step_index, index]) for index in range(len(folders))),
        )
        for step_index, step in enumerate(STEPS)
    ]


def _check_space(folder: Path, load: Load) -> None:
    found = os.statvfs(folder)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < load.needed_bytes:
        raise NoSpaceError(
            f"{folder} has {format_size(free_bytes)} free; this needs {format_size(load.needed_bytes)}: choose a smaller --size"
        )


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Else it would end the process at once, and leave everything."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _scratch(folders: Sequence[Path]) -> Iterator[list[Path]]:
    places: list[Path] = []
    try:
        for folder in folders:
            place = Path(tempfile.mkdtemp(prefix=".tieredfs-bench-", dir=folder))
            places.append(place)
            (place / "small").mkdir()
        yield places
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
