"""Reading a stored content range by range, past the SSD: for what is not worth its room there."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, Self

from tieredfs.errors import DataLossError, InvalidRequestError
from tieredfs.limits import KIB
from tieredfs.model import Attributes, Block, BlockId, Extent

SMALL_BYTES: Final = 16 * KIB
WINDOW_BYTES: Final = 64 * KIB
"""Reads below the first are served from a window of the second, aligned: decoders nibble."""


class BlockRanges(Protocol):
    """What lends verified ranges of blocks: `tieredfs.cache.fill.Filler`."""

    def reading(self, block: Block, offset: int, length: int) -> AbstractContextManager[memoryview]: ...


class ThroughReading:
    """See `tieredfs.volume.filesystem.Reading`. Never has a descriptor."""

    descriptor: int | None = None

    def __init__(
        self,
        attributes: Attributes,
        extents: Sequence[Extent],
        blocks: Mapping[BlockId, Block],
        store: BlockRanges,
        pace: Callable[[int], None],
    ) -> None:
        """`pace` waits until so many bytes may be read."""
        self._pace = pace
        self.attributes = attributes
        self.size_bytes = attributes.size_bytes
        self.version: int | None = attributes.version
        self._extents = sorted(extents, key=lambda extent: extent.offset)
        self._blocks = blocks
        self._store = store
        self._lock = threading.Lock()
        self._window_at = -1
        self._window = bytearray()

    def read_into(self, offset: int, target: memoryview) -> int:
        """See `tieredfs.volume.filesystem.Reading`."""
        if offset < 0:
            raise InvalidRequestError("a negative offset")
        length = max(0, min(len(target), self.size_bytes - offset))
        start = offset - offset % WINDOW_BYTES
        if length >= SMALL_BYTES or offset + length > start + WINDOW_BYTES:
            self._read(offset, target[:length])
        elif length:
            with self._lock:
                if self._window_at != start:
                    window = bytearray(min(WINDOW_BYTES, self.size_bytes - start))
                    self._read(start, memoryview(window))
                    self._window_at, self._window = start, window
                target[:length] = self._window[offset - start : offset - start + length]
        return length

    def _read(self, offset: int, target: memoryview) -> None:
        end, at = offset + len(target), offset
        for extent in self._extents:
            first, last = max(extent.offset, offset), min(extent.end, end)
            if first >= last:
                continue
            target[at - offset : first - offset] = bytes(first - at)  # a hole
            self._read_extent(extent, first, target[first - offset : last - offset])
            at = last
        target[at - offset :] = bytes(end - at)

    def _read_extent(self, extent: Extent, offset: int, target: memoryview) -> None:
        block = self._blocks.get(extent.block)
        if block is None:
            raise DataLossError(f"block {extent.block:016x} has no record")
        within = extent.block_offset + offset - extent.offset
        self._pace(len(target))
        with self._store.reading(block, within, len(target)) as content:
            target[:] = content

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
