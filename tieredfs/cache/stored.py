"""`StoredSource`: a content as the store has it, for `tieredfs.cache.fill`. One part is one extent, hence at most one block."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from tieredfs.cache.fill import Filler
from tieredfs.core.spans import Span
from tieredfs.errors import DataLossError
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Attributes, Block, BlockId, Extent


class StoredSource:
    """`extents` sorted, with the blocks that they refer to."""

    def __init__(
        self, filler: Filler, size_bytes: int, extents: Sequence[Extent], blocks: Mapping[BlockId, Block]
    ) -> None:
        self.size_bytes = size_bytes
        self.spans: Sequence[Span] = tuple(Span(extent.offset, extent.length) for extent in extents)
        self._filler = filler
        self._extents = extents
        self._starts = [extent.offset for extent in extents]
        self._blocks = blocks

    def copy(self, span: Span, descriptor: int) -> None:
        """What is in `span` and no hole. Raises DataLossError, UnavailableError, DeadlineError."""
        at = max(0, bisect_right(self._starts, span.offset) - 1)
        while at < len(self._extents) and self._extents[at].offset < span.end:
            extent = self._extents[at]
            first, last = max(extent.offset, span.offset), min(extent.end, span.end)
            if first < last:
                self._copy(extent, first, last, descriptor)
            at += 1

    def _copy(self, extent: Extent, first: int, last: int, descriptor: int) -> None:
        block = self._blocks.get(extent.block)
        if block is None:
            raise DataLossError(f"block {extent.block:016x} has no record")
        with self._filler.reading(block, extent.block_offset + first - extent.offset, last - first) as content:
            self._filler.write(descriptor, content, first)


def stored_source(metadata: Metadata, filler: Filler, attributes: Attributes) -> StoredSource:
    """Of what is stored of a file now; the caller knows whether that is the version of `attributes`."""
    extents = metadata.extents(attributes.inode)
    blocks = metadata.blocks({extent.block for extent in extents})
    return StoredSource(filler, attributes.size_bytes, extents, blocks)
