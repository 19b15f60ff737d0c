"""Lightning's own Trainer, with checkpoints on a volume."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.filesystem.conftest import make_volume
from tieredfs_client.filesystem import TieredFileSystem
from tieredfs_client.filesystem.connections import CONNECTIONS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def lightning() -> None:
    """Loaded by the tests, for it takes seconds, and each process of a run has this file to look for tests in it."""
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[TieredFileSystem]:
    yield TieredFileSystem(meta_url=make_volume(tmp_path))
    CONNECTIONS.close_all()


def test_a_trainer_saves_prunes_and_resumes(fs: TieredFileSystem) -> None:
    from tests.lightning.line import Line, trainer

    url = fs.unstrip_protocol("runs/line")
    data = DataLoader(cast(Dataset[torch.Tensor], torch.arange(8.0).reshape(8, 1)), batch_size=4)
    model = Line()
    trainer(url, 3).fit(model, data)
    names = sorted(os.path.basename(path) for path in fs.find("runs/line"))
    assert names == ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"], "the worst was removed"
    with fs.open("runs/line/last.ckpt") as file:
        saved = torch.load(file, weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], model.layer.weight)
    again = trainer(url, 4)
    again.fit(Line(), data, ckpt_path=f"{url}/last.ckpt")
    assert again.current_epoch == 4
    assert again.global_step == 8


def test_bad_input(fs: TieredFileSystem) -> None:
    from tieredfs_client.lightning import TieredCheckpointIO

    files = pickle.loads(pickle.dumps(TieredCheckpointIO()))
    url = fs.unstrip_protocol("a.ckpt")
    files.save_checkpoint({"a": torch.ones(1)}, url)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        files.save_checkpoint({"a": torch.zeros(1000, 1000), "b": lambda: 1}, url)
    assert torch.equal(files.load_checkpoint(url)["a"], torch.ones(1)), "the old one is there"
    with pytest.raises(ValueError, match="no volume"):
        files.save_checkpoint({}, "/tmp/a.ckpt")
    with pytest.raises(TypeError, match="storage options"):
        files.save_checkpoint({}, url, storage_options={"a": 1})
    with pytest.raises(FileNotFoundError):
        files.load_checkpoint(fs.unstrip_protocol("none.ckpt"))
    files.remove_checkpoint(url)
    files.remove_checkpoint(url)
    assert not fs.exists("a.ckpt")
