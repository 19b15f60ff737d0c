"""One attempt of all ranks to save one step: how machines find each other and agree, through files in the attempt's directory.

There is no server: a message is a small file, committed whole; whoever waits looks for it with growing pauses, up to a
deadline. Ranks of one machine talk through sockets (`neighbours`) and one of them, its leader, speaks for all; the
process of rank 0 coordinates, and leads its own machine. When all ranks are on one machine there are no messages here.

    coordinator  posts `coordinator`, unless all ranks have come to it at once: where it is
    leaders      post `intent-R-N`: ranks with their trees and what tensors they have
    coordinator  gathers the intents, plans who writes what, posts `plan`
    every rank   writes its share into its machine's files, which its leader commits below `data`; leaders post `part-R`
    coordinator  gathers the parts, writes the manifest, renames `data` to the checkpoint: that is the commit
    coordinator  posts `outcome`

Whoever fails posts `failed-R` (the coordinator: an `outcome`), so the others fail at once and not at the deadline. The
directory's name has the job and the number of the save (`names.attempt_name`): a straggler of another attempt is not seen
here, and a directory that was renamed away takes nothing more.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tieredfs.errors import (
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NoAttributeError,
    NotDirectoryError,
    NotFoundError,
    RankFailedError,
    RankMissingError,
    UnavailableError,
)
from tieredfs.host import Host
from tieredfs.volume.contract import FileSystemContract
from tieredfs_client.checkpoint.documents import read_json, write_document
from tieredfs_client.checkpoint.group import Group
from tieredfs_client.checkpoint.layout import MANIFEST_NAME
from tieredfs_client.checkpoint.names import CheckpointName, RunPaths, attempt_name
from tieredfs_client.checkpoint.neighbours import Meeting

PAUSE_FIRST_S: Final = 0.002
PAUSE_LAST_S: Final = 0.25
LISTED: Final = 1000
COORDINATOR_GRACE: Final = 1.25
"""The others wait this much longer than the coordinator does, to hear from it who was missing."""
NAMED_MAX: Final = 16
ATTEMPT_XATTR: Final = b"user.tieredfs.attempt"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The view of one process. Used by one thread at a time."""

    volume: FileSystemContract
    host: Host
    paths: RunPaths
    group: Group
    step: int
    sequence: int
    deadline_s: float

    @property
    def name(self) -> str:
        return attempt_name(self.step, self.group.job, self.sequence)

    @property
    def directory(self) -> bytes:
        return self.paths.attempts + b"/" + self.name.encode()

    @property
    def meeting(self) -> Meeting:
        """Where the processes of this machine meet."""
        return Meeting(self.volume.uuid, self.paths.root, self.name, self.group.place)

    # ---- saying -----------------------------------------------------------------------------------------------------

    def post(self, name: str, body: Mapping[str, object]) -> None:
        """A message of this process."""
        message = {"rank": self.group.rank, "world_size": self.group.world_size, "body": body}
        data = json.dumps(message, separators=(",", ":")).encode()
        write_document(self.host.files, self.volume, self.directory + b"/" + name.encode(), data)

    def outcome_of(self, error: BaseException) -> dict[str, object]:
        """What the coordinator lets the others know of its failure."""
        told = isinstance(error, RankMissingError | RankFailedError)
        reason = f"step {self.step} was not saved: rank 0 failed with {type(error).__name__}: {error}"
        text = str(error) if told else reason
        return {"committed": False, "missing": isinstance(error, RankMissingError), "reason": text}

    # ---- hearing ----------------------------------------------------------------------------------------------------

    def new_messages(self, kind: str, seen: set[str]) -> list[tuple[int, Any]]:
        """(rank, body) of the messages of a kind that are there and not in `seen`, which they are added to.

        Raises RankFailedError where one tells of a failure, InvalidRequestError (ranks disagree on the world size).
        """
        found = []
        for name in self._names():
            self._check_failed(name)
            rank = _rank_of(name, kind)
            if rank is not None and name not in seen:
                try:
                    found.append((rank, self._read(name, rank)))
                except UnavailableError:  # just moving to the store: the next look finds it
                    continue
                seen.add(name)
        return found

    def check_failed(self) -> None:
        """Raises RankFailedError where somebody told of a failure."""
        for name in self._names():
            self._check_failed(name)

    def _names(self) -> list[str]:
        names: list[str] = []
        after = b""
        while True:
            try:
                listed = self.volume.entries(self.directory, after, LISTED)
            except (NotFoundError, NotDirectoryError):
                return names
            names += [entry.name.decode("ascii", "replace") for entry, _ in listed]
            if len(listed) < LISTED:
                return names
            after = listed[-1][0].name

    def _read(self, name: str, rank: int) -> Any:
        message = read_json(self.volume, self.host.clock, self.directory + b"/" + name.encode())
        if not isinstance(message, dict) or not {"rank", "world_size", "body"} <= set(message):
            raise CorruptError(f"the message {name} of rank {rank} makes no sense")
        self.check_world(rank, message["world_size"])
        return message["body"]

    def check_world(self, rank: int, world_size: int) -> None:
        """Raises InvalidRequestError where another rank believes something else."""
        if world_size != self.group.world_size or rank >= world_size:
            raise InvalidRequestError(
                f"rank {rank} believes that there are {world_size} ranks, rank {self.group.rank} that there are "
                f"{self.group.world_size}"
            )

    def _check_failed(self, name: str) -> None:
        rank = _rank_of(name, "failed")
        if rank is not None:
            reason = self._read(name, rank)["reason"]
            raise RankFailedError(f"step {self.step} was not saved: rank {rank} failed with {reason}")

    def missing(self, ranks: Iterable[int], done: str) -> RankMissingError:
        """`done`: what they have not."""
        text = f"step {self.step} was not saved: of {self.group.world_size} ranks these have not {done} after"
        return RankMissingError(f"{text} {self.deadline_s:g} s: {named(ranks)}")

    def look_for(self, name: str) -> Any:
        """The body of a message of the coordinator; None while it is not there. Raises what an `outcome` that failed says."""
        outcome = self._body_or_none("outcome")
        if outcome is not None:
            raise_failure(outcome)
        return outcome if name == "outcome" else self._body_or_none(name)

    def wait_for(self, name: str) -> Any:
        """Until the coordinator has posted it. Raises RankMissingError, RankFailedError, ConflictError."""
        return self._wait(lambda: self.look_for(name))

    def wait_for_outcome(self, planned: CheckpointName) -> None:
        """Returns when the checkpoint is committed under the planned name. Raises as `wait_for`."""

        def look() -> bool | None:
            if self.look_for("outcome") is not None or self.is_committed(planned):
                return True
            self._check_going_on()
            return None

        self._wait(look)

    def is_committed(self, planned: CheckpointName) -> bool:
        """By this attempt, under that name: seen even when the coordinator died between the commit and saying so."""
        manifest = self.paths.checkpoint(planned) + b"/" + MANIFEST_NAME.encode()
        try:
            return self.volume.get_xattr(manifest, ATTEMPT_XATTR) == self.name.encode()
        except (NotFoundError, NotDirectoryError, NoAttributeError):
            return False

    def _check_going_on(self) -> None:
        """The directory of an attempt goes when another job takes the run over. Raises ConflictError."""
        try:
            self.volume.stat(self.directory)
        except (NotFoundError, NotDirectoryError):
            raise ConflictError(f"step {self.step} was not saved: another job took over this run") from None

    def _wait(self, look: Callable[[], Any]) -> Any:
        pauses = Pauses(self.host, self.deadline_s * COORDINATOR_GRACE + 1.0)
        while True:
            found = look()
            if found is not None:
                return found
            if not pauses.wait():
                raise RankMissingError(f"step {self.step} was not saved: rank 0, which coordinates, is silent")

    def _body_or_none(self, name: str) -> Any:
        try:
            return self._read(name, 0)
        except (NotFoundError, NotDirectoryError, UnavailableError):
            return None  # not yet; or it is just moving from another process's SSD to the store


def raise_failure(outcome: Mapping[str, Any]) -> None:
    """What an outcome says, if it says that there is no checkpoint. Raises RankMissingError, RankFailedError."""
    if not outcome["committed"]:
        raise (RankMissingError if outcome["missing"] else RankFailedError)(outcome["reason"])


def named(ranks: Iterable[int]) -> str:
    """The first of them, and how many more."""
    ordered = sorted(ranks)
    more = f" and {len(ordered) - NAMED_MAX} more" if len(ordered) > NAMED_MAX else ""
    return ", ".join(str(rank) for rank in ordered[:NAMED_MAX]) + more


class Pauses:
    """Growing pauses up to a deadline."""

    def __init__(self, host: Host, limit_s: float) -> None:
        self._clock = host.clock
        self._random = host.random
        self._end_s = host.clock.monotonic_s() + limit_s
        self._pause_s = PAUSE_FIRST_S

    def next_s(self) -> float:
        """How long to pause now; 0: the deadline has passed."""
        left_s = self._end_s - self._clock.monotonic_s()
        pause_s = self._pause_s * (0.75 + self._random.random() / 2)
        self._pause_s = min(PAUSE_LAST_S, self._pause_s * 1.5)
        return max(0.0, min(left_s, pause_s))

    def heard(self) -> None:
        """Something happened: more may follow soon."""
        self._pause_s = PAUSE_FIRST_S

    def wait(self) -> bool:
        """False: the deadline has passed."""
        pause_s = self.next_s()
        if not pause_s:
            return False
        self._clock.sleep(pause_s)
        return True


def _rank_of(name: str, kind: str) -> int | None:
    """Of `KIND-RRRRR` and `KIND-RRRRR-NNN`."""
    own, _, rest = name.partition("-")
    digits = rest.partition("-")[0]
    return int(digits) if own == kind and digits.isascii() and digits.isdigit() and len(digits) >= 5 else None
