"""The volume as pyarrow has file systems, for `pyarrow.dataset` and `pyarrow.parquet`."""

import importlib
from typing import Any

from tieredfs_client.filesystem.filesystem import TieredFileSystem


def arrow_filesystem(meta_url: str) -> Any:
    """A `pyarrow.fs.PyFileSystem` over the volume. Paths are those in the volume: `runs/part-0.parquet`."""
    arrow = importlib.import_module("pyarrow.fs")
    return arrow.PyFileSystem(arrow.FSSpecHandler(TieredFileSystem(meta_url=meta_url)))
