"""Which rank this process is, of how many, and of which job: from arguments, an initialised process group, or the environment.

The job tells one launch from the next: ranks of the same job find each other, stragglers of an earlier one find nobody.
It comes from torchrun (run id and restart count), SLURM (job, step, restart count), or from rank 0 through the process group.
"""

import importlib
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tieredfs.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Group:
    """`job` is equal on all ranks of one launch, and different for every launch.

    `ranks`: those that this process carries, in order; `rank` is the first. `place`: ranks with the same one can talk without
    the volume, and store into the same files.
    """

    rank: int
    world_size: int
    job: str
    ranks: tuple[int, ...]
    place: str


def detect_group(
    rank: int | None = None,
    world_size: int | None = None,
    job: str | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    ranks: Sequence[int] | None = None,
    place: str = "",
) -> Group:
    """Which ranks this process carries: `ranks`, or the one that it is.

    Arguments first, then `torch.distributed` if it is initialised (then this call is a collective one), then the environment;
    a process alone otherwise. Raises ConfigurationError.
    """
    settings = os.environ if environment is None else environment
    if ranks is not None:
        if rank is not None or not ranks or sorted(set(ranks)) != list(ranks):
            raise ConfigurationError("name one rank, or several in rising order")
        rank = ranks[0]
    if (rank is None) != (world_size is None):
        raise ConfigurationError("rank and world_size come together: name both, or neither")
    if rank is None or world_size is None:
        rank, world_size, found = _process_group() or _from_environment(settings) or (0, 1, None)
        job = job or found
    carried = (rank,) if ranks is None else tuple(ranks)
    if not 0 <= rank <= carried[-1] < world_size:
        raise ConfigurationError(f"rank {carried[-1]} is not one of {world_size}: ranks count from 0")
    if job is None and world_size == len(carried):
        job = secrets.token_hex(8)
    job = job or _job_of(settings)
    if job is None:
        raise ConfigurationError(
            "several ranks need a job: job=... with a text that all ranks share and that no other launch has"
        )
    return Group(rank, world_size, job, carried, place)


def _process_group() -> tuple[int, int, str | None] | None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    distributed = importlib.import_module("torch.distributed")
    shared = [secrets.token_hex(8)]
    distributed.broadcast_object_list(shared, src=0)
    return distributed.get_rank(), distributed.get_world_size(), shared[0]


def _from_environment(settings: Mapping[str, str]) -> tuple[int, int, str | None] | None:
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in settings and world_size in settings:
            try:
                return int(settings[rank]), int(settings[world_size]), None
            except ValueError as error:
                raise ConfigurationError(f"{rank} and {world_size} must be numbers: {error}") from error
    return None


def _job_of(settings: Mapping[str, str]) -> str | None:
    if "TORCHELASTIC_RUN_ID" in settings:
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    elif "SLURM_JOB_ID" in settings:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "")
    else:
        return None
    return "/".join(settings.get(name, "") for name in names)
