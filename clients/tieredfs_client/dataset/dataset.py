"""`GatewayDataset`: one epoch after the other, in batches, resumable at each of them.

Where torch is imported already (or `format="torch"`), an instance is a `torch.utils.data.IterableDataset` as well, for
`DataLoader(data, batch_size=None, num_workers=n)`; torch is imported for nothing else. An instance may be pickled (spawn)
and forked: it holds settings and a position, and connections belong to the process and thread that made them.

The position. `state_dict` tells where the loop is that iterates over *this object*: what it was given counts as consumed. In a
DataLoader worker that is the worker's own share, which `StatefulDataLoader` collects. With a plain DataLoader the main
process's object does not see what workers do: `GatewayLoader` counts there.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from tieredfs.errors import ConfigurationError, StateMismatchError
from tieredfs_client.dataset import ranks, state
from tieredfs_client.dataset.formats import converter
from tieredfs_client.dataset.http import GatewayAddress, TokenSource
from tieredfs_client.dataset.stream import GatewaySession, SteadyStream
from tieredfs_client.dataset.turns import (
    REMAINDERS,
    EpochSize,
    Place,
    Remainder,
    Turns,
    beyond,
    is_short,
    needs_size,
    steps_left,
    turns_from,
)
from tieredfs_client.dataset.viewing import as_views, viewed_schema

TOKEN_VARIABLE: Final = "TIEREDFS_GATEWAY_TOKEN"
RETRY_S: Final = 120.0
SHUFFLES: Final = ("none", "shards", "window", "full")
TRANSPORTS: Final = ("auto", "shared", "http")
CODECS: Final = ("auto", "none", "lz4", "zstd", "zstd-high")


@dataclass(frozen=True, slots=True)
class _Reading:
    """How far the newest iteration over the dataset is."""

    turns: Turns
    taken: int


class GatewayDataset:
    """Batches of a dataset that a gateway serves; each `for` is one epoch of this rank.

    `source`: path, directory or glob in the volume. `columns`, `filter`, `transforms`: None or () for all as it is.
    `shuffle`: `none`,
    `shards`, `window` (of `window_rows`) or `full`, by `seed` and epoch. `rank`, `world_size`: found in the process group or
    the environment of torchrun when not given. `remainder`, when batches do not go round all ranks: `pad` (ranks that have
    none left get empty batches: nothing is lost), `drop` (whole rounds of whole batches only), `wrap` (taken from the
    beginning again).
    `format`: `arrow`, `numpy` or `torch`. `token`: a text, or a function that gives a fresh one; else `TIEREDFS_GATEWAY_TOKEN`.
    `transport`: `auto` takes shared memory on the gateway's own host, HTTP elsewhere. `retry_s`: how long a gateway may be
    away.

    `views`: on the gateway's own host, large values of uncompressed tar shards are not copied into batches but looked at where
    they lie, in files of the gateway's SSD tier that this process maps. Columns of `binary` are of Arrow's type `binary_view` then,
    wherever the trainer runs and whatever is viewed (`format="arrow"`; numpy and torch get `bytes`, as without). Three things are
    different, so it is the program's choice. Arrow (26) has no `take`, `filter` or `binary_length` of views: cast the column to
    `pa.binary()`, which copies, or take values one by one (`as_py` copies; `as_buffer` does not). To pickle or to write a slice
    writes all of every file that it refers to, so DataLoader workers with `format="arrow"` look at nothing, and who sends batches
    elsewhere casts first. And where the SSD fails to read a page, a mapping ends the process (SIGBUS) and raises no error.
    Batches that are kept keep their files: up to there the SSD gets no room back for them.

    A `for` that ends, ends its epoch, and the next one is the next epoch; one that was left early begins its epoch again,
    unless
    `load_state_dict` says otherwise. Errors are those of `tieredfs.errors`.
    """

    def __new__(cls, *_: object, format: str = "arrow", **__: object) -> "GatewayDataset":  # noqa: A002 - the field's word
        wants_torch = format == "torch" or "torch.utils.data" in sys.modules
        if cls is GatewayDataset and wants_torch and _has_torch():
            return object.__new__(_torch_class())  # type: ignore[no-any-return]
        return object.__new__(cls)

    def __init__(
        self,
        url: str,
        source: str,
        *,
        batch_size: int,
        columns: Sequence[str] | None = None,
        filter: str | None = None,  # noqa: A002 - as pyarrow calls it
        shuffle: str = "none",
        seed: int = 0,
        window_rows: int = 65_536,
        rank: int | None = None,
        world_size: int | None = None,
        epoch: int = 0,
        remainder: Remainder = "pad",
        format: str = "arrow",  # noqa: A002 - the field's word
        transforms: Sequence[str] = (),
        source_format: str | None = None,
        on_bad_shard: str = "fail",
        token: TokenSource = None,
        transport: str = "auto",
        codec: str = "auto",
        retry_s: float = RETRY_S,
        fresh: bool = False,
        views: bool = False,
    ) -> None:
        """Opens nothing: that happens when something is needed. Raises ConfigurationError."""
        _one_of("shuffle", shuffle, SHUFFLES)
        _one_of("remainder", remainder, REMAINDERS)
        _one_of("transport", transport, TRANSPORTS)
        _one_of("codec", codec, CODECS)
        if batch_size < 1 or epoch < 0 or seed < 0:
            raise ConfigurationError(f"batch_size {batch_size}, seed {seed}, epoch {epoch}: from 1, 0 and 0 on")
        self._rank, self._world_size = ranks.detect_rank(rank, world_size)
        self._remainder: Remainder = remainder
        self._batch_size = batch_size
        self._format = format
        self._views = views
        self._convert: Callable[[pa.RecordBatch], Any] | None = None if format == "torch" else converter(format)
        self._asked = {
            "source": source,
            "columns": None if columns is None else list(columns),
            "filter": filter,
            "format": source_format,
            "on_bad_shard": on_bad_shard,
            "transforms": list(transforms),
            "batch_size": batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "window_rows": window_rows,
        }
        address = GatewayAddress(url, token if token is not None else os.environ.get(TOKEN_VARIABLE))
        self._session = GatewaySession(address, self._asked | {"fresh": fresh}, transport, codec, retry_s)
        self._epoch = epoch
        self._start = 0
        self._loaded_worker: state.WorkerState | None = None
        self._reading: _Reading | None = None
        self._received_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        kept["_convert"] = None
        return kept

    # ---- what it is -----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        schema = self._session.schema
        return viewed_schema(schema) if self._gives_views else schema

    @property
    def _gives_views(self) -> bool:
        """To the program: in other formats than Arrow's a view is what a value is made from, and copied."""
        return self._views and self._format == "arrow"

    @property
    def version(self) -> str:
        """Of the dataset: pinned from now on."""
        return self._session.version

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def received_bytes(self) -> int:
        """Over the network, so far, in this process; shared memory counts nothing."""
        return self._received_bytes

    @property
    def reconnects(self) -> int:
        return self._session.reconnects

    def size(self) -> EpochSize:
        """Rows and batches of an epoch, for all ranks. With a filter the first call may read its columns."""
        return self._session.size()

    def skipped(self) -> dict[str, str]:
        """Files that were left out because they could not be read, and why."""
        return self._session.skipped

    def set_epoch(self, epoch: int) -> None:
        """The next `for` is this epoch, from its beginning."""
        if epoch < 0:
            raise ConfigurationError(f"epoch {epoch}: they count from 0")
        self._epoch, self._start, self._loaded_worker, self._reading = epoch, 0, None, None

    # ---- the position -----------------------------------------------------------------------------------------------------

    def _reads_here(self) -> dict[str, str]:
        return {name: "-" if value is None else str(value) for name, value in self._asked.items()}

    def _reads(self) -> dict[str, str]:
        """What a batch depends on."""
        return self._reads_here() | {"version": self.version}

    def state_dict(self) -> dict[str, Any]:
        """Plain and small. Raises what opening raises, when nothing was read yet."""
        reading, worker, start = self._reading, self._loaded_worker, self._start
        if reading is not None:
            place = reading.turns.place
            start, worker = reading.turns.start, None
            if ranks.is_loader_worker():
                worker = state.WorkerState(
                    place.worker, place.worker_count, reading.taken, place.rank, place.world_size
                )
            else:
                start = reading.turns.position_after(reading.taken)
        return state.encode(state.State(self._epoch, start, self._reads(), worker))

    def load_state_dict(self, document: Mapping[str, Any]) -> None:
        """The next `for` goes on from there. Raises StateMismatchError."""
        loaded = state.decode(document)
        state.check_fits(loaded, self._reads_here() | {"version": loaded.reads.get("version", "-")})
        self._session.pin(loaded.reads["version"])
        state.check_fits(loaded, self._reads())
        self._epoch, self._start, self._loaded_worker = loaded.epoch, loaded.batches, loaded.worker
        self._reading = None

    # ---- the loop --------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Generator[Any, None, None]:
        worker, worker_count = ranks.loader_worker()
        place = Place(self._rank, self._world_size, worker, worker_count)
        turns, taken = self._begin(place)
        looks = self._views and not (self._gives_views and ranks.is_loader_worker())
        stream = SteadyStream(self._session, self._epoch, turns.index_of(taken), turns.stride, views=looks)
        self._reading = _Reading(turns, taken)
        convert = self._convert or converter(self._format)
        finished = False
        try:
            while not turns.is_over(taken):
                batch = self._turn(turns, taken, stream)
                if batch is None:
                    break
                taken += 1
                if self._is_newest(turns):
                    self._reading = _Reading(turns, taken)
                yield convert(as_views(batch) if self._gives_views else batch)
            finished = True
        finally:
            self._received_bytes += stream.received_bytes
            stream.close()
            if finished and self._is_newest(turns):
                self._end_epoch()

    def _is_newest(self, turns: Turns) -> bool:
        """Nothing has taken the position away from this iteration: neither a later one, nor `set_epoch`, nor `load_state_dict`."""
        return self._reading is not None and self._reading.turns is turns

    def _begin(self, place: Place) -> tuple[Turns, int]:
        """The turns of this process, and how many of them are taken already."""
        loaded, start, taken = self._loaded_worker, self._start, 0
        if loaded is not None:
            here = (place.worker, place.worker_count, place.rank, place.world_size)
            if here != (loaded.worker, loaded.worker_count, loaded.rank, loaded.world_size):
                raise StateMismatchError(
                    f"the state is of worker {loaded.worker} of {loaded.worker_count} on rank {loaded.rank} of "
                    f"{loaded.world_size}; this is worker {place.worker} of {place.worker_count} on rank {place.rank} of "
                    f"{place.world_size}. Save the state of the whole loop (GatewayLoader) to change the numbers"
                )
            taken = loaded.turns
        self._start, self._loaded_worker = 0, None
        return self._turns(start, place), taken

    def _turns(self, start: int, place: Place) -> Turns:
        steps = None
        if needs_size(place, self._remainder):
            steps = steps_left(start, place.world_size, self._remainder, self._session.size(), self._batch_size)
        return turns_from(start, place, steps)

    def begin_counting(self) -> Callable[[int], None]:
        """For loaders whose workers read: the position counts in this process, too.

        Call what it gives with 1 for each batch that came out, with 0 at the end of the epoch. The version is pinned before
        workers are made.
        """
        self._session.pin(self.version)
        turns = self._turns(self._start, Place(self._rank, self._world_size))
        self._reading = _Reading(turns, 0)

        def advance(count: int) -> None:
            reading = self._reading
            if reading is None or reading.turns is not turns:
                return  # set_epoch or load_state_dict came between
            self._reading = _Reading(turns, reading.taken + count)
            if count == 0:
                self._end_epoch()

        return advance

    def _end_epoch(self) -> None:
        self._epoch += 1
        self._start, self._reading = 0, None

    def _turn(self, turns: Turns, taken: int, stream: SteadyStream) -> pa.RecordBatch | None:
        index = turns.index_of(taken)
        if turns.steps is None:
            return stream.next()
        size = self._session.size()
        fill = beyond(index, self._remainder, size)
        if fill is not None:
            return self._empty() if fill.index is None else self._one(fill.index, size)
        if self._remainder == "wrap" and is_short(index, size, self._batch_size):
            return self._one(index, size)
        return stream.next()

    def _one(self, index: int, size: EpochSize) -> pa.RecordBatch:
        """A whole batch of the epoch: a short one goes on with rows from the beginning."""
        batch = self._fetch(index)
        while is_short(index, size, self._batch_size) and 0 < batch.num_rows < self._batch_size:
            more = self._fetch(0).slice(0, self._batch_size - batch.num_rows)
            if not more.num_rows:
                break
            batch = pa.concat_batches([batch, more])
        return batch

    def _fetch(self, index: int) -> pa.RecordBatch:
        def work() -> pa.RecordBatch | None:
            stream = self._session.stream(self._epoch, index, 1, limit=1)
            try:
                return stream.next()
            finally:
                stream.close()

        batch = self._session.patiently(work)
        return self._empty() if batch is None else batch

    def _empty(self) -> pa.RecordBatch:
        schema = self._session.schema
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)

    def close(self) -> None:
        """Tells the gateway that nothing more will be read. Batches that are still held stay valid."""
        self._session.close()

    def __enter__(self) -> "GatewayDataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} {value!r} is none of {', '.join(allowed)}")


@functools.cache
def _torch_class() -> type[Any]:
    """`GatewayDataset` as torch knows datasets: what `GatewayDataset(...)` gives where torch is imported."""
    module = importlib.import_module("tieredfs_client.dataset.torch_dataset")
    return module.as_iterable_dataset(GatewayDataset, _restored)  # type: ignore[no-any-return]


def _restored(kept: dict[str, Any]) -> GatewayDataset:
    made: GatewayDataset = object.__new__(_torch_class())
    made.__dict__.update(kept)
    return made


def _has_torch() -> bool:
    return "torch" in sys.modules or importlib.util.find_spec("torch") is not None
