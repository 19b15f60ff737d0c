"""A real `Reader` over an Arrow table in memory, which counts what it is asked for, and can be told to be slow or to fail."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

import pyarrow as pa

from tests.serving.rig import numbers
from tieredfs_gateway.datasets.contract import NumberedBatch, Position, Views


class TableReader:
    """Batches of `batch_size` rows of `table`. `made`: how often each batch was made; `open_iterators`: not closed yet."""

    def __init__(self, table: pa.Table | None = None, batch_size: int = 100, version: str = "v1") -> None:
        self._table = (table if table is not None else numbers(1000)).combine_chunks()
        self._batch_size = batch_size
        self._version = version
        self.made: Counter[int] = Counter()
        self.open_iterators = 0
        self.closed = False
        self.pause_s = 0.0
        self.is_at_hand = False
        self.failing: dict[int, Exception] = {}
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        return self._version

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    @property
    def views(self) -> Views | None:
        return None

    def row_count(self) -> int:
        return int(self._table.num_rows)

    def batch_count(self) -> int:
        return -(-self.row_count() // self._batch_size)

    def batches(self, position: Position, stride: int = 1) -> Iterator[NumberedBatch]:
        with self._lock:
            self.open_iterators += 1
        try:
            for index in range(position.batches, self.batch_count(), stride):
                if index in self.failing:
                    raise self.failing[index]
                time.sleep(self.pause_s)
                with self._lock:
                    self.made[index] += 1
                yield NumberedBatch(index, self.rows(index))
        finally:
            with self._lock:
                self.open_iterators -= 1

    def rows(self, index: int) -> pa.RecordBatch:
        rows = self._table.slice(index * self._batch_size, self._batch_size).combine_chunks().to_batches()
        return rows[0]

    def skipped(self) -> dict[str, str]:
        return {}

    def counters(self) -> dict[str, int]:
        return {"splits_decoded": sum(self.made.values())}

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
