"""What scattering leaves for gathering: the rows of each bucket, piece by piece.

In memory as long as that suffices, then as Arrow IPC messages in a scratch file.
"""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.scratch import Scratch


@dataclass(frozen=True, slots=True)
class _Kept:
    """In memory (`rows`), or `length` bytes at `offset` of the file. `places`: where in the bucket each row comes."""

    source: int
    places: Indices
    rows: pa.RecordBatch | None
    offset: int = 0
    length: int = 0


class Pieces:
    """Safe from any thread; `of` a bucket only after its last `add`. Owns the scratch file."""

    def __init__(self, schema: pa.Schema, memory_bytes: int, scratch: Scratch) -> None:
        self._schema = schema
        self._memory_bytes = memory_bytes
        self._scratch = scratch
        self._lock = threading.Lock()
        self._kept: defaultdict[int, list[_Kept]] = defaultdict(list)
        self._held_bytes = 0

    def add(self, bucket: int, source: int, rows: Sequence[pa.RecordBatch], places: Indices) -> None:
        """`source` orders the pieces of a bucket, whoever adds first. Raises NoSpaceError when the scratch file is full."""
        at = 0
        for batch in rows:
            self._add(bucket, source, batch, places[at : at + batch.num_rows])
            at += batch.num_rows

    def _add(self, bucket: int, source: int, batch: pa.RecordBatch, places: Indices) -> None:
        with self._lock:
            fits = self._held_bytes + batch.nbytes <= self._memory_bytes
            if fits:
                self._held_bytes += batch.nbytes
        if fits:
            kept = _Kept(source, places, batch)
        else:
            message = batch.serialize()
            kept = _Kept(source, places.copy(), None, self._scratch.append(memoryview(message)), message.size)
        with self._lock:
            self._kept[bucket].append(kept)

    def of(self, bucket: int) -> tuple[list[pa.RecordBatch], list[Indices]]:
        """The pieces in the order of their sources, and the places of their rows."""
        with self._lock:
            kept = sorted(self._kept[bucket], key=lambda one: one.source)
        return [self._rows(one) for one in kept], [one.places for one in kept]

    def _rows(self, kept: _Kept) -> pa.RecordBatch:
        if kept.rows is not None:
            return kept.rows
        return pa.ipc.read_record_batch(self._scratch.read(kept.offset, kept.length), self._schema)

    def close(self) -> None:
        self._kept.clear()
        self._scratch.close()
