"""The crash table: at every point where a process may die, it dies, under a real mount with programs at work.

Two deaths at each point. The daemon alone: programs wait a moment and notice nothing, and what they hold open goes on.
Daemon and keeper at one moment, which is the death of a machine as far as processes can tell: programs get errors, and
the next mount has all that was acknowledged. After either, three looks: at once, after a clean unmount and a new mount, and
once the SSD has been emptied, when every byte comes from the store.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.mount import stories, volumes
from tests.mount.stories import LARGE, OLD, Act, Story
from tests.mount.volumes import CrashTokens, Lab, wait_until
from tieredfs.host import SystemClock, libc, local_host
from tieredfs.volume import DiskStatus, Volume

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

ACTS = {
    "chunk.written": Act(stories.let_it_drain),
    "chunk.published": Act(stories.let_it_drain),
    "block.chunks-written": Act(stories.let_it_drain),
    "create.committed": Act(stories.create_a_file),
    "create.file-made": Act(stories.create_a_file, staged={"old": OLD}),
    "write.marked": Act(stories.append, stored={"old": OLD}),
    "write.moved": Act(stories.append, staged={"old": OLD}),
    "flush.published": Act(stories.create_a_file),
    "sync.data-durable": Act(stories.append, stored={"old": OLD}),
    "seal.done": Act(stories.create_a_file),
    "drain.begun": Act(stories.let_it_drain),
    "drain.block-written": Act(stories.let_it_drain),
    "drain.committed": Act(stories.let_it_drain),
    "fill.part-written": Act(stories.read_what_is_stored, stored={"old": OLD}),
    "fill.whole": Act(stories.read_what_is_stored, stored={"old": OLD}),
    "evict.begun": Act(stories.evict, stored={"old": OLD, "other": stories.NEW}),
    "unlink.committed": Act(stories.unlink, staged={"old": OLD}),
    "rename.committed": Act(stories.rename, staged={"old": OLD}),
}
"""Every point that a mount's daemon reaches."""
FURTHER = [
    ("write.marked", Act(stories.truncate, stored={"old": OLD})),
    ("write.marked", Act(stories.truncate, staged={"old": OLD})),
    ("write.marked", Act(stories.append, staged={"old": OLD})),
    ("write.moved", Act(stories.truncate, stored={"old": OLD})),
    ("unlink.committed", Act(stories.unlink, stored={"old": OLD})),
]
CASES = [*ACTS.items(), *FURTHER]
IDS = [f"{point}-{act.steps.__name__}-{'stored' if act.stored else 'staged'}" for point, act in CASES]


@dataclass
class World:
    """One volume that goes through all of it, and the stories that were told in it."""

    lab: Lab
    tokens: CrashTokens
    stories: list[Story] = field(default_factory=list)

    def mount(self) -> None:
        with self.tokens.armed():
            self.lab.mount()

    def begin(self, act: Act) -> Story:
        story = Story(self.lab, self.lab.mnt / f"story{len(self.stories)}")
        story.begin(act.stored, act.staged)
        self.stories.append(story)
        return story

    def check(self) -> None:
        for story in self.stories:
            story.check()


@pytest.fixture(scope="module")
def lifetime() -> Iterator[World]:
    with volumes.lab() as lab:
        lab.format()
        yield World(lab, CrashTokens(lab.root / "tokens"))


@pytest.fixture
def world(lifetime: World) -> Iterator[World]:
    """Mounted, and nothing left to die of."""
    for name in lifetime.tokens.left():
        (lifetime.tokens.folder / name).unlink()
    if not volumes.is_mounted(lifetime.lab.mnt):
        lifetime.mount()
    yield lifetime
    for story in lifetime.stories:
        story.abandon()


def look_again(world: World) -> None:
    """After a clean unmount and a new mount, and once only the store has the bytes."""
    world.lab.unmount()
    world.mount()
    world.stories[-1].check()
    stories.settle(world.lab)
    world.stories[-1].check()


@pytest.mark.parametrize(("point", "act"), CASES, ids=IDS)
def test_the_daemon_dies_and_nobody_notices(world: World, point: str, act: Act) -> None:
    story, before = world.begin(act), world.lab.takeovers()
    with stories.held_open(story.folder.with_name(f"{story.folder.name}-held")):
        steps = act.steps(story)
        world.tokens.lay(point)
        story.tell(steps)
        wait_until(lambda: not world.tokens.left(), f"the daemon dies at {point}")
        wait_until(lambda: world.lab.takeovers() == before + 1, "another took over")
    story.check()
    if story.descriptor >= 0:
        assert os.pread(story.descriptor, len(OLD), 0) == OLD, "an open file that was deleted"
        story.close()
    look_again(world)


@pytest.mark.parametrize(("point", "act"), CASES, ids=IDS)
def test_daemon_and_keeper_die_and_nothing_acknowledged_is_lost(world: World, point: str, act: Act) -> None:
    story = world.begin(act)
    steps = act.steps(story)
    world.tokens.lay(point, everybody=True)
    try:
        story.tell(steps)
    except OSError:
        assert not world.tokens.left(), "only who died may have failed"
    wait_until(lambda: not world.tokens.left(), f"daemon and keeper die at {point}")
    story.abandon()
    clear_away(world.lab)
    world.mount()
    story.check()
    look_again(world)


@pytest.mark.parametrize("point", ["rebuild.chunk-written", "rebuild.committed"])
def test_a_rebuild_dies_under_a_mount_and_is_run_again(world: World, point: str) -> None:
    lab = world.lab
    story = world.begin(Act(stories.create_a_file, stored={"old": OLD, "large": LARGE}))
    disk = next(found.disk for found in volume_disks(lab) if found.reachable)
    added = lab.run("disk", "add", lab.url, f"disk://{lab.root}/for-{point}")
    assert added.returncode == 0, added.stderr
    world.tokens.lay(point)
    with world.tokens.armed():
        assert lab.run("disk", "rebuild", lab.url, str(disk)).returncode == -signal.SIGKILL
    assert not world.tokens.left(), f"the rebuild died at {point}"
    story.check()
    done = lab.run("disk", "rebuild", lab.url, str(disk))
    assert done.returncode == 0, done.stderr
    stories.settle(lab)
    story.check()
    story.tell(stories.create_a_file(story))
    look_again(world)


def test_garbage_collection_dies_and_is_run_again(world: World) -> None:
    story = world.begin(Act(stories.unlink, stored={"old": OLD, "large": LARGE}))
    os.unlink(story.folder / "large")
    story.allowed = [{"old": OLD}]
    world.lab.unmount()
    world.tokens.lay("gc.chunks-removed")
    with world.tokens.armed():
        assert cleaned_later(world.lab) == -signal.SIGKILL
    assert not world.tokens.left(), "the collection died"
    look_after(world.lab, hours=2)
    world.mount()
    stories.settle(world.lab)
    story.check()


def test_after_all_of_it_everything_is_there(world: World) -> None:
    """With an SSD directory that nobody has used before, so that every byte of every story comes from the store."""
    stories.settle(world.lab)
    world.lab.unmount()
    world.lab.mount(cache_dir=str(world.lab.root / "fresh"))
    world.check()
    assert world.lab.ask("info", path=".")["staged_files"] == 0
    world.lab.unmount()
    look_after(world.lab)


def volume_disks(lab: Lab) -> list[DiskStatus]:
    with lab.open() as volume:
        return volume.disks()


def cleaned_later(lab: Lab) -> int:
    """Collect garbage an hour from now, in a process of its own; its exit status."""
    script = f"from tests.mount.test_crashes import *; collect_later({lab.url!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=50).returncode


class LaterClock(SystemClock):
    """Hours ahead: every dead session is known to be dead, every dead block past its grace. It does not sleep long."""

    def __init__(self, hours: int) -> None:
        self.hours = hours

    def wall_ns(self) -> int:
        return super().wall_ns() + self.hours * 3600 * 10**9

    def sleep(self, duration_s: float) -> None:
        super().sleep(min(duration_s, 0.01))


def opened_later(url: str, hours: int) -> Volume:
    return Volume.open(url, purpose="test", host=replace(local_host(), clock=LaterClock(hours)))


def collect_later(url: str, hours: int = 1) -> None:
    with opened_later(url, hours) as volume:
        volume.collect_garbage(lambda *_: None)


def look_after(lab: Lab, hours: int = 1) -> None:
    """Nobody has it mounted. What dead processes left is collected, and then nothing is amiss and nothing is left over."""
    collect_later(lab.url, hours)
    with opened_later(lab.url, hours) as volume:
        again = volume.collect_garbage(lambda *_: None)
        checked = volume.check(repair=False, progress=lambda *_: None)
        sessions = volume.metadata.sessions()
        assert volume.metadata.orphans() == []
    assert (again.blocks_deleted, again.chunks_deleted) == (0, 0), "the first collection left nothing"
    assert checked.findings == ()
    assert len(sessions) == 1, "dead sessions are ended"


def clear_away(lab: Lab) -> None:
    """The mount of dead processes, as an administrator would."""
    lab.mounts.pop().process.wait(volumes.WAIT_S)
    while volumes.is_mounted(Path(lab.mnt)):
        libc.unmount(str(lab.mnt), libc.MNT_DETACH)
