"""The ranks of one machine as the process that gathers them sees them: its own, and members behind channels.

Everybody goes through the same steps together. The gathering process says what to store; all say what of it is unchanged; it
makes the files and hands their descriptors out; all write, and say what they wrote; it commits the files. A member that
dies, fails, or is late ends the save of all.

    member                           gathering process
    arrive: ranks and their shares →
                                   ← welcome
                                   ← write: which tensors, under which checkpoint, how fast its files are
    same: which are unchanged, and
          which are to be packed   →
                                   ← files: descriptors, and where each tensor goes
    written: where and what        →
                                   ← outcome
    failed: why (instead of any)   →   outcome or `elsewhere` may come instead of any
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tieredfs.errors import InvalidRequestError, RankFailedError, RankMissingError
from tieredfs_client.checkpoint.attempt import Attempt, Pauses, named
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.hostfiles import HostFiles, Reference, Spot
from tieredfs_client.checkpoint.layout import Blob, Item, StoredFile, decode_blob, encode_blob, read_checked
from tieredfs_client.checkpoint.neighbours import Channel, Circle, Message
from tieredfs_client.checkpoint.parts import Chosen, Looked, ProcessPart, Stored, places_of
from tieredfs_client.checkpoint.shares import Place, Share, StoredPart, decode_shares


@dataclass(frozen=True, slots=True)
class Finished:
    """What the machine wrote, and what of it this process did."""

    part: StoredPart
    own: Stored


class Machine:
    """One thread."""

    def __init__(self, attempt: Attempt, own: ProcessPart, shares: Mapping[int, Share], circle: Circle | None) -> None:
        """`circle` None: there is nobody else."""
        self._attempt = attempt
        self._own = own
        self._circle = circle
        self._members: dict[Channel, tuple[int, ...]] = {}
        self._finished: set[Channel] = set()
        self._writing_since_s = 0.0
        self.shares = dict(shares)

    # ---- arriving ---------------------------------------------------------------------------------------------------

    def hear_arrivals(self, timeout_s: float) -> bool:
        """Whether anybody came. Raises RankFailedError, RankMissingError, InvalidRequestError."""
        before = len(self._members)
        for channel, message in self._hear(timeout_s):
            self._check(channel, message)
            if message is not None and message.body["kind"] == "arrive":
                self._arrive(channel, message.body)
        return len(self._members) > before

    def _hear(self, timeout_s: float) -> Iterable[tuple[Channel, Message | None]]:
        return self._circle.hear(timeout_s) if self._circle is not None else ()

    @collector_paused()
    def _arrive(self, channel: Channel, body: Any) -> None:
        shares = read_checked(lambda: decode_shares(body["shares"]), "what a rank says")
        self._members[channel] = tuple(shares)
        for rank in shares:
            self._attempt.check_world(rank, body["world_size"])
            if rank in self.shares:
                raise InvalidRequestError(f"rank {rank} came twice")
        self.shares |= shares
        channel.send({"kind": "welcome"})

    def _check(self, channel: Channel, message: Message | None) -> None:
        ranks = self._members.get(channel, ())
        if message is None and ranks and channel not in self._finished:
            many = "ranks" if len(ranks) > 1 else "rank"
            raise RankMissingError(f"step {self._attempt.step} was not saved: {many} {named(ranks)} died")
        if message is not None and message.body["kind"] == "failed":
            raise RankFailedError(
                f"step {self._attempt.step} was not saved: rank {message.body['rank']} failed with {message.body['reason']}"
            )

    # ---- storing ----------------------------------------------------------------------------------------------------

    def store(self, checkpoint: str, chosen: Chosen, files: HostFiles, watch: Callable[[], None]) -> Finished:
        """Everything that was chosen of this machine's ranks, written on return and not yet committed. `watch` is called now
        and then while others are waited for, and raises when it is no use any more."""
        for channel, ranks in self._members.items():
            here = {rank: chosen[rank] for rank in ranks if rank in chosen}
            rows = chosen_rows(here, self.shares)
            channel.send({"kind": "write", "checkpoint": checkpoint, "chosen": rows, "pace": self._own.pace})
        looked = self._own.look(chosen, self._own.pace)
        for body in self._collect("same", watch).values():
            looked.add(looked_of(body))
        self._writing_since_s = self._attempt.host.clock.monotonic_s()
        self._make(files, chosen, looked)
        self._hand_out(files, chosen)
        spots = [files.spots[place] for place in places_of(chosen, self._own.cargo.ranks)]
        own = self._own.store(spots, files.descriptors)
        blobs, seconds = self._stored(chosen, own, self._collect("written", watch))
        files.head_packed(blobs)
        reused = frozenset(place for place, spot in files.spots.items() if files.stored[spot.file].reused)
        return Finished(StoredPart(tuple(files.stored), blobs, reused, seconds), own)

    def commit(self, files: HostFiles) -> None:
        """What `store` wrote becomes durable, and gets its names."""
        files.commit()
        written = sum(file.size_bytes for file in files.stored if not file.reused)
        seconds = self._attempt.host.clock.monotonic_s() - self._writing_since_s
        self._own.observe(written // (1 + len(self._members)), seconds)  # what the files took in, shared evenly

    @collector_paused()
    def _stored(
        self, chosen: Chosen, own: Stored, written: Mapping[Channel, Any]
    ) -> tuple[dict[Place, Blob], dict[int, float]]:
        """What this process and all members say that they wrote."""
        places = places_of(chosen, self._own.cargo.ranks)
        blobs, seconds = dict(zip(places, own.blobs, strict=True)), dict(own.seconds)
        for channel, body in written.items():
            places = places_of(chosen, self._members[channel])
            blobs |= zip(places, map(decode_blob, body["blobs"]), strict=True)
            seconds |= body["seconds"]
        return blobs, seconds

    @collector_paused()
    def _make(self, files: HostFiles, chosen: Chosen, looked: Looked) -> None:
        places = places_of(chosen, chosen)
        items = [self.shares[rank].tensors[index].item for rank, index in places]
        same = looked.same
        if same:
            both = zip(places, items, strict=True)
            if files.refer([same[place].of(place, item) for place, item in both if place in same]):
                places, items = _without(same, places, items)
        if not looked.packed:
            files.make(places, items)
            return
        packed = {place: item for place, item in zip(places, items, strict=True) if place in looked.packed}
        files.make(*_without(packed, places, items))
        for ranks in (self._own.cargo.ranks, *self._members.values()):
            own = [place for place in places_of(chosen, ranks) if place in packed]
            files.make_packed(own, [packed[place] for place in own], min(ranks))

    @collector_paused()
    def _hand_out(self, files: HostFiles, chosen: Chosen) -> None:
        descriptors = files.descriptors
        stored = [[one.name, one.size_bytes, one.reused] for one in files.stored]
        for channel, ranks in self._members.items():
            spots = [files.spots[place] for place in places_of(chosen, ranks)]
            needed = sorted({file for file, _ in spots} & descriptors.keys())
            message = {"kind": "files", "stored": stored, "open": needed, "spots": spots}
            channel.send(message, [descriptors[file] for file in needed])

    def _collect(self, kind: str, watch: Callable[[], None]) -> dict[Channel, Any]:
        """A message of that kind from every member. Raises RankMissingError, RankFailedError."""
        bodies: dict[Channel, Any] = {}
        pauses = Pauses(self._attempt.host, self._attempt.deadline_s)
        while len(bodies) < len(self._members):
            pause_s = pauses.next_s()
            heard = False
            for channel, message in self._hear(pause_s):
                self._check(channel, message)
                if message is not None and channel in self._members and message.body["kind"] == kind:
                    heard, bodies[channel] = True, message.body
                    if kind == "written":  # whatever becomes of it now, its part is stored
                        self._finished.add(channel)
            if heard:
                pauses.heard()
                continue
            watch()
            if not pause_s:
                late = [rank for channel, ranks in self._members.items() if channel not in bodies for rank in ranks]
                raise self._attempt.missing(late, "stored its part")
        return bodies

    # ---- telling ----------------------------------------------------------------------------------------------------

    def tell(self, body: Mapping[str, object]) -> None:
        for channel in self._members:
            channel.send(body)

    def close(self) -> None:
        if self._circle is not None:
            self._circle.close()


def _without(done: Collection[Place], places: Sequence[Place], items: Sequence[Item]) -> tuple[list[Place], list[Item]]:
    left = [number for number, place in enumerate(places) if place not in done]
    return [places[number] for number in left], [items[number] for number in left]


def chosen_rows(chosen: Chosen, shares: Mapping[int, Share]) -> list[tuple[int, Sequence[int] | None]]:
    """As messages say it: `[rank, indexes]` each; null: all that the rank has."""
    return [(rank, None if len(indexes) == len(shares[rank].tensors) else indexes) for rank, indexes in chosen.items()]


def chosen_of(rows: Any, shares: Mapping[int, Share]) -> Chosen:
    """Of a message, what concerns the ranks that are in `shares`."""
    return {
        rank: range(len(shares[rank].tensors)) if indexes is None else indexes
        for rank, indexes in rows
        if rank in shares
    }


# ---- the other end ---------------------------------------------------------------------------------------------------


def arrival(attempt: Attempt, shares: dict[str, object]) -> dict[str, object]:
    return {"kind": "arrive", "world_size": attempt.group.world_size, "shares": shares}


def same_message(looked: Looked) -> dict[str, object]:
    rows = [[*place, one.path.hex(), one.offset, one.packed_bytes] for place, one in looked.same.items()]
    return {"kind": "same", "rows": rows, "packed": sorted(looked.packed)}


def looked_of(body: Any) -> Looked:
    """Of a `same` message."""
    same: dict[Place, Reference] = {
        (rank, index): Reference(bytes.fromhex(path), offset, packed)
        for rank, index, path, offset, packed in body["rows"]
    }
    return Looked(same, {(rank, index) for rank, index in body["packed"]})


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A `files` message. `spots`: of what this process stores, in order."""

    stored: tuple[StoredFile, ...]
    spots: list[Spot]
    descriptors: dict[int, int]

    @classmethod
    def of(cls, message: Message) -> "HandedOut":
        body = message.body
        stored = tuple(StoredFile(name, size, reused) for name, size, reused in body["stored"])
        spots = [Spot(file, offset) for file, offset in body["spots"]]
        return cls(stored, spots, dict(zip(body["open"], message.descriptors, strict=True)))


@collector_paused()
def written_message(stored: Stored) -> dict[str, object]:
    blobs = [encode_blob(blob) for blob in stored.blobs]
    return {"kind": "written", "blobs": blobs, "seconds": list(stored.seconds.items())}
