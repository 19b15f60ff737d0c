"""The last hour, as samples: bounded, and pure but for being remembered. One caller at a time."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from tieredfs.volume import VolumeStatus
from tieredfs_gateway.status.document import Healing, MountLook, Sample

EVERY_S: Final = 10.0
KEPT: Final = 360
"""An hour."""
_BILLION: Final = 1_000_000_000


class History:
    """`samples`: oldest first, the last one of the latest look."""

    def __init__(self) -> None:
        self._kept: deque[Sample] = deque(maxlen=KEPT)
        self._latest: Sample | None = None

    def note(self, at_ns: int, status: VolumeStatus, mounts: Sequence[MountLook]) -> None:
        """Every look; one in `EVERY_S` is kept."""
        rates = [mount.stored_bytes_per_s for mount in mounts if mount.stored_bytes_per_s is not None]
        self._latest = Sample(
            at_ns,
            status.staged.size_bytes,
            status.staged.oldest_age_s,
            status.short.missing_bytes,
            status.short.block_count,
            sum(rates) if rates else None,
        )
        if not self._kept or at_ns - self._kept[-1].at_ns >= EVERY_S * _BILLION or at_ns < self._kept[-1].at_ns:
            self._kept.append(self._latest)

    def samples(self) -> tuple[Sample, ...]:
        if self._latest is None or self._kept[-1] is self._latest:
            return tuple(self._kept)
        return (*self._kept, self._latest)

    def healing(self) -> Healing:
        """From the last moment at which most was missing: what was healed since, and how fast."""
        samples = self.samples()
        if not samples or not samples[-1].missing_bytes:
            return Healing(None, None)
        worst = max(samples, key=lambda sample: (sample.missing_bytes, sample.at_ns))
        healed_bytes, took_s = worst.missing_bytes - samples[-1].missing_bytes, (samples[-1].at_ns - worst.at_ns) / 1e9
        if healed_bytes <= 0 or took_s <= 0:
            return Healing(None, None)
        rate = healed_bytes / took_s
        return Healing(rate, samples[-1].missing_bytes / rate)
