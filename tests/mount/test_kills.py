"""Daemons are killed over and over while programs write, sync, rename, delete and read: no program may notice.

Each program keeps a journal of what it was told is done, and checks what it sees against it all the time. At the end the mount is
looked at as it is, after a new mount, and from the store alone; then the records and chunks are looked at.
"""

import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.stories import settle
from tests.mount.test_crashes import look_after
from tests.mount.volumes import Lab, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

KILLS = 20
REPLACED_EVERY = 4
"""Every fourth kill is the keeper's own (SIGHUP): that one kills and replaces the daemon too, and clears the count of
crashes, of which only five a minute are allowed."""
BETWEEN_S = 0.25
SLOTS = 8


def signed(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(4, "big")


def check_signed(found: bytes, what: object) -> bytes:
    assert len(found) > 4, f"{what} has {len(found)} bytes"
    assert zlib.crc32(found[:-4]) == int.from_bytes(found[-4:], "big"), f"{what} is not what was written"
    return found[:-4]


class Saver:
    """Saves as careful programs do: a new file, fsync, rename over the old one. Reads back; deletes now and then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: dict[str, int] = {}
        self.number = 0
        self._chance = random.Random(folder.name)

    def turn(self) -> None:
        self.number += 1
        name = f"slot{self._chance.randrange(SLOTS)}"
        data = signed(self.number.to_bytes(8, "big") + self._chance.randbytes(self._chance.randrange(1, 200_000)))
        temporary = self.folder / f"{name}.new"
        with open(temporary, "xb", buffering=0) as file:
            assert file.write(data) == len(data)
            os.fsync(file.fileno())
        temporary.rename(self.folder / name)
        self.saved[name] = self.number
        if self.number % 7 == 0:
            gone = self._chance.choice(sorted(self.saved))
            (self.folder / gone).unlink()
            del self.saved[gone]
        self.check(self._chance.choice([*sorted(self.saved), name]))

    def check(self, name: str) -> None:
        if name not in self.saved:
            assert not (self.folder / name).exists()
            return
        data = check_signed((self.folder / name).read_bytes(), self.folder / name)
        assert int.from_bytes(data[:8], "big") == self.saved[name]

    def check_all(self) -> None:
        assert sorted(os.listdir(self.folder)) == sorted(self.saved)
        for name in self.saved:
            self.check(name)


class Logger:
    """Appends numbered records through one handle, and syncs each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log"
        self.file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - open until the end
        self.count = 0

    def turn(self) -> None:
        assert self.file.write(self.count.to_bytes(8, "big")) == 8
        if self.count % 5 == 0:
            os.fsync(self.file.fileno())
        self.count += 1

    def check_all(self) -> None:
        assert self.path.read_bytes() == b"".join(number.to_bytes(8, "big") for number in range(self.count))


class Mover:
    """Makes directories and files, moves them about, removes them: each has exactly one name at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        (folder / "left").mkdir()
        (folder / "right").mkdir()
        for number in range(SLOTS):
            (folder / "left" / f"file{number}").write_bytes(signed(str(number).encode()))

    def turn(self) -> None:
        name = f"file{self.count % SLOTS}"
        there, other = ("left", "right") if self.count // SLOTS % 2 == 0 else ("right", "left")
        (self.folder / there / name).rename(self.folder / other / name)
        assert not (self.folder / there / name).exists()
        check_signed((self.folder / other / name).read_bytes(), name)
        directory = self.folder / f"directory{self.count}"
        directory.mkdir()
        (directory / "inner").touch(exist_ok=False)
        (directory / "inner").unlink()
        directory.rmdir()
        self.count += 1

    def check_all(self) -> None:
        assert sorted(os.listdir(self.folder)) == ["left", "right"]
        found = [name for side in ("left", "right") for name in os.listdir(self.folder / side)]
        assert sorted(found) == [f"file{number}" for number in range(SLOTS)], "each file at exactly one name"
        for side in ("left", "right"):
            for path in (self.folder / side).iterdir():
                check_signed(path.read_bytes(), path)


Program = Saver | Logger | Mover


class Load:
    """The programs, each in a thread of its own until `stop`; the first error ends all."""

    def __init__(self, root: Path) -> None:
        kinds: list[Callable[[Path], Program]] = [Saver, Saver, Logger, Mover]
        self.programs: list[Program] = []
        for number, kind in enumerate(kinds):
            folder = root / f"program{number}"
            folder.mkdir()
            self.programs.append(kind(folder))
        self.errors: list[BaseException] = []
        self.turns = [0] * len(kinds)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(len(kinds))]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            while not self._stop.is_set():
                self.programs[number].turn()
                self.turns[number] += 1
        except BaseException as error:  # noqa: BLE001 - told by `stop`
            self.errors.append(error)
            self._stop.set()

    def went_on(self, before: list[int]) -> bool:
        return bool(self.errors) or all(now > then for now, then in zip(self.turns, before, strict=True))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a program hangs"
        if self.errors:
            raise self.errors[0]

    def check_all(self) -> None:
        for program in self.programs:
            program.check_all()


def kill_a_daemon(lab: Lab, number: int) -> None:
    """By SIGKILL, by us or by its keeper, and wait until the next one has taken over."""
    keeper, before = lab.mounts[-1].process, lab.takeovers()
    if number % REPLACED_EVERY == 0:
        os.kill(keeper.pid, signal.SIGHUP)
    else:
        daemon = int(Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()[0])
        os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: lab.takeovers() > before, "a new daemon took over")


def test_twenty_kills_go_unnoticed(lab: Lab) -> None:
    lab.format()
    lab.mount()
    load = Load(lab.mnt)
    try:
        for number in range(1, KILLS + 1):
            kill_a_daemon(lab, number)
            before = list(load.turns)
            time.sleep(BETWEEN_S)
            wait_until(lambda: load.went_on(before), "every program went on")  # noqa: B023 - used at once
            if load.errors:
                break
    finally:
        load.stop()
    assert lab.takeovers() == KILLS
    load.check_all()
    for program in load.programs:
        if isinstance(program, Logger):
            program.file.close()
    lab.unmount()
    lab.mount()
    load.check_all()
    settle(lab)
    load.check_all()
    lab.unmount()
    look_after(lab)
