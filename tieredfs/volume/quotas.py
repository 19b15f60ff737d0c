"""Quotas as people ask for them: paths as text, limits that may be none, and what is left."""

from dataclasses import dataclass

from tieredfs.errors import ConfigurationError
from tieredfs.limits import FILE_BYTES_MAX, QUOTA_UNIT_BYTES
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Quota


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """A directory with a quota. `limit_*` None: no limit. `used_ratio`: of the limit that is nearer; None: there is none."""

    path: str
    used_bytes: int
    limit_bytes: int | None
    used_inodes: int
    limit_inodes: int | None
    used_ratio: float | None


@dataclass(frozen=True, slots=True)
class QuotaCheckStatus:
    """What a quota's record said, and what is there. `repaired`: the record says so now, too."""

    path: str
    recorded_bytes: int
    counted_bytes: int
    recorded_inodes: int
    counted_inodes: int
    right: bool
    repaired: bool


class Quotas:
    """Of one volume. Safe from any thread. Paths are from the volume's root, with or without slashes around them."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def set(self, path: str, limit_bytes: int | None, limit_inodes: int | None) -> QuotaStatus:
        """None leaves a limit as it is (there is none at first); 0 takes it away. What is used already may be more.

        Raises ConfigurationError, NotFoundError, NotDirectoryError."""
        for limit, what in ((limit_bytes, "bytes"), (limit_inodes, "inodes")):
            if limit is not None and not 0 <= limit <= FILE_BYTES_MAX:
                raise ConfigurationError(f"a limit of {limit} {what} cannot be: it is from 1 to 2^63 - 1")
        if limit_bytes is not None and 0 < limit_bytes < QUOTA_UNIT_BYTES:
            raise ConfigurationError(f"a limit of {limit_bytes} bytes is less than one block of {QUOTA_UNIT_BYTES}")
        return _status(self._metadata.set_quota(_encoded(path), limit_bytes, limit_inodes))

    def get(self, path: str) -> QuotaStatus:
        """Raises NotFoundError, NotDirectoryError."""
        return _status(self._metadata.quota(_encoded(path)))

    def list(self) -> tuple[QuotaStatus, ...]:
        """In the order of their paths as they are now."""
        return tuple(_status(quota) for quota in self._metadata.quotas())

    def delete(self, path: str) -> QuotaStatus:
        """As it was. Raises NotFoundError."""
        return _status(self._metadata.delete_quota(_encoded(path)))

    def check(self, path: str, *, repair: bool) -> QuotaCheckStatus:
        """Count everything below, and with `repair` write down what that comes to. Raises NotFoundError."""
        found = self._metadata.check_quota(_encoded(path), repair=repair)
        return QuotaCheckStatus(
            _shown(found.quota.path),
            found.quota.used_bytes,
            found.used_bytes,
            found.quota.used_inodes,
            found.used_inodes,
            found.right,
            repair and not found.right,
        )


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _status(quota: Quota) -> QuotaStatus:
    pairs = ((quota.used_bytes, quota.limit_bytes), (quota.used_inodes, quota.limit_inodes))
    return QuotaStatus(
        _shown(quota.path),
        quota.used_bytes,
        quota.limit_bytes or None,
        quota.used_inodes,
        quota.limit_inodes or None,
        max((used / limit for used, limit in pairs if limit), default=None),
    )
