"""Rows read one by one, each from where it lies, straight to where it comes.

Columns of bytes, which are nearly all of a picture dataset, are read into one allocation in their final order: a row's bytes are
copied once, from the page cache, into memory that is used again (`warm_memory`). The other columns are small; they are read by
split and put in order afterwards. The splits of one gathering are shared out between the thread that needs it and those of the pool
that are free.

What bounds it is that copy: `bench.datasets --only shuffle-images` gave 34 thousand pictures of 100 KB a second in this process,
and 90 thousand where they are hashed in a mapping (two cores of a Xeon at 2.5 GHz). A column of `binary` has its values one after
another in one buffer, and in a shuffled order those of a file are not; so what spares the copy are columns of another type, for
who asks for them (`sources.viewed`): values that lie in files that can be looked at have places there, and only the others are
read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from tieredfs.errors import IntegrityError
from tieredfs_gateway.datasets.dataset import Dataset, DatasetFile
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.payloads import Payloads
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.sources.protocol import HasPlaces, HasRows, Places
from tieredfs_gateway.datasets.sources.viewed import viewed_column
from tieredfs_gateway.datasets.threads import Threads, share_out
from tieredfs_gateway.datasets.warm_memory import MEMORY


@dataclass(frozen=True, slots=True)
class Group:
    """Rows `rows` of a split come at `places`."""

    split: int
    rows: Indices
    places: Indices


def gather(dataset: Dataset, groups: Sequence[Group], threads: Threads, keep_bytes: int) -> tuple[pa.Table, Indices]:
    """The rows in the order of their places, and the places. Splits that are damaged are left out where such are. Threads that
    are free help; none is waited for that has not begun. `keep_bytes`: see `WarmMemory.take`."""
    source = dataset.rows_source
    assert source is not None
    by_split = list(groups)
    left = _by_file(dataset, by_split) if isinstance(source, HasPlaces) else by_split
    while left:
        gathering = _Gathering(dataset, source, left, keep_bytes)
        helpers = threads.count - 1 if gathering.reads_payloads else 0
        share_out(gathering.fill, range(len(left)), threads.submit, helpers)
        if not gathering.damaged:
            table = gathering.table()
            dataset.count_decoded(table.num_rows, table.nbytes)
            return table, gathering.places
        if left is not by_split:  # which of them is damaged is not known
            left = by_split
            continue
        for number, error in sorted(gathering.damaged.items()):
            dataset.skip(dataset.files[dataset.splits[left[number].split].file].file, error)
        left = by_split = [group for number, group in enumerate(left) if number not in gathering.damaged]
    return dataset.schema.empty_table(), np.empty(0, np.int64)


def _by_file(dataset: Dataset, groups: Sequence[Group]) -> list[Group]:
    """The same rows, those of a file together, counted on from its first split: where no payload is read, what is done once for a
    group is what takes time (1,024 of 4,000 pictures: 30 groups by split, 10 by file)."""
    found: dict[int, list[tuple[int, Group]]] = {}
    for group in groups:
        split = dataset.splits[group.split]
        before = sum(dataset.files[split.file].index.rows[: split.part])
        found.setdefault(split.file, []).append((before, group))
    return [
        Group(
            several[0][1].split - dataset.splits[several[0][1].split].part,
            np.concatenate([group.rows + before for before, group in several]),
            np.concatenate([group.places for _, group in several]),
        )
        for several in found.values()
    ]


class _Gathering:
    """One attempt. `damaged`: the groups that could not be read, by number. `fill` of different groups from any threads; `table`
    when all of them are full."""

    def __init__(self, dataset: Dataset, source: HasRows, groups: Sequence[Group], keep_bytes: int) -> None:
        self._dataset = dataset
        self._source = source
        self._groups = groups
        self.damaged: dict[int, IntegrityError] = {}
        places = np.concatenate([group.places for group in groups])
        self._order = np.argsort(places, kind="stable")
        self.places: Indices = places[self._order]
        self._firsts = np.cumsum([0, *(len(group.rows) for group in groups)]).tolist()
        self._payloads: dict[str, tuple[Path, Payloads]] = {}
        self._places: dict[str, Places] = {}
        """Of the columns among those that are shown where they lie, in the final order."""
        self._small: list[tuple[str, Path, pa.DataType]] = []
        self._tables: list[pa.Table | None] = [None] * len(groups)
        for one in dataset.selected:
            name, path, kind = one
            lengths = self._lengths(path) if kind == pa.binary() else self._shown(name, path)
            if lengths is None:
                self._small.append(one)
            else:
                allocate = partial(MEMORY.take, keep_bytes=keep_bytes)
                self._payloads[name] = path, Payloads.laid_out(path[0], lengths, self._order, allocate)
        self._small_schema = pa.schema([pa.field(name, kind) for name, _, kind in self._small])

    @property
    def reads_payloads(self) -> bool:
        """Else there is little but the interpreter's own work, for which threads wait for each other."""
        return not self._places or any(column.data.size for _, column in self._payloads.values())

    def fill(self, number: int) -> None:
        """Read the rows of a group."""
        group = self._groups[number]
        each, part = self._place(group)
        first, end = self._firsts[number], self._firsts[number + 1]
        try:
            for path, column in self._payloads.values():
                if not column.data.size:  # all of it is shown where it lies
                    continue
                targets = column.targets(first, end)
                self._source.fill(each.file, each.index, part, group.rows, path, targets)
            if self._small:
                paths = [path for _, path, _ in self._small if path[0] not in each.constants]
                table = self._source.take(each.file, each.index, part, group.rows, paths)
                is_fitted = not each.constants and table.schema.equals(self._small_schema)  # 2 us, fitting takes 20
                self._tables[number] = table if is_fitted else self._dataset.fitted(each, table, self._small)
        except IntegrityError as error:
            self.damaged[number] = error

    def table(self) -> pa.Table:
        columns: dict[str, pa.ChunkedArray | pa.Array] = {
            name: self._column(name, payloads.array()) for name, (_, payloads) in self._payloads.items()
        }
        if self._small:
            table = pa.concat_tables([table for table in self._tables if table is not None])
            table = table.combine_chunks().take(pa.array(self._order))
            columns |= dict(zip(table.schema.names, table.columns, strict=True))
        return pa.table([columns[name] for name in self._dataset.schema.names], schema=self._dataset.schema)

    def _lengths(self, path: Path) -> Indices | None:
        """Of the payloads in the order of the groups; None where one of them has none for this column."""
        found = []
        for group in self._groups:
            each, part = self._place(group)
            if path[0] in each.constants:
                return None
            lengths = self._source.payload_lengths(each.index, part, group.rows, path)
            if lengths is None:
                return None
            found.append(lengths)
        return np.concatenate(found)

    def _shown(self, name: str, path: Path) -> Indices | None:
        """The lengths of what has to be carried of a column that is shown where it lies; None: it is no such column."""
        if not isinstance(self._source, HasPlaces):
            return None
        found = []
        for group in self._groups:
            each, part = self._place(group)
            is_there = path[0] not in each.constants
            places = self._source.places(each.file, each.index, part, group.rows, path) if is_there else None
            if places is None:
                return None
            found.append(places)
        joined = Places.joined(found)
        self._places[name] = joined.taken(self._order)
        return joined.carried

    def _column(self, name: str, carried: pa.BinaryArray) -> pa.Array:
        places = self._places.get(name)
        return carried if places is None else viewed_column(places, carried)

    def _place(self, group: Group) -> tuple[DatasetFile, int]:
        split = self._dataset.splits[group.split]
        return self._dataset.files[split.file], split.part
