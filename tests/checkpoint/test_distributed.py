"""DTensors of a real process group, saved by four ranks and loaded by three."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager

pytestmark = pytest.mark.timeout(240)


def run_group(url: str, world_size: int, action: str, rendezvous: Path) -> list[tuple[int, str]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.torch_rank", url]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(rendezvous), action],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_four_ranks_save_and_three_load(url: str, tmp_path: Path) -> None:
    saved = run_group(url, 4, "save", tmp_path / "first")
    assert [code for code, _ in saved] == [0] * 4, saved
    loaded = run_group(url, 3, "load", tmp_path / "second")
    assert [code for code, _ in loaded] == [0] * 3, loaded
    with FileSystem.at(url, purpose="test") as volume, CheckpointManager(volume, "runs/dt") as manager:
        model = manager.load()["model"]
        torch.manual_seed(7)
        assert torch.equal(model["rows"], torch.rand(10, 6))
        assert torch.equal(model["columns"], torch.rand(6, 10))
        assert torch.equal(model["same"], model["rows"])
        (summary,) = manager.checkpoints()
        assert summary.size_bytes == (60 + 60 + 7 + 60) * 4, "each byte once"
