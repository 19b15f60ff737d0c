"""`python -m tieredfs.volume.dump_process META_URL`: one dump onto the volume's disks, behind everybody else on the machine.

A process of its own because a dump keeps the interpreter busy for as long as it takes, and the daemon's requests would wait.
"""

import logging
import os
import subprocess
import sys
import threading
from typing import Final

from tieredfs.errors import TieredError
from tieredfs.limits import DUMP_WAIT_S
from tieredfs.volume.volume import Volume

_log: Final = logging.getLogger("tieredfs.volume.dumps")
_NICENESS: Final = 10
_LOOK_S: Final = 0.2


def run(meta_url: str, closing: threading.Event) -> None:
    """Have one made, and wait for it; until `closing` is set, or for `DUMP_WAIT_S`. A failure is logged."""
    command = [sys.executable, "-m", "tieredfs.volume.dump_process", meta_url]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        waited_s = 0.0
        while child.poll() is None and waited_s < DUMP_WAIT_S and not closing.wait(_LOOK_S):
            waited_s += _LOOK_S
        child.terminate()  # of one that has ended: nothing
        said = child.communicate()[1].decode(errors="replace").strip()
    if child.returncode and not closing.is_set():
        _log.warning("no dump of the metadata this time: %s", said.splitlines()[-1] if said else child.returncode)


def main(meta_url: str) -> int:
    os.nice(_NICENESS)
    try:
        with Volume.open(meta_url, purpose="dump") as volume:
            volume.dump_to_disks(lambda _done, _total, _unit: None)
    except TieredError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
