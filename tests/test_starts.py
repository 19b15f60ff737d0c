"""What programs load when they start: the rest would cost each start its time, and each process that stays its memory."""

import subprocess
import sys

import pytest

RUN = "import sys\nfrom tieredfs.cli import main\nmain({arguments})\n"
DATASETS = {"numpy", "pyarrow"}
SERVING = {"fastapi", "granian", "uvloop"}
TIER = {"tieredfs.cache.tier", "tieredfs.cache.drain", "tieredfs.volume.filesystem", "tieredfs.volume.ssd"}
CARE = {"tieredfs.curator.scrub", "tieredfs.curator.rebuild", "tieredfs.curator.garbage"}
ARGUMENTS = {"pydantic", "pydantic_core"}
TABLES = {"rich.console", "rich.progress", "rich.table"}

STARTS = {
    "umount": (
        RUN.format(arguments=["umount", "/nowhere"]),
        TIER | CARE | TABLES | ARGUMENTS | {"sqlite3", "tieredfs.volume.volume"},
    ),
    "mount": (
        RUN.format(arguments=["mount", "sqlite:///nowhere/volume.db", "/nowhere"]) + "import tieredfs.fuse.mounting",
        TIER | CARE | TABLES | ARGUMENTS | {"tieredfs.volume.volume", "tieredfs.fuse.daemon"},
    ),
    "status": (
        RUN.format(arguments=["status", "sqlite:///nowhere/volume.db"]) + "from tieredfs.volume import Volume",
        TIER | CARE | TABLES | ARGUMENTS | {"ssl", "tieredfs_gateway.s3.verbs"},
    ),
    "format": (
        RUN.format(arguments=["format", "sqlite:///nowhere/volume.db", "--data", "nonsense"]),
        TIER | CARE | TABLES | ARGUMENTS | {"ssl", "tieredfs.fuse.daemon"},
    ),
    "keeper": ("import tieredfs.fuse.kernel.keeper", TIER | CARE | {"sqlite3", "tieredfs.meta.metadata"}),
    "daemon": (
        "import tieredfs.fuse.daemon, tieredfs.fuse.kernel.daemon, tieredfs.fuse.kernel.session",
        CARE | {"ssl", "http.client", "http.server", "tieredfs.volume.filesystem", "tieredfs.volume.snapshots"},
    ),
    "s3 supervisor": ("import tieredfs_gateway.s3.starting, tieredfs_gateway.s3.workers", SERVING | TIER | DATASETS),
    "s3 worker": ("import tieredfs_gateway.s3.worker", DATASETS),
    "node": ("import tieredfs_gateway.node.server", DATASETS | {"sqlite3"}),
    "status page": ("import tieredfs_gateway.status.server", DATASETS | TIER),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_program_loads_what_it_needs(start: str) -> None:
    program, others = STARTS[start]
    program += f"\nimport sys\nprint(sorted({others!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
