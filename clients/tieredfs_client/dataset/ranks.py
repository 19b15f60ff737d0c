"""Which rank of how many this process is, and which DataLoader worker of how many.

Ranks: from arguments, an initialised process group, or the environment that torchrun and SLURM make; else a process alone.
Nothing here imports torch: where it was not imported, there is no process group and no worker.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from tieredfs.errors import ConfigurationError
from tieredfs_client.dataset.turns import Place


def detect_rank(
    rank: int | None, world_size: int | None, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Raises ConfigurationError."""
    if (rank is None) != (world_size is None):
        raise ConfigurationError("rank and world_size come together: name both, or neither")
    if rank is None or world_size is None:
        settings = os.environ if environment is None else environment
        rank, world_size = _process_group() or _from_environment(settings) or (0, 1)
    Place(rank, world_size)
    return rank, world_size


def _process_group() -> tuple[int, int] | None:
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _from_environment(settings: Mapping[str, str]) -> tuple[int, int] | None:
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in settings and world_size in settings:
            try:
                return int(settings[rank]), int(settings[world_size])
            except ValueError as error:
                raise ConfigurationError(f"{rank} and {world_size} must be numbers: {error}") from error
    return None


def loader_worker() -> tuple[int, int]:
    """Number and count of the DataLoader worker that this process is; (0, 1) elsewhere."""
    data: Any = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return (info.id, info.num_workers) if info is not None else (0, 1)


def is_loader_worker() -> bool:
    data: Any = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None
