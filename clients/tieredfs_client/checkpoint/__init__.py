"""Checkpoints of many ranks, all or nothing, as ordinary files of a volume: safetensors and a JSON manifest per checkpoint.

`CheckpointManager` is the door. torch and numpy are optional: neither is imported unless the tree that is saved has them. Names are
imported when they are used, so that the command line can list its verbs without opening anything.
"""

from typing import TYPE_CHECKING, Final

from tieredfs.faces import names_of

if TYPE_CHECKING:
    from tieredfs_client.checkpoint.checkpoints import CheckpointManager, Pending
    from tieredfs_client.checkpoint.load import Loaded
    from tieredfs_client.checkpoint.retention import KeepBest
    from tieredfs_client.checkpoint.save import Saved
    from tieredfs_client.checkpoint.tree import PerRank, Shard

_HOME: Final = {
    "CheckpointManager": ".checkpoints",
    "KeepBest": ".retention",
    "Loaded": ".load",
    "Pending": ".checkpoints",
    "PerRank": ".tree",
    "Saved": ".save",
    "Shard": ".tree",
}

__all__ = ["CheckpointManager", "KeepBest", "Loaded", "Pending", "PerRank", "Saved", "Shard"]

__getattr__ = names_of(__name__, _HOME)
