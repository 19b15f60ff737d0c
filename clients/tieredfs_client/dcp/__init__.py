"""`torch.distributed.checkpoint` on a volume: a `StorageWriter` and a `StorageReader` of our own.

    writer = TieredWriter("tieredfs:///data/volume.db!/runs/gpt/step-100")
    dcp.save(state, storage_writer=writer)
    dcp.load(state, storage_reader=TieredReader("tieredfs:///data/volume.db!/runs/gpt/step-100"))

Names are imported when they are used: torch need not be installed for the rest of the project.
"""

from typing import TYPE_CHECKING, Final

from tieredfs.faces import names_of

if TYPE_CHECKING:
    from tieredfs_client.dcp.reader import TieredReader
    from tieredfs_client.dcp.writer import TieredWriter

_HOME: Final = {"TieredReader": ".reader", "TieredWriter": ".writer"}

__all__ = ["TieredReader", "TieredWriter"]

__getattr__ = names_of(__name__, _HOME)
