"""A pinned dataset under one selection: its splits, and each of them as rows of one schema.

A *split* is a part of a file. `read` gives its rows that match the filter, with the columns that are asked for. After a split in
which nothing matched, the filter's columns are read first, and the others only if something matches. Splits are numbered over
all files, by path.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from tieredfs.errors import ConfigurationError, CorruptError, IntegrityError, NotSupportedError
from tieredfs_gateway.datasets import schemas
from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard
from tieredfs_gateway.datasets.filters import Bounds, bind_columns, bind_filter
from tieredfs_gateway.datasets.listing import PartitionValue, partition_names
from tieredfs_gateway.datasets.schemas import Column, Path, Wanted
from tieredfs_gateway.datasets.sources.protocol import (
    FileIndex,
    HasPages,
    HasRows,
    HasStatistics,
    HasStoredBytes,
    Ranges,
    Source,
)
from tieredfs_gateway.datasets.versions import PinnedFile

T = TypeVar("T")
ParallelMap = Callable[[Callable[[PinnedFile], Any], Iterable[PinnedFile]], Iterator[Any]]
_LOOKED_AT: Final = 16
"""Splits that an estimate of all looks at."""


@dataclass(frozen=True, slots=True)
class Split:
    """Part `part` of file `file` (in `Dataset.files`), `rows` before any filter."""

    file: int
    part: int
    rows: int


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A file that could be opened. `constants`: what its directories say."""

    file: PinnedFile
    index: FileIndex
    constants: dict[str, PartitionValue]


class Dataset:
    """Immutable but for what it counts. Safe from any thread."""

    def __init__(
        self,
        source: Source,
        files: Sequence[PinnedFile],
        constants: Sequence[dict[str, PartitionValue]],
        spec: DatasetSpec,
        parallel: ParallelMap,
        look: Callable[[PinnedFile], FileIndex],
        visited: Callable[[PinnedFile], None] = lambda _: None,
    ) -> None:
        """Looks into every file, by `look`. Raises ConfigurationError (columns, filter, schemas that do not fit), CorruptError.

        `visited` is told of each split that was read."""
        self._source = source
        self._sized = source if isinstance(source, HasStoredBytes) else None
        self._paged = source if isinstance(source, HasPages) else None
        self._known = source if isinstance(source, HasStatistics) else None
        self._look = look
        self._visited = visited
        self._skips = spec.on_bad_shard is OnBadShard.SKIP
        self._lock = threading.Lock()
        self.skipped: dict[str, str] = {}
        """Under the lock."""
        self._matched_last = True
        """A guess at the next split: where nothing matches, reading the filter's columns alone, first, costs less."""
        self._can: dict[int, bool] = {}
        self._stored: dict[int, int] = {}
        """Bytes of splits, before any narrowing: each epoch is announced twice."""
        self._decoded: dict[int, int] = {}
        """And when they are decoded: asked for each time that more is to be read ahead."""
        self._narrow_rows = self._narrowed_rows = 0
        """Of splits that have pages: all rows, and those that were read. Under the lock."""
        self.splits_decoded = self.rows_decoded = self.bytes_decoded = 0
        found = parallel(self._looked, files)
        self.files = [
            DatasetFile(file, index, values)
            for file, index, values in zip(files, found, constants, strict=True)
            if index is not None
        ]
        if not self.files:
            raise CorruptError(
                f"none of the {len(files)} files can be read; the first: {next(iter(self.skipped.items()))}"
            )
        self.columns = self._unified(constants)
        self.filter = bind_filter(spec.filter, self.columns)
        if spec.columns is not None and not spec.columns:
            raise ConfigurationError("columns: at least one is needed")
        self.selected = [
            (name, path, schemas.type_at(self.columns, path)) for name, path in bind_columns(spec.columns, self.columns)
        ]
        filtering = self.filter.paths if self.filter else ()
        self._wanted = sorted({path for _, path, _ in self.selected} | set(filtering))
        self.splits = [
            Split(number, part, rows)
            for number, each in enumerate(self.files)
            for part, rows in enumerate(each.index.rows)
        ]
        self.schema = pa.schema([pa.field(name, kind) for name, _, kind in self.selected])
        self.encoded = [name for name, path, _ in self.selected if len(path) == 1 and self.columns[path[0]].encoded]

    def _looked(self, file: PinnedFile) -> FileIndex | None:
        try:
            return self._look(file)
        except IntegrityError as error:
            self.skip(file, error)
            return None

    def skip(self, file: PinnedFile, error: IntegrityError) -> None:
        """Remember that it is left out; raises the error where damaged files are not."""
        if not self._skips:
            raise error
        with self._lock:
            self.skipped.setdefault(file.name, str(error))

    def _unified(self, constants: Sequence[dict[str, PartitionValue]]) -> dict[str, Column]:
        columns = schemas.unify((each.file.name, each.index.schema) for each in self.files)
        for name in partition_names(constants):
            values = [values.get(name) for values in constants]
            kind = pa.string() if any(isinstance(value, str) for value in values) else pa.int64()
            columns[name] = Column(kind, False, self.files[0].file.name)
        return columns

    # ---- one split --------------------------------------------------------------------------------------------------

    def read(self, number: int) -> list[pa.RecordBatch] | None:
        """The matching rows; None when the split is damaged and damaged ones are left out."""
        split = self.splits[number]
        each = self.files[split.file]
        try:
            table = self._read(each, split, number)
        except IntegrityError as error:
            self.skip(each.file, error)
            return None
        finally:
            self._visited(each.file)
        self.count_decoded(split.rows, table.nbytes, splits=1)
        return list(table.to_batches())

    def count_decoded(self, rows: int, size_bytes: int, splits: int = 0) -> None:
        with self._lock:
            self.splits_decoded += splits
            self.rows_decoded += rows
            self.bytes_decoded += size_bytes

    def count(self, number: int) -> int:
        """How many rows match; reads the filter's columns if it must. A damaged split has none, where such are left out."""
        split = self.splits[number]
        if self.filter is None or not split.rows:
            return split.rows
        each = self.files[split.file]
        if not self._can_match(number):
            return 0
        try:
            rows = self._narrowed(each, split, self._filter_columns())
            if rows == ():
                return 0
            table = self._conformed(each, split, self._filter_columns(), rows)
        except IntegrityError as error:
            self.skip(each.file, error)
            return 0
        return int(pc.sum(self._mask(table)).as_py() or 0)

    def decoded_bytes(self, number: int) -> int:
        """About how much memory a split takes, before the filter."""
        found = self._decoded.get(number)
        if found is None:
            split = self.splits[number]
            paths = [path for _, path, _ in self.selected]
            found = self._source.decoded_bytes(self.files[split.file].index, split.part, paths)
            self._decoded[number] = found
        return found

    def file_of(self, number: int) -> PinnedFile:
        return self.files[self.splits[number].file].file

    def stored_bytes(self, number: int) -> int:
        """About how much of its file reading a split reads: nothing where statistics rule it out; where pages will, the share
        that they left of the splits before. Before the first one that is a guess: the filter's columns alone. It is better low
        than high: too low, and what is needed is fetched once more; too high, and whole files are."""
        split = self.splits[number]
        each = self.files[split.file]
        if not self._can_match(number):
            return 0
        if self._sized is None:
            return -(-each.file.size_bytes // max(1, len(each.index.rows)))
        there = [path for path in self._wanted if path[0] not in each.constants]
        stored = self._stored.get(number)
        if stored is None:
            stored = self._stored[number] = self._sized.stored_bytes(each.index, split.part, there)
        filtering = self.filter.paths if self.filter else ()
        if not (filtering and self._paged is not None and self._paged.may_narrow(each.index, split.part, filtering)):
            return stored
        with self._lock:
            if self._narrow_rows:
                return stored * self._narrowed_rows // self._narrow_rows
        alone = [path for path in there if path in set(filtering)]
        return self._sized.stored_bytes(each.index, split.part, alone)

    def _can_match(self, number: int) -> bool:
        """By statistics, which hold for ever."""
        if self.filter is None:
            return True
        found = self._can.get(number)
        if found is None:
            split = self.splits[number]
            found = self._can[number] = self._may_match(self.files[split.file], split.part)
        return found

    def row_bytes(self) -> int:
        """About how much memory a row takes."""
        return self.total_bytes() // max(1, sum(split.rows for split in self.splits))

    def total_bytes(self) -> int:
        """About how much memory all splits take, before the filter."""
        return sum(self.decoded_bytes(number) for number in range(len(self.splits)))

    def about_total_bytes(self) -> int:
        """`total_bytes`, judged by a few splits: a look at each of a thousand takes as long as to decode one."""
        count = len(self.splits)
        looked_at = range(0, count, -(-count // _LOOKED_AT) or 1)
        return sum(map(self.decoded_bytes, looked_at)) * count // max(1, len(looked_at))

    @property
    def rows_source(self) -> HasRows | None:
        """Of single rows, where there is no filter and the format has a row in one place."""
        return self._source if self.filter is None and isinstance(self._source, HasRows) else None

    def _read(self, each: DatasetFile, split: Split, number: int) -> pa.Table:
        if self.filter is None:
            return self._conformed(each, split, self.selected)
        if not split.rows or not self._can_match(number):
            return self.schema.empty_table()
        filtering = self._filter_columns()
        seen = {path for _, path, _ in filtering}
        rest = [(_key(path), path, kind) for _, path, kind in self.selected if path not in seen]
        rows = self._narrowed(each, split, [*filtering, *rest])
        if rows == ():
            return self.schema.empty_table()
        if self._source.columnar and rest and not self._matched_last:
            table = self._conformed(each, split, filtering, rows)
            mask = self._mask(table)
            self._matched_last = bool(pc.any(mask).as_py())
            if not self._matched_last:
                return self.schema.empty_table()
            return self._picked(self._conformed(each, split, rest, rows), table).filter(mask)
        table = self._conformed(each, split, [*filtering, *rest], rows)
        found = self._picked(table, table).filter(self._mask(table))
        self._matched_last = found.num_rows > 0
        return found

    def _narrowed(self, each: DatasetFile, split: Split, wanted: Wanted) -> Ranges | None:
        """The rows that may match, where the file says more than that the split does. None: all of them."""
        if self._paged is None:
            return None
        assert self.filter is not None
        filtering = [path for path in self.filter.paths if path[0] not in each.constants]
        may_match, of_part = self.filter.may_match, self._statistics(each, split.part)
        if not (self._paged.may_narrow(each.index, split.part, filtering) and self.filter.may_refuse(of_part)):
            return None
        paths = [path for _, path, _ in wanted if path[0] not in each.constants]

        def may(of_page: Callable[[Path], Bounds | None]) -> bool:
            return may_match(lambda path: of_page(path) or of_part(path))

        rows = self._paged.narrow(each.file, each.index, split.part, filtering, paths, may)
        with self._lock:
            self._narrow_rows += split.rows
            self._narrowed_rows += split.rows if rows is None else sum(end - start for start, end in rows)
        return rows

    def _picked(self, rest: pa.Table, filtering: pa.Table) -> pa.Table:
        """The selected columns, by name or by the key of a path, from either table."""
        columns = []
        for name, path, _ in self.selected:
            key = _key(path)
            if key in filtering.schema.names:
                columns.append(filtering.column(key))
            else:
                columns.append(rest.column(key if key in rest.schema.names else name))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _filter_columns(self) -> list[tuple[str, Path, pa.DataType]]:
        assert self.filter is not None
        return [(_key(path), path, schemas.type_at(self.columns, path)) for path in self.filter.paths]

    def _mask(self, table: pa.Table) -> pa.ChunkedArray:
        assert self.filter is not None
        return self.filter.mask(lambda path: table.column(_key(path)))

    def _conformed(self, each: DatasetFile, split: Split, wanted: Wanted, rows: Ranges | None = None) -> pa.Table:
        """`rows`: what `_narrowed` said for these columns, or more."""
        paths = [path for _, path, _ in wanted if path[0] not in each.constants]
        if rows is None:
            table = self._source.read(each.file, each.index, split.part, paths)
        else:
            assert self._paged is not None
            table = self._paged.read_rows(each.file, each.index, split.part, paths, rows)
        return self.fitted(each, table, wanted)

    def fitted(self, each: DatasetFile, table: pa.Table, wanted: Wanted) -> pa.Table:
        try:
            return schemas.conform(table, wanted, each.constants)
        except pa.ArrowInvalid as error:
            raise CorruptError(f"{each.file.name}: {error}") from error
        except pa.ArrowNotImplementedError as error:
            raise NotSupportedError(f"{each.file.name}: {error}") from error

    def _may_match(self, each: DatasetFile, part: int) -> bool:
        assert self.filter is not None
        return self.filter.may_match(self._statistics(each, part))

    def _statistics(self, each: DatasetFile, part: int) -> Callable[[Path], Bounds | None]:
        """What is known of a part without reading it."""

        def statistics(path: Path) -> Bounds | None:
            rows = each.index.rows[part]
            if path[0] in each.constants:
                value = each.constants[path[0]]
                return Bounds(value, value, rows if value is None else 0, rows)
            if each.index.schema.get_field_index(path[0]) < 0:
                return Bounds(None, None, rows, rows)
            return self._known.bounds(each.index, part, path) if self._known is not None else None

        return statistics


def _key(path: Path) -> str:
    """A name for the column of a path that no two paths share."""
    return "\0".join(path)
