"""What a program does around a crash point, and what may be found afterwards.

A story is a list of steps in a folder of its own. Each step says what the folder holds once it has returned; while it
is under way, or when the machine died in it, the folder holds what it held before, or after, or what the step lists as
between. A folder is compared whole, so that a name that came back or a file at two names is seen as well as a lost byte.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.mount.volumes import Lab, wait_until
from tieredfs.errors import UnavailableError
from tieredfs.limits import MIB

Contents = Mapping[str, bytes]


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}.{seed}").randbytes(size)


OLD = content(150_001)
NEW = content(200_003)
MORE = content(70_001)
LARGE = content(9 * MIB + 5)


@dataclass(frozen=True)
class Step:
    """`between`: what may be found besides before and after when the step was cut short."""

    act: Callable[[], None]
    after: Contents
    between: tuple[Contents, ...] = ()


@dataclass
class Story:
    """One folder. `allowed`: what it may hold now; one entry when every step has returned."""

    lab: Lab
    folder: Path
    allowed: list[Contents] = field(default_factory=lambda: [{}])
    descriptor: int = -1

    def begin(self, stored: Contents, staged: Contents) -> None:
        """Files that are there before anything happens: in the store and on the SSD, or on the SSD only."""
        self.folder.mkdir()
        for group in (stored, staged):
            for name, data in group.items():
                write_durably(self.folder / name, data)
            if group is stored and stored:
                self.lab.ask("drain")
        self.allowed = [{**stored, **staged}]

    def tell(self, steps: list[Step]) -> None:
        for step in steps:
            self.allowed = [self.allowed[-1], *step.between, step.after]
            step.act()
            self.allowed = [step.after]

    def check(self) -> None:
        found = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        names = [{name: len(data) for name, data in allowed.items()} for allowed in self.allowed]
        sizes = {name: len(data) for name, data in found.items()}
        assert found in self.allowed, f"{self.folder.name}: {sizes} is none of {names}, or the bytes differ"
        self.allowed = [found]

    # ---- what programs do ------------------------------------------------------------------------------------------

    def open(self, name: str, flags: int) -> None:
        self.descriptor = os.open(self.folder / name, flags, 0o644)

    def write(self, data: bytes, offset: int = 0) -> None:
        assert os.pwrite(self.descriptor, data, offset) == len(data)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def abandon(self) -> None:
        """The program ends. As long as a handle of a dead mount is open, the kernel keeps the local file open for writing."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                self.close()

    def create(self, name: str, data: bytes, others: Contents) -> list[Step]:
        """open, write, fsync and close a new file."""
        return [
            Step(lambda: self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL), {**others, name: b""}),
            Step(lambda: self.write(data), {**others, name: data}),
            Step(self.sync, {**others, name: data}),
            Step(self.close, {**others, name: data}),
        ]

    def change(self, name: str, data: bytes, others: Contents, *, truncate: bool) -> list[Step]:
        """Replace a file's content, or append to it."""
        before = b"" if truncate else self.allowed[-1][name]
        opened = {**others, name: before}
        after = {**others, name: before + data}
        return [
            Step(lambda: self.open(name, os.O_RDWR | (os.O_TRUNC if truncate else 0)), opened),
            Step(lambda: self.write(data, len(before)), after),
            Step(self.sync, after),
            Step(self.close, after),
        ]


def create_a_file(story: Story) -> list[Step]:
    return story.create("new", NEW, story.allowed[-1])


def append(story: Story) -> list[Step]:
    return story.change("old", MORE, {}, truncate=False)


def truncate(story: Story) -> list[Step]:
    return story.change("old", NEW, {}, truncate=True)


def let_it_drain(story: Story) -> list[Step]:
    """Several small files, which share a block, and one that fills blocks of its own."""
    steps: list[Step] = []
    there: dict[str, bytes] = dict(story.allowed[-1])
    for name, data in {"small": OLD, "other": NEW, "large": LARGE}.items():
        steps += story.create(name, data, there)
        there[name] = data
    return [*steps, Step(lambda: ask_though_it_may_die(story.lab, "drain"), there)]


def read_what_is_stored(story: Story) -> list[Step]:
    def read() -> None:
        assert (story.folder / "old").read_bytes() == OLD

    story.lab.ask("evict", paths=[story.folder.name])
    return [Step(read, story.allowed[-1])]


def evict(story: Story) -> list[Step]:
    def ask() -> None:
        ask_though_it_may_die(story.lab, "evict", paths=[story.folder.name])

    return [Step(ask, story.allowed[-1])]


def unlink(story: Story) -> list[Step]:
    return [
        Step(lambda: story.open("old", os.O_RDONLY), {"old": OLD}),
        Step(lambda: os.unlink(story.folder / "old"), {}),
    ]


def rename(story: Story) -> list[Step]:
    """A new content replaces an old one, as careful programs do it."""
    done = {"old": NEW}
    steps = story.create("new", NEW, {"old": OLD})
    return [*steps, Step(lambda: os.rename(story.folder / "new", story.folder / "old"), done)]


@dataclass(frozen=True)
class Act:
    """`stored`, `staged`: what the folder holds first."""

    steps: Callable[[Story], list[Step]]
    stored: Contents = field(default_factory=dict)
    staged: Contents = field(default_factory=dict)


@contextlib.contextmanager
def held_open(folder: Path) -> Iterator[None]:
    """Handles that a program keeps across the crash: a writer, a reader, a deleted file and a listing; all must go on."""
    folder.mkdir()
    names = {f"name{number:02}" for number in range(60)}
    for name in names:
        (folder / name).touch()
    write_durably(folder / "read", OLD)
    writer = os.open(folder / "stream", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    reader = os.open(folder / "read", os.O_RDONLY)
    deleted = os.open(folder / "deleted", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(writer, b"before ")
        os.write(deleted, MORE)
        os.unlink(folder / "deleted")
        with os.scandir(folder) as listing:
            seen = {next(listing).name}
            yield
            seen |= {entry.name for entry in listing}
        os.write(writer, b"after")
        os.fsync(writer)
        os.pwrite(deleted, b"tail", len(MORE))
        os.fsync(deleted)
        assert names <= seen, "the listing went on"
        assert os.pread(writer, 100, 0) == b"before after"
        assert (folder / "stream").read_bytes() == b"before after"
        assert os.pread(reader, len(OLD) + 1, 0) == OLD
        assert os.pread(deleted, len(MORE) + 5, 0) == MORE + b"tail"
        assert os.fstat(deleted).st_nlink == 0
    finally:
        for descriptor in (writer, reader, deleted):
            os.close(descriptor)


def ask_though_it_may_die(lab: Lab, verb: str, **arguments: object) -> None:
    with contextlib.suppress(UnavailableError):
        lab.ask(verb, **arguments)


def write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def settle(lab: Lab) -> None:
    """Everything is in the store, and nothing but the store has it."""
    lab.ask("drain")

    def absent() -> bool:
        lab.ask("evict", paths=["."])
        return int(lab.ask("info", path=".")["resident_files"]) == 0

    wait_until(absent, "the SSD holds no copy")
