"""What reading promises and serving relies on: one global sequence of batches per epoch.

**The sequence.** A dataset version (which files, with which contents), a selection (columns, filter), an order (shuffle, seed)
and a batch size determine, for every epoch, one sequence of batches 0, 1, 2 … of rows. It does not depend on world size,
workers, threads, restarts or other readers. Batch `i` belongs to rank `i % world_size`: so a *position* is (epoch, number of
batches that all ranks together have consumed), and any world size can go on from it.

**Batches are pure.** Reading batch `i` twice gives equal rows. A `Reader` may be asked for batches in any order, but is
built for increasing ones, from one iterator or several; `batches` starts at any position without replaying what is before it.

This module is pure: values and protocols, no I/O.
"""

import enum
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import pyarrow as pa


class Shuffle(enum.StrEnum):
    """How far a row may move."""

    NONE = "none"
    """The order of files (by path) and of rows within them."""
    SHARDS = "shards"
    """Splits (row groups, record batches, runs of lines) in random order, rows of a split together."""
    WINDOW = "window"
    """Splits in random order, rows mixed within a window of splits."""
    FULL = "full"
    """Every row anywhere in the epoch, with equal probability."""


class OnBadShard(enum.StrEnum):
    """What an unreadable file or split does: end the epoch with the file's name, or be skipped and counted.

    A file that cannot be opened is left out before batches are numbered. A split that turns out to be damaged later leaves
    its rows out: batches keep their numbers, and may be short, or empty.
    """

    FAIL = "fail"
    SKIP = "skip"


class Remainder(enum.StrEnum):
    """What becomes of the last batches when they do not go round all ranks."""

    DROP = "drop"
    """Ranks get equally many whole batches; what is left over is not seen in this epoch."""
    PAD = "pad"
    """Ranks get equally many batches; those that have none left get empty ones."""
    WRAP = "wrap"
    """Ranks get equally many whole batches; what is missing is taken from the beginning of the epoch again."""


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What to read. `source`: a path, directory or glob within the volume. `columns`: None for all; `a.b` names a nested
    field, and the column is called so.

    `filter`: an expression over columns, as text (`dep_delay > 0 and origin in ("JFK", "LGA")`); parsed, never evaluated as
    code. `format`: parquet, ipc, csv, jsonl, tar, raw, or None to tell it by names and contents. `transforms`: names that
    the gateway's configuration allows, applied in turn to what a `Reader` gives; readers do not look at them.

    `views`: columns of bytes may say where in a file a value is, instead of having it (`Reader.views`): nothing that a trainer
    asks for in a session, for it changes no value, but what the gateway opens for those of its own host that can look there.
    """

    source: str
    columns: tuple[str, ...] | None = None
    filter: str | None = None
    format: str | None = None
    on_bad_shard: OnBadShard = OnBadShard.FAIL
    transforms: tuple[str, ...] = ()
    views: bool = False


@dataclass(frozen=True, slots=True)
class OrderSpec:
    """In which order, and in what pieces. `window_rows` counts for `Shuffle.WINDOW` only."""

    batch_size: int
    shuffle: Shuffle = Shuffle.NONE
    seed: int = 0
    window_rows: int = 65_536


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far an epoch is: `batches` of it are consumed, by all ranks together."""

    epoch: int
    batches: int


@dataclass(frozen=True, slots=True)
class NumberedBatch:
    """Batch `index` of its epoch: `count` rows of `whole` from `start` on (None: all that follow). Dictionary columns have a
    dictionary of their own in each batch.

    Neighbours in one `whole` can be written at once, and then nobody has to cut them out. `is_followed`: the next batch of the
    same iterator is at hand, too.
    """

    index: int
    whole: "pa.RecordBatch"
    start: int = 0
    count: int | None = None
    is_followed: bool = False

    @property
    def rows(self) -> "pa.RecordBatch":
        return self.whole.slice(self.start, self.row_count)

    @property
    def row_count(self) -> int:
        return int(self.whole.num_rows) - self.start if self.count is None else self.count


@dataclass(frozen=True, slots=True)
class LentFile:
    """A file that has the bytes of values, and nothing that the dataset has not. `number`: unique in this process; `descriptor` is
    open for reading only."""

    number: int
    descriptor: int
    size_bytes: int


class LentFiles(Protocol):
    """The files that batches refer to. Their contents never change. Safe from any thread."""

    def numbers(self) -> set[int]:
        """Of all that were lent so far: those of any batch that was made before are among them."""
        ...

    def beyond(self, known: set[int]) -> AbstractContextManager[Sequence[LentFile]]:
        """Those of them that are not known. Their descriptors are good for as long as the context."""
        ...


@dataclass(frozen=True, slots=True)
class Views:
    """`columns` are structs instead of bytes: `file` (the number of one of `files`, or -1), `offset`, `length`, and `bytes`, which
    are empty where the value is in a file. A null is a null struct."""

    columns: tuple[str, ...]
    files: LentFiles


class Reader(Protocol):
    """One selection of a pinned dataset version in one order. Safe from any thread; a context manager.

    All of it raises the domain's errors (`tieredfs.errors`): NotFoundError (nothing matches), ConfigurationError (columns,
    filter, types that do not fit; which and why), CorruptError with the file's name (unless bad shards are skipped),
    UnavailableError, DeadlineError.
    """

    @property
    def version(self) -> str:
        """Of the dataset: equal for equal files with equal contents. 32 hex digits."""
        ...

    @property
    def schema(self) -> "pa.Schema":
        """Of every batch."""
        ...

    @property
    def views(self) -> Views | None:
        """None: every value is in its batch."""
        ...

    @property
    def is_at_hand(self) -> bool:
        """As far as one can tell, batches are made of what is in memory: whoever needs one makes it as soon as another thread
        would."""
        ...

    def row_count(self) -> int:
        """Rows of an epoch, after the filter. With a filter, the first call may have to read the filter's columns."""
        ...

    def batch_count(self) -> int:
        """Batches of an epoch; the last one may be short."""
        ...

    def batches(self, position: Position, stride: int = 1) -> Iterator[NumberedBatch]:
        """Batches `position.batches`, + stride, + 2 stride … to the end of the epoch; none beyond it. Reads ahead, within the
        reader's memory.

        Closing the iterator (its `close()`) ends the reading ahead. Several iterators of one reader share fetch and decode;
        each is for one thread at a time.
        """
        ...

    def skipped(self) -> dict[str, str]:
        """Files that were left out under `OnBadShard.SKIP`, and why."""
        ...

    def counters(self) -> dict[str, int]:
        """What was done so far; they only rise. `splits_decoded`, `rows_decoded`, `bytes_read`, `bytes_decoded`,
        `bytes_viewed` (of values that were neither read nor copied), `spilled_bytes`, `segments_built`, `segments_shared`."""
        ...

    def close(self) -> None:
        """Lets the version go: its files may be deleted from now on."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
