"""The ranks of one machine as the process that gathers them sees them: its own, and members behind channels.

Everybody goes through the same steps together. The gathering process says what to store; all say what of it is unchanged; it
makes the files and hands their descriptors out; all write, and say what they wrote; it commits the files. A member that
dies, fails, or is late ends the save of all.

    member                           gathering process
    arrive: its ranks and its share →
                                   ← welcome
                                   ← write: its task, under which checkpoint, how fast its files are
    same: which are unchanged, and
          which are to be packed   →
                                   ← files: descriptors, and where each tensor goes
    written: its report            →
                                   ← outcome
    failed: why (instead of any)   →   outcome or `elsewhere` may come instead of any
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tieredfs.errors import InvalidRequestError, RankFailedError, RankMissingError
from tieredfs_client.checkpoint.attempt import Attempt, Pauses, named
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.hostfiles import HostFiles, Reference, Spot
from tieredfs_client.checkpoint.layout import Item, Outline, StoredFile, read_checked
from tieredfs_client.checkpoint.neighbours import Channel, Circle, Message
from tieredfs_client.checkpoint.parts import Looked, ProcessPart, Stored
from tieredfs_client.checkpoint.shares import (
    Report,
    Share,
    StoredPart,
    Task,
    decode_report,
    decode_share,
    decode_task,
    encode_report,
    encode_share,
    encode_task,
)


@dataclass(frozen=True, slots=True)
class Finished:
    """What the machine wrote: its files, what this process did, and what the others say, by their leads, as it came."""

    files: tuple[StoredFile, ...]
    own: Stored
    written: Mapping[int, Any]


class Machine:
    """One thread; but `part` may be called beside `commit`."""

    def __init__(self, attempt: Attempt, own: ProcessPart, share: Share, circle: Circle | None) -> None:
        """`circle` None: there is nobody else."""
        self._attempt = attempt
        self._own = own
        self._lead = share.lead
        self._circle = circle
        self._members: dict[Channel, Share] = {}
        self._finished: set[Channel] = set()
        self._writing_since_s = 0.0
        self._here = set(share.ranks)
        self.shares = {share.lead: share}
        """Of its processes, by their leads."""

    @property
    def rank_count(self) -> int:
        return len(self._here)

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
        share = read_checked(lambda: decode_share(body["share"]), "what a rank says")
        self._members[channel] = share
        self._attempt.check_world(max(share.ranks), body["world_size"])
        again = self._here & set(share.ranks)
        if again:
            raise InvalidRequestError(f"rank {min(again)} came twice")
        self._here |= set(share.ranks)
        self.shares[share.lead] = share
        channel.send({"kind": "welcome"})

    def _check(self, channel: Channel, message: Message | None) -> None:
        share = self._members.get(channel)
        ranks = share.ranks if share is not None else ()
        if message is None and ranks and channel not in self._finished:
            many = "ranks" if len(ranks) > 1 else "rank"
            raise RankMissingError(f"step {self._attempt.step} was not saved: {many} {named(ranks)} died")
        if message is not None and message.body["kind"] == "failed":
            raise RankFailedError(
                f"step {self._attempt.step} was not saved: rank {message.body['rank']} failed with {message.body['reason']}"
            )

    # ---- storing ----------------------------------------------------------------------------------------------------

    def store(
        self, checkpoint: str, tasks: Mapping[int, Task], files: HostFiles, watch: Callable[[], None]
    ) -> Finished:
        """Everything that this machine's processes are to store (`tasks`, by their leads), written on return and not yet
        committed. `watch` is called now and then while others are waited for, and raises when it is no use any more."""
        for channel, share in self._members.items():
            task = encode_task(tasks[share.lead])
            channel.send({"kind": "write", "checkpoint": checkpoint, "task": task, "pace": self._own.pace})
        looked = {self._lead: self._own.look(tasks[self._lead].chosen, self._own.pace)}
        places, outline = self._places(tasks), self._outline(tasks)  # while the others look
        for channel, body in self._collect("same", watch).items():
            looked[self._members[channel].lead] = looked_of(body)
        self._writing_since_s = self._attempt.host.clock.monotonic_s()
        self._make(files, tasks, places, outline, looked)
        self._hand_out(files, places)
        files.head(self._items(tasks))  # while the others write
        own = self._own.store([files.spots[place] for place in places[self._lead]], files.descriptors)
        written = {self._members[one].lead: body for one, body in self._collect("written", watch).items()}
        if any(one.packed for one in looked.values()):
            blobs = {lead: report.blobs for lead, report in _reports(written).items()} | {self._lead: own.blobs}
            every = [zip(places[lead], blobs[lead], strict=True) for lead in places]
            files.head_packed(dict(itertools.chain.from_iterable(every)))
        return Finished(tuple(files.stored), own, written)

    @collector_paused()
    def part(self, finished: Finished, task: Task) -> StoredPart:
        """What the machine stored, as others need to know it; `task`: of this process. Work of the processor's. Raises
        CorruptError."""
        own = self._own.report(finished.own, self._own.trees(task.numbers))
        return StoredPart(finished.files, {self._lead: own, **_reports(finished.written)})

    def _places(self, tasks: Mapping[int, Task]) -> dict[int, Sequence[int]]:
        """By which `HostFiles` knows what each process stores: its number among all tensors of the machine, one process after the
        other; the same whoever came first."""
        places: dict[int, Sequence[int]] = {}
        start = 0
        for lead in sorted(self.shares):
            chosen = tasks[lead].chosen
            places[lead] = range(start, start + len(chosen))
            start += len(chosen)
        return places

    @collector_paused()
    def _outline(self, tasks: Mapping[int, Task]) -> Outline:
        """What is known of them at once, by place."""
        outlines = [self.shares[lead].outline(tasks[lead].chosen) for lead in sorted(self.shares)]
        columns = [(one.sizes, one.item_bytes, one.rooms) for one in outlines]
        return Outline(*[list(itertools.chain.from_iterable(rows)) for rows in zip(*columns, strict=True)])

    @collector_paused()
    def _items(self, tasks: Mapping[int, Task]) -> list[Item]:
        """What they are called in the files, by place."""
        return [item for lead in sorted(self.shares) for item in self.shares[lead].items(tasks[lead].chosen)]

    def commit(self, files: HostFiles) -> None:
        """What `store` wrote becomes durable, and gets its names."""
        files.commit()
        written = sum(file.size_bytes for file in files.stored if not file.reused)
        seconds = self._attempt.host.clock.monotonic_s() - self._writing_since_s
        self._own.observe(written // (1 + len(self._members)), seconds)  # what the files took in, shared evenly

    @collector_paused()
    def _make(
        self,
        files: HostFiles,
        tasks: Mapping[int, Task],
        places: Mapping[int, Sequence[int]],
        outline: Outline,
        looked: Mapping[int, Looked],
    ) -> None:
        if not any(one.same or one.packed for one in looked.values()):
            files.make(range(len(outline.sizes)), outline)
            return
        items = self._items(tasks)
        same: dict[int, Reference] = {}
        packed: dict[int, list[int]] = {}
        for lead, one in looked.items():
            for place, number in zip(places[lead], tasks[lead].chosen, strict=True):
                if number in one.same:
                    same[place] = one.same[number]
                if number in one.packed:
                    packed.setdefault(lead, []).append(place)
        done = set(same) if files.refer([one.of(place, items[place]) for place, one in same.items()]) else set()
        apart = {place for own in packed.values() for place in own}
        plain = [place for place in range(len(items)) if place not in done and place not in apart]
        files.make(plain, outline.of(plain))
        for lead in sorted(packed):
            own = [place for place in packed[lead] if place not in done]
            files.make_packed(own, [items[place] for place in own], lead)

    @collector_paused()
    def _hand_out(self, files: HostFiles, places: Mapping[int, Sequence[int]]) -> None:
        descriptors = files.descriptors
        stored = [[one.name, one.size_bytes, one.reused] for one in files.stored]
        for channel, share in self._members.items():
            spots = [files.spots[place] for place in places[share.lead]]
            numbers, offsets = zip(*spots, strict=True) if spots else ((), ())
            needed = sorted(set(numbers) & descriptors.keys())
            message = {"kind": "files", "stored": stored, "open": needed, "files": numbers, "offsets": offsets}
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
                late = [rank for one, share in self._members.items() if one not in bodies for rank in share.ranks]
                raise self._attempt.missing(late, "stored its part")
        return bodies

    # ---- telling ----------------------------------------------------------------------------------------------------

    def tell(self, body: Mapping[str, object]) -> None:
        for channel in self._members:
            channel.send(body)

    def close(self) -> None:
        if self._circle is not None:
            self._circle.close()


def _reports(written: Mapping[int, Any]) -> dict[int, Report]:
    return {
        lead: read_checked(partial(decode_report, body["report"]), "what a rank says") for lead, body in written.items()
    }


# ---- the other end ---------------------------------------------------------------------------------------------------


def arrival(attempt: Attempt, share: Share) -> dict[str, object]:
    return {"kind": "arrive", "world_size": attempt.group.world_size, "share": encode_share(share)}


def task_of(message: Message) -> Task:
    """Of a `write` message."""
    return decode_task(message.body["task"])


def same_message(looked: Looked) -> dict[str, object]:
    rows = [[number, one.path.hex(), one.offset, one.packed_bytes] for number, one in looked.same.items()]
    return {"kind": "same", "rows": rows, "packed": sorted(looked.packed)}


def looked_of(body: Any) -> Looked:
    """Of a `same` message."""
    same = {number: Reference(bytes.fromhex(path), offset, packed) for number, path, offset, packed in body["rows"]}
    return Looked(same, frozenset(body["packed"]))


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
        spots = list(map(Spot, body["files"], body["offsets"]))
        return cls(stored, spots, dict(zip(body["open"], message.descriptors, strict=True)))


@collector_paused()
def written_message(report: Report) -> dict[str, object]:
    return {"kind": "written", "report": encode_report(report)}
