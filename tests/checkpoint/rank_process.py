"""One rank as a process of its own: `python -m tests.checkpoint.rank_process SETTINGS`, a JSON document.

Prints one JSON line per step: how it went. Which bytes it saves follows from step and rank alone (`state_of`).
"""

import json
import sys
from typing import Any

import numpy as np

from tieredfs.errors import TieredError
from tieredfs_client.checkpoint import CheckpointManager, Shard

ROWS = 24


def state_of(step: int, rank: int, world_size: int, *, weights: bool = False) -> dict[str, Any]:
    """A tensor that all have, one that they share in uneven pieces, one of each rank's own, and numbers. `weights`: and one of
    each rank's own that shrinks when it is packed."""
    rng = np.random.default_rng(step)
    weight = rng.random((64, 32), dtype=np.float32)
    whole = rng.random((ROWS, 8))
    low, high = ROWS * rank // world_size, ROWS * (rank + 1) // world_size
    frozen = np.random.default_rng(0).random(1 << 20)
    more = {"own": np.random.default_rng((step, rank)).standard_normal(60_000, np.float32)} if weights else {}
    return {
        **more,
        "model": {"weight": weight, "frozen": frozen, "table": Shard(whole[low:high].copy(), whole.shape, (low, 0))},
        "rng": np.random.default_rng((step, rank)).integers(0, 255, 100, dtype=np.uint8),
        "step": step,
        "rank": rank,
    }


def main() -> None:
    settings = json.loads(sys.argv[1])
    rank, world_size = settings["rank"], settings["world_size"]
    manager = CheckpointManager(
        settings["url"],
        "runs/r",
        rank=rank,
        world_size=world_size,
        job=settings["job"],
        deadline_s=settings["deadline_s"],
        keep_last=settings.get("keep_last"),
        place=settings.get("place"),
        compression=settings.get("compression", "none"),
    )
    for step in settings["steps"]:
        report: dict[str, object] = {"step": step}
        try:
            saved = manager.save(step, state_of(step, rank, world_size, weights="compression" in settings))
            report["written"], report["reused"] = saved.written_bytes, saved.reused_bytes
            report["stored"] = saved.stored_bytes
        except TieredError as error:
            report["error"], report["text"] = type(error).__name__, str(error)
        print(json.dumps(report), flush=True)  # noqa: T201 - how the test hears of it
    if settings.get("waits"):
        sys.stdin.readline()
    manager.close()


if __name__ == "__main__":
    main()
