"""The steps of the demo, in order. Each prints what it does, checks what it claims, and says how long it took.

A claim that does not hold raises `ClaimError`: the story ends there, the caller cleans up and exits with 1. No step
cleans up after another; what must be stopped is put on the workspace's stack by whoever starts it.
"""

import contextlib
import hashlib
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import machine
from bench.demo import feeding, speed
from bench.demo.trainer import MidSave, Trainer, newest_checkpoint
from bench.demo.volume import DemoVolume, Volume
from bench.report import print_table

CORPUS_BYTES: Final = 4 << 20
STEPS: Final = 80
SAVE_EVERY: Final = 20
KILL_AFTER: Final = 45
"""Two whole checkpoints (20 and 40) exist by then; the save of step 60 is the one that dies."""
LOST_DISKS: Final = (1, 4)


class ClaimError(Exception):
    """Something that the demo says did not hold."""


class Narrator:
    """Headings, lines and checks: with colour on a terminal, plain text elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)
        self._number = 0
        self.checks = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._number += 1
        self._console.print(f"\n[bold]{self._number}. {title}[/bold]")
        started = time.monotonic()
        yield
        self._console.print(f"   [dim]{time.monotonic() - started:.1f} s[/dim]")

    def say(self, text: str) -> None:
        self._console.print(f"   {text}", markup=False)

    def check(self, claim: str, holds: bool) -> None:
        self._console.print(f"   {'[green]checked[/green]' if holds else '[bold red]NOT SO[/bold red]'}  ", end="")
        self._console.print(claim, markup=False)
        self.checks += 1
        if not holds:
            raise ClaimError(claim)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the story plays. `tiered` is None when it is told on a plain directory."""

    directory: Path
    volume: Volume
    tiered: DemoVolume | None
    narrator: Narrator
    stack: ExitStack

    @property
    def checkpoints(self) -> Path:
        return self.volume.root / "checkpoints"

    @property
    def text(self) -> Path:
        return self.volume.root / "corpus.txt"


def tell(stage: Stage) -> None:
    mount(stage)
    first = train_and_kill(stage)
    resume(stage, first)
    if stage.tiered is not None:
        newest = newest_checkpoint(stage.checkpoints)
        fingerprint = sha256(newest)
        lost = lose_disks(stage, stage.tiered, newest, fingerprint)
        rebuild(stage, stage.tiered, lost, newest, fingerprint)
        lose_metadata(stage, stage.tiered, newest, fingerprint)
    compare_speed(stage)
    if stage.tiered is not None:
        feed_trainers(stage, stage.tiered)


# ---- the steps -----------------------------------------------------------------------------------------------------


def mount(stage: Stage) -> None:
    narrator = stage.narrator
    with narrator.step("A volume of six directories, code rs:4+2: any two of them may be lost"):
        stage.stack.callback(stage.volume.stop)
        stage.volume.start()
        if stage.tiered is None:
            narrator.say(f"(a plain directory instead: {stage.volume.root})")
            return
        narrator.say(f"tieredfs format {stage.tiered.meta} --data disk://.../d{{0..5}} --code {stage.tiered.code}")
        narrator.say(f"tieredfs mount  {stage.tiered.meta} {stage.tiered.root}")
        narrator.check("it is mounted", machine.is_mounted(stage.tiered.root))


def train_and_kill(stage: Stage) -> dict[int, str]:
    """The first run's losses, step by step."""
    narrator = stage.narrator
    with narrator.step("Train a small transformer on real text; kill -9 in the middle of a save"):
        size = write_corpus(stage.text)
        narrator.say(f"text: {size / 1e6:.1f} MB of this Python's own sources and licence, stored in the volume")
        narrator.say(
            "saves: torch.save to a temporary name, fsync, os.replace: a final name is always a whole checkpoint"
        )
        with Trainer(stage.text, stage.checkpoints, STEPS, SAVE_EVERY) as trainer:
            death = trainer.kill_in_save(KILL_AFTER)
        for line in said(trainer):
            narrator.say(f"  | {line}")
        narrator.check("the trainer was saving when SIGKILL was sent", death is not None)
        assert death is not None
        check_death(narrator, death, trainer)
        return trainer.losses


def check_death(narrator: Narrator, death: MidSave, trainer: Trainer) -> None:
    torn = 0 < death.left_bytes < death.whole_bytes
    written = (
        f"{death.seen_bytes / 1e6:.1f} of {death.whole_bytes / 1e6:.1f} MB seen, {death.left_bytes / 1e6:.1f} left"
    )
    narrator.check(f"it died of it in mid-save: {written}", trainer.code == -9 and torn)
    final = death.temporary.with_name(death.temporary.name.removeprefix(".").removesuffix(".tmp"))
    narrator.check(f"there is no {final.name}, only its torn temporary file", not final.exists())
    narrator.check("the torn file does not load", not loads(death.temporary))


def resume(stage: Stage, first: dict[int, str]) -> None:
    narrator = stage.narrator
    newest = newest_checkpoint(stage.checkpoints)
    with narrator.step(f"Resume from the newest whole checkpoint, {newest.name}"):
        with Trainer(stage.text, stage.checkpoints, STEPS, SAVE_EVERY) as trainer:
            code = trainer.finish()
        for line in said(trainer):
            narrator.say(f"  | {line}")
        narrator.check("the second run trained to its end", code == 0 and max(trainer.losses) == STEPS)
        start = int(newest.stem.removeprefix("ckpt-"))
        again = sorted(step for step in first if step > start)
        equal = [step for step in again if trainer.losses.get(step) == first[step]]
        narrator.check("it began where that checkpoint ends", min(trainer.losses) == start + 1)
        both = f"steps {again[0]}-{again[-1]} were done in both runs"
        narrator.check(f"{both}: {len(equal)} of {len(again)} losses are equal to the last digit", equal == again)
        before, after = float(first[1]), float(trainer.losses[STEPS])
        narrator.check(f"the model learns: loss {before:.2f} at step 1, {after:.2f} at step {STEPS}", after < before)
        for torn in stage.checkpoints.glob(".ckpt-*.tmp"):
            torn.unlink()


def lose_disks(stage: Stage, tiered: DemoVolume, newest: Path, fingerprint: str) -> list[Path]:
    narrator = stage.narrator
    with narrator.step("Lose two of the six disks and the SSD cache"):
        tiered.settle()
        narrator.say(f"drained: all is stored. sha256 of {newest.name}: {fingerprint[:16]}...")
        lost = tiered.lose(*LOST_DISKS)
        narrator.say(f"rm -rf {' '.join(path.name for path in lost)}")
        forget(stage, tiered, newest)
        started = time.monotonic()
        same = sha256(newest) == fingerprint
        seconds = time.monotonic() - started
        rate = newest.stat().st_size / seconds / 1e6
        narrator.check(
            f"it is bit-identical, rebuilt in passing from four disks ({seconds:.2f} s, {rate:.0f} MB/s)", same
        )
        narrator.check("torch.load takes it", loads(newest))
    return lost


def rebuild(stage: Stage, tiered: DemoVolume, lost: list[Path], newest: Path, fingerprint: str) -> None:
    narrator = stage.narrator
    with narrator.step("Rebuild what the lost disks held"):
        tiered.replace(lost)
        narrator.say("tieredfs disk add (two new directories), then tieredfs disk rebuild (each lost disk)")
        found = tiered.check()
        narrator.check("fsck is clean", True)  # it exits with an error otherwise
        narrator.say(f"  | {found[:300]}")
        # Full redundancy again means that two others may go now; rename them away and back, so that fsck stays true.
        forget(stage, tiered, newest)
        with tiered.disks_away(0, 2):
            same = sha256(newest) == fingerprint
        narrator.check("with two other disks away it is still bit-identical", same)


def lose_metadata(stage: Stage, tiered: DemoVolume, newest: Path, fingerprint: str) -> None:
    narrator = stage.narrator
    with narrator.step("Delete the metadata database: a dump of it lies on three of the disks"):
        dump = Path(tiered.lose_metadata())
        narrator.say(
            "tieredfs dump (a mount does it by itself every hour); rm volume.db; tieredfs load (from the disks)"
        )
        narrator.say(f"loaded {dump.relative_to(tiered.directory)}, {dump.stat().st_size / 1e3:.0f} kB")
        forget(stage, tiered, newest)
        narrator.check("mounted again, the checkpoint is bit-identical", sha256(newest) == fingerprint)


def forget(stage: Stage, tiered: DemoVolume, path: Path) -> None:
    """Nothing of the volume's files stays on the SSD tier, nor `path` in the page cache."""
    tiered.evict(tiered.root)
    machine.drop_page_cache([path])
    held = machine.held_bytes(tiered.directory / "cache")
    dropped = "and page cache dropped" if machine.can_drop_caches() else "(dropping all page cache needs root)"
    stage.narrator.say(f"tieredfs evict {tiered.root.name}; {dropped}")
    whole = path.stat().st_size
    stage.narrator.check(f"the SSD tier is empty: {held / 1e6:.1f} MB left", held < whole // 4)


def compare_speed(stage: Stage) -> None:
    with stage.narrator.step("How fast is it, against the file system below it"):
        plain = stage.directory / "below"
        plain.mkdir()
        rows = speed.rows(stage.volume.root, plain, stage.volume.settle)
        source, kind = machine.mount_of(stage.directory)
        print_table(
            f"{speed.SIZE_BYTES >> 20} MiB, {speed.ROUNDS} rounds, alternating; plain is {kind} on {source}", rows
        )
        rounds = {len(series.values) for row in rows for series in row.series}
        stage.narrator.check("every round of both sides was measured", rounds == {speed.ROUNDS})


def feed_trainers(stage: Stage, tiered: DemoVolume) -> None:
    narrator = stage.narrator
    with narrator.step("Serve a dataset, kill a trainer in the middle of its epoch, go on with two ranks"):
        count = feeding.write_dataset(stage.text, stage.volume.root / feeding.SOURCE)
        narrator.say(f"{count:,} samples of {feeding.SAMPLE_BYTES} bytes, as Parquet, written through the mount")
        checkpoints = stage.volume.root / "feed"
        checkpoints.mkdir()
        seen = [stage.directory / f"seen-{name}" for name in ("first", *range(feeding.RANKS))]
        url = stage.stack.enter_context(feeding.gateway(tiered.meta, stage.directory / "gateway.log"))
        narrator.say(f"tieredfs gateway {tiered.meta}: batches shuffled over the whole epoch, through shared memory")
        reached = feeding.train_and_kill(url, checkpoints, seen[0])
        saved = feeding.checkpoint_step(checkpoints)
        narrator.check(
            f"killed at step {reached}; the checkpoint of step {saved} has model and position", saved < reached
        )
        made = feeding.batches_made(url)
        codes = feeding.resume(url, checkpoints, seen[1:])
        made = feeding.batches_made(url) - made
        narrator.check(f"{feeding.RANKS} ranks went on from there to the end of the epoch", set(codes) == {0})
        before = [one.ids for one in feeding.read_seen(seen[0]) if one.step <= saved]
        after = [one.ids for path in seen[1:] for one in feeding.read_seen(path)]
        ids = sorted(number for one in (*before, *after) for number in one)
        narrator.check(f"each of the {count:,} samples was trained on exactly once", ids == list(range(count)))
        batches = sum(1 for one in after if one)
        narrator.check(f"the gateway made each of the {batches} batches that were left once ({made})", made == batches)


# ---- what they use -------------------------------------------------------------------------------------------------


def write_corpus(path: Path) -> int:
    """Text that every installation has: licence and sources of the standard library, in order of name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left = CORPUS_BYTES
    with path.open("wb") as corpus:
        for source in (*library.glob("LICENSE*"), *sorted(library.glob("*.py")), *sorted(library.glob("*/*.py"))):
            if left <= 0:
                break
            left -= corpus.write(source.read_bytes()[:left])
    return CORPUS_BYTES - left


def said(trainer: Trainer) -> list[str]:
    """Every tenth step, and every line that is not one; the tail if it failed."""
    if trainer.code not in {0, -9}:
        return trainer.lines[-20:]
    return [line for line in trainer.lines if not line.startswith("step ") or int(line.split()[1]) % 10 == 0]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def loads(path: Path) -> bool:
    """Whether torch reads it, in a process of its own: a torn file may not disturb this one."""
    script = "import sys, torch; torch.load(sys.argv[1], weights_only=True)"
    command = [sys.executable, "-c", script, str(path)]
    return (
        subprocess.run(command, check=False, capture_output=True, timeout=120, stdin=subprocess.DEVNULL).returncode == 0
    )
