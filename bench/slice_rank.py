"""One rank that loads its slice of every tensor of a checkpoint, as a process: `python -m bench.slice_rank SETTINGS` (JSON).

Prints how many bytes it asked of the block layer, hence of the store.
"""

import json
import sys
from contextlib import AbstractContextManager
from typing import Any

from tieredfs.block.store import BlockStore
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager, Shard


def main() -> None:
    import torch

    settings = json.loads(sys.argv[1])
    rank, world_size = settings["rank"], settings["world_size"]
    fetched = [0]
    reading = BlockStore.reading

    def counting(
        self: BlockStore, block: Any, offset: int, length: int, *rest: Any
    ) -> AbstractContextManager[memoryview]:
        fetched[0] += length
        return reading(self, block, offset, length, *rest)

    BlockStore.reading = counting  # type: ignore[assignment, method-assign]
    with (
        FileSystem.at(settings["url"], purpose="slice") as volume,
        CheckpointManager(volume, "runs/bench", rank=rank, world_size=world_size, job="slice") as manager,
    ):
        manifest = manager.catalog.manifest(manager.catalog.resolve("latest"))
        state = {}
        for tensor in manifest.tensors:
            low = tensor.shape[0] * rank // world_size
            high = tensor.shape[0] * (rank + 1) // world_size
            dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[tensor.dtype]
            state[tensor.key] = Shard(torch.zeros(high - low, dtype=dtype), tensor.shape, (low,))
        manager.load(into=state)
    sys.stdout.write(json.dumps({"fetched_bytes": fetched[0]}))


if __name__ == "__main__":
    main()
