"""`python -m tieredfs.volume.care_process META_URL JOB...`: care for a volume, behind everybody else on the machine.

A process of its own because the work keeps the interpreter busy for as long as it takes, and the requests of a daemon, or the steps
of a training, would wait.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

from tieredfs.errors import TieredError
from tieredfs.limits import CARE_WAIT_S
from tieredfs.volume.volume import Volume

GARBAGE: Final = "garbage"
DUMP: Final = "dump"

_log: Final = logging.getLogger("tieredfs.volume.caretaker")
_NICENESS: Final = 10
_LOOK_S: Final = 0.2


def run(meta_url: str, jobs: Sequence[str], closing: threading.Event) -> None:
    """Have the jobs done, and wait for it; until `closing` is set, or for `CARE_WAIT_S`. A failure is logged."""
    command = [sys.executable, "-m", "tieredfs.volume.care_process", meta_url, *jobs]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        waited_s = 0.0
        while child.poll() is None and waited_s < CARE_WAIT_S and not closing.wait(_LOOK_S):
            waited_s += _LOOK_S
        child.terminate()  # of one that has ended: nothing
        said = child.communicate()[1].decode(errors="replace").strip()
    if child.returncode and not closing.is_set():
        problem = said.splitlines()[-1] if said else f"exit code {child.returncode}"
        _log.warning("some care was left for the next time: %s", problem)


def _quiet(_done: int, _total: int, _unit: str) -> None:
    pass


def main(meta_url: str, jobs: Sequence[str]) -> int:
    """The jobs, in order. One that fails does not keep the next from being done."""
    os.nice(_NICENESS)
    problems: list[str] = []
    with Volume.open(meta_url, purpose="care") as volume:
        for job in jobs:
            try:
                if job == GARBAGE:
                    volume.collect_garbage(_quiet)
                else:
                    volume.dump_to_disks(_quiet)
            except TieredError as error:
                problems.append(f"{job}: {error}")
    if problems:
        sys.stderr.write("; ".join(problems) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
