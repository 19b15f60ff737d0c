"""Several gateways serve one job: each takes ranges of its batches by leases in the volume's metadata (`job_leases`).

Whoever serves a job makes a `JobShare` over its own reader of the same dataset version, and hands its `batches` on. Consumers
acknowledge batches by number once they have them; the share records that with its heartbeat. When a gateway dies, the others
see that its leases do not move any more, and go on where it was acknowledged.

What is promised: every batch of the epoch is delivered by somebody, and more than once only around a death: see `job_leases`. A
consumer that drops numbers it has already has each exactly once. Order between gateways there is none.
"""

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from tieredfs.errors import ConflictError, DeadlineError, InvalidRequestError, StateMismatchError, TieredError
from tieredfs.host import Clock
from tieredfs.volume.contract import FileSystemContract
from tieredfs.volume.register import Register
from tieredfs_gateway.datasets import job_leases
from tieredfs_gateway.datasets.contract import DatasetSpec, NumberedBatch, OrderSpec, Position, Reader
from tieredfs_gateway.datasets.job_leases import Table, Watch

LEASE_S: Final = 30.0
RANGE_BATCHES: Final = 64
UNACKNOWLEDGED_MAX: Final = 4
"""Ranges that a share holds at most: then it waits for acknowledgements."""
IDLE_S: Final = 600.0
"""How long a share waits for others, or for acknowledgements, at most."""
_RACES_MAX: Final = 100
_FOLDER: Final = b".tieredfs/dataset-jobs"

T = TypeVar("T")


def register_of(volume: FileSystemContract, job: str, epoch: int) -> Register:
    """Where the leases of a job's epoch are. Raises InvalidRequestError."""
    if not job or "/" in job or job in {".", ".."}:
        raise InvalidRequestError(f"{job!r} is no name of a job: no slashes, not empty")
    return Register(volume, b"%s/%s/%d" % (_FOLDER, job.encode(), epoch))


def identity_of(reader: Reader, asked: tuple[DatasetSpec, OrderSpec]) -> str:
    """Equal for readers whose batches are equal by number."""
    return hashlib.blake2b(f"{reader.version} {asked}".encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class _Held:
    """A range: `done` counts its first batches that are acknowledged; `later` are those after a gap."""

    done: int
    lost: bool = False
    later: set[int] = field(default_factory=set)

    def acknowledge(self, place: int) -> None:
        self.later.add(place)
        while self.done in self.later:
            self.later.remove(self.done)
            self.done += 1


class JobShare:
    """One gateway's part of one epoch of a job. `batches` from one thread, `acknowledge` from any. A context manager."""

    def __init__(
        self,
        register: Register,
        clock: Clock,
        reader: Reader,
        asked: tuple[DatasetSpec, OrderSpec],
        epoch: int,
        *,
        range_batches: int = RANGE_BATCHES,
        lease_s: float = LEASE_S,
        idle_s: float = IDLE_S,
    ) -> None:
        """`asked`: what the reader was opened with. Raises StateMismatchError: the job reads something else, or otherwise."""
        self._register = register
        self._clock = clock
        self._reader = reader
        self._epoch = epoch
        self._lease_s = lease_s
        self._idle_s = idle_s
        self._holder = secrets.token_hex(8)
        self._watch = Watch(lease_s)
        self._held: dict[int, _Held] = {}
        self._changed = threading.Condition()
        self._changing = threading.Lock()
        """Held by whoever changes the leases; taken before `_changed`."""
        self._closing = False
        fresh = job_leases.empty(identity_of(reader, asked), epoch, reader.batch_count(), range_batches)
        self._table = self._change(lambda table: (table, table), fresh)
        if (self._table.identity, self._table.batch_count) != (fresh.identity, fresh.batch_count):
            raise StateMismatchError(
                "the job reads another version of the dataset, other columns or rows, or in another order "
                f"({self._table.batch_count} batches; here it would be {fresh.batch_count})"
            )
        self._beating = threading.Thread(target=self._beat, name="dataset-job", daemon=True)
        self._beating.start()

    def batches(self) -> Iterator[NumberedBatch]:
        """What falls to this gateway, until the epoch is done everywhere. Raises what reading raises; DeadlineError when nothing
        moves for too long."""
        while (number := self._claim()) is not None:
            held = self._held.get(number)
            if held is None:  # it was taken over at once
                continue
            first = number * self._table.range_batches
            end = first + self._table.length(number)
            with contextlib.closing(_closable(self._reader, Position(self._epoch, first + held.done))) as source:
                for batch in source:
                    if batch.index >= end or held.lost or self._closing:
                        break
                    yield batch

    def acknowledge(self, batch: int) -> None:
        """The consumer has it. Nothing if its range is not held here any more."""
        with self._changed:
            number, place = divmod(batch, self._table.range_batches)
            held = self._held.get(number)
            if held is not None and place >= held.done:
                held.acknowledge(place)
                if held.done >= self._table.length(number):
                    self._changed.notify_all()

    # ---- leases -----------------------------------------------------------------------------------------------------

    def _claim(self) -> int | None:
        """The next range; None: the epoch is done."""
        deadline_s = self._clock.monotonic_s() + self._idle_s
        while not self._closing:
            self._renew()
            with self._changed:
                crowded = len(self._held) >= UNACKNOWLEDGED_MAX
            with self._changing:
                number = None if crowded else self._change(self._claimed)
            if number is not None:
                return number
            if self._table.is_done:
                return None
            if self._clock.monotonic_s() > deadline_s:
                raise DeadlineError(
                    f"for {self._idle_s:.0f} s no batch was acknowledged, nor a lease of the job given up"
                )
            with self._changed:
                self._changed.wait(self._lease_s / 8)
        return None

    def _claimed(self, table: Table) -> tuple[Table, int | None]:
        found = job_leases.claim(table, self._holder, self._watch.expired(table, self._clock.monotonic_s()))
        return found if found is not None else (table, None)

    def _beat(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, self._lease_s / 3)
                if self._closing:
                    return
            with contextlib.suppress(
                TieredError
            ):  # the next beat is soon enough; else others take over, as they should
                self._renew()

    def _renew(self) -> None:
        with self._changing:
            with self._changed:
                done = {number: held.done for number, held in self._held.items()}
            if not done:
                return
            lost = self._change(lambda table: job_leases.renew(table, self._holder, done))
            with self._changed:
                for number in lost:
                    self._held.pop(number).lost = True
                for number in [number for number in done if number not in self._table.leases and number not in lost]:
                    del self._held[number]
                self._changed.notify_all()

    def _change(self, change: Callable[[Table], tuple[Table, T]], fresh: Table | None = None) -> T:
        """Compare and swap until it holds. What was claimed is held from then on."""
        for _ in range(_RACES_MAX):
            seen, data = self._register.read()
            if data is None and fresh is None:
                raise StateMismatchError("the job was removed")
            before = Table.unpacked(data) if data is not None else fresh
            assert before is not None
            after, result = change(before)
            try:
                if after != before or data is None:
                    self._register.swap(seen, after.packed())
            except ConflictError:
                continue
            self._adopt(after)
            return result
        raise ConflictError("the leases of the job change faster than they can be read")

    def _adopt(self, table: Table) -> None:
        with self._changed:
            self._table = table
            for number, lease in table.leases.items():
                if lease.holder == self._holder and number not in self._held:
                    self._held[number] = _Held(lease.acknowledged)

    def close(self) -> None:
        """Give back what is held: others go on with it at once. Repeating it is harmless."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._beating.join()
        self._renew()
        with self._changing:
            self._change(lambda table: (job_leases.give_back(table, self._holder), None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Closing:
    """An iterator of a reader has a `close`; a protocol's may not."""

    def __init__(self, batches: Iterator[NumberedBatch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[NumberedBatch]:
        return self._batches

    def close(self) -> None:
        closing = getattr(self._batches, "close", None)
        if closing is not None:
            closing()


def _closable(reader: Reader, position: Position) -> _Closing:
    return _Closing(reader.batches(position))
