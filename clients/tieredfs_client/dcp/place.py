"""Which checkpoint of which volume a `checkpoint_id` means, and its manifest."""

import os
from dataclasses import dataclass

from tieredfs.config import parse_meta_url
from tieredfs.errors import ConfigurationError, InvalidRequestError, NotFoundError
from tieredfs.host import local_host
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint.documents import read_document, shown
from tieredfs_client.dcp.manifest import MANIFEST_NAME, Manifest, decode
from tieredfs_client.filesystem.connections import CONNECTIONS
from tieredfs_client.filesystem.location import parse


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of a volume. Crosses processes: the volume is opened where it is used."""

    meta_url: str
    path: str

    @classmethod
    def of(cls, checkpoint_id: str | os.PathLike[str], meta_url: str | None) -> "Place":
        """Raises ConfigurationError where neither says which volume, InvalidRequestError for the root."""
        location = parse(os.fspath(checkpoint_id))
        chosen = location.meta_url or meta_url
        if chosen is None:
            raise ConfigurationError(
                f"which volume is {checkpoint_id} in? tieredfs:///data/volume.db!/path, or meta_url='sqlite:///data/volume.db'"
            )
        if not location.path:
            raise InvalidRequestError(f"{checkpoint_id}: a checkpoint needs a directory of its own")
        return cls(str(parse_meta_url(chosen)), location.path)

    @property
    def volume(self) -> FileSystem:
        return CONNECTIONS.get(self.meta_url)

    def at(self, name: str) -> bytes:
        return os.fsencode(f"{self.path}/{name}")

    def manifest(self) -> Manifest:
        """Raises NotFoundError, CorruptError, NewerFormatError."""
        path = self.at(MANIFEST_NAME)
        try:
            data = read_document(self.volume, local_host().clock, path)
        except NotFoundError as error:
            raise NotFoundError(f"there is no checkpoint at {self.path}: no {shown(path)}") from error
        return decode(data, shown(path))
