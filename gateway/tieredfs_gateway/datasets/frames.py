"""Batches as Arrow IPC: frames that are made once and sent to many.

A *stream* is what any Arrow library reads: a schema message, then per batch its dictionaries and the batch itself, then the end
mark. A *frame* is one batch's part of that. Frames of one schema can be put together in any order between `head` and
`END`: dictionaries are replaced with each batch, and each message says itself how its body is compressed. So a link that
changes its mind between batches is still one valid stream, and a frame compressed for one trainer serves all.

Which compression: what is slower, the link or the compressor, decides (`choose`). This module is pure but for the arrays.
"""

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa

from tieredfs.errors import ConfigurationError
from tieredfs.limits import MIB
from tieredfs_gateway.datasets.contract import NumberedBatch

END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Ends an Arrow IPC stream."""


class Codec(enum.StrEnum):
    """How bodies of messages are compressed. `AUTO` is no codec but the wish that the gateway choose."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    ZSTD_HIGH = "zstd-high"
    AUTO = "auto"


_LEVELS: Final = {Codec.ZSTD: 1, Codec.ZSTD_HIGH: 6}
_SPEEDS: Final = ((Codec.LZ4, 805 * MIB, 0.38), (Codec.ZSTD, 326 * MIB, 0.21), (Codec.ZSTD_HIGH, 101 * MIB, 0.20))
"""Codec, bytes in per second and core, bytes out per byte in: `python -m bench.datasets --only codecs`, batches of 4,096 flights of
19 columns, one core of an AMD EPYC. What matters is their order and the distance between them."""


def choose(link_bytes_per_s: float, cores: int) -> Codec:
    """The codec that gives the most batches per second over a link of that speed, with that many cores to compress."""
    best, most = Codec.NONE, link_bytes_per_s
    for codec, speed, ratio in _SPEEDS:
        rate = min(speed * cores, link_bytes_per_s / ratio)
        if rate > most:
            best, most = codec, rate
    return best


def parse_codec(text: str) -> Codec:
    """Raises ConfigurationError."""
    try:
        return Codec(text)
    except ValueError:
        raise ConfigurationError(f"codec {text!r} is none of {', '.join(Codec)}") from None


def head(schema: pa.Schema) -> bytes:
    """What a stream of this schema begins with."""
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, schema).close()
    return bytes(memoryview(sink.getvalue())[: -len(END)])


def options(codec: Codec) -> pa.ipc.IpcWriteOptions:
    if codec is Codec.NONE:
        return pa.ipc.IpcWriteOptions(use_threads=False)
    name = "lz4" if codec is Codec.LZ4 else "zstd"
    compression = pa.Codec(name, compression_level=_LEVELS.get(codec)) if name == "zstd" else name
    return pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)


def frame(rows: pa.RecordBatch, head_bytes: int, codec: Codec) -> memoryview:
    """One batch's part of a stream whose head has so many bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=options(codec)) as writer:
        writer.write_batch(rows)
    return memoryview(sink.getvalue())[head_bytes : -len(END)]


def joined(batches: Sequence[NumberedBatch]) -> list[pa.RecordBatch]:
    """Their rows, as one batch where they lie beside each other in what was decoded; those without rows only when all are."""
    runs: list[tuple[pa.RecordBatch, int, int]] = []
    for batch in batches:
        start, end = batch.start, batch.start + batch.row_count
        if start == end:
            continue
        if runs and runs[-1][0] is batch.whole and runs[-1][2] == start:
            start = runs.pop()[1]
        runs.append((batch.whole, start, end))
    return [whole.slice(start, end - start) for whole, start, end in runs] or [batches[0].rows]


def cut(data: object, row_counts: Iterable[int]) -> list[pa.RecordBatch]:
    """What was `joined`, out of a stream of it, pointing into `data`."""
    table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
    found: list[pa.RecordBatch] = []
    at = 0
    for count in row_counts:
        found += table.slice(at, count).to_batches() if count else [empty(table.schema)]
        at += count
    return found


def empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def stream_bytes(batches: Sequence[pa.RecordBatch]) -> int:
    """How long they are as a stream, uncompressed."""
    sink = pa.MockOutputStream()
    _write(batches, sink)
    return int(sink.size())


def write_stream(batches: Sequence[pa.RecordBatch], target: memoryview) -> None:
    """The batches as a stream into memory of exactly that length: the one copy on the way to a trainer's memory."""
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(target))
    _write(batches, sink)
    sink.close()


def _write(batches: Sequence[pa.RecordBatch], sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, batches[0].schema, options=options(Codec.NONE)) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_frame(schema_head: bytes, body: memoryview) -> pa.RecordBatch:
    return pa.ipc.open_stream(pa.py_buffer(schema_head + body)).read_next_batch()


def batches_of(data: bytes) -> Iterator[pa.RecordBatch]:
    yield from pa.ipc.open_stream(pa.py_buffer(data))
