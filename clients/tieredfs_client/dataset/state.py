"""The state of a dataset in the middle of an epoch: a dict of texts and numbers, part of any checkpoint. Pure.

It says *where* (epoch, and the batches that all ranks together have consumed) and *in what* (a digest of dataset version,
selection, order and batch size, with their values in clear to say what differs). World size and workers are no part of it,
but for `worker`: the state of one DataLoader worker, which torchdata's StatefulDataLoader collects and gives back to the
worker of the same number.

`check` is a digest of the rest: a state that was cut, mixed or edited is refused. It is no signature, for a state grants
nothing: what may be read is for the gateway's tokens to say.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tieredfs.errors import StateMismatchError

KIND: Final = "tieredfs-dataset"
FORMAT: Final = 1
NUMBER_MAX: Final = 1 << 62
_KEYS: Final = {"kind", "format", "epoch", "batches", "reads", "check"}
_WORKER_KEYS: Final = {"worker", "worker_count", "turns", "rank", "world_size"}


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker took `turns` batches of its own, from the position of the state on."""

    worker: int
    worker_count: int
    turns: int
    rank: int
    world_size: int


@dataclass(frozen=True, slots=True)
class State:
    """`reads`: what a batch of this epoch depends on, by name, as texts."""

    epoch: int
    batches: int
    reads: Mapping[str, str]
    worker: WorkerState | None = None


def encode(state: State) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "epoch": state.epoch,
        "batches": state.batches,
        "reads": dict(state.reads),
    }
    if state.worker is not None:
        one = state.worker
        document["worker"] = {
            "worker": one.worker,
            "worker_count": one.worker_count,
            "turns": one.turns,
            "rank": one.rank,
            "world_size": one.world_size,
        }
    return document | {"check": _digest(document)}


def decode(document: object) -> State:
    """Raises StateMismatchError for anything that `encode` did not make."""
    if not isinstance(document, Mapping) or document.get("kind") != KIND:
        raise StateMismatchError("this is no state of a TieredFS dataset")
    if document.get("format") != FORMAT:
        raise StateMismatchError(f"the state has format {document.get('format')!r}; this version knows {FORMAT}")
    plain = {str(key): value for key, value in document.items()}
    if plain.keys() - {"worker"} != _KEYS:
        raise StateMismatchError(f"the state has the keys {sorted(plain)}; it should have {sorted(_KEYS)}")
    check = plain.pop("check")
    reads = plain["reads"]
    if not isinstance(reads, Mapping) or not all(isinstance(one, str) for pair in reads.items() for one in pair):
        raise StateMismatchError("the state does not say what it is the state of")
    plain["reads"] = dict(reads)
    worker = _worker(plain)
    epoch, batches = _number(plain, "epoch"), _number(plain, "batches")
    if check != _digest(plain):
        raise StateMismatchError("the state was changed since it was made: its check does not fit")
    return State(epoch, batches, plain["reads"], worker)


def _worker(plain: dict[str, Any]) -> WorkerState | None:
    if "worker" not in plain:
        return None
    document = plain["worker"]
    if not isinstance(document, Mapping) or set(document) != _WORKER_KEYS:
        raise StateMismatchError("the state of a worker is incomplete")
    plain["worker"] = dict(document)
    return WorkerState(**{name: _number(plain["worker"], name) for name in sorted(_WORKER_KEYS)})


def _number(document: Mapping[str, Any], name: str) -> int:
    value = document[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < NUMBER_MAX:
        raise StateMismatchError(f"the state's {name} is {value!r}: no number from 0 on")
    return value


def check_fits(state: State, reads: Mapping[str, str]) -> None:
    """Raises StateMismatchError, naming what differs."""
    differing = [
        f"{name}: {state.reads.get(name, '-')} in the state, {reads.get(name, '-')} here"
        for name in sorted(state.reads.keys() | reads.keys())
        if state.reads.get(name) != reads.get(name)
    ]
    if differing:
        raise StateMismatchError("the state is of another sequence of batches: " + "; ".join(differing))


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
