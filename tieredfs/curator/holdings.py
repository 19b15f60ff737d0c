"""What the curator cares for, and the two things that all its work is made of: finding out what ails a chunk, and
making chunks anew so that garbage collection, which may run at the same time anywhere, cannot undo it.

The race: a repair puts a chunk on another disk, then the record changes to name it. In between the chunk looks like
garbage. Neither side waits for the other; each looks again after it acted. Garbage collection deletes, then looks
whether the record has come to name the chunk, and if so has it made anew. A repair changes the record, then looks
whether the chunk is still there, and if not makes it anew. Whichever of deletion and record came first, the side that
was last sees it.

Safe from any thread.
"""

from collections.abc import Collection, Mapping
from typing import Final

from tieredfs.block.store import BlockStore
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.core.care import Ailment
from tieredfs.errors import CorruptError, NotFoundError, TieredError, UnavailableError
from tieredfs.host import Host
from tieredfs.limits import MIB
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Block, BlockId, Disk, DiskId, DiskState, SessionId

_LOOKS_MAX: Final = 3
"""How often something is done again because the record changed meanwhile."""
_READ_BYTES: Final = 4 * MIB
"""A multiple of the cell size, so that nothing is read twice."""

Disks = Mapping[DiskId, tuple[Disk, ChunkStore | None]]


class Holdings:
    """A volume's metadata, blocks and disks, as one process has them open."""

    def __init__(self, metadata: Metadata, blocks: BlockStore, disks: Disks, session: SessionId, host: Host) -> None:
        self.metadata = metadata
        self.blocks = blocks
        self.session = session
        self.host = host
        self._disks = dict(disks)

    # ---- disks ------------------------------------------------------------------------------------------------------

    def disks(self) -> list[tuple[Disk, ChunkStore | None]]:
        disks = self._disks
        return [disks[disk] for disk in sorted(disks)]

    def replace_disks(self, disks: Disks) -> None:
        """The disks as they are now; the block store is told by whoever found out."""
        self._disks = dict(disks)

    def set_disk_state(self, number: DiskId, state: DiskState) -> Disk:
        """In the metadata, and for our block store at once. Raises NotFoundError, InvalidRequestError, BusyError."""
        changed = self.metadata.set_disk_state(number, state)
        disks = dict(self._disks)
        store = disks.pop(number)[1] if number in disks else None
        if state is not DiskState.REMOVED:
            disks[number] = (changed, store)
        self._disks = disks
        self.blocks.replace_disks(disks)
        return changed

    def unreachable_disks(self) -> dict[DiskId, str]:
        """Disks that should hold chunks and do not answer, and why. One that was declared lost is not expected to."""
        return {
            disk.disk: reason
            for disk, store in self.disks()
            if disk.state is not DiskState.LOST and (reason := _silence(store)) is not None
        }

    def working_disks(self) -> set[DiskId]:
        """Disks that hold chunks and answer."""
        silent = self.unreachable_disks()
        return {disk.disk for disk, _ in self.disks() if disk.state is not DiskState.LOST and disk.disk not in silent}

    # ---- blocks -----------------------------------------------------------------------------------------------------

    def find_block(self, block: BlockId) -> Block | None:
        return self.metadata.blocks([block]).get(block)

    def examine(self, block: Block) -> tuple[Block, dict[int, Ailment]]:
        """The block as its record is now, and what ails its chunks; every byte of each is read.

        Raises NotFoundError when the block is gone meanwhile.
        """
        for _ in range(_LOOKS_MAX):
            suspects = self.blocks.check(block)
            if not suspects:
                return block, {}
            current = self.metadata.block(block.block)
            if current == block:
                break
            block = current  # somebody moved a chunk while we read: what we saw may be the old place
        found = {index: self.ailment(block, index) for index in suspects if index < block.code.width}
        return block, {index: ailment for index, ailment in found.items() if ailment is not None}

    def ailment(self, block: Block, index: int) -> Ailment | None:
        """None: the chunk is well after all."""
        location = next((chunk for chunk in block.chunks if chunk.index == index), None)
        if location is None:
            return Ailment.UNPLACED
        disk, store = self._disks.get(location.disk, (None, None))
        if disk is None or disk.state is DiskState.LOST:
            return Ailment.MISSING
        if store is None:
            return Ailment.UNREACHABLE
        name = ChunkName(block.block, index)
        try:
            info = store.info(name)
            if (info.crc32c, info.payload_bytes) != (location.crc32c, block.chunk_bytes):
                return Ailment.ROTTEN
            _read_whole(store, name, block.chunk_bytes)
        except NotFoundError:
            return Ailment.MISSING
        except CorruptError:
            return Ailment.ROTTEN
        except TieredError:
            return Ailment.UNREACHABLE
        return None

    def renew(self, block: Block, indexes: Collection[int]) -> Block:
        """Make chunks anew, on another disk where theirs does not serve; the record as it then is.

        Raises DataLossError, NoSpaceError, UnavailableError, NotFoundError (the block is gone).
        """
        wanted = set(indexes)
        for _ in range(_LOOKS_MAX):
            block = self.blocks.restore(block, wanted)
            wanted = {index for index in wanted if self._vanished(block, index)}
            if not wanted:
                return block
        raise UnavailableError(f"block {block.block:x}: chunks {sorted(wanted)} do not stay where they are put")

    def _vanished(self, block: Block, index: int) -> bool:
        location = next((chunk for chunk in block.chunks if chunk.index == index), None)
        if location is None:
            return True
        _, store = self._disks.get(location.disk, (None, None))
        try:
            if store is not None:
                store.info(ChunkName(block.block, index))
        except NotFoundError:
            return True
        except TieredError:
            return False  # another disk's trouble, and another look's finding
        return False


def _silence(store: ChunkStore | None) -> str | None:
    """Why a disk does not answer; None: it does. The first name of a listing asks for the disk's identity too."""
    if store is None:
        return "it cannot be opened"
    try:
        store.space()
        next(iter(store.names()), None)
    except TieredError as error:
        return str(error)
    return None


def _read_whole(store: ChunkStore, name: ChunkName, length: int) -> None:
    memory = memoryview(bytearray(min(length, _READ_BYTES)))
    for start in range(0, length, _READ_BYTES):
        store.read_into(name, start, memory[: min(_READ_BYTES, length - start)])
