"""Lightning's own Trainer, with checkpoints on a volume."""

import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.filesystem.conftest import make_volume
from tieredfs_client.filesystem import TieredFileSystem
from tieredfs_client.filesystem.connections import CONNECTIONS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    import pytorch_lightning as pl

from tieredfs_client.lightning import TieredCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore")


class Line(pl.LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss: torch.Tensor = (self.layer(batch) - 2 * batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[TieredFileSystem]:
    yield TieredFileSystem(meta_url=make_volume(tmp_path))
    CONNECTIONS.close_all()


def trainer(url: str, epochs: int) -> "pl.Trainer":
    keep = pl.callbacks.ModelCheckpoint(dirpath=url, filename="{epoch}", save_top_k=2, monitor="loss", save_last=True)
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=url,
        callbacks=[keep],
        plugins=[TieredCheckpointIO()],
    )


def test_a_trainer_saves_prunes_and_resumes(fs: TieredFileSystem) -> None:
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
