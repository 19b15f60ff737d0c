"""A model of one weight, and Lightning's Trainer for it, with checkpoints on a volume."""

import pytorch_lightning as pl
import torch

from tieredfs_client.lightning import TieredCheckpointIO


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
