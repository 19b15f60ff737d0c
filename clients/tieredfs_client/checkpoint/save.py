"""A save by all ranks: a few files per machine, one manifest, one rename.

Nothing is visible before the rename of the attempt's `data` directory to the checkpoint's name, and everything is durable
before it: files at the durability that was asked for, the manifest last. The rename refuses a name that is taken, so of two
attempts at one generation of a step one is told. What this attempt leaves when it dies is below `.attempts`, where
nobody looks but the next save, which removes it.

A process has one of three roles: the one that carries rank 0 *coordinates*, and gathers its machine; on other machines one
process *leads*, and gathers its machine; all others are *members*, and follow (`machine`).
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from tieredfs.errors import (
    ConflictError,
    CorruptError,
    DeadlineError,
    InvalidRequestError,
    NotDirectoryError,
    NotFoundError,
    RankMissingError,
    RequestError,
    TieredError,
)
from tieredfs.host import crash
from tieredfs.model import Durability
from tieredfs_client.checkpoint.assemble import Extra, assemble, numbered
from tieredfs_client.checkpoint.attempt import ATTEMPT_XATTR, COORDINATOR_GRACE, Attempt, Pauses, raise_failure
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.collector import collector_paused, collector_paused_briefly
from tieredfs_client.checkpoint.documents import write_document
from tieredfs_client.checkpoint.hostfiles import HostFiles
from tieredfs_client.checkpoint.layout import (
    MANIFEST_NAME,
    About,
    Blob,
    Manifest,
    StoredFile,
    Tables,
    encode_document,
    encode_tables,
    read_checked,
)
from tieredfs_client.checkpoint.machine import HandedOut, Machine, arrival, same_message, task_of, tell_written
from tieredfs_client.checkpoint.names import CheckpointName, parse_checkpoint
from tieredfs_client.checkpoint.neighbours import Channel, Circle, Message, connect
from tieredfs_client.checkpoint.packing import Compression
from tieredfs_client.checkpoint.parts import ProcessPart, Stored
from tieredfs_client.checkpoint.plan import Offer, assign_writers
from tieredfs_client.checkpoint.remembered import Remembered
from tieredfs_client.checkpoint.shares import (
    Cargo,
    Share,
    StoredPart,
    Task,
    decode_part,
    decode_share,
    decode_task,
    encode_part,
    encode_share,
    encode_task,
)
from tieredfs_client.checkpoint.tree import Form
from tieredfs_client.checkpoint.write import Earlier, PartWriter

ALL_HERE_S: Final = 0.2
"""After this long without all ranks, the coordinator lets other machines know where it is."""
DIFFERENT_MAX: Final = 1 << 16
"""Identities of 16 bytes of which a set is in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did. Of this process's ranks: `written_bytes`, `reused_bytes`, `stored_bytes` (what the written ones take in the
    files, less where they are compressed), `seconds`; the rest of all."""

    step: int
    checkpoint: CheckpointName
    written_bytes: int
    reused_bytes: int
    seconds: float
    commit_seconds: float = 0.0
    """Of the process that committed: from the last rank's part to the checkpoint's name."""
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a manifest says of ranks and tensors, encoded, and the files that it names."""

    files: Sequence[StoredFile]
    tables: Tables


class Save:
    """One attempt, as one process carries it out. Run once, or only told why not."""

    def __init__(
        self,
        catalog: Catalog,
        attempt: Attempt,
        writer: PartWriter,
        *,
        extra: Extra,
        durability: Durability | None,
        compression: Compression | None,
        guard: Callable[[], None],
        remembered: Remembered,
    ) -> None:
        """`guard`: raises when this process may not commit any more; asked of the coordinator, last of all. `remembered`: of
        the last save of this process as part of this group."""
        self._remembered = remembered
        self._guard = guard
        self._catalog = catalog
        self._attempt = attempt
        self._writer = writer
        self._extra = extra
        self._durability = durability
        self._compression = compression
        self._told = False
        self._machine: Machine | None = None
        self._channel: Channel | None = None
        self._commit_s = 0.0
        self._started_s = catalog.host.clock.monotonic_s()

    @collector_paused_briefly()
    def run(self, cargo: Cargo, earlier: Earlier | None) -> tuple[Saved, Earlier]:
        """The whole of it, and what a later save may refer to. A failure is told to the other ranks, and raised."""
        own = ProcessPart(self._catalog.host, self._writer, cargo, earlier, self._compression, self._remembered)
        try:
            share = own.share(alone=self._attempt.group.world_size == 1)
            if self._coordinates:
                return self._coordinate(own, share)
            crash.here("checkpoint.rank-arrived")
            return self._meet_others(own, share)
        except BaseException as error:
            self.tell(error)
            if self._is_alone:
                self._remove_attempt()  # what was stored of it is room that the next one may need
            raise
        finally:
            gathered = self._machine.shares.values() if self._machine is not None else ()
            self._remembered.bound(max(len(cargo.forms), sum(len(one.kinds) for one in gathered)))
            self._close()

    @property
    def _coordinates(self) -> bool:
        return 0 in self._attempt.group.ranks

    @property
    def _is_alone(self) -> bool:
        return len(self._attempt.group.ranks) == self._attempt.group.world_size

    def _close(self) -> None:
        if self._machine is not None:
            self._machine.close()
        if self._channel is not None:
            self._channel.close()

    def tell(self, error: BaseException) -> None:
        """Let the other ranks know that there will be no checkpoint; what cannot be told they find out at the deadline."""
        if self._is_alone or self._told:
            return
        self._told = True
        with contextlib.suppress(TieredError, OSError):
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        group, outcome = self._attempt.group, self._attempt.outcome_of(error)
        reason = f"{type(error).__name__}: {error}"
        here = self._machine.rank_count if self._machine is not None else len(group.ranks)
        if self._machine is not None:
            told = outcome if self._coordinates else {**outcome, "reason": str(error)}
            self._machine.tell({"kind": "outcome", **told})
        if self._coordinates:
            if here < group.world_size:
                self._attempt.post("outcome", outcome)
            return
        channel = self._channel or connect(self._attempt.meeting, "coordinator")
        if channel is None:
            self._attempt.post(f"failed-{group.rank:05d}", {"reason": reason})
            return
        channel.send({"kind": "failed", "rank": group.rank, "reason": reason})
        if channel is not self._channel:
            channel.close()

    # ---- the coordinator --------------------------------------------------------------------------------------------

    def _coordinate(self, own: ProcessPart, share: Share) -> tuple[Saved, Earlier]:
        attempt = self._attempt
        circle = None if self._is_alone else Circle.open(attempt.meeting, "coordinator")
        if circle is None and not self._is_alone:
            raise InvalidRequestError("rank 0 came twice: another process has its place in this save")
        machine = self._machine = Machine(attempt, own, share, circle)
        self._clear_stale(own=self._is_alone)
        crash.here("checkpoint.begun")
        leaders = self._gather(machine)
        if not self._is_alone:
            self._clear_stale(own=True)
        elsewhere = [one for shares in leaders.values() for one in shares]
        every = sorted([*machine.shares.values(), *elsewhere], key=lambda one: one.lead)
        tasks = _assign(every, self._remembered)
        name = self._next_name()
        crash.here("checkpoint.gathered")
        if leaders:
            rows = [[one.lead, encode_task(tasks[one.lead])] for one in elsewhere]
            attempt.post("plan", {"checkpoint": str(name), "tasks": rows})
        crash.here("checkpoint.planned")
        watch = attempt.check_failed if leaders else _nothing
        with self._host_files() as files:
            finished = machine.store(str(name), tasks, files, watch)
            draft = partial(self._drafted, every, tasks, partial(machine.part, finished, tasks[share.lead]))
            early = None if leaders else self._writer.beside(draft)
            machine.commit(files)
        drafted = early.result() if early is not None else draft(self._parts_of(leaders))
        before_s = self._elapsed_s()
        self._commit(name, drafted)
        self._commit_s = self._elapsed_s() - before_s
        self._told = True
        machine.tell({"kind": "outcome", "committed": True})
        if leaders:
            with contextlib.suppress(TieredError, OSError):  # it is committed; the others see that, too, at its name
                attempt.post("outcome", {"committed": True})
        else:
            self._remove_attempt()
        return self._ended(name, own, finished.own, finished.files)

    def _gather(self, machine: Machine) -> dict[int, list[Share]]:
        """Until all ranks have arrived; shares of the processes that other machines' leaders (by their rank) speak for."""
        attempt, world_size = self._attempt, self._attempt.group.world_size
        leaders: dict[int, list[Share]] = {}
        seen: set[str] = set()
        announced = False
        pauses = Pauses(self._catalog.host, attempt.deadline_s)
        while machine.rank_count + len(_ranks_of(leaders)) < world_size:
            pause_s = pauses.next_s()
            if machine.hear_arrivals(pause_s):
                pauses.heard()
                continue
            if self._elapsed_s() >= ALL_HERE_S:
                if not announced:
                    attempt.post("coordinator", {"place": attempt.group.place})
                    announced = True
                for rank, body in attempt.new_messages("intent", seen):
                    shares = read_checked(partial(_decode_shares, body), "an intent")
                    leaders.setdefault(rank, []).extend(shares)
            if not pause_s:
                came = [*_ranks_of(leaders), *(rank for one in machine.shares.values() for rank in one.ranks)]
                raise attempt.missing(set(range(world_size)) - set(came), "arrived")
        every = [*_ranks_of(leaders), *(rank for one in machine.shares.values() for rank in one.ranks)]
        if sorted(every) != list(range(world_size)):
            raise InvalidRequestError("some rank came twice, from two machines")
        return leaders

    def _parts_of(self, leaders: Mapping[int, Sequence[Share]]) -> list[StoredPart]:
        attempt = self._attempt
        parts: dict[int, StoredPart] = {}
        seen: set[str] = set()
        pauses = Pauses(self._catalog.host, attempt.deadline_s)
        while len(parts) < len(leaders):
            for rank, body in attempt.new_messages("part", seen):
                if rank not in leaders:
                    raise CorruptError(f"rank {rank} stored for a machine that others speak for")
                parts[rank] = read_checked(partial(decode_part, body), "a part")
            if len(parts) < len(leaders) and not pauses.wait():
                late = _ranks_of({rank: shares for rank, shares in leaders.items() if rank not in parts})
                raise attempt.missing(late, "stored its part")
        return [parts[rank] for rank in sorted(parts)]

    # ---- the others -------------------------------------------------------------------------------------------------

    def _meet_others(self, own: ProcessPart, share: Share) -> tuple[Saved, Earlier]:
        """Find the coordinator on this machine, or its leader, or lead."""
        attempt = self._attempt
        pauses = Pauses(self._catalog.host, attempt.deadline_s * COORDINATOR_GRACE + 1.0)
        while True:
            channel = self._channel = connect(attempt.meeting, "coordinator")
            coordinated = channel is not None
            channel = self._channel = channel or connect(attempt.meeting, "leader")
            circle = Circle.open(attempt.meeting, "leader") if channel is None else None
            if channel is not None:
                ended = self._follow(own, share, gone_is_final=coordinated)
                if ended is not None:
                    return ended
                channel.close()
                self._channel = None
            if circle is not None:
                self._machine = Machine(attempt, own, share, circle)
                if self._finds_coordinator_here(self._machine):
                    self._machine.tell({"kind": "elsewhere"})
                    self._machine.close()
                    self._machine = None
                    continue
                return self._lead(self._machine, own)
            if not pauses.wait():
                raise RankMissingError(f"step {attempt.step} was not saved: nobody on this machine gathers its ranks")

    def _follow(self, own: ProcessPart, share: Share, *, gone_is_final: bool) -> tuple[Saved, Earlier] | None:
        """As a member. None: who gathers is to be looked for again."""
        assert self._channel is not None
        channel, attempt = self._channel, self._attempt
        channel.send(arrival(attempt, share, self._remembered))
        if self._heard(channel) is None:
            return None  # it has not even heard of this process
        message = self._heard(channel)
        if message is not None and message.body["kind"] == "elsewhere":
            return None
        if message is None:
            raise self._gone()
        name, task = _planned(message.body), task_of(message)
        channel.send(same_message(own.look(task.chosen, message.body["pace"])))
        trees = own.trees(task.numbers)  # while the files are made
        message = self._heard(channel)
        if message is None:
            raise self._gone()
        handed = HandedOut.of(message, self._remembered)
        try:
            stored = own.store(handed.spots, handed.descriptors)
        finally:
            for descriptor in handed.descriptors.values():
                os.close(descriptor)
        tell_written(channel, own.report(stored, trees))  # while the disk takes it in
        crash.here("checkpoint.rank-stored")
        if self._heard(channel) is None:
            self._look_for_commit(name, final=gone_is_final)
        return self._ended(name, own, stored, handed.stored)

    def _heard(self, channel: Channel) -> Message | None:
        """The next message; None: who gathers is gone. Raises what an outcome says, RankMissingError."""
        try:
            message = channel.receive(self._attempt.deadline_s * COORDINATOR_GRACE + 1.0)
        except DeadlineError:
            raise RankMissingError(
                f"step {self._attempt.step} was not saved: rank 0, which coordinates, is silent"
            ) from None
        if message is not None and message.body["kind"] == "outcome":
            raise_failure(message.body)
        return message

    def _look_for_commit(self, name: CheckpointName, *, final: bool) -> None:
        """Who gathers died after this process had stored its part. If it was the coordinator, it has committed or nobody will."""
        if not final:
            self._attempt.wait_for_outcome(name)
        elif not self._attempt.is_committed(name):
            raise self._gone()

    def _gone(self) -> RankMissingError:
        return RankMissingError(
            f"step {self._attempt.step} was not saved: who gathers the ranks of this machine is gone"
        )

    def _finds_coordinator_here(self, machine: Machine) -> bool:
        """Gather this machine until it is known where the coordinator is; whether it is here after all."""
        attempt = self._attempt
        pauses = Pauses(self._catalog.host, attempt.deadline_s * COORDINATOR_GRACE + 1.0)
        while True:
            found = connect(attempt.meeting, "coordinator")
            if found is not None:
                found.close()
                return True
            announced = attempt.look_for("coordinator")
            if announced is not None and announced["place"] != attempt.group.place:
                return False
            pause_s = pauses.next_s()
            if not pause_s:
                raise RankMissingError(f"step {attempt.step} was not saved: rank 0, which coordinates, is silent")
            machine.hear_arrivals(pause_s)

    def _lead(self, machine: Machine, own: ProcessPart) -> tuple[Saved, Earlier]:
        """Speak for this machine."""
        attempt = self._attempt
        plan = self._report_arrivals(machine)
        name = _planned(plan)
        tasks = {lead: decode_task(task) for lead, task in plan["tasks"] if lead in machine.shares}
        crash.here("checkpoint.host-gathered")
        with self._host_files() as files:
            finished = machine.store(str(name), tasks, files, partial(_only_raising, attempt))
            machine.commit(files)
        part = machine.part(finished, tasks[attempt.group.rank])
        attempt.post(f"part-{attempt.group.rank:05d}", encode_part(part))
        crash.here("checkpoint.host-stored")
        attempt.wait_for_outcome(name)
        self._told = True
        machine.tell({"kind": "outcome", "committed": True})
        return self._ended(name, own, finished.own, finished.files)

    def _report_arrivals(self, machine: Machine) -> Any:
        """Let the coordinator know who has arrived here, several at a time; until it has a plan for all."""
        attempt = self._attempt
        reported: set[int] = set()
        batch = 0
        pauses = Pauses(self._catalog.host, attempt.deadline_s * COORDINATOR_GRACE + 1.0)
        while True:
            pause_s = pauses.next_s()
            heard = machine.hear_arrivals(pause_s)
            fresh = [share for lead, share in machine.shares.items() if lead not in reported]
            if fresh and not heard:
                shares = [encode_share(share) for share in fresh]
                attempt.post(f"intent-{attempt.group.rank:05d}-{batch:03d}", {"shares": shares})
                reported |= {share.lead for share in fresh}
                batch += 1
            plan = None if heard else attempt.look_for("plan")
            if plan is not None:
                return plan
            if not pause_s:
                raise RankMissingError(f"step {attempt.step} was not saved: rank 0, which coordinates, is silent")

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _host_files(self) -> HostFiles:
        attempt, catalog = self._attempt, self._catalog
        place = (attempt.directory, attempt.group.rank)
        return HostFiles(catalog.volume, catalog.host.files, self._durability, *place, self._remembered)

    def _clear_stale(self, *, own: bool) -> None:
        """Remove attempts of other jobs: this process holds the run, so nobody is to finish them. Earlier ones of this job,
        `own`, only once all ranks have arrived here: until then some may still be looking how those ended."""
        current = self._attempt.name
        _, job, sequence = current.split("-")
        for name, _ in list(self._catalog.listed(self._attempt.paths.attempts)):
            parts = name.decode("ascii", "replace").split("-")
            ours = len(parts) == 3 and parts[1] == job
            if not ours or (own and parts[2] < sequence):
                with contextlib.suppress(NotFoundError, NotDirectoryError):
                    self._catalog.discard(self._attempt.paths.attempts + b"/" + name)

    def _remove_attempt(self) -> None:
        """When nobody looks into it any more; trouble with it is the next save's, which removes it, too."""
        with contextlib.suppress(TieredError):
            self._catalog.volume.remove_tree(self._attempt.directory)

    def _next_name(self) -> CheckpointName:
        step = self._attempt.step
        taken = [found.name for found in self._catalog.generations() if found.name.step == step]
        return taken[-1].next_generation() if taken else CheckpointName(step)

    def _check_files(self, files: Sequence[StoredFile]) -> None:
        """Every file of every machine is there, as long as it said. Who takes a run over takes the directory of an attempt
        away whole, so what is there now is all there, or the rename that follows finds nothing."""
        directory = self._attempt.directory + b"/data/"
        for file in files:
            size = self._catalog.volume.stat(directory + file.name.encode()).size_bytes
            if size != file.size_bytes:
                raise CorruptError(f"{file.name} has {size} bytes instead of {file.size_bytes}")

    @collector_paused()
    def _drafted(
        self,
        shares: Sequence[Share],
        tasks: Mapping[int, Task],
        own: Callable[[], StoredPart],
        others: Sequence[StoredPart] = (),
    ) -> "_Draft":
        """The manifest, but for what it says of the save as a whole. Work of the processor's, done while the machine's files become
        durable: of a save of 64 MiB by 4096 ranks it took a fifth."""
        contents = assemble(shares, tasks, [own(), *others], self._remembered.tensors)
        return _Draft(contents.files, encode_tables(contents))

    def _commit(self, name: CheckpointName, draft: "_Draft") -> None:
        catalog, attempt = self._catalog, self._attempt
        path = attempt.directory + b"/data/" + MANIFEST_NAME.encode()
        crash.here("checkpoint.stored")
        xattrs = {ATTEMPT_XATTR: attempt.name.encode()}
        about = About(
            attempt.step,
            attempt.name,
            attempt.group.world_size,
            catalog.host.clock.wall_ns(),
            self._elapsed_s(),
            self._extra.metadata,
            self._extra.metrics,
        )
        data = encode_document(about, draft.tables)
        write_document(catalog.host.files, catalog.volume, path, data, durability=self._durability, xattrs=xattrs)
        crash.here("checkpoint.manifest-written")
        self._guard()
        try:
            self._check_files(draft.files)
            catalog.volume.rename(attempt.directory + b"/data", catalog.paths.checkpoint(name), replace=False)
        except RequestError as error:
            raise ConflictError(
                f"step {attempt.step} was not saved: another save took over this run ({error})"
            ) from error
        crash.here("checkpoint.committed")

    def _elapsed_s(self) -> float:
        return self._catalog.host.clock.monotonic_s() - self._started_s

    def _ended(
        self, name: CheckpointName, own: ProcessPart, stored: Stored, files: Sequence[Any]
    ) -> tuple[Saved, Earlier]:
        written, reused = sum(stored.written), sum(stored.reused)
        packed = [blob for blob in stored.blobs if blob.packed is not None and not files[blob.file].reused]
        stored_bytes = written - sum(blob.size_bytes - blob.stored_bytes for blob in packed)
        step = self._attempt.step
        saved = Saved(step, name, written, reused, self._elapsed_s(), self._commit_s, stored_bytes)
        return saved, own.remembered(self._catalog.paths.checkpoint(name), files, stored)


def _nothing() -> None:
    return None


def _only_raising(attempt: Attempt) -> None:
    """What an outcome that failed says."""
    attempt.look_for("outcome")


def _ranks_of(leaders: Mapping[int, Sequence[Share]]) -> list[int]:
    return [rank for shares in leaders.values() for share in shares for rank in share.ranks]


def _decode_shares(body: Any) -> list[Share]:
    return [decode_share(share) for share in body["shares"]]


@collector_paused()
def _assign(shares: Sequence[Share], remembered: Remembered) -> dict[int, Task]:
    """What every process is to do, by its lead."""
    if remembered.different.of(partial(_all_different, shares), *[share.identities for share in shares]):
        every = [range(len(share.kinds)) for share in shares]
        tasks: dict[int, Task] = remembered.tasks.of(partial(_tasks, shares, every), *[share.kinds for share in shares])
        return tasks
    return _tasks(shares, _chosen(shares))


def _tasks(shares: Sequence[Share], chosen: Sequence[Sequence[int]]) -> dict[int, Task]:
    return {
        share.lead: Task(own, numbers) for share, own, numbers in zip(shares, chosen, numbered(shares), strict=True)
    }


def _all_different(shares: Sequence[Share]) -> bool:
    """Where no two ranks have the same, each process stores all that it has: to find that out takes a tenth of a plan, which is the
    same for all such content. Not asked where there are so many tensors that a set of all would not be in the processor's cache."""
    identities = [identity for share in shares for identity in share.identities]
    return len(identities) <= DIFFERENT_MAX and len(set(identities)) == len(identities)


def _chosen(shares: Sequence[Share]) -> list[Sequence[int]]:
    """Ranks with the same write it by turns, whoever carries them."""
    offers: dict[int, Offer] = {}
    for share in shares:
        names = [share.wholes[kind].key for kind in share.kinds]
        ends = itertools.accumulate(share.counts, initial=0)
        for rank, (start, end) in zip(share.ranks, itertools.pairwise(ends), strict=True):
            offers[rank] = Offer(names[start:end], share.identities[start:end], share.sizes[start:end])
    writes = dict(zip(sorted(offers), assign_writers([offers[rank] for rank in sorted(offers)]), strict=True))
    found: list[Sequence[int]] = []
    for share in shares:
        starts = itertools.accumulate(share.counts, initial=0)
        own = [start + index for rank, start in zip(share.ranks, starts, strict=False) for index in writes[rank]]
        found.append(own)
    return found


def _planned(body: Any) -> CheckpointName:
    name = parse_checkpoint(body["checkpoint"].encode())
    if name is None:
        raise CorruptError("a plan names no checkpoint")
    return name


def earlier_of(catalog: Catalog, name: CheckpointName, manifest: Manifest) -> Earlier:
    """What a later save may refer to."""
    forms: list[Form] = []
    blobs: list[Blob] = []
    for tensor in manifest.tensors:
        about = (tensor.key, tensor.origin, tensor.dtype, tensor.item_bytes, tensor.shape, tensor.sharded)
        for shard in tensor.shards:
            blobs.append(manifest.blobs[shard.blob])
            forms.append((*about, shard.offsets, shard.shape, blobs[-1].size_bytes))
    return Earlier(catalog.paths.checkpoint(name), manifest.files, forms, blobs, [None] * len(blobs))
