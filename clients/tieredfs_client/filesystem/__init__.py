"""The volume for programs that speak fsspec or pyarrow: `tieredfs://` URLs, found through fsspec's entry points.

    fsspec.open("tieredfs:///data/volume.db!/runs/loss.csv", "rb")
    pandas.read_parquet("runs/loss.parquet", filesystem=arrow_filesystem("sqlite:///data/volume.db"))

Names are imported when they are used: fsspec, and pyarrow, need not be installed for the rest of the project.
"""

from typing import TYPE_CHECKING, Final

from tieredfs.faces import names_of

if TYPE_CHECKING:
    from tieredfs_client.filesystem.arrow import arrow_filesystem
    from tieredfs_client.filesystem.filesystem import TieredFileSystem

_HOME: Final = {"TieredFileSystem": ".filesystem", "arrow_filesystem": ".arrow"}

__all__ = ["TieredFileSystem", "arrow_filesystem"]

__getattr__ = names_of(__name__, _HOME)
