"""Ringing at a path: heard by its owner, in another process too, and by nobody once it is gone."""

import subprocess
import sys
import threading
from pathlib import Path

from tieredfs.host.bell import Bell, ring

WAIT_S = 10.0


def test_ringing_is_heard_from_another_process(tmp_path: Path) -> None:
    path = str(tmp_path / "bell")
    assert not ring(path)
    heard = threading.Event()
    bell = Bell(path, heard.set)
    assert ring(path)
    assert heard.wait(WAIT_S)
    heard.clear()
    program = "import sys; from tieredfs.host.bell import ring; sys.exit(not ring(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=WAIT_S)
    assert heard.wait(WAIT_S)
    bell.close()
    assert not ring(path), "the FIFO is still there, and nobody listens"


def test_ringing_without_end_never_waits(tmp_path: Path) -> None:
    path, busy, counted = str(tmp_path / "bell"), threading.Event(), threading.Event()

    def slow() -> None:
        busy.wait(WAIT_S)
        counted.set()

    bell = Bell(path, slow)
    assert all(ring(path) for _ in range(100_000)), "a full pipe is a bell that rings already"
    busy.set()
    assert counted.wait(WAIT_S)
    bell.close()
