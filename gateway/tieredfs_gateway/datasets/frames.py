"""Batches as Arrow IPC: frames that are made once and sent to many.

A *stream* is what any Arrow library reads: a schema message, then per batch its dictionaries and the batch itself, then the end
mark. A *frame* is one batch's part of that, or that of some neighbours which are one message (`runs`). Frames of one schema can be
put together in any order between `head` and `END`: dictionaries are replaced with each message, and each says itself how its
body is compressed. So a link that changes its mind between frames is still one valid stream, and a frame compressed for one
trainer serves all.

Which compression: what is slower, the link or the compressor, decides (`choose`). This module is pure but for the arrays.
"""

import contextlib
import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from tieredfs.errors import ConfigurationError
from tieredfs.limits import MIB
from tieredfs_gateway.datasets.contract import NumberedBatch

END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Ends an Arrow IPC stream."""
ROWS_KEY: Final = "tieredfs.rows"
"""In the metadata of a message that is several batches: how many rows each has, decimal, with commas between."""


class Codec(enum.StrEnum):
    """How bodies of messages are compressed. `AUTO` is no codec but the wish that the gateway choose."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    ZSTD_HIGH = "zstd-high"
    AUTO = "auto"


_LEVELS: Final = {Codec.LZ4: -8, Codec.ZSTD: 1, Codec.ZSTD_HIGH: 6}
"""Negative: so much faster, at the price of bytes. Of lz4, in pieces of 64 Ki rows: 1 gives 1,196 MiB/s and 0.366 of the bytes,
-8 1,302 and 0.379, -32 1,401 and 0.388. zstd at -5 is a quarter faster than at 1, and 0.283 instead of 0.211 are left."""
_SPEEDS: Final = ((Codec.LZ4, 1259 * MIB, 0.38), (Codec.ZSTD, 534 * MIB, 0.21), (Codec.ZSTD_HIGH, 156 * MIB, 0.19))
"""Codec, bytes in per second and core, bytes out per byte in: `python -m bench.datasets --only codecs`, 12,288 flights of 19
columns at a time, one core of an AMD EPYC. What matters is their order and the distance between them."""


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
    compression = pa.Codec("lz4" if codec is Codec.LZ4 else "zstd", compression_level=_LEVELS[codec])
    return pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)


def frame(
    rows: pa.RecordBatch,
    head_bytes: int,
    codec: Codec,
    row_counts: Sequence[int] = (),
    scratch: pa.Buffer | None = None,
) -> bytes:
    """Its part of a stream whose head has so many bytes. `row_counts`: of the batches that `rows` are, when they are several.
    `scratch`: memory to write to first; what does not fit is written elsewhere."""
    metadata = {ROWS_KEY: ",".join(map(str, row_counts))} if len(row_counts) > 1 else None

    def write(sink: pa.NativeFile) -> int:
        with pa.ipc.new_stream(sink, rows.schema, options=options(codec)) as writer:
            writer.write_batch(rows, metadata)
        return int(sink.tell()) - len(END)

    if scratch is not None:
        with contextlib.suppress(OSError):  # it does not fit
            return bytes(memoryview(scratch)[head_bytes : write(pa.FixedSizeBufferWriter(scratch))])
    growing = pa.BufferOutputStream()
    end = write(growing)
    return bytes(memoryview(growing.getvalue())[head_bytes:end])


@dataclass(frozen=True, slots=True)
class Run:
    """Batches that are one message."""

    rows: pa.RecordBatch
    row_counts: tuple[int, ...]


def runs(batches: Sequence[NumberedBatch], most: int) -> list[Run]:
    """All of them in their order; up to `most` that have rows, and lie beside each other in what was decoded, are one."""
    found: list[Run] = []
    at = 0
    while at < len(batches):
        whole, start = batches[at].whole, batches[at].start
        counts: list[int] = []
        end = start
        for batch in batches[at : at + most]:
            if counts and (batch.whole is not whole or batch.start != end or not batch.row_count or not counts[-1]):
                break
            counts.append(batch.row_count)
            end += batch.row_count
        found.append(Run(whole.slice(start, end - start), tuple(counts)))
        at += len(counts)
    return found


def joined(batches: Sequence[NumberedBatch], *, copies: bool = False) -> list[pa.RecordBatch]:
    """Their rows, as one batch where they lie beside each other in what was decoded, and elsewhere if it `copies` them: but for
    dictionaries, of which each batch has its own. Those without rows only when all are."""
    runs: list[tuple[pa.RecordBatch, int, int]] = []
    for batch in batches:
        start, end = batch.start, batch.start + batch.row_count
        if start == end:
            continue
        if runs and runs[-1][0] is batch.whole and runs[-1][2] == start:
            start = runs.pop()[1]
        runs.append((batch.whole, start, end))
    found = [whole.slice(start, end - start) for whole, start, end in runs] or [batches[0].rows]
    if len(found) == 1 or not copies or any(pa.types.is_dictionary(kind) for kind in found[0].schema.types):
        return found
    return [pa.concat_batches(found)]


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


def read_frame(schema_head: bytes, body: bytes) -> pa.RecordBatch:
    return pa.ipc.open_stream(pa.py_buffer(schema_head + body)).read_next_batch()


def batches_of(data: bytes) -> Iterator[pa.RecordBatch]:
    yield from pa.ipc.open_stream(pa.py_buffer(data))
