"""A machine that does anything and loses power at any moment, against a model of what it was promised.

The model remembers, for each file, its bytes when they were last made safe (an fsync, or a drain) and every content since;
and the names after each step. A power cut brings back the names of one database, and of each file that it shows, the safe
bytes or any mixture with what was written since.
"""

import os
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.cache.power import Machine, Machines
from tieredfs.curator.report import INFORMATIONAL

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.allows_warnings("staged file.* were not on the SSD any more"),
]

NAMES = ("a", "b", "c")
SIZES = (0, 5000, 70_000, 130_000)


@dataclass(eq=False)
class Modelled:
    """One file. `safe`: the contents that it may have, the first of them promised; None: nothing was promised yet."""

    content: bytes = b""
    since: list[bytes] = field(default_factory=list)
    safe: bool = False

    def change(self, content: bytes) -> None:
        self.content = content
        self.since.append(content)

    def make_safe(self) -> None:
        self.safe, self.since = True, [self.content]

    def may_be(self, found: bytes) -> bool:
        """Every byte is that of some content since it was safe, or a zero where a content was longer than another."""
        if not self.safe:
            return True
        if len(found) not in {len(content) for content in self.since}:
            return False
        shortest = min(len(content) for content in self.since)
        if all(found.startswith(content) or content.startswith(found) for content in self.since):
            return True
        for position in range(0, len(found), 512):
            piece = found[position : position + 512]
            options = {content[position : position + 512] for content in self.since}
            if any(
                option.startswith(piece) or (piece.startswith(option) and position >= shortest) for option in options
            ):
                continue
            if not _mixture(piece, options, shortest - position):
                return False
        return True


def _mixture(piece: bytes, options: set[bytes], shortest: int) -> bool:
    return all(
        any(index < len(option) and option[index] == byte for option in options) or (byte == 0 and index >= shortest)
        for index, byte in enumerate(piece)
    )


class Player:
    """Does steps to a machine and to the model alike."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.names: dict[str, Modelled] = {}
        self.handles: dict[str, tuple[int, Modelled]] = {}
        self.shown: list[dict[str, Modelled]] = [{}]
        """The names as of each database that may come back."""
        self.seed = 0

    def play(self, action: str, name: str, number: int) -> None:
        life = self.machine.life
        before, synced = dict(self.names), life.durable_copies
        getattr(self, f"do_{action}")(name, number)
        life.step_done()
        if life.durable_copies != synced:
            self.shown = [before if life.copies() == 2 else self.names]
        self.shown.append(dict(self.names))

    def do_open(self, name: str, number: int) -> None:
        """For writing; creates what is missing."""
        if name in self.handles:
            return
        life = self.machine.life
        if name not in self.names:
            self.names[name] = Modelled()
            self.handles[name] = life.create(name), self.names[name]
        elif number % 3 == 0:
            self.handles[name] = life.open(name, os.O_RDWR | os.O_TRUNC), self.names[name]
            self.names[name].change(b"")
        else:
            self.handles[name] = life.open(name), self.names[name]

    def do_write(self, name: str, number: int) -> None:
        if name not in self.handles:
            return
        handle, file = self.handles[name]
        self.seed += 1
        data = random.Random(self.seed).randbytes(SIZES[number % len(SIZES)])
        offset = len(file.content) if number % 2 else 0
        self.machine.life.write(handle, data, offset)
        file.change(file.content[:offset] + data + file.content[offset + len(data) :])

    def do_sync(self, name: str, number: int) -> None:
        if name in self.handles:
            handle, file = self.handles[name]
            self.machine.life.sync(handle)
            file.make_safe()

    def do_close(self, name: str, number: int) -> None:
        if name in self.handles:
            self.machine.life.close(self.handles.pop(name)[0])

    def do_unlink(self, name: str, number: int) -> None:
        if name in self.names:
            self.do_close(name, number)
            del self.names[name]
            self.machine.life.unlink(name)

    def do_rename(self, name: str, number: int) -> None:
        target = NAMES[number % len(NAMES)]
        if name not in self.names or target == name:
            return
        self.do_close(name, number)
        self.do_close(target, number)
        self.names[target] = self.names.pop(name)
        self.machine.life.rename(name, target)

    def do_pack(self, name: str, number: int) -> None:
        """A new file, written together with others and safe at once."""
        self.do_unlink(name, number)
        self.seed += 1
        file = Modelled(random.Random(self.seed).randbytes(SIZES[number % len(SIZES)]))
        self.machine.life.pack({name: file.content})
        file.make_safe()
        self.names[name] = file

    def do_drain(self, name: str, number: int) -> None:
        self.machine.life.drain()
        open_files = {id(file) for _, file in self.handles.values()}
        for file in self.names.values():
            if id(file) not in open_files:
                file.make_safe()

    def do_evict(self, name: str, number: int) -> None:
        self.machine.life.evict()

    def do_read(self, name: str, number: int) -> None:
        if name in self.names:
            assert self.machine.life.read(name) == self.names[name].content

    def do_die(self, name: str, number: int) -> None:
        """The process only: nothing of what was written is lost."""
        self.handles.clear()
        self.machine.process_death()
        self.shown = [dict(self.names)]

    def power_cut(self, seed: int) -> int:
        """The faults that happened."""
        chance = random.Random(seed)
        life = self.machine.life
        copy = chance.randrange(life.copies())
        files = life.files
        self.handles.clear()
        after = self.machine.power_cut(chance, copy)
        found = after.everything()
        shown = [names for names in self.shown[max(0, copy - 1) : copy + 2] if set(names) == set(found)]
        assert any(all(file.may_be(found[name]) for name, file in names.items()) for names in shown), (
            f"{ {name: len(data) for name, data in found.items()} }"
        )
        after.drain()
        after.evict()
        assert after.everything() == found, "the same bytes from the store"
        report = after.volume.check(repair=False, progress=lambda *_: None)
        assert [finding for finding in report.findings if finding.kind not in INFORMATIONAL] == []
        return files.lost_changes + files.lost_bytes


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "open",
                "open",
                "write",
                "write",
                "pack",
                "sync",
                "close",
                "close",
                "unlink",
                "rename",
                "drain",
                "evict",
                "read",
                "die",
            )
        ),
        st.sampled_from(NAMES),
        st.integers(0, 11),
    ),
    max_size=25,
)


CERTAIN_TO_LOSE = [
    (step, name, 1) for name in NAMES for step in ("open", "write", "write", "sync", "write", "close", "rename")
]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(tmp_path_factory.mktemp("power"))


def test_nothing_acknowledged_is_lost_whatever_happens_before_the_power_cut(machines: Machines) -> None:
    faults = []

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=STEPS, seed=st.integers(0, 1 << 32))
    @example(steps=CERTAIN_TO_LOSE, seed=0)
    @example(steps=CERTAIN_TO_LOSE, seed=1)
    @example(steps=CERTAIN_TO_LOSE, seed=2)
    def power_is_cut(steps: list[tuple[str, str, int]], seed: int) -> None:
        with machines.machine() as machine:
            player = Player(machine)
            for step in steps:
                player.play(*step)
            faults.append(player.power_cut(seed))

    power_is_cut()
    assert sum(faults) > 0, "power cuts lost something"
