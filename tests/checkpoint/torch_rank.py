"""One rank with a gloo process group and real DTensors, as `tests.rank_group` starts it."""

from typing import Any

import torch
import torch._dynamo  # DTensors would load it in each rank, a second of processor time: before the ranks part
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor import Shard as ShardOver

from tieredfs_client.checkpoint import CheckpointManager


def tensors(mesh: Any, filled: bool) -> dict[str, Any]:
    torch.manual_seed(7)
    rows, columns, odd = torch.rand(10, 6), torch.rand(6, 10), torch.rand(7)
    whole = {"rows": (rows, 0), "columns": (columns, 1), "odd": (odd, 0)}
    made = {
        key: distribute_tensor(tensor if filled else tensor * 0, mesh, [ShardOver(axis)])
        for key, (tensor, axis) in whole.items()
    }
    made["same"] = distribute_tensor(rows if filled else rows * 0, mesh, [Replicate()])
    return made


def main(rank: int, world_size: int, url: str, rendezvous: str, action: str) -> None:
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    with CheckpointManager(url, "runs/dt", deadline_s=60) as manager:
        assert (manager.group.rank, manager.group.world_size) == (rank, world_size)
        if action == "save":
            manager.save(1, {"model": tensors(mesh, True), "rank": rank})
        else:
            state: dict[str, Any] = {"model": tensors(mesh, False), "rank": None}
            manager.load(into=state)
            expected = tensors(mesh, True)
            assert all(torch.equal(state["model"][key].full_tensor(), expected[key].full_tensor()) for key in expected)
        dist.barrier()
    dist.destroy_process_group()
