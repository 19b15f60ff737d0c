"""The contract of a chunk store, one per disk, node or bucket.

A chunk is an immutable payload with a name, (block, index). Nothing above this line knows where or how it is kept; the
chunk's header (`tieredfs.format.chunk`) travels with it, so that a torn, rotten or misplaced chunk is recognised on its
own. The shipped conformance suite is `tieredfs.testing.chunk_suite`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tieredfs.chunk.dump_shelf import DumpShelf
from tieredfs.model import BlockId, Code


@dataclass(frozen=True, slots=True)
class ChunkName:
    """Which chunk of which block."""

    block: BlockId
    index: int


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """What a chunk's header says. `crc32c` is that of the whole payload."""

    name: ChunkName
    code: Code
    block_bytes: int
    payload_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class StoreSpace:
    """Bytes of the medium below a store."""

    total_bytes: int
    free_bytes: int


class ChunkStore(Protocol):
    """Safe from any thread. Raises UnavailableError (gone, I/O error), NoSpaceError, CorruptError, NotFoundError.

    Nothing else. Every call is bounded in time by the store itself (a local disk: by the kernel's own I/O timeouts).
    """

    @property
    def dumps(self) -> DumpShelf:
        """Where dumps of the metadata lie on the same medium; of no use after `close`."""
        ...

    def put(self, info: ChunkInfo, payload: memoryview, cell_crcs: memoryview) -> None:
        """Store a chunk, durable and whole on return, absent or whole after a crash. Repeating it is harmless.

        `cell_crcs`: the CRC32C of each `CELL_BYTES` of the payload, as little-endian u32, computed by the caller when
        the bytes were still the writer's. `payload` is not kept after the call.
        """
        ...

    def read_into(self, name: ChunkName, offset: int, target: memoryview) -> None:
        """Fill `target` with payload bytes from `offset`, verified.

        Raises NotFoundError, CorruptError, UnavailableError.
        """
        ...

    def info(self, name: ChunkName) -> ChunkInfo:
        """Header only. Raises NotFoundError, CorruptError, UnavailableError."""
        ...

    def delete(self, name: ChunkName) -> None:
        """No error when absent."""
        ...

    def names(self) -> Iterator[ChunkName]:
        """Every chunk present, in no order; chunks that come or go meanwhile may or may not be seen."""
        ...

    def space(self) -> StoreSpace: ...

    def close(self) -> None: ...
