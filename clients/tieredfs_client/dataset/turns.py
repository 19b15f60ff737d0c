"""Whose turn it is: which batches of an epoch a rank gets, and which of those a DataLoader worker fetches. Pure.

The epoch is one sequence of batches 0, 1, 2 ... for all ranks together, and batch `i` belongs to rank `i % world_size`. A
*position* is how many of them are consumed; whatever the world size was until there, another one goes on from it. Step `n`
after position `p` hands out batches `p + n * world_size` to `p + (n + 1) * world_size - 1`, one to each rank.

Of a rank's batches, worker `w` of `k` fetches the `w`-th, `w + k`-th ...: a DataLoader asks its workers in turn, so the rank
sees its batches in their order.
"""

from dataclasses import dataclass
from typing import Final, Literal

from tieredfs.errors import ConfigurationError

Remainder = Literal["drop", "pad", "wrap"]
REMAINDERS: Final[tuple[Remainder, ...]] = ("drop", "pad", "wrap")


@dataclass(frozen=True, slots=True)
class Place:
    """Of one process among those that consume an epoch together. `worker`, `worker_count`: within its rank."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    worker_count: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ConfigurationError(f"world_size is {self.world_size}; it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigurationError(f"rank {self.rank} is not one of {self.world_size}: ranks count from 0")
        if not 0 <= self.worker < self.worker_count:
            raise ConfigurationError(f"worker {self.worker} is not one of {self.worker_count}")


@dataclass(frozen=True, slots=True)
class EpochSize:
    """Rows and batches of an epoch."""

    rows: int
    batches: int


@dataclass(frozen=True, slots=True)
class Turns:
    """What one worker of one rank does in an epoch from some position on.

    Its `n`-th turn is batch `first + n * stride` of the sequence; `steps` is how many steps all ranks take, None to go on to
    the end of the epoch (one rank alone).
    """

    start: int
    place: Place
    steps: int | None
    first: int
    stride: int

    def step_of(self, turn: int) -> int:
        """The step, counted from `start`, that this worker's `turn`-th batch belongs to."""
        return self.place.worker + turn * self.place.worker_count

    def index_of(self, turn: int) -> int:
        return self.first + turn * self.stride

    def is_over(self, turn: int) -> bool:
        return self.steps is not None and self.step_of(turn) >= self.steps

    def position_after(self, turns: int) -> int:
        """Batches that all ranks have consumed when this rank, reading alone, has taken so many turns."""
        return self.start + turns * self.place.world_size


def turns_from(start: int, place: Place, steps: int | None) -> Turns:
    """From the position `start`."""
    own = start + (place.rank - start) % place.world_size
    return Turns(start, place, steps, own + place.worker * place.world_size, place.world_size * place.worker_count)


def needs_size(place: Place, remainder: Remainder) -> bool:
    """Whether the number of steps depends on the size of the epoch. Counting may cost reading the filter's columns."""
    return place.world_size > 1 or remainder != "pad"


def steps_left(start: int, world_size: int, remainder: Remainder, size: EpochSize, batch_size: int) -> int:
    """How many steps all ranks take from `start` to the end of the epoch."""
    left = max(0, size.batches - start)
    if remainder == "drop":
        whole = max(0, size.rows // batch_size - start)
        return whole // world_size
    return -(-left // world_size)


@dataclass(frozen=True, slots=True)
class Fill:
    """What a turn beyond the plain sequence gives: nothing (`index` None), or batch `index` from the beginning again."""

    index: int | None


def beyond(index: int, remainder: Remainder, size: EpochSize) -> Fill | None:
    """None when batch `index` is there as it is."""
    if index < size.batches:
        return None
    if remainder == "wrap" and size.batches:
        return Fill(index % size.batches)
    return Fill(None)


def is_short(index: int, size: EpochSize, batch_size: int) -> bool:
    """Whether it is the last batch of the epoch, and not a whole one."""
    return index == size.batches - 1 and size.rows % batch_size != 0
