"""Reads a Parquet file again and again, with other bits of its footer changed each time: `damaging_process.py META_URL STEP`.

Prints how many of them were refused, and how many were read. Whatever the footer says, the process lives."""

import sys

import pyarrow as pa

from tests.reading.files import parquet_bytes, put
from tieredfs.errors import TieredError
from tieredfs.volume import FileSystem
from tieredfs_gateway.datasets.contract import DatasetSpec, OrderSpec, Position
from tieredfs_gateway.datasets.reader import open_reader

CHANGES = (0x01, 0x02, 0x10, 0x80)

url, step = sys.argv[1:]
TABLE = pa.table({"n": [1, None, 3], "x": [[0.5], [], None], "s": ["a", "b", None]})
WHOLE = parquet_bytes(TABLE, 2)
FOOTER_BYTES = int.from_bytes(WHOLE[-8:-4], "little")
refused = read = 0
with FileSystem.at(url, purpose="damaging") as volume:
    for at in range(len(WHOLE) - 8 - FOOTER_BYTES, len(WHOLE) - 8, int(step)):
        damaged = bytearray(WHOLE)
        damaged[at] ^= CHANGES[at // int(step) % len(CHANGES)]
        put(volume, "damaged.parquet", bytes(damaged))
        for text in (None, "n > 2 or s = 'b'"):
            try:
                with open_reader(volume, DatasetSpec("damaged.parquet", filter=text), OrderSpec(2)) as reader:
                    list(reader.batches(Position(0, 0)))
                read += 1
            except TieredError:
                refused += 1
sys.stdout.write(f"{refused} {read}\n")
