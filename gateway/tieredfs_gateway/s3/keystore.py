"""Access keys, kept in the volume: `/.tieredfs/s3/keys/ID`, JSON, for its owner alone.

SigV4 needs the secret itself on the server's side, so it is there in clear; whoever can read the volume's metadata file can
read everything anyway. What was looked up is believed for a second, so a removed key is refused after that.
"""

import base64
import json
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from tieredfs.errors import CorruptError, InvalidRequestError, NotDirectoryError, NotFoundError
from tieredfs.host import Clock
from tieredfs.volume.contract import FileSystemContract
from tieredfs_gateway.s3.bucket_names import is_bucket_name
from tieredfs_gateway.s3.store import HIDDEN

_KEYS: Final = HIDDEN + b"/keys"
_BELIEVED_S: Final = 1.0
_CACHED_MAX: Final = 4096
_LIST_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Scope:
    """What a key may do. No buckets named: all. `prefix`: of every key (and of every listing's prefix)."""

    buckets: tuple[str, ...] = ()
    prefix: str = ""
    read_only: bool = False

    def allows_bucket(self, bucket: str) -> bool:
        return not self.buckets or bucket in self.buckets

    def allows_key(self, bucket: str, key: str) -> bool:
        return self.allows_bucket(bucket) and key.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class AccessKey:
    access_key_id: str
    secret_access_key: str
    scope: Scope
    created_ns: int


def make_key(scope: Scope, created_ns: int) -> AccessKey:
    """20 and 40 characters, as clients expect them. Raises InvalidRequestError for a bucket name that is none."""
    for bucket in scope.buckets:
        if not is_bucket_name(bucket.encode()):
            raise InvalidRequestError(f"{bucket!r} is no bucket name: 3 to 63 of a-z, 0-9, dot and dash")
    name = "TFS" + base64.b32encode(secrets.token_bytes(11)).decode().rstrip("=")[:17]
    return AccessKey(name, secrets.token_urlsafe(30), scope, created_ns)


class Keystore:
    """Safe from any thread. Every method may do I/O."""

    def __init__(self, volume: FileSystemContract, clock: Clock) -> None:
        self._volume = volume
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, AccessKey | None]] = {}

    def add(self, key: AccessKey) -> None:
        self._volume.make_directories(_KEYS, 0o700)
        with self._volume.create() as writing:
            os.pwrite(writing.descriptor, json.dumps({"v": 1, **asdict(key)}).encode(), 0)
            writing.commit(_path(key.access_key_id), replace=False, mode=0o600)

    def remove(self, access_key_id: str) -> None:
        """Raises NotFoundError."""
        missing = NotFoundError(
            f"no access key {access_key_id!r}: `tieredfs s3-key list META_URL` shows those there are"
        )
        if not _is_id(access_key_id):
            raise missing
        try:
            self._volume.remove(_path(access_key_id))
        except NotFoundError:
            raise missing from None

    def listed(self) -> list[AccessKey]:
        found: list[AccessKey] = []
        after = b""
        while True:
            try:
                page = self._volume.entries(_KEYS, after, _LIST_BATCH)
            except NotFoundError:
                return found
            keys = (self._load(entry.name.decode("ascii", "replace")) for entry, _ in page)
            found += [key for key in keys if key is not None]
            if len(page) < _LIST_BATCH:
                return found
            after = page[-1][0].name

    def known(self, access_key_id: str) -> AccessKey | None:
        """From memory, if it was looked up in the last second; else None and `find` must be asked. No I/O."""
        cached = self._known.get(access_key_id)
        if cached is None or self._clock.monotonic_s() - cached[0] >= _BELIEVED_S:
            return None
        return cached[1]

    def find(self, access_key_id: str) -> AccessKey | None:
        found = self._load(access_key_id) if _is_id(access_key_id) else None
        with self._lock:
            if len(self._known) >= _CACHED_MAX:
                self._known.clear()
            if found is not None:
                self._known[access_key_id] = (self._clock.monotonic_s(), found)
        return found

    def _load(self, access_key_id: str) -> AccessKey | None:
        try:
            with self._volume.open(_path(access_key_id)) as reading:
                target = bytearray(reading.attributes.size_bytes)
                count = reading.read_into(0, memoryview(target))
        except (NotFoundError, NotDirectoryError):
            return None
        try:
            fields = json.loads(target[:count])
            scope = fields["scope"]
            buckets: Sequence[str] = scope["buckets"]
            return AccessKey(
                str(fields["access_key_id"]),
                str(fields["secret_access_key"]),
                Scope(tuple(buckets), str(scope["prefix"]), bool(scope["read_only"])),
                int(fields["created_ns"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"access key {access_key_id} cannot be read") from error


def _is_id(access_key_id: str) -> bool:
    return access_key_id.isascii() and access_key_id.isalnum() and len(access_key_id) <= 128


def _path(access_key_id: str) -> bytes:
    return _KEYS + b"/" + access_key_id.encode()
