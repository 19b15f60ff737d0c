"""Lightning's `CheckpointIO` on a volume: `Trainer(plugins=[TieredCheckpointIO()])`, with paths that are `tieredfs://` URLs.

    ModelCheckpoint(dirpath="tieredfs:///data/volume.db!/runs/gpt")

A checkpoint is one `torch.save` file, as Lightning's own, and readable as such through the mount. It is written straight to the
SSD (not into memory first), durable and whole when it has its name, replacing at once. Works with `lightning` and with
`pytorch_lightning`, whichever the program has imported; neither is needed until the class is asked for.
"""

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import fsspec

from tieredfs_client.filesystem.location import PROTOCOL

_BASES: Final = (
    ("lightning.fabric.plugins.io.checkpoint_io", "lightning.fabric"),
    ("lightning_fabric.plugins.io.checkpoint_io", "lightning_fabric"),
)


class _Files:
    """The three calls of a `CheckpointIO`. Any process, any thread; errors are Python's own."""

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("a TieredCheckpointIO takes no storage options: the URL says where, the volume how durable")
        torch = importlib.import_module("torch")
        with fsspec.open(_url(path), "wb") as opened:
            _save(torch, checkpoint, opened)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        torch = importlib.import_module("torch")
        with fsspec.open(_url(path), "rb") as opened:
            return torch.load(opened, map_location=map_location, weights_only=weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """A file, or a directory with all below it. What is not there is gone already."""
        files, name = fsspec.url_to_fs(_url(path))
        if files.exists(name):
            files.rm(name, recursive=True)


def _save(torch: Any, checkpoint: Mapping[str, Any], opened: Any) -> None:
    """`fsspec.open` would give the file its name when an exception leaves it, so it is discarded first."""
    try:
        torch.save(checkpoint, opened)
    except BaseException:
        opened.discard()
        raise


def _url(path: Any) -> str:
    url = str(os.fspath(path))
    if not url.startswith(f"{PROTOCOL}://"):
        raise ValueError(
            f"{url} is in no volume: {PROTOCOL}:///data/volume.db!/path, as the `dirpath` of ModelCheckpoint"
        )
    return url


@functools.cache
def _checkpoint_io() -> type:
    names = [name for name, package in _BASES if package in sys.modules]
    if not names:
        names = [name for name, package in _BASES if _importable(package)][:1]
    if not names:
        raise ImportError("TieredCheckpointIO needs lightning or pytorch_lightning")
    bases = [importlib.import_module(name).CheckpointIO for name in names]
    return type("TieredCheckpointIO", (_Files, *bases), {"__module__": __name__, "__doc__": __doc__})


def _importable(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def __getattr__(name: str) -> Any:
    if name == "TieredCheckpointIO":
        return _checkpoint_io()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
