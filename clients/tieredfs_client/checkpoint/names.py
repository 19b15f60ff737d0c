"""Where things are in a run's directory, and which names mean what. Pure.

    RUN/step-000000001000/      a checkpoint: data files and `manifest.json`; `step-000000001000.g2` replaced it, and counts
    RUN/latest                  the name of the newest checkpoint, for other tools; our own readers look at the directory
    RUN/.owner                  who saves into this run now
    RUN/.attempts/STEP-JOB-N/   a save under way: messages between ranks, and `data`, which becomes the checkpoint by one rename
    RUN/.tags/NAME              a tag: the name of a checkpoint
    RUN/.leases/CHECKPOINT-X    somebody is reading that checkpoint; its ctime is their heartbeat
    RUN/.trash/X                a checkpoint that was deleted, being removed

A step that is saved again gets the next generation, beside the old one: whoever looks sees one of them, never neither.
"""

import hashlib
import operator
import re
from dataclasses import dataclass
from typing import Final, SupportsIndex

from tieredfs.errors import InvalidRequestError
from tieredfs.limits import NAME_BYTES_MAX

STEP_MAX: Final = 10**12 - 1
_CHECKPOINT: Final = re.compile(rb"step-([0-9]{12})(?:\.g([1-9][0-9]{0,8}))?")
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class CheckpointName:
    """Of a checkpoint's directory; ordered by step, then generation."""

    step: int
    generation: int = 1

    def __str__(self) -> str:
        return f"step-{self.step:012d}" + (f".g{self.generation}" if self.generation > 1 else "")

    def encode(self) -> bytes:
        return str(self).encode()

    def next_generation(self) -> "CheckpointName":
        return CheckpointName(self.step, self.generation + 1)


def parse_checkpoint(name: bytes) -> CheckpointName | None:
    """None: the name is not a checkpoint's."""
    match = _CHECKPOINT.fullmatch(name)
    return CheckpointName(int(match[1]), int(match[2] or 1)) if match else None


def check_step(step: SupportsIndex) -> int:
    """Any whole number, numpy's and torch's, too."""
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidRequestError(f"a step is a whole number, not {step!r}") from None
    if not 0 <= number <= STEP_MAX:
        raise InvalidRequestError(f"step {number} is not between 0 and {STEP_MAX}")
    return number


def check_new_tag(tag: str) -> str:
    """One that can be told from a step wherever a checkpoint is named, on the command line, too."""
    if tag.isdigit():
        raise InvalidRequestError(f"{tag!r} is no tag: it would be taken for a step")
    return check_tag(tag)


def check_tag(tag: str) -> str:
    if _TAG.fullmatch(tag) is None or tag == "latest" or parse_checkpoint(tag.encode()):
        raise InvalidRequestError(f"{tag!r} is no tag: up to 100 of A-Z a-z 0-9 . _ -, and neither `latest` nor a step")
    return tag


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths below one run's directory."""

    root: bytes

    @classmethod
    def of(cls, run: str) -> "RunPaths":
        parts = [part for part in run.encode("utf-8", "surrogateescape").split(b"/") if part]
        unsafe = [part for part in parts if part in (b".", b"..") or b"\0" in part or len(part) > NAME_BYTES_MAX]
        if not parts or unsafe:
            raise InvalidRequestError(f"{run!r} is no run: name a directory of the volume, as runs/gpt")
        return cls(b"/".join(parts))

    def at(self, *parts: bytes) -> bytes:
        return b"/".join((self.root, *parts))

    def checkpoint(self, name: CheckpointName) -> bytes:
        return self.at(name.encode())

    @property
    def latest(self) -> bytes:
        return self.at(b"latest")

    @property
    def owner(self) -> bytes:
        return self.at(b".owner")

    @property
    def attempts(self) -> bytes:
        return self.at(b".attempts")

    @property
    def tags(self) -> bytes:
        return self.at(b".tags")

    @property
    def leases(self) -> bytes:
        return self.at(b".leases")

    @property
    def trash(self) -> bytes:
        return self.at(b".trash")


def attempt_name(step: int, job: str, sequence: int) -> str:
    """The same on all ranks of a job, another for every job and every save of it: so a straggler of an earlier attempt
    writes where nobody looks any more."""
    digest = hashlib.sha256(job.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{step:012d}-{digest}-{sequence:06d}"
