"""DTensors of a real process group, saved by four ranks and loaded by three."""

from pathlib import Path

import pytest
import torch

from tests.rank_group import run_group
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager

pytestmark = pytest.mark.timeout(240)

RANK = "tests.checkpoint.torch_rank"


def test_four_ranks_save_and_three_load(url: str, tmp_path: Path) -> None:
    for world_size, action in ((4, "save"), (3, "load")):
        rendezvous = str(tmp_path / f"{action}.rendezvous")
        ended = run_group(RANK, world_size, tmp_path / action, url, rendezvous, action, timeout_s=100)
        assert [one.code for one in ended] == [0] * world_size, ended
    with FileSystem.at(url, purpose="test") as volume, CheckpointManager(volume, "runs/dt") as manager:
        model = manager.load()["model"]
        torch.manual_seed(7)
        assert torch.equal(model["rows"], torch.rand(10, 6))
        assert torch.equal(model["columns"], torch.rand(6, 10))
        assert torch.equal(model["same"], model["rows"])
        (summary,) = manager.checkpoints()
        assert summary.size_bytes == (60 + 60 + 7 + 60) * 4, "each byte once"
