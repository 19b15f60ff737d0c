"""Whose turn it is, among the server processes of one volume, to do what needs doing once: passing over lifecycle rules.

A lock on a file beside the metadata file. It ends with its process, however that ends, and the next one to ask has it.
"""

import fcntl
import os
from pathlib import Path
from typing import Final, Self

from tieredfs_gateway.s3.epoch import shared_directory

FILE_NAME: Final = "s3-sweep"


class Turn:
    """For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @classmethod
    def of(cls, meta_url: str) -> Self:
        return cls(shared_directory(meta_url) / FILE_NAME)

    def take(self) -> bool:
        """Whether it is ours; then it stays ours until `close`, or the end of the process. Does not wait."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)
