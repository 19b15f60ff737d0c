"""Which checkpoints are kept: a pure decision.

A checkpoint stays if any rule keeps it: it is one of the last `keep_last`, its step is a multiple of `keep_every`, it is one of
the best `keep_best.count` by a metric, or it has a tag. The newest always stays. Without any rule nothing is ever deleted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tieredfs.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class KeepBest:
    """The `count` checkpoints with the best `metric`; one without it, or whose value is no number, is never among them."""

    metric: str
    count: int = 1
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, slots=True)
class Retention:
    """`None`: the rule keeps nothing by itself."""

    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: KeepBest | None = None

    def __post_init__(self) -> None:
        counts = (self.keep_last, self.keep_every, self.keep_best.count if self.keep_best else None)
        if any(count is not None and count < 1 for count in counts):
            raise InvalidRequestError("keep_last, keep_every and keep_best count from 1")
        if self.keep_best is not None and self.keep_best.mode not in ("min", "max"):
            raise InvalidRequestError(f"the best is the `min` or the `max`, not the {self.keep_best.mode!r}")

    @property
    def deletes(self) -> bool:
        return self.keep_last is not None or self.keep_every is not None or self.keep_best is not None


def to_delete(
    retention: Retention, steps: Sequence[int], tagged: set[int], metrics: Mapping[int, Mapping[str, float]]
) -> list[int]:
    """Steps that no rule keeps, oldest first. `metrics`: needed only with `keep_best`."""
    if not retention.deletes or not steps:
        return []
    ordered = sorted(steps)
    kept = {ordered[-1]} | tagged
    kept.update(ordered[-retention.keep_last :] if retention.keep_last else ())
    kept.update(step for step in ordered if retention.keep_every and step % retention.keep_every == 0)
    kept.update(_best(retention.keep_best, ordered, metrics) if retention.keep_best else ())
    return [step for step in ordered if step not in kept]


def _best(rule: KeepBest, steps: Sequence[int], metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
    sign = 1.0 if rule.mode == "min" else -1.0
    rated = [(sign * metrics.get(step, {}).get(rule.metric, math.nan), -step) for step in steps]
    return [-step for value, step in sorted(one for one in rated if not math.isnan(one[0]))[: rule.count]]
