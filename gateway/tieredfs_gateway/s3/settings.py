"""What is set for a bucket, kept with its directory: an extended attribute for each kind of configuration.

So it appears, moves and disappears with the bucket, atomically. Whoever may change the attributes of the directory
through the mount may change it, and could read every object anyway. `get` reads what is set now. `believed` is what every
request is judged by: what was set through any server of the volume (`epoch`) at once, and through the mount within a second.
"""

import threading
from typing import Final

from tieredfs.errors import NoAttributeError, NotDirectoryError, NotFoundError
from tieredfs.host import Clock
from tieredfs.volume.contract import FileSystemContract
from tieredfs_gateway.s3.bucket_rules import JUDGED, VERSIONING, Believed, parse_state, read_believed
from tieredfs_gateway.s3.epoch import Epoch
from tieredfs_gateway.s3.versions import Versioning

_BELIEVED_S: Final = 1.0
_CACHED_MAX: Final = 4096


class Settings:
    """The configurations of one volume's buckets. Safe from any thread; all but `known` may do I/O."""

    def __init__(self, volume: FileSystemContract, clock: Clock, epoch: Epoch | None) -> None:
        """`epoch` None: other processes see a change within a second."""
        self._volume = volume
        self._clock = clock
        self._epoch = epoch
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[bytes, float, Believed]] = {}
        self._changes = 0

    def get(self, bucket: bytes, name: bytes) -> bytes | None:
        try:
            return self._volume.get_xattr(bucket, name)
        except (NoAttributeError, NotFoundError, NotDirectoryError):
            return None

    def put(self, bucket: bytes, name: bytes, value: bytes) -> None:
        self._volume.set_xattr(bucket, name, value)
        self._volume.sync_names()
        self._forget(bucket)

    def remove(self, bucket: bytes, name: bytes) -> None:
        """What is not set is removed already."""
        try:
            self._volume.remove_xattr(bucket, name)
            self._volume.sync_names()
        except NoAttributeError:
            return
        finally:
            self._forget(bucket)

    def versioning(self, bucket: bytes) -> Versioning:
        return parse_state(self.get(bucket, VERSIONING))

    def _forget(self, bucket: bytes) -> None:
        with self._lock:
            self._changes += 1
            self._known.pop(bucket, None)
        if self._epoch is not None:
            self._epoch.change()

    def _word(self) -> bytes:
        return self._epoch.now() if self._epoch is not None else b""

    # ---- what requests are judged by --------------------------------------------------------------------------------

    def known(self, bucket: bytes) -> Believed | None:
        """From memory, if nothing was changed since. No I/O."""
        cached = self._known.get(bucket)
        if cached is None or cached[0] != self._word() or self._clock.monotonic_s() - cached[1] >= _BELIEVED_S:
            return None
        return cached[2]

    def now(self, bucket: bytes) -> Believed:
        known = self.known(bucket)
        return known if known is not None else self.believed(bucket)

    def believed(self, bucket: bytes) -> Believed:
        word, at_s, changes = self._word(), self._clock.monotonic_s(), self._changes
        found = self._read(bucket)
        with self._lock:
            if len(self._known) >= _CACHED_MAX:
                self._known.clear()
            if self._changes == changes:  # else what was read may be what was changed
                self._known[bucket] = (word, at_s, found)
        return found

    def _read(self, bucket: bytes) -> Believed:
        try:
            names = set(self._volume.list_xattrs(bucket))
        except (NotFoundError, NotDirectoryError):
            return Believed()
        raw = {name: self.get(bucket, name) for name in JUDGED if name in names}
        return read_believed(bucket.decode(), {name: value for name, value in raw.items() if value is not None})
