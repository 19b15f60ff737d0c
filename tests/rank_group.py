"""Ranks that share a start: one process imports what all of them need, which takes seconds for torch, and forks them.

`python -m tests.rank_group MODULE WORLD_SIZE FOLDER ARGUMENT...` calls `MODULE.main(rank, world_size, ARGUMENT...)` in a process
for each rank, with standard output and error in FOLDER, and prints the exit codes as JSON.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a rank ended, and what it said."""

    code: int
    out: str
    err: str


def run_group(module: str, world_size: int, folder: Path, *arguments: str, timeout_s: float) -> list[Ended]:
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "tests.rank_group", module, str(world_size), str(folder)]
    process = subprocess.Popen(
        [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        codes = json.loads(process.communicate(timeout=timeout_s)[0])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    said = [[(folder / f"{rank}.{what}").read_text() for what in ("out", "err")] for rank in range(world_size)]
    return [Ended(code, *texts) for code, texts in zip(codes, said, strict=True)]


def main(name: str, world_size: int, folder: Path, arguments: list[str]) -> None:
    module = importlib.import_module(name)
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            for number, what in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{rank}.{what}", os.O_WRONLY | os.O_CREAT), number)
            module.main(rank, world_size, *arguments)
            return
        pids.append(pid)
    sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
