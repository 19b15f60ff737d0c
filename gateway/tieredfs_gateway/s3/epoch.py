"""A word that server processes of one volume share: when it changed, what they believe of configurations is out of date.

Eight bytes in a file of this host, mapped into each process, so that looking costs nothing. Whoever changes a
configuration writes a random word after the change is committed; whoever reads one takes the word before reading.
A torn word is another word, too: then it is read once more than needed.
"""

import mmap
import os
import secrets
from pathlib import Path
from typing import Final, Self

from tieredfs.volume.places import slots_directory

FILE_NAME: Final = "s3-epoch"
_WORD_BYTES: Final = 8


class Epoch:
    """Safe from any thread and any process."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _WORD_BYTES)
            self._word = mmap.mmap(descriptor, _WORD_BYTES)
        finally:
            os.close(descriptor)

    @classmethod
    def of(cls, meta_url: str, volume_uuid: str) -> Self:
        return cls(shared_directory(meta_url, volume_uuid) / FILE_NAME)

    def now(self) -> bytes:
        return self._word[:_WORD_BYTES]

    def change(self) -> None:
        self._word[:_WORD_BYTES] = secrets.token_bytes(_WORD_BYTES)


def shared_directory(meta_url: str, volume_uuid: str) -> Path:
    """Where the servers of one volume meet: in the directory of the clients' slots."""
    directory = Path(slots_directory(meta_url, volume_uuid))
    directory.mkdir(exist_ok=True)
    return directory
