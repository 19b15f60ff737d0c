"""Where a volume's chunks may be, by URL: a directory, a bucket, a directory of a storage node.

The one place that knows which kind of store a URL means. What a kind needs is imported when it is used, so that a volume on
local disks loads neither an SDK nor an HTTP client.
"""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from tieredfs.chunk.directory import DiskIdentity, erase_disk, format_disk, give_to_volume, read_identity
from tieredfs.chunk.disk import open_directory
from tieredfs.chunk.store import ChunkStore
from tieredfs.config import DataUrl, DiskUrl, NodeUrl, parse_data_url
from tieredfs.errors import ConfigurationError, ForeignDataError, TieredError, UnavailableError
from tieredfs.host import Host
from tieredfs.model import Disk


class Site(Protocol):
    """A place that is a disk of a volume, or may become one. Raises UnavailableError when it does not answer."""

    def identity(self) -> DiskIdentity | None:
        """Whose it is; None: nobody's that we know. Raises CorruptError, NewerFormatError, ConfigurationError."""
        ...

    def format(self, identity: DiskIdentity) -> None:
        """Make it a disk, durably. Repeating it with the same identity is harmless. Raises ForeignDataError."""
        ...

    def erase(self) -> None:
        """Remove its chunks, then its identity. What is not ours stays."""
        ...

    def give(self, identity: DiskIdentity) -> None:
        """From now on that disk, with what it holds, is another volume's: metadata that knew it as this one's cannot open it any
        more. Raises ForeignDataError when another disk is there."""
        ...

    def open(self, identity: DiskIdentity) -> ChunkStore:
        """Its store. Raises ForeignDataError, CorruptError, NewerFormatError."""
        ...


def site_of(url: DataUrl, host: Host) -> Site:
    """Raises ConfigurationError: this kind of store needs something that is not installed or not set."""
    if isinstance(url, DiskUrl):
        return DiskSite(url.path, host)
    if isinstance(url, NodeUrl):
        from tieredfs.chunk.node import NodeSite

        return NodeSite(url, host)
    try:
        from tieredfs.chunk.bucket import BucketSite
    except ImportError as error:
        raise ConfigurationError("a bucket needs boto3: pip install 'tieredfs[bucket]'") from error
    return BucketSite(url, host)


def open_store(disk: Disk, volume_uuid: str, host: Host, elsewhere: Sequence[str] = ()) -> ChunkStore:
    """The store of a disk record. `elsewhere`: URLs of the volume's other disks, for directories change places (device names do,
    with a boot): where another disk is, ours may be there.

    Raises UnavailableError, ForeignDataError, CorruptError, NewerFormatError, ConfigurationError."""
    identity = DiskIdentity(volume_uuid, disk.uuid)
    try:
        return site_of(parse_data_url(disk.url), host).open(identity)
    except ForeignDataError:
        for url in map(parse_data_url, elsewhere):
            if isinstance(url, DiskUrl):
                with contextlib.suppress(TieredError):
                    return DiskSite(url.path, host).open(identity)
        raise


def domain_of(url: DataUrl, alone: str) -> str:
    """What fails together with a store unless the user says otherwise: the bucket, the node; a local disk `alone`."""
    return alone if isinstance(url, DiskUrl) else url.domain


class DiskSite:
    """A directory of this machine."""

    def __init__(self, root: str, host: Host) -> None:
        self._root = root
        self._host = host

    def identity(self) -> DiskIdentity | None:
        try:
            names = self._host.files.list_directory(self._root)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{self._root} cannot be a data directory: {error.strerror}") from error
        try:
            return read_identity(self._host.files, self._root) if names else None
        except UnavailableError:
            return None  # no identity: `format` refuses foreign files by name

    def format(self, identity: DiskIdentity) -> None:
        format_disk(self._host, self._root, identity)

    def erase(self) -> None:
        erase_disk(self._host, self._root)

    def give(self, identity: DiskIdentity) -> None:
        give_to_volume(self._host.files, self._root, identity)

    def open(self, identity: DiskIdentity) -> ChunkStore:
        return open_directory(self._root, identity, self._host)
