"""What is set for a bucket, kept with its directory: an extended attribute for each kind of configuration.

So it appears, moves and disappears with the bucket, atomically. Whoever may change the attributes of the directory
through the mount may change it, and could read every object anyway. `get` reads what is set now. `believed` is what was
set at most a second ago, or by this process: policies and CORS rules, which every request asks for.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from tieredfs.errors import NoAttributeError, NotDirectoryError, NotFoundError
from tieredfs.host import Clock
from tieredfs.volume.filesystem import FileSystemContract
from tieredfs_gateway.s3 import xml
from tieredfs_gateway.s3.cors import CorsRules, parse_cors
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.lifecycle import Rule, parse_lifecycle
from tieredfs_gateway.s3.policy import DENY_ALL, NO_POLICY, Policy, parse_policy
from tieredfs_gateway.s3.public_access import ALL_BLOCKS, NO_BLOCKS, Blocks, parse_blocks
from tieredfs_gateway.s3.versions import Versioning

VERSIONING: Final = b"user.s3.versioning"
POLICY: Final = b"user.s3.policy"
CORS: Final = b"user.s3.cors"
LIFECYCLE: Final = b"user.s3.lifecycle"
TAGS: Final = b"user.s3.tags"
ACL: Final = b"user.s3.acl"
BLOCKS: Final = b"user.s3.public-access-block"
OWNERSHIP: Final = b"user.s3.ownership"
T = TypeVar("T")
_BELIEVED_S: Final = 1.0
_CACHED_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Believed:
    """What a request is judged by."""

    policy: Policy = NO_POLICY
    cors: CorsRules = ()
    acl: str = ""
    blocks: Blocks = NO_BLOCKS
    versioning: Versioning = Versioning.NEVER
    lifecycle: tuple[Rule, ...] = ()
    owner_enforced: bool = False
    """No ACLs but the owner's."""


class Settings:
    """The configurations of one volume's buckets. Safe from any thread; all but `known` may do I/O."""

    def __init__(self, volume: FileSystemContract, clock: Clock) -> None:
        self._volume = volume
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, Believed]] = {}
        self._changes = 0

    def get(self, bucket: bytes, name: bytes) -> bytes | None:
        try:
            return self._volume.get_xattr(bucket, name)
        except (NoAttributeError, NotFoundError, NotDirectoryError):
            return None

    def put(self, bucket: bytes, name: bytes, value: bytes) -> None:
        self._volume.set_xattr(bucket, name, value)
        self._forget(bucket)

    def remove(self, bucket: bytes, name: bytes) -> None:
        """What is not set is removed already."""
        try:
            self._volume.remove_xattr(bucket, name)
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

    # ---- what requests are judged by --------------------------------------------------------------------------------

    def known(self, bucket: bytes) -> Believed | None:
        """From memory, if it was read in the last second. No I/O."""
        cached = self._known.get(bucket)
        if cached is None or self._clock.monotonic_s() - cached[0] >= _BELIEVED_S:
            return None
        return cached[1]

    def now(self, bucket: bytes) -> Believed:
        return self.known(bucket) or self.believed(bucket)

    def believed(self, bucket: bytes) -> Believed:
        at_s, changes = self._clock.monotonic_s(), self._changes
        found = self._read(bucket)
        with self._lock:
            if len(self._known) >= _CACHED_MAX:
                self._known.clear()
            if self._changes == changes:  # else what was read may be what was changed
                self._known[bucket] = (at_s, found)
        return found

    def _read(self, bucket: bytes) -> Believed:
        try:
            names = set(self._volume.list_xattrs(bucket))
        except (NotFoundError, NotDirectoryError):
            return Believed()
        raw = {
            name: self.get(bucket, name)
            for name in (POLICY, CORS, ACL, BLOCKS, VERSIONING, LIFECYCLE, OWNERSHIP)
            if name in names
        }
        policy, cors, blocks, rules = (raw.get(name) for name in (POLICY, CORS, BLOCKS, LIFECYCLE))
        return Believed(
            parsed(lambda text: parse_policy(text, bucket.decode()), policy, NO_POLICY, DENY_ALL),
            parsed(lambda text: parse_cors(xml.parse(text, "CORSConfiguration")), cors, (), ()),
            (raw.get(ACL) or b"").decode("ascii", "replace"),
            parsed(parse_blocks_document, blocks, NO_BLOCKS, ALL_BLOCKS),
            parse_state(raw.get(VERSIONING)),
            parsed(parse_rules, rules, (), ()),
            b"BucketOwnerEnforced" in (raw.get(OWNERSHIP) or b""),
        )


def parse_state(raw: bytes | None) -> Versioning:
    """What is no state keeps everything."""
    known = {state.value.encode(): state for state in Versioning}
    return known.get(raw or b"", Versioning.ENABLED)


def parse_rules(text: bytes) -> tuple[Rule, ...]:
    return parse_lifecycle(xml.parse(text, "LifecycleConfiguration"))


def parse_blocks_document(text: bytes) -> Blocks:
    return parse_blocks(xml.parse(text, "PublicAccessBlockConfiguration"))


def parsed(parse: Callable[[bytes], T], raw: bytes | None, default: T, broken: T) -> T:
    """What somebody wrote over it through the mount, and cannot be read, must not allow or delete anything: `broken`."""
    if raw is None:
        return default
    try:
        return parse(raw)
    except S3Error:
        return broken
