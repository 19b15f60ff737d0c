"""Which tensors are compressed: asked for, or where a sample says that the save ends sooner. Pure.

"Sooner" is a matter of two speeds. A tensor of n bytes that shrinks to r * n takes n / p to pack, with p what all packing threads
do together, and spares (1 - r) * n / s, with s what the checkpoint's files take in. Even if nothing of the packing happened
while the disk works, it would pay from (1 - r) * p > s on; that is asked for. s is what earlier saves of this process have
shown, at their best: until one has, nothing is packed.
"""

import re
from dataclasses import dataclass
from typing import Final, NewType

from tieredfs.errors import InvalidRequestError
from tieredfs_client.checkpoint.codec import LEVEL_MAX

Pace = NewType("Pace", float)
"""What a checkpoint's files take in from one process, bytes per second."""

PACKED_BYTES_MIN: Final = 64 << 10
"""Smaller tensors are written by the batch; a frame of one would save less than its entries in header and manifest take."""
RATIO_MAX: Final = 0.95
"""What shrinks by less than a twentieth is not worth being unpacked at every load."""
SAMPLE_BYTES: Final = 64 << 10
SAMPLE_BYTES_MIN: Final = 8 << 10
SAMPLE_COUNT: Final = 3
SAMPLE_SHARE: Final = 32
OBSERVED_BYTES_MIN: Final = 64 << 20
"""Less than this goes into memory at any speed, and says nothing of the disk."""
_SPELLING: Final = re.compile(r"zstd(?::([1-9][0-9]?))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Compression:
    """`always`: wherever a tensor shrinks, whatever it costs. `level`: of zstd, tried besides."""

    always: bool
    level: int | None = None


def parse_compression(text: str) -> Compression | None:
    """`none`; `auto`: where a save gets faster by it; `zstd`: all that shrinks; `zstd:1` to `zstd:19`: smaller, and slower.

    Raises InvalidRequestError.
    """
    if text in ("none", "auto"):
        return Compression(always=False) if text == "auto" else None
    match = _SPELLING.fullmatch(text)
    level = int(match[1]) if match and match[1] else None
    if match is None or (level or 0) > LEVEL_MAX:
        raise InvalidRequestError(f"compression is none, auto, zstd, or zstd:1 to zstd:{LEVEL_MAX}, not {text!r}")
    return Compression(always=True, level=level)


@dataclass(frozen=True, slots=True)
class Sample:
    """What packing some of a tensor made of it, on one thread."""

    plain_bytes: int
    stored_bytes: int
    seconds: float


def is_worth(compression: Compression, sample: Sample, thread_count: int, pace: Pace | None) -> bool:
    """Whether the tensor of this sample is packed."""
    ratio = sample.stored_bytes / sample.plain_bytes
    if ratio > RATIO_MAX:
        return False
    if compression.always:
        return True
    spared = (sample.plain_bytes - sample.stored_bytes) * thread_count
    return pace is not None and spared > pace * sample.seconds


def sample_ranges(size_bytes: int, item_bytes: int) -> list[tuple[int, int]]:
    """Offset and length of what is sampled of a tensor, whole elements: a thirty-second of it from its middle; of large ones
    64 KiB from beginning, middle and end."""
    share = size_bytes // SAMPLE_SHARE
    count = SAMPLE_COUNT if share >= SAMPLE_COUNT * SAMPLE_BYTES else 1
    length = min(size_bytes, SAMPLE_BYTES, max(share, SAMPLE_BYTES_MIN))
    length = min(size_bytes, max(length - length % item_bytes, item_bytes))
    last = size_bytes - length
    starts = [last // 2] if count == 1 else [last * number // (count - 1) for number in range(count)]
    return [(start - start % item_bytes, length) for start in starts]


def faster(known: Pace | None, size_bytes: int, seconds: float) -> Pace | None:
    """What is known of the pace after a save stored so many bytes in that time."""
    if size_bytes < OBSERVED_BYTES_MIN or seconds <= 0:
        return known
    return Pace(max(known or 0.0, size_bytes / seconds))
