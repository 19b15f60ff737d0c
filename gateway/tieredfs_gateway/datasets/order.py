"""In which order rows come: bijections that cost no table, computed anywhere in constant time. Pure.

An epoch has `size` positions. A position holds one row, and which one follows from shuffle, seed and epoch alone: not from
caches, threads, world sizes, or where reading began. So a position is all that a state has to remember.

`Permutation` is a seeded bijection of `range(size)`. Up to 65,536 it is a table, sorted by hash: every order is possible. Above
that it is a Feistel network (six rounds of xor over two halves of the index, alternating) over the next power of two; what falls
outside walks on until it is inside, less than once on average. 10^8 rows need no memory and start anywhere.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_TABLE_MAX: Final = 1 << 16
_ROUNDS: Final = 6
_ONE: Final = np.uint64(0x9E3779B97F4A7C15)
_TWO: Final = np.uint64(0xD6E8FEB86659FD93)
_SHIFT: Final = np.uint64(32)


def epoch_key(seed: int, epoch: int, purpose: str) -> bytes:
    """What a permutation is seeded with. Different purposes of one epoch have unrelated orders."""
    return hashlib.blake2b(f"{purpose}/{seed}/{epoch}".encode(), digest_size=64).digest()


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the value and the key."""
    mixed = (values ^ key) * _ONE
    mixed ^= mixed >> _SHIFT
    mixed *= _TWO
    mixed ^= mixed >> _SHIFT
    mixed *= _ONE
    mixed ^= mixed >> _SHIFT
    return mixed


class Permutation:
    """A bijection of `range(size)`, chosen by `key` (64 bytes). Immutable, safe from any thread."""

    def __init__(self, size: int, key: bytes) -> None:
        assert size >= 0
        assert len(key) == 64
        self.size = size
        self._keys = np.frombuffer(key, np.uint64)
        self._table: Indices | None = None
        self._inverse: Indices | None = None
        if size <= _TABLE_MAX:
            hashes = _mix(_mix(np.arange(size, dtype=np.uint64), self._keys[0]), self._keys[1])
            self._table = np.argsort(hashes).astype(np.int64)  # no two are equal: `_mix` is a bijection
            return
        bits = (size - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)

    def forward(self, positions: Indices) -> Indices:
        """The rows at those positions."""
        if self._table is not None:
            return self._table[positions]
        return self._walk(positions, range(_ROUNDS))

    def inverse(self, rows: Indices) -> Indices:
        """The positions of those rows."""
        if self._table is not None:
            if self._inverse is None:  # most plans never ask
                inverse = np.empty(self.size, np.int64)
                inverse[self._table] = np.arange(self.size)
                self._inverse = inverse
            return self._inverse[rows]
        return self._walk(rows, range(_ROUNDS - 1, -1, -1))

    def _walk(self, indices: Indices, rounds: range) -> Indices:
        values = self._once(indices.astype(np.uint64), rounds)
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            again = self._once(values[outside], rounds)
            values[outside] = again
            outside = outside[again >= self.size]
        return values.astype(np.int64)

    def _once(self, values: npt.NDArray[np.uint64], rounds: range) -> npt.NDArray[np.uint64]:
        low, high = values & self._low_mask, values >> self._low_bits
        for number in rounds:
            if number % 2:
                high ^= _mix(low, self._keys[number]) & self._high_mask
            else:
                low ^= _mix(high, self._keys[number]) & self._low_mask
        return (high << self._low_bits) | low


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `first` … `first + count - 1` of a split."""

    split: int
    first: int
    count: int


class Sequence:
    """Splits one after another, each with its number of rows: row numbers of the whole, and back. Immutable."""

    def __init__(self, order: Indices, rows_of_split: Indices) -> None:
        self.order = order
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows_of_split[order], dtype=np.int64)])

    @property
    def size(self) -> int:
        return int(self._starts[-1])

    def start(self, place: int) -> int:
        """The first row of the split at that place."""
        return int(self._starts[place])

    def place_of(self, row: int) -> int:
        """Where the split with that row is; the number of splits for a row beyond the last."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1 if row < self.size else len(self.order)

    def runs(self, start: int, end: int) -> list[Run]:
        """Which rows of which splits the rows [start, end) of the whole are, in order."""
        found = []
        place = self.place_of(start)
        while place < len(self.order) and self._starts[place] < end:
            first, last = max(start, self.start(place)), min(end, self.start(place + 1))
            if first < last:
                found.append(Run(int(self.order[place]), first - self.start(place), last - first))
            place += 1
        return found

    def locate(self, rows: Indices) -> tuple[Indices, Indices]:
        """Of each row: its split, and which row of it."""
        places = np.searchsorted(self._starts, rows, side="right") - 1
        return self.order[places], rows - self._starts[places]


def split_order(split_count: int, seed: int, epoch: int, *, shuffled: bool) -> Indices:
    """The splits in the order in which an epoch visits them."""
    if not shuffled:
        return np.arange(split_count, dtype=np.int64)
    return Permutation(split_count, epoch_key(seed, epoch, "splits")).forward(np.arange(split_count, dtype=np.int64))


def window_order(window: int, size: int, seed: int, epoch: int) -> Indices:
    """Which row of a window of `size` rows comes when."""
    return Permutation(size, epoch_key(seed, epoch, f"window {window}")).forward(np.arange(size, dtype=np.int64))
