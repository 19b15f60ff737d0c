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
    written; attached: its report  →
                                   ← outcome
    failed: why (instead of any)   →   outcome or `elsewhere` may come instead of any
"""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tieredfs.errors import InvalidRequestError, RankFailedError, RankMissingError
from tieredfs_client.checkpoint.attempt import Attempt, Pauses, named
from tieredfs_client.checkpoint.collector import collector_paused
from tieredfs_client.checkpoint.hostfiles import HostFiles, Reference, Spot
from tieredfs_client.checkpoint.layout import Blob, Item, Outline, StoredFile, read_blob_rows, read_checked
from tieredfs_client.checkpoint.neighbours import Channel, Circle, Message
from tieredfs_client.checkpoint.parts import Looked, ProcessPart, Stored
from tieredfs_client.checkpoint.remembered import Remembered
from tieredfs_client.checkpoint.shares import (
    Report,
    Share,
    StoredPart,
    Task,
    column,
    decode_report,
    decode_share,
    decode_task,
    encode_report,
    encode_share,
    encode_task,
    identified,
    numbers,
)


@dataclass(frozen=True, slots=True)
class Finished:
    """What the machine wrote: its files, what this process did, and what the others say, by their leads, as it came."""

    files: tuple[StoredFile, ...]
    own: Stored
    written: Mapping[int, bytes | bytearray]


class Machine:
    """One thread; but `part` may be called beside `commit`."""

    def __init__(self, attempt: Attempt, own: ProcessPart, share: Share, circle: Circle | None) -> None:
        """`circle` None: there is nobody else."""
        self._attempt = attempt
        self._own = own
        self._remembered = own.kept
        self._lead = share.lead
        self._circle = circle
        self._members: dict[Channel, Share] = {}
        self._finished: set[Channel] = set()
        self._heard: dict[str, Share] = {}
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
        share = read_checked(lambda: self._share_of(body["layout"], body["identities"]), "what a rank says")
        self._members[channel] = share
        self._attempt.check_world(max(share.ranks), body["world_size"])
        again = self._here & set(share.ranks)
        if again:
            raise InvalidRequestError(f"rank {min(again)} came twice")
        self._here |= set(share.ranks)
        self.shares[share.lead] = share
        channel.send({"kind": "welcome"})

    def _share_of(self, layout: str, identities: str) -> Share:
        """One that came in the last save, too, is not read again: it is the same, or all of its columns are but identities."""
        last = self._remembered.heard.get(layout)
        if last is None:
            share = decode_share(json.loads(layout) | {"identities": identities})
        else:
            share = identified(last, identities)
        self._heard[layout] = share
        return share

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
        self._remembered.heard = self._heard
        outlined = self._remembered.outline.of(partial(self._outlined, tasks), tasks)  # while the others look
        places = outlined[0]
        for channel, message in self._collect("same", watch).items():
            looked[self._members[channel].lead] = looked_of(message.body)
        self._writing_since_s = self._attempt.host.clock.monotonic_s()
        self._make(files, tasks, outlined, looked)
        self._hand_out(files, places)
        files.head(partial(self._items, tasks), tasks)  # while the others write
        own = self._own.store([files.spots[place] for place in places[self._lead]], files.descriptors)
        heard = self._collect("written", watch)
        written = {self._members[channel].lead: message.attached for channel, message in heard.items()}
        if any(one.packed for one in looked.values()):
            blobs = {lead: _blobs_of(report) for lead, report in _reports(written).items()} | {self._lead: own.blobs}
            rows = [zip(places[lead], blobs[lead], strict=True) for lead in places]
            files.head_packed(dict(itertools.chain.from_iterable(rows)))
        return Finished(tuple(files.stored), own, written)

    @collector_paused()
    def part(self, finished: Finished, task: Task) -> StoredPart:
        """What the machine stored, as others need to know it; `task`: of this process. Work of the processor's. Raises
        CorruptError."""
        own = self._own.report(finished.own, self._own.trees(task.numbers))
        reports = {self._lead: own, **_reports(finished.written)}
        return StoredPart(finished.files, dict(sorted(reports.items())))  # whoever was done first

    def _outlined(self, tasks: Mapping[int, Task]) -> "_Outlined":
        outline = self._outline(tasks)
        return self._places(tasks), range(len(outline.sizes)), outline

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
        outlined: "_Outlined",
        looked: Mapping[int, Looked],
    ) -> None:
        places, every, outline = outlined
        if not any(one.same or one.packed for one in looked.values()):
            files.make(every, outline)
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
        told = self._remembered.handed_out.of(lambda: _spots_told(files, places), files.plan, places)
        for channel, share in self._members.items():
            used, columns = told[share.lead]
            needed = sorted(used & descriptors.keys())
            message = {"kind": "files", "stored": stored, "open": needed, "spots": columns}
            channel.send(message, [descriptors[file] for file in needed])

    def _collect(self, kind: str, watch: Callable[[], None]) -> dict[Channel, Message]:
        """A message of that kind from every member. Raises RankMissingError, RankFailedError."""
        messages: dict[Channel, Message] = {}
        pauses = Pauses(self._attempt.host, self._attempt.deadline_s)
        while len(messages) < len(self._members):
            pause_s = pauses.next_s()
            heard = False
            for channel, message in self._hear(pause_s):
                self._check(channel, message)
                if message is not None and channel in self._members and message.body["kind"] == kind:
                    heard, messages[channel] = True, message
                    if kind == "written":  # whatever becomes of it now, its part is stored
                        self._finished.add(channel)
            if heard:
                pauses.heard()
                continue
            watch()
            if not pause_s:
                late = [rank for one, share in self._members.items() if one not in messages for rank in share.ranks]
                raise self._attempt.missing(late, "stored its part")
        return messages

    # ---- telling ----------------------------------------------------------------------------------------------------

    def tell(self, body: Mapping[str, object]) -> None:
        for channel in self._members:
            channel.send(body)

    def close(self) -> None:
        if self._circle is not None:
            self._circle.close()


_Outlined = tuple[Mapping[int, Sequence[int]], Sequence[int], Outline]
"""What is known of a machine's tensors before it is known what must be written: places by leads, all places, and by place."""


def _spots_told(files: HostFiles, places: Mapping[int, Sequence[int]]) -> dict[int, tuple[set[int], list[str]]]:
    """By leads, in which files their tensors lie, and where: columns."""
    found = {}
    for lead, own in places.items():
        spots = [files.spots[place] for place in own]
        numbers, offsets = zip(*spots, strict=True) if spots else ((), ())
        found[lead] = set(numbers), [column("I", numbers), column("Q", offsets)]
    return found


def _blobs_of(report: Report) -> list[Blob]:
    return read_checked(partial(read_blob_rows, report.blobs), "what a rank says")


def _reports(written: Mapping[int, bytes | bytearray]) -> dict[int, Report]:
    return {lead: read_checked(partial(_report_of, data), "what a rank says") for lead, data in written.items()}


def _report_of(data: bytes | bytearray) -> Report:
    return decode_report(json.loads(data))


# ---- the other end ---------------------------------------------------------------------------------------------------


def arrival(attempt: Attempt, share: Share, remembered: Remembered) -> dict[str, object]:
    layout = remembered.layout_text.of(partial(_layout_text, share), share.kinds)
    identities = b"".join(share.identities).hex()
    return {"kind": "arrive", "world_size": attempt.group.world_size, "layout": layout, "identities": identities}


def _layout_text(share: Share) -> str:
    body = encode_share(share)
    del body["identities"]
    return json.dumps(body, separators=(",", ":"))


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
    def of(cls, message: Message, remembered: Remembered) -> "HandedOut":
        body = message.body
        stored = tuple(StoredFile(name, size, reused) for name, size, reused in body["stored"])
        columns = body["spots"]
        if remembered.spots is None or remembered.spots[0] != columns:
            remembered.spots = columns, list(map(Spot, numbers("I", columns[0]), numbers("Q", columns[1])))
        spots = remembered.spots[1]
        return cls(stored, spots, dict(zip(body["open"], message.descriptors, strict=True)))


@collector_paused()
def tell_written(channel: Channel, report: Report) -> None:
    """The report as an attachment, which is read while the files become durable."""
    channel.send({"kind": "written"}, attached=json.dumps(encode_report(report), separators=(",", ":")).encode())
