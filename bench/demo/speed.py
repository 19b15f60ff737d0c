"""The demo's last table: the mount against the plain file system below it, alternately, in one run."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from bench import machine, workloads
from bench.report import Row, Target, alternate

SIZE_BYTES: Final = 512 << 20
ROUNDS: Final = 3


def rows(mount: Path, plain: Path, settle: Callable[[], None]) -> list[Row]:
    """Write + fsync, cold read, warm read of one file. `settle` returns when nothing goes on behind the mount."""
    places = {"plain": plain / "speed.bin", "mount": mount / "speed.bin"}
    wanted = (Target("mount", "plain"),)
    try:
        writes = alternate({side: partial(_write, path, settle) for side, path in places.items()}, ROUNDS)
        colds = alternate({side: partial(_cold, path) for side, path in places.items()}, ROUNDS)
        warms = alternate({side: partial(_warm, path) for side, path in places.items()}, ROUNDS)
    finally:
        for path in places.values():
            path.unlink(missing_ok=True)
    return [
        Row("write", "write + fsync", "GB/s", writes, wanted),
        Row("cold", "read, page cache cold", "GB/s", colds, wanted),
        Row("warm", "read, warm", "GB/s", warms, wanted),
    ]


def _write(path: Path, settle: Callable[[], None]) -> float:
    path.unlink(missing_ok=True)
    os.sync()
    seconds = workloads.write_file(path, SIZE_BYTES)
    settle()
    return SIZE_BYTES / seconds / 1e9


def _cold(path: Path) -> float:
    machine.drop_page_cache([path])
    return SIZE_BYTES / workloads.read_file(path) / 1e9


def _warm(path: Path) -> float:
    workloads.read_file(path)
    return SIZE_BYTES / workloads.read_file(path) / 1e9
