"""One attempt of all ranks to save one step: how they find each other and agree, through files in the attempt's directory.

There is no server: a message is a small file, committed whole; whoever waits looks for it with growing pauses, up to a
deadline. Rank 0 coordinates. In order:

    rank r > 0   posts `intent-r`: its tree and what tensors it has
    rank 0       gathers the intents, plans who writes what, posts `plan`
    every rank   writes its share below `data`; rank r > 0 posts `part-r`
    rank 0       gathers the parts, writes the manifest, renames `data` to the checkpoint: that is the commit
    rank 0       posts `outcome`

Whoever fails posts `failed-r` (rank 0: an `outcome`), so the others fail at once and not at the deadline. The directory's name
has the job and the number of the save (`names.attempt_name`): a straggler of another attempt is not seen here, and a
directory that was renamed away takes nothing more.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
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
from tieredfs.volume.filesystem import FileSystemContract
from tieredfs_client.checkpoint.documents import read_json, write_document
from tieredfs_client.checkpoint.group import Group
from tieredfs_client.checkpoint.layout import MANIFEST_NAME
from tieredfs_client.checkpoint.names import CheckpointName, RunPaths, attempt_name

PAUSE_FIRST_S: Final = 0.002
PAUSE_LAST_S: Final = 0.25
LISTED: Final = 1000
COORDINATOR_GRACE: Final = 1.25
"""The others wait this much longer than rank 0 does, to hear from it who was missing."""
NAMED_MAX: Final = 16
ATTEMPT_XATTR: Final = b"user.tieredfs.attempt"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The view of one rank. Used by one thread at a time."""

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

    # ---- saying -----------------------------------------------------------------------------------------------------

    def post(self, kind: str, body: Mapping[str, object]) -> None:
        """A message of this rank."""
        own = kind if kind in ("plan", "outcome") else f"{kind}-{self.group.rank:05d}"
        message = {"rank": self.group.rank, "world_size": self.group.world_size, "body": body}
        data = json.dumps(message, separators=(",", ":")).encode()
        write_document(self.host.files, self.volume, self.directory + b"/" + own.encode(), data)

    def post_failure(self, error: BaseException) -> None:
        """Tell the others why there will be no checkpoint."""
        reason = f"{type(error).__name__}: {error}"
        if self.group.rank != 0:
            self.post("failed", {"reason": reason})
            return
        told = isinstance(error, RankMissingError | RankFailedError)
        text = str(error) if told else f"step {self.step} was not saved: rank 0 failed with {reason}"
        self.post("outcome", {"committed": None, "missing": isinstance(error, RankMissingError), "reason": text})

    # ---- hearing, as rank 0 -----------------------------------------------------------------------------------------

    def gather(self, kind: str) -> list[Any]:
        """The bodies of all ranks' messages of a kind, by rank, rank 0's own missing (None).

        Raises RankMissingError, RankFailedError, InvalidRequestError (ranks disagree on the world size).
        """
        bodies: dict[int, Any] = {0: None}
        pauses = _Pauses(self.host, self.deadline_s)
        while True:
            for name in self._names():
                self._check_failed(name)
                rank = _rank_of(name, kind)
                if rank is not None and rank not in bodies:
                    with contextlib.suppress(UnavailableError):  # just moving to the store: the next look finds it
                        bodies[rank] = self._read(name, rank)
            if len(bodies) == self.group.world_size:
                return [bodies[rank] for rank in range(self.group.world_size)]
            if not pauses.wait():
                raise self._missing(set(range(self.group.world_size)) - set(bodies), kind)

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
        if message["world_size"] != self.group.world_size or rank >= self.group.world_size:
            raise InvalidRequestError(
                f"rank {rank} believes that there are {message['world_size']} ranks, rank {self.group.rank} that there are "
                f"{self.group.world_size}"
            )
        return message["body"]

    def _check_failed(self, name: str) -> None:
        rank = _rank_of(name, "failed")
        if rank is not None:
            reason = self._read(name, rank)["reason"]
            raise RankFailedError(f"step {self.step} was not saved: rank {rank} failed with {reason}")

    def _missing(self, ranks: set[int], kind: str) -> RankMissingError:
        named = ", ".join(str(rank) for rank in sorted(ranks)[:NAMED_MAX])
        more = f" and {len(ranks) - NAMED_MAX} more" if len(ranks) > NAMED_MAX else ""
        when = "arrived" if kind == "intent" else "stored its part"
        text = f"step {self.step} was not saved: of {self.group.world_size} ranks these have not {when} after"
        return RankMissingError(f"{text} {self.deadline_s:g} s: {named}{more}")

    # ---- hearing, as another rank -----------------------------------------------------------------------------------

    def wait_for_plan(self) -> Any:
        """Raises RankMissingError (of rank 0), RankFailedError, ConflictError."""
        return self._wait(lambda: self._body_or_none("plan"))

    def wait_for_outcome(self, planned: CheckpointName) -> None:
        """Returns when the checkpoint is committed under the planned name. Raises as `wait_for_plan`."""
        self._wait(lambda: self._is_committed(planned) or None)

    def _is_committed(self, planned: CheckpointName) -> bool:
        """Said by rank 0; or seen, when rank 0 died between the commit and saying so."""
        if self._body_or_none("outcome") is not None:
            return True
        manifest = self.paths.checkpoint(planned) + b"/" + MANIFEST_NAME.encode()
        try:
            if self.volume.get_xattr(manifest, ATTEMPT_XATTR) == self.name.encode():
                return True
        except (NotFoundError, NotDirectoryError, NoAttributeError):
            pass
        self._check_going_on()
        return False

    def _check_going_on(self) -> None:
        """The directory of an attempt goes when another job takes the run over. Raises ConflictError."""
        try:
            self.volume.stat(self.directory)
        except (NotFoundError, NotDirectoryError):
            raise ConflictError(f"step {self.step} was not saved: another job took over this run") from None

    def _wait(self, look: Callable[[], Any]) -> Any:
        pauses = _Pauses(self.host, self.deadline_s * COORDINATOR_GRACE + 1.0)
        while True:
            outcome = self._body_or_none("outcome")
            if outcome is not None and outcome["committed"] is None:
                raise (RankMissingError if outcome["missing"] else RankFailedError)(outcome["reason"])
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


class _Pauses:
    """Growing pauses up to a deadline."""

    def __init__(self, host: Host, limit_s: float) -> None:
        self._clock = host.clock
        self._random = host.random
        self._end_s = host.clock.monotonic_s() + limit_s
        self._pause_s = PAUSE_FIRST_S

    def wait(self) -> bool:
        """False: the deadline has passed."""
        left_s = self._end_s - self._clock.monotonic_s()
        if left_s <= 0:
            return False
        self._clock.sleep(min(left_s, self._pause_s * (0.75 + self._random.random() / 2)))
        self._pause_s = min(PAUSE_LAST_S, self._pause_s * 1.5)
        return True


def _rank_of(name: str, kind: str) -> int | None:
    digits = name.removeprefix(f"{kind}-")
    return int(digits) if digits != name and digits.isdigit() and len(digits) >= 5 else None
