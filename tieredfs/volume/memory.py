"""How a memory ceiling is spent. Pure."""

from dataclasses import dataclass
from typing import Final

from tieredfs.errors import ConfigurationError
from tieredfs.limits import MIB, SCRATCH_BYTES, SCRATCH_COUNT
from tieredfs.model import VolumeConfig

BASE_MEMORY_BYTES: Final = 112 * MIB
"""Interpreter, libraries, database pages, tables and thread stacks of a serving process."""
DRAIN_BUFFERS_MAX: Final = 3
FILL_BUFFERS: Final = 2


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Encoded blocks in flight of the drain, and blocks in flight of fills."""

    drain_buffers: int
    fill_buffers: int


def plan_memory(ceiling_bytes: int, config: VolumeConfig) -> MemoryPlan:
    """Raises ConfigurationError when the ceiling does not hold a block each way."""
    encoded = config.block_bytes * config.code.width // config.code.data_count
    fixed = BASE_MEMORY_BYTES + SCRATCH_BYTES * SCRATCH_COUNT
    for fill_buffers in range(FILL_BUFFERS, 0, -1):
        left = ceiling_bytes - fixed - fill_buffers * config.block_bytes
        if left >= encoded:
            return MemoryPlan(min(DRAIN_BUFFERS_MAX, left // encoded), fill_buffers)
    needed = fixed + config.block_bytes + encoded
    raise ConfigurationError(
        f"a memory ceiling of {ceiling_bytes // MIB} MiB is too little for blocks of {config.block_bytes // MIB} MiB "
        f"with {config.code}: at least {-(-needed // MIB)} MiB (--memory)"
    )
