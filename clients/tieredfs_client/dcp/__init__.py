"""`torch.distributed.checkpoint` on a volume: a `StorageWriter` and a `StorageReader` of our own.

    writer = TieredWriter("tieredfs:///data/volume.db!/runs/gpt/step-100")
    dcp.save(state, storage_writer=writer)
    dcp.load(state, storage_reader=TieredReader("tieredfs:///data/volume.db!/runs/gpt/step-100"))

Names are imported when they are used: torch need not be installed for the rest of the project.
"""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tieredfs_client.dcp.reader import TieredReader
    from tieredfs_client.dcp.writer import TieredWriter

_HOME: Final = {"TieredReader": "reader", "TieredWriter": "writer"}

__all__ = ["TieredReader", "TieredWriter"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
