"""The fan-out directories of a disk: each is made when its first chunk comes, and stays.

A chunk is durable when its bytes, its name and the name of its directory are. Another process may have made that
directory a moment ago and not have synced its name yet, so each process makes sure of a directory itself, the first time
that it puts a chunk there. That one sync of `chunks` is good for all directories that were there before it: of a disk that
has them all, a process syncs once.

Safe from any thread, and from several processes on one directory.
"""

from tieredfs.chunk.directory import CHUNKS_NAME, fan_out_path
from tieredfs.host import Files
from tieredfs.model import BlockId


class FanOut:
    """Of the disk at `root`."""

    def __init__(self, root: str, files: Files) -> None:
        self._root = root
        self._chunks = f"{root}/{CHUNKS_NAME}"
        self._files = files
        self._durable: set[str] = set()

    def place(self, path: str, block: BlockId, target: str) -> None:
        """Rename `path` to `target`, in the directory of `block`; durable on return. Raises OSError."""
        directory = fan_out_path(self._root, block)
        try:
            self._files.rename(path, target)
        except FileNotFoundError:
            self._make(directory)
            self._files.rename(path, target)
        self._files.sync_directory(directory)
        if directory not in self._durable:
            self._make_durable()

    def _make(self, directory: str) -> None:
        self._files.stat_path(self._chunks)  # a mount point without its disk stays empty
        self._durable.discard(directory)
        self._files.make_directory(directory)

    def _make_durable(self) -> None:
        there = [f"{self._chunks}/{name}" for name in self._files.list_directory(self._chunks)]
        self._files.sync_directory(self._chunks)
        self._durable.update(there)
