"""A model test: the same random operations on a mount and on a plain directory must give the same, errno by errno.

A sequence is planned from its seed alone (`plan` is pure), over few names so that operations meet each other's files,
then carried out step by step on both sides through the same code (`_Side`). What a step returned is compared at once,
and the whole trees at the end: names, kinds, modes, owners, link counts, sizes, contents, targets, xattrs.

A failure names its seed and the command that replays it on two empty directories:

    python -m tieredfs.testing.model_ops --seed 7 /mnt/volume/scratch /tmp/plain
"""

import argparse
import errno
import os
import random
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from tieredfs.host import libc
from tieredfs.testing.features import Features
from tieredfs.testing.loopback import renameat2

SEQUENCES: Final = 30
STEPS: Final = 60
SLOTS: Final = 4
NAMES: Final = (b"a", b"b", b"c", b"\xff\xfe", b"d")
SIZES: Final = (0, 1, 100, 4095, 4096, 4097, 70_000, 300_000)
ACCESS: Final = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
OPEN_FLAGS: Final = (
    0,
    os.O_CREAT,
    os.O_CREAT,
    os.O_CREAT | os.O_EXCL,
    os.O_TRUNC,
    os.O_CREAT | os.O_TRUNC,
    os.O_CREAT | os.O_APPEND,
)
MODES: Final = (0o700, 0o755, 0o711, 0o1777, 0o4755)
XATTRS: Final = (b"user.one", b"user.two", b"user." + b"n" * 100)
XATTR_VALUES: Final = (b"", b"text", b"long" * 100)

Value = int | bytes
Outcome = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Step:
    """One call: the name of a method of `_Side`, and its arguments."""

    call: str
    arguments: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.call}({', '.join(_brief(argument) for argument in self.arguments)})"


def _brief(argument: Value) -> str:
    if isinstance(argument, bytes) and len(argument) > 40:
        return f"<{len(argument)} bytes from {argument[:4]!r}>"
    return repr(argument)


# ---- planning: from a seed to steps --------------------------------------------------------------------------------


def _path(dice: random.Random) -> bytes:
    parents = dice.choice(((), (), (b"c",), (b"d",), (b"c", b"d"), (dice.choice(NAMES),)))
    return b"/".join((*parents, dice.choice(NAMES)))


def _slot(dice: random.Random) -> int:
    return dice.randrange(SLOTS)


def _offset(dice: random.Random) -> int:
    return dice.choice(SIZES)


def _data(dice: random.Random) -> bytes:
    return bytes([dice.randrange(1, 256)]) * dice.choice(SIZES[1:])


def _open_flags(dice: random.Random) -> int:
    return dice.choice(ACCESS) | dice.choice(OPEN_FLAGS)


def _seconds(dice: random.Random) -> int:
    return dice.randrange(1_000_000_000)


FURNITURE: Final = (
    Step("make_directory", (b"c",)),
    Step("make_directory", (b"d",)),
    Step("make_directory", (b"c/d",)),
    Step("open", (0, b"a", os.O_RDWR | os.O_CREAT)),
    Step("open", (1, b"c/a", os.O_RDWR | os.O_CREAT)),
    Step("open", (2, b"c/d/b", os.O_RDWR | os.O_CREAT)),
    Step("open", (3, b"d/\xff\xfe", os.O_RDWR | os.O_CREAT)),
)
"""How every sequence begins: in an empty directory most calls would fail for the dullest of reasons."""

Draw = Callable[[random.Random], Value]

CALLS: Final[dict[str, tuple[int, tuple[Draw, ...], str]]] = {
    # call: (weight, what to draw for its arguments, the feature that it needs)
    "open": (8, (_slot, _path, _open_flags), ""),
    "close": (2, (_slot,), ""),
    "write": (8, (_slot, _offset, _data), ""),
    "append": (3, (_slot, _data), ""),
    "read": (8, (_slot, _offset, _offset), ""),
    "truncate_open": (3, (_slot, _offset), ""),
    "status_open": (4, (_slot,), ""),
    "sync": (1, (_slot,), ""),
    "truncate": (2, (_path, _offset), ""),
    "read_file": (4, (_path,), ""),
    "status": (4, (_path,), ""),
    "list": (3, (_path,), ""),
    "make_directory": (6, (_path,), ""),
    "remove_directory": (3, (_path,), ""),
    "unlink": (4, (_path,), ""),
    "rename": (6, (_path, _path), ""),
    "link": (3, (_path, _path), "coherent_links"),
    "symlink": (2, (_path, _path), ""),
    "read_link": (1, (_path,), ""),
    "make_fifo": (1, (_path,), ""),
    "chmod": (2, (_path, lambda dice: dice.choice(MODES)), ""),
    "set_times": (2, (_path, _seconds, _seconds), ""),
    "set_xattr": (
        2,
        (_path, lambda d: d.choice(XATTRS), lambda d: d.choice(XATTR_VALUES), lambda d: d.randrange(3)),
        "",
    ),
    "get_xattr": (2, (_path, lambda dice: dice.choice(XATTRS)), ""),
    "remove_xattr": (1, (_path, lambda dice: dice.choice(XATTRS)), ""),
    "allocate": (2, (_slot, lambda dice: dice.choice((0, libc.FALLOC_FL_KEEP_SIZE)), _offset, _offset), "fallocate"),
    "punch": (2, (_slot, _offset, _offset), "punch_hole"),
    "rename_with": (3, (_path, _path, lambda dice: dice.choice((1, 2, 3))), "rename_flags"),
}


def plan(seed: int, step_count: int, features: Features) -> list[Step]:
    """The sequence of a seed: the same for the same arguments, on every machine."""
    dice = random.Random(seed)
    present = {field.name for field in fields(features) if getattr(features, field.name)} | {""}
    calls = [(name, weight) for name, (weight, _, needed) in CALLS.items() if needed in present]
    names, weights = [name for name, _ in calls], [weight for _, weight in calls]
    chosen = dice.choices(names, weights, k=step_count)
    steps = [*FURNITURE, *(Step(name, tuple(draw(dice) for draw in CALLS[name][1])) for name in chosen)]
    return steps if features.open_removed_directories else list(_closing_before_removal(steps))


def _closing_before_removal(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        if step.call == "remove_directory":
            yield from (Step("close", (slot,)) for slot in range(SLOTS))
        yield step


# ---- carrying out ------------------------------------------------------------------------------------------


def _shown(status: os.stat_result) -> tuple[int, ...]:
    """What must be equal: not inode numbers, not times, and of directories not the size."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mode, status.st_uid, status.st_gid, status.st_nlink, size


class _Side:
    """One of the two directories, with its open files. Each method is a step: it returns what is compared."""

    def __init__(self, root: Path) -> None:
        self._root = bytes(root)
        self._slots: list[int | None] = [None] * SLOTS

    def carry_out(self, step: Step) -> Outcome:
        call: Callable[..., object] = getattr(self, step.call)
        try:
            return "returned", call(*step.arguments)
        except OSError as error:
            return "failed", errno.errorcode.get(error.errno or 0, error.errno)

    def close_all(self) -> None:
        for slot in range(SLOTS):
            self.close(slot)

    def _at(self, path: bytes) -> bytes:
        return self._root + b"/" + path

    def _descriptor(self, slot: int) -> int:
        descriptor = self._slots[slot]
        if descriptor is None:
            raise OSError(errno.EBADF, "the slot is empty, on both sides")
        return descriptor

    def open(self, slot: int, path: bytes, flags: int) -> None:
        self.close(slot)
        self._slots[slot] = os.open(self._at(path), flags | os.O_NONBLOCK, 0o644)

    def close(self, slot: int) -> None:
        descriptor, self._slots[slot] = self._slots[slot], None
        if descriptor is not None:
            os.close(descriptor)

    def write(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._descriptor(slot), data, offset)

    def append(self, slot: int, data: bytes) -> int:
        descriptor = self._descriptor(slot)
        os.lseek(descriptor, 0, os.SEEK_END)
        return os.write(descriptor, data)

    def read(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor(slot), size, offset)

    def truncate_open(self, slot: int, size: int) -> None:
        os.ftruncate(self._descriptor(slot), size)

    def status_open(self, slot: int) -> tuple[int, ...]:
        return _shown(os.fstat(self._descriptor(slot)))

    def sync(self, slot: int) -> None:
        os.fsync(self._descriptor(slot))

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def read_file(self, path: bytes) -> bytes:
        descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, 2 * SIZES[-1], 0)
        finally:
            os.close(descriptor)

    def status(self, path: bytes) -> tuple[int, ...]:
        return _shown(os.lstat(self._at(path)))

    def list(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(path)))

    def make_directory(self, path: bytes) -> None:
        os.mkdir(self._at(path), 0o755)

    def remove_directory(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rename(self, path: bytes, new_path: bytes) -> None:
        os.rename(self._at(path), self._at(new_path))

    def rename_with(self, path: bytes, new_path: bytes, flags: int) -> None:
        renameat2(-1, self._at(path), -1, self._at(new_path), flags)

    def link(self, path: bytes, new_path: bytes) -> None:
        os.link(self._at(path), self._at(new_path), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def read_link(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def make_fifo(self, path: bytes) -> None:
        os.mkfifo(self._at(path), 0o600)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def set_times(self, path: bytes, atime_s: int, mtime_s: int) -> float:
        os.utime(self._at(path), (atime_s, mtime_s))
        return os.stat(self._at(path)).st_mtime

    def set_xattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def get_xattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def remove_xattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def allocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        libc.fallocate(self._descriptor(slot), mode, offset, length)

    def punch(self, slot: int, offset: int, length: int) -> None:
        mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
        libc.fallocate(self._descriptor(slot), mode, offset, length)


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that is compared of a whole directory, by path below it."""
    shown: dict[bytes, tuple[object, ...]] = {}
    top = bytes(root)
    for parent, directories, names in os.walk(top):
        for name in directories + names:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
            shown[os.path.relpath(path, top)] = (*_shown(status), content, xattrs)
    return shown


def check(seed: int, mounted: Path, plain: Path, features: Features, step_count: int = STEPS) -> int:
    """Carry out the sequence of `seed` in two empty directories; how many steps succeeded. Raises AssertionError."""
    sides = _Side(mounted), _Side(plain)
    steps = plan(seed, step_count, features)
    succeeded = 0
    try:
        for number, step in enumerate(steps):
            here, there = (side.carry_out(step) for side in sides)
            if here != there:
                raise AssertionError(_story(seed, steps[: number + 1], here, there, features))
            succeeded += here[0] == "returned"
        here, there = ("tree", tree(mounted)), ("tree", tree(plain))
        if here != there:
            raise AssertionError(_story(seed, steps, here, there, features))
    finally:
        for side in sides:
            side.close_all()
    return succeeded


def _story(seed: int, steps: Sequence[Step], here: Outcome, there: Outcome, features: Features) -> str:
    absent = [field.name for field in fields(features) if getattr(features, field.name) is False]
    lines = [f"  {number:2} {step}" for number, step in enumerate(steps)]
    return "\n".join(
        [
            f"seed {seed}: the mount {here[0]} {_difference(here[1], there[1])}",
            f"the plain directory {there[0]} {_difference(there[1], here[1])}",
            *lines,
            f"replay: python -m tieredfs.testing.model_ops --seed {seed} --without={','.join(absent)} MOUNTED PLAIN",
        ]
    )


def _difference(one: object, other: object) -> str:
    """Of two trees, what only the first has; of long contents, the beginning."""
    if isinstance(one, dict) and isinstance(other, dict):
        one = {path: shown for path, shown in one.items() if other.get(path) != shown}
    return repr(one)[:600]


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay one seed. Exit status 0: the two directories agree."""
    parser = argparse.ArgumentParser(description="replay one sequence of the model test on two empty directories")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--without", default="", help="features that the mount lacks, separated by commas")
    parser.add_argument("mounted", type=Path)
    parser.add_argument("plain", type=Path)
    chosen = parser.parse_args(arguments)
    absent = {name: False for name in chosen.without.split(",") if name}
    succeeded = check(chosen.seed, chosen.mounted, chosen.plain, Features(**absent), chosen.steps)
    sys.stdout.write(f"seed {chosen.seed}: the same, {succeeded} of {chosen.steps} steps succeeded\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
