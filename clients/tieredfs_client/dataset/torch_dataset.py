"""The dataset as torch knows one. Imported only where torch is in use."""

from typing import Any

from torch.utils.data import IterableDataset

from tieredfs_client.dataset.dataset import GatewayDataset


class TorchGatewayDataset(GatewayDataset, IterableDataset[Any]):
    """What `GatewayDataset(...)` gives when torch is imported. Use it with `DataLoader(data, batch_size=None)`."""

    def __reduce__(self) -> Any:
        return _restored, (self.__getstate__(),)


def _restored(state: dict[str, Any]) -> TorchGatewayDataset:
    made: TorchGatewayDataset = object.__new__(TorchGatewayDataset)
    made.__dict__.update(state)
    return made
