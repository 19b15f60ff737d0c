"""What a format does: look into a file once, then read its parts.

A *part* is what is decoded at one time: a row group, a record batch, a run of lines, a run of samples. Sources keep nothing of the
files' contents between calls but what `look` returned, and may be called from any thread. All of them raise CorruptError with
the file's name for what cannot be decoded, and what the volume raises: DataLossError, UnavailableError, DeadlineError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tieredfs_gateway.datasets.contract import LentFile
from tieredfs_gateway.datasets.filters import Bounds
from tieredfs_gateway.datasets.order import Indices
from tieredfs_gateway.datasets.schemas import Path
from tieredfs_gateway.datasets.versions import PinnedFile

PART_BYTES: Final = 16 << 20
"""How large a part is where the format does not say."""


@dataclass(frozen=True, slots=True)
class FileIndex:
    """What `look` found. `rows` of each part; `detail` is the format's own. `held_bytes`: about how much memory it takes, where
    it holds for the content wherever it is read; 0 where it refers to something of this reader's."""

    schema: pa.Schema
    rows: tuple[int, ...]
    detail: Any
    held_bytes: int = 0


class Source(Protocol):
    """One format."""

    columnar: bool
    """Reading some columns costs less than reading all."""

    def look(self, file: PinnedFile) -> FileIndex: ...

    def read(self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path]) -> pa.Table:
        """The rows of a part, with the file's own types. At least the columns of `paths` that the file has, in any order;
        of a struct perhaps only the fields that are asked for."""
        ...

    def decoded_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        """About how much memory that takes."""
        ...


@runtime_checkable
class HasStatistics(Protocol):
    """A format that knows something of a part without reading it."""

    def bounds(self, index: FileIndex, part: int, path: Path) -> Bounds | None: ...


@runtime_checkable
class HasStoredBytes(Protocol):
    """A format that knows where its columns are."""

    def is_glance(self, file: PinnedFile) -> bool:
        """By its name: looking into it reads little of it."""
        ...

    def stored_bytes(self, index: FileIndex, part: int, paths: Sequence[Path]) -> int:
        """How much of the file reading those columns of a part reads."""
        ...


Ranges = tuple[tuple[int, int], ...]
"""Rows [start, end) of a part, in order, apart from each other."""


@runtime_checkable
class HasPages(Protocol):
    """A format that knows more of a part than its bounds, in the file, and can read less than all of it."""

    def may_narrow(self, index: FileIndex, part: int, filtering: Sequence[Path]) -> bool:
        """Without reading: whether `narrow` has something to go by."""
        ...

    def narrow(
        self,
        file: PinnedFile,
        index: FileIndex,
        part: int,
        filtering: Sequence[Path],
        wanted: Sequence[Path],
        may_match: Callable[[Callable[[Path], Bounds | None]], bool],
    ) -> Ranges | None:
        """The rows that may match, by bounds of columns of `filtering`; None where reading the part whole is as good."""
        ...

    def read_rows(
        self, file: PinnedFile, index: FileIndex, part: int, paths: Sequence[Path], ranges: Ranges
    ) -> pa.Table:
        """Those rows of a part that `narrow` found, of columns that were `wanted` there."""
        ...


@runtime_checkable
class HasRows(Protocol):
    """A format of which single rows can be read: whole samples in one place."""

    def take(self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, paths: Sequence[Path]) -> pa.Table:
        """Those rows of a part, in that order."""
        ...

    def payload_lengths(self, index: FileIndex, part: int, rows: Indices, path: Path) -> Indices | None:
        """Of a column of bytes that are in the file as they are (-1: null); None for any other column."""
        ...

    def fill(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path, targets: Sequence[memoryview]
    ) -> None:
        """Read those bytes, each into a target of its length."""
        ...


@runtime_checkable
class HasOffsets(Source, HasRows, Protocol):
    """A format whose payloads lie in the file as they are, one after another's header. Its rows may be counted on beyond a part,
    into those behind it."""

    def payload_offsets(
        self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path
    ) -> Indices | None:
        """Where in the file those of `payload_lengths` begin (null: anywhere); None: they lie in it otherwise, packed."""
        ...

    def held(self, index: FileIndex, path: Path) -> pa.Array | None:
        """The column of all rows of a file, where it was learned by looking into it; None: it has to be read, or is none."""
        ...


@dataclass(frozen=True, slots=True)
class Places:
    """Of values, one each: `length` bytes at `offset` of the lent file of that number; all three are -1 where it is carried.
    `carried`: how long what is carried is: 0 where nothing is, -1: null."""

    files: Indices
    offsets: Indices
    lengths: Indices
    carried: Indices

    @classmethod
    def where(cls, is_here: npt.NDArray[np.bool_], files: Indices, offsets: Indices, lengths: Indices) -> Self:
        """Of values that are there where `is_here` says so; the others are carried."""
        found, at, of = (np.where(is_here, each, -1) for each in (files, offsets, lengths))
        return cls(found, at, of, np.where(is_here, 0, lengths))

    def taken(self, order: Indices) -> "Places":
        return Places(self.files[order], self.offsets[order], self.lengths[order], self.carried[order])

    @classmethod
    def joined(cls, found: Sequence[Self]) -> "Places":
        """One after another; at least one."""
        names = ("files", "offsets", "lengths", "carried")
        return Places(*(np.concatenate([getattr(each, name) for each in found]) for name in names))


@runtime_checkable
class HasPlaces(HasRows, Protocol):
    """A format whose payloads can be shown where they lie. Its rows may be counted on beyond a part, into those behind it."""

    def places(self, file: PinnedFile, index: FileIndex, part: int, rows: Indices, path: Path) -> Places | None:
        """Where the values of a column of bytes are now: another time another answer, for the same values. None: no such column.
        `fill` reads those that are carried; targets of the others are empty."""
        ...

    def layout(self, file: PinnedFile, index: FileIndex, path: Path) -> tuple[Indices, Indices] | None:
        """Offsets and lengths (-1: null) of that column in all rows of the file; None: it does not lie there so."""
        ...

    def held(self, index: FileIndex, path: Path) -> pa.Array | None:
        """See `HasOffsets`."""
        ...

    def lent(self, file: PinnedFile) -> LentFile | None:
        """The file, for those who look into it: from then on for as long as the reader. None: not now."""
        ...

    def count_shown(self, size_bytes: int) -> None:
        """So much was shown by who knew where it lies. `places` counts by itself."""
        ...
