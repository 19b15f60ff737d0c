"""DCP with FSDP2 and DTensors on gloo: two ranks save, three and one load, other shardings; a rank fails, a rank is killed."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.rank_group import Ended, run_group
from tieredfs_client.dcp import TieredReader
from tieredfs_client.filesystem import TieredFileSystem

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore:torch.distributed is")]


def run_ranks(place: str, world_size: int, action: str, folder: Path) -> list[Ended]:
    rendezvous = f"{folder}.rendezvous"
    return run_group("tests.dcp.torch_ranks", world_size, folder, place, rendezvous, action, timeout_s=110)


def test_two_save_three_load_one_loads(fs: TieredFileSystem, tmp_path: Path) -> None:
    place = fs.unstrip_protocol("runs")
    saved = run_ranks(place, 2, "save", tmp_path / "first")
    assert saved[1].code == -signal.SIGKILL, saved
    assert all("failed on ranks [1]" in one.out for one in saved), saved
    assert "told of the dead" in saved[0].out, saved
    loaded = run_ranks(place, 3, "load", tmp_path / "second")
    assert [(one.code, one.out) for one in loaded] == [(0, "loaded\n")] * 3, loaded
    found: dict[str, Any] = {"t": {"rows": torch.zeros(10, 6), "columns": torch.zeros(6, 10)}}
    dcp.load(found, storage_reader=TieredReader(f"{place}/dtensors"))
    assert torch.equal(found["t"]["rows"], torch.arange(60.0).reshape(10, 6) * 2), "the last good one"
    assert torch.equal(found["t"]["columns"], torch.arange(60.0).reshape(6, 10) * 2)
    sizes = [fs.info(path)["size"] for path in fs.glob("runs/async-thread/*.safetensors")]
    assert len(sizes) == 2, "each rank wrote a file of its own"
