"""What compressing a batch costs and brings, by codec: the rows that the gateway's choice for a link rests on (`frames`).

Batches of the flights data, joined as for a trainer that cuts them apart; one thread, nothing is sent.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from bench.dataset_reading import Bench, flights
from bench.report import Bound, Row, Series, Target
from tieredfs.limits import MIB
from tieredfs_gateway.datasets import frames
from tieredfs_gateway.datasets.frames import Codec
from tieredfs_gateway.datasets.parcels import FRAME_BYTES

BATCH: Final = 4096
CODECS: Final = (Codec.NONE, Codec.LZ4, Codec.ZSTD, Codec.ZSTD_HIGH)


def codecs(bench: Bench) -> Iterator[Row]:
    table = flights().combine_chunks()
    raw = int(table.nbytes)
    most = FRAME_BYTES * table.num_rows // raw // BATCH
    batches = table.to_batches(max_chunksize=most * BATCH)
    head = len(frames.head(table.schema))

    def packed(codec: Codec) -> list[bytes]:
        return [frames.frame(batch, head, codec) for batch in batches]

    def measured(codec: Codec) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            packed(codec)
            return raw / MIB / (time.perf_counter() - start)

        return run

    workers = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        series = bench.alternate({codec: measured(codec) for codec in CODECS})
    finally:
        pa.set_cpu_count(workers)
    note = f"{most} batches of {BATCH} flights at a time, one thread; bytes in per second, against what each becomes"
    yield Row("codec_speed", "compressing batches", "MiB/s", series, tuple(Target(c, "none") for c in CODECS[1:]), note)
    shares = tuple(Series(codec, (sum(map(len, packed(codec))) / raw,)) for codec in CODECS)
    ceilings = tuple(Target(codec, "none", 0.4, Bound.AT_MOST) for codec in CODECS[1:])
    yield Row("codec_bytes", "what is left of them", "of 1", shares, ceilings, note)


GROUPS: Final = {"codecs": codecs}
