"""Reads a dataset and prints the most that Arrow had allocated: `memory_process.py META_URL SOURCE SHUFFLE MEMORY`."""

import sys

import pyarrow as pa

from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position, Shuffle
from tieredfs_gateway.datasets.reader import open_reader

url, source, shuffle, memory = sys.argv[1:]
with FileSystem.at(url, purpose="memory") as volume:
    order = OrderSpec(1000, Shuffle(shuffle), window_rows=20_000)
    with open_reader(volume, DatasetSpec(source), order, memory_bytes=int(memory), threads=2) as reader:
        rows = 0
        for epoch in range(2):
            for batch in reader.batches(Position(epoch, 0)):
                rows += batch.rows.num_rows
        peak = pa.default_memory_pool().max_memory()
        sys.stdout.write(f"{rows} {peak} {reader.counters()['bytes_decoded']}\n")
