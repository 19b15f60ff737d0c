"""One rank of DCP on gloo, as `tests.rank_group` starts it.

`save` makes every kind of save once, in one group of processes, for each takes seconds to start; the last one kills rank 1.
"""

import os
import signal
import sys
import time
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo  # DTensors would load it in each rank, a second of processor time: before the ranks part
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tieredfs_client.dcp import TieredReader, TieredWriter


def trained(mesh: Any, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose weights depend on the number of steps (and, in the last bits, of ranks), sharded by FSDP2."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(10, 13), nn.ReLU(), nn.Linear(13, 4))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(torch.ones(4, 10)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def tensors(mesh: Any, scale: float) -> dict[str, Any]:
    """Rows, columns, an uneven one, and one that all ranks have."""
    rows, columns, odd = torch.arange(60.0).reshape(10, 6), torch.arange(60.0).reshape(6, 10), torch.arange(7.0)
    return {
        "rows": distribute_tensor(rows * scale, mesh, [Shard(0)]),
        "columns": distribute_tensor(columns * scale, mesh, [Shard(1)]),
        "odd": distribute_tensor(odd * scale, mesh, [Shard(0)]),
        "same": distribute_tensor(rows * scale, mesh, [Replicate()]),
    }


def turned(mesh: Any) -> dict[str, Any]:
    """The same names and shapes as `tensors`, sharded over the other dimension."""
    return {
        "rows": distribute_tensor(torch.zeros(10, 6), mesh, [Shard(1)]),
        "columns": distribute_tensor(torch.zeros(6, 10), mesh, [Shard(0)]),
        "odd": distribute_tensor(torch.zeros(7), mesh, [Replicate()]),
        "same": distribute_tensor(torch.zeros(10, 6), mesh, [Shard(0)]),
    }


class Dying(DefaultSavePlanner):
    """On rank 1: raises, or kills the process, when its second tensor is wanted."""

    def __init__(self, kill: bool) -> None:
        super().__init__()
        self.kill = kill
        self.given = 0

    def resolve_data(self, write_item: Any) -> Any:
        self.given += 1
        if dist.get_rank() == 1 and self.given > 1:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("rank 1 has had enough")
        return super().resolve_data(write_item)


def tell(text: str) -> None:
    """On standard output, with a time on standard error."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    sys.stderr.write(f"{text} at {time.monotonic():.1f} s\n")


def save_all(place: str, mesh: Any) -> None:
    model, optimizer = trained(mesh, 3)
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments, "step": 3}
    dcp.save(state, storage_writer=TieredWriter(f"{place}/fsdp"))
    dcp.save({"t": tensors(mesh, 1.0)}, storage_writer=TieredWriter(f"{place}/dtensors"))
    dcp.save({"t": tensors(mesh, 2.0)}, storage_writer=TieredWriter(f"{place}/dtensors"))
    dcp.save({"t": tensors(mesh, 1.0)}, checkpoint_id=f"{place}/plain")
    for kind in AsyncCheckpointerType:
        writer = TieredWriter(f"{place}/async-{kind.value}")
        pending = dcp.async_save({"t": tensors(mesh, 3.0)}, storage_writer=writer, async_checkpointer_type=kind)
        assert isinstance(pending, Future)
        pending.result()
    try:
        dcp.save({"t": tensors(mesh, 9.0)}, storage_writer=TieredWriter(f"{place}/dtensors"), planner=Dying(kill=False))
    except CheckpointException as error:
        tell(f"failed on ranks {list(error.failures)}")
    dist.barrier()
    try:
        dcp.save({"t": tensors(mesh, 9.0)}, storage_writer=TieredWriter(f"{place}/dtensors"), planner=Dying(kill=True))
    except BaseException as error:  # what gloo says of a peer that is gone differs  # noqa: BLE001
        tell(f"told of the dead: {type(error).__name__}")


def load_all(place: str, mesh: Any) -> None:
    model, optimizer = trained(mesh, 1)
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments, "step": 0}
    dcp.load(state, storage_reader=TieredReader(f"{place}/fsdp"))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    expected, its_optimizer = trained(mesh, 3)
    assert state["step"] == 3
    for (name, one), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.allclose(one.full_tensor(), other.full_tensor()), name  # type: ignore[attr-defined]
    for one, other in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert torch.allclose(one["exp_avg"].full_tensor(), other["exp_avg"].full_tensor())
    for name, scale in (("dtensors", 2.0), ("async-thread", 3.0), ("async-process", 3.0)):
        found = {"t": turned(mesh)}
        dcp.load(found, storage_reader=TieredReader(f"{place}/{name}"))
        for key, whole in tensors(mesh, scale).items():
            assert torch.equal(found["t"][key].full_tensor(), whole.full_tensor()), (name, key)
    found = {"t": turned(mesh)}
    dcp.load(found, checkpoint_id=f"{place}/plain")
    assert torch.equal(found["t"]["rows"].full_tensor(), torch.arange(60.0).reshape(10, 6))
    tell("loaded")


def main(rank: int, world_size: int, place: str, rendezvous: str, action: str) -> None:
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # for the processes that async_save starts
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size, timeout=timeout)
    mesh = init_device_mesh("cpu", (world_size,))
    if action == "save":
        save_all(place, mesh)
        return
    load_all(place, mesh)
    dist.destroy_process_group()
