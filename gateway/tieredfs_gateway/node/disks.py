"""The directories that a node serves, found by whose they are.

A directory is asked for its identity file at every call, by a stat: one that was unmounted, swapped or formatted anew is known
by its new identity, or by none, from then on. Safe from any thread; blocking.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tieredfs.chunk.directory import (
    IDENTITY_NAME,
    DiskIdentity,
    erase_disk,
    format_disk,
    give_to_volume,
    read_identity,
)
from tieredfs.chunk.disk import DiskStore
from tieredfs.chunk.store import StoreSpace
from tieredfs.errors import ConfigurationError, ForeignDataError, TieredError, UnavailableError
from tieredfs.host import Host

Stamp = tuple[int, int, int]
"""Device, inode and time of change of an identity file: another file has another."""


class NoSuchDiskError(Exception):
    """This node does not have that disk of that volume."""


@dataclass(frozen=True, slots=True)
class _Known:
    stamp: Stamp
    identity: DiskIdentity
    store: DiskStore


class NodeDisks:
    """`roots`: absolute paths. None has to be there, or to be a disk yet."""

    def __init__(self, roots: Sequence[str], host: Host) -> None:
        self.roots = tuple(roots)
        self._host = host
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def find(self, volume_uuid: str, disk_uuid: str) -> DiskStore:
        """Raises NoSuchDiskError."""
        wanted = DiskIdentity(volume_uuid, disk_uuid)
        with self._lock:
            known = list(self._known.items())
        for root, entry in known:
            if entry.identity == wanted and self._stamp(root) == entry.stamp:
                return entry.store
        for root in self.roots:
            found = self._look(root)
            if found is not None and found.identity == wanted:
                return found.store
        raise NoSuchDiskError(f"this node has no disk {disk_uuid} of volume {volume_uuid}")

    def _stamp(self, root: str) -> Stamp | None:
        try:
            status = self._host.files.stat_path(f"{root}/{IDENTITY_NAME}")
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns

    def _look(self, root: str) -> _Known | None:
        """What the directory is now. The store of what it was is left to calls under way, which end with its descriptors."""
        stamp = self._stamp(root)
        with self._lock:
            known = self._known.get(root)
            if known is not None and known.stamp == stamp:
                return known
            self._known.pop(root, None)
            if stamp is None:
                return None
            try:
                identity = read_identity(self._host.files, root)
                found = _Known(stamp, identity, DiskStore(root, self._host, identity))
            except TieredError:
                return None
            self._known[root] = found
            return found

    # ---- places -----------------------------------------------------------------------------------------------------

    def _check(self, path: str) -> None:
        if path not in self.roots:
            raise ConfigurationError(f"this node does not serve {path}; it serves what its --data names")

    def identity(self, path: str) -> DiskIdentity | None:
        """None: it is no disk yet. Raises ConfigurationError, CorruptError, NewerFormatError."""
        self._check(path)
        try:
            return read_identity(self._host.files, path)
        except UnavailableError:
            return None

    def format(self, path: str, identity: DiskIdentity) -> None:
        """Raises ConfigurationError, ForeignDataError, UnavailableError."""
        self._check(path)
        format_disk(self._host, path, identity)

    def give(self, path: str, identity: DiskIdentity) -> None:
        """Raises ConfigurationError, ForeignDataError (another disk is there), UnavailableError."""
        self._check(path)
        give_to_volume(self._host.files, path, identity)

    def erase(self, path: str, volume_uuid: str) -> None:
        """`volume_uuid`: whose it is; empty: nobody's. Raises ConfigurationError, ForeignDataError, UnavailableError."""
        found = self.identity(path)
        if (found.volume_uuid if found else "") != volume_uuid:
            raise ForeignDataError(f"{path} is not a disk of volume {volume_uuid}")
        if os.path.isdir(path):
            erase_disk(self._host, path)

    def problems(self) -> dict[str, str]:
        """What is wrong with which directory, by path."""
        found = {}
        for root in self.roots:
            try:
                read_identity(self._host.files, root)
            except TieredError as error:
                found[root] = str(error)
        return found

    def is_disk(self, path: str) -> bool:
        """Raises UnavailableError, CorruptError, NewerFormatError: that cannot be told."""
        try:
            self._host.files.stat_path(f"{path}/{IDENTITY_NAME}")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UnavailableError(f"{path} does not answer: {error.strerror}") from error
        read_identity(self._host.files, path)
        return True

    def space(self, path: str) -> StoreSpace:
        """Of the file system there. Raises OSError."""
        return StoreSpace(self._host.files.total_bytes(path), self._host.files.free_bytes(path))

    def close(self) -> None:
        with self._lock:
            known, self._known = self._known, {}
        for entry in known.values():
            entry.store.close()
