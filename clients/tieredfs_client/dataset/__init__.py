"""Datasets from a gateway, for trainers: `GatewayDataset`.

    from tieredfs_client.dataset import GatewayDataset

    data = GatewayDataset("http://127.0.0.1:8800", "datasets/flights/*.parquet", batch_size=4096, shuffle="full", seed=1)
    for batch in data: ...                       # pyarrow RecordBatch; format="torch" or "numpy": dicts of tensors, arrays
    state = data.state_dict()                    # mid-epoch; exact under another world size or number of workers
    data.load_state_dict(state)

`turns` and `state` decide and are pure; `http` and `shared` fetch; `stream` reconnects; `dataset` puts them together.
"""

from tieredfs_client.dataset.dataset import GatewayDataset
from tieredfs_client.dataset.loader import GatewayLoader

__all__ = ["GatewayDataset", "GatewayLoader"]
