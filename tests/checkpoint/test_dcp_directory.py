"""Directories that the real `torch.distributed.checkpoint` wrote, and one that wants to run something."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tieredfs.errors import CorruptError
from tieredfs_client.checkpoint.exchange import read_foreign


@pytest.mark.filterwarnings("ignore")
def saved(path: Path, state: dict[str, Any]) -> None:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)


@pytest.mark.filterwarnings("ignore")
def test_a_training_state_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 4)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "mixed": [torch.rand(3, 5).bfloat16(), {"text": "a", "number": 7}, torch.tensor(2.5)],
        "nested": [[torch.ones(2)], [torch.zeros(1), torch.ones(1)]],
    }
    saved(tmp_path / "dcp", state)
    found = read_foreign(str(tmp_path / "dcp"))
    assert torch.equal(found["model"]["weight"], model.weight)
    exp_avg = found["optimizer"]["state"]["0"]["exp_avg"]
    assert torch.equal(exp_avg, optimizer.state_dict()["state"][0]["exp_avg"])
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.001
    assert torch.equal(found["mixed"][0], state["mixed"][0])
    assert found["mixed"][1] == {"text": "a", "number": 7}
    assert found["mixed"][2] == 2.5
    assert [[float(item.sum()) for item in part] for part in found["nested"]] == [[2.0], [0.0, 1.0]]


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore")
def test_nothing_in_it_is_run(tmp_path: Path) -> None:
    saved(tmp_path / "dcp", {"t": torch.ones(2)})
    trap = tmp_path / "trap"
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(CorruptError, match="mkdir"):
        read_foreign(str(tmp_path / "dcp"))
    assert not trap.exists()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"no pickle")
    with pytest.raises(CorruptError):
        read_foreign(str(tmp_path / "dcp"))
