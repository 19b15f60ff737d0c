"""`GatewayLoader`: a DataLoader whose position is known in the main process, whatever its workers have fetched ahead.

A DataLoader asks its workers in turn, and each worker fetches every `num_workers`-th batch of the rank: so batches come in
the rank's order, and counting those that came out is the position. Its state is that of a `GatewayDataset`: another number
of workers, or ranks, or none at all, goes on from it.
"""

import importlib
from collections.abc import Generator, Mapping
from typing import Any

from tieredfs_client.dataset import ranks
from tieredfs_client.dataset.dataset import GatewayDataset


class GatewayLoader:
    """Iterates like `DataLoader(data, batch_size=None, ...)`; `options` are the DataLoader's. Needs torch."""

    def __init__(self, data: GatewayDataset, **options: Any) -> None:
        assert not ranks.is_loader_worker(), "a loader belongs into the main process"
        self._data = data
        self._options = options

    def __iter__(self) -> Generator[Any, None, None]:
        torch_data = importlib.import_module("torch.utils.data")
        loader = torch_data.DataLoader(self._data, batch_size=None, **self._options)
        if not self._options.get("num_workers"):
            yield from loader  # this process reads, so the dataset counts itself
            return
        advance = self._data.begin_counting()
        for batch in loader:
            advance(1)
            yield batch
        advance(0)

    def set_epoch(self, epoch: int) -> None:
        self._data.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self._data.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._data.load_state_dict(state)
