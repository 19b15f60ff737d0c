"""DCP with FSDP2 and DTensors on gloo: two ranks save, three and one load, other shardings; a rank fails, a rank is killed."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tieredfs_client.dcp import TieredReader
from tieredfs_client.filesystem import TieredFileSystem

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore:torch.distributed is")]


def run_group(place: str, world_size: int, action: str, rendezvous: Path) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.dcp.torch_ranks", place]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(rendezvous), action],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        said = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, said, strict=True)]


def test_two_save_three_load_one_loads(fs: TieredFileSystem, tmp_path: Path) -> None:
    place = fs.unstrip_protocol("runs")
    saved = run_group(place, 2, "save", tmp_path / "first")
    assert saved[1][0] == -signal.SIGKILL, saved
    assert all("failed on ranks [1]" in out for _, out, _ in saved), saved
    assert "told of the dead" in saved[0][1], saved
    loaded = run_group(place, 3, "load", tmp_path / "second")
    assert [(code, out) for code, out, _ in loaded] == [(0, "loaded\n")] * 3, loaded
    found: dict[str, Any] = {"t": {"rows": torch.zeros(10, 6), "columns": torch.zeros(6, 10)}}
    dcp.load(found, storage_reader=TieredReader(f"{place}/dtensors"))
    assert torch.equal(found["t"]["rows"], torch.arange(60.0).reshape(10, 6) * 2), "the last good one"
    assert torch.equal(found["t"]["columns"], torch.arange(60.0).reshape(6, 10) * 2)
    sizes = [fs.info(path)["size"] for path in fs.glob("runs/async-thread/*.safetensors")]
    assert len(sizes) == 2, "each rank wrote a file of its own"
