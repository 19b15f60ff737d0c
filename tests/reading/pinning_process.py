"""A process that has a dataset pinned, and waits to be killed: `pinning_process.py META_URL SOURCE`."""

import sys
import time

from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader

with (
    FileSystem.at(sys.argv[1], purpose="pin") as volume,
    open_reader(volume, DatasetSpec(sys.argv[2]), OrderSpec(10, Shuffle.FULL), memory_bytes=1000) as reader,
):
    next(reader.batches(Position(0, 0)))
    sys.stdout.write(f"{volume.volume.session} {reader.version}\n")
    sys.stdout.flush()
    time.sleep(60)
