"""The trainer as a child process: its output read as it comes, and its death at a chosen moment.

One thread reads lines; everything else is the caller's thread. `Trainer` is a context manager: the child is dead
afterwards, whatever happened.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

SCRIPT: Final = Path(__file__).with_name("train.py")
STEP_LINE: Final = re.compile(r"step (\d+) loss (\S+)")
RUN_S: Final = 600.0
POLL_S: Final = 0.0005
"""Saving fifty megabytes takes some fifty milliseconds: look a hundred times meanwhile."""
THREADING: Final = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
"""The same number of threads in both runs: sums are added up in the same order, so the losses are equal to the bit.
Passive, because a thread that spins at a barrier takes the core that its partner waits for on a busy machine."""


@dataclass(frozen=True, slots=True)
class MidSave:
    """The proof of a death in mid-save: the file's size when the signal was sent, and after the death."""

    temporary: Path
    seen_bytes: int
    left_bytes: int
    whole_bytes: int


def newest_checkpoint(directory: Path) -> Path:
    return max(directory.glob("ckpt-*.pt"))


class Trainer:
    """A running `train.py`. `losses` maps each step to the loss as it was printed, digit by digit."""

    def __init__(self, text: Path, checkpoints: Path, steps: int, save_every: int) -> None:
        self.checkpoints = checkpoints
        self.losses: dict[int, str] = {}
        self.lines: list[str] = []
        self._save_every = save_every
        options = ["--text", text, "--checkpoints", checkpoints, "--steps", steps, "--save-every", save_every]
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | THREADING,
            start_new_session=True,  # a Ctrl-C is the parent's to handle
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found := STEP_LINE.match(line):
                self.losses[int(found[1])] = found[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def finish(self) -> int:
        """Wait for its end; the exit code."""
        code = self._process.wait(RUN_S)
        self._reader.join(10)
        return code

    def kill_in_save(self, first_step: int) -> MidSave | None:
        """SIGKILL while the temporary file of a save at or after `first_step` has a tenth to six tenths of a whole
        checkpoint: what is missing then takes longer to write than the signal to arrive. None when the trainer ended
        before that was ever seen."""
        deadline = time.monotonic() + RUN_S
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
            step = max(self.losses, default=0)
            if step < first_step or step % self._save_every:
                continue  # not between the loss of a saved step and that of the next: no save is under way
            whole = newest_checkpoint(self.checkpoints).stat().st_size
            temporary = self.checkpoints / f".ckpt-{step:06d}.pt.tmp"
            seen = _size(temporary)
            if whole // 10 < seen < whole * 6 // 10:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait(30)
                self._reader.join(10)
                return MidSave(temporary, seen, _size(temporary), whole)
        return None

    @property
    def code(self) -> int | None:
        return self._process.poll()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # not begun yet, or renamed to its final name
        return 0
