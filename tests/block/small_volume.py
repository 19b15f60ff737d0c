"""A volume for the block layer's tests: real disks with faults in between, and the few methods of metadata used."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from tieredfs.block.loans import BlockLoans
from tieredfs.block.store import BlockStore
from tieredfs.chunk.directory import DiskIdentity, chunk_path, format_disk
from tieredfs.chunk.disk import DiskStore, open_store
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.core.patience import Patience
from tieredfs.errors import NotFoundError
from tieredfs.host import Host, LocalFiles, SystemClock
from tieredfs.host.buffers import BufferPool
from tieredfs.limits import CELL_BYTES
from tieredfs.meta.metadata import Metadata
from tieredfs.model import (
    Block,
    BlockId,
    ChunkLocation,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    SessionId,
    VolumeConfig,
)
from tieredfs.testing.chunk_faults import FaultyChunkStore

RS42 = Code(CodeKind.REED_SOLOMON, 4, 2)
RS96 = Code(CodeKind.REED_SOLOMON, 9, 6)
REPLICA3 = Code(CodeKind.REPLICA, 1, 2)
BLOCK_BYTES = 16 * CELL_BYTES


class ManualClock(SystemClock):
    """Monotonic time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


class FewMetadata:
    """Block records in memory."""

    def __init__(self, code: Code, block_bytes: int) -> None:
        self.config_now = VolumeConfig("volume-1", "test", 1, 0, code, block_bytes, Durability.STORE)
        self.blocks_by_id: dict[BlockId, Block] = {}
        self.reserved_now: set[BlockId] = set()
        self._next = 100
        self._lock = threading.Lock()

    def config(self) -> VolumeConfig:
        return self.config_now

    def code(self) -> Code:
        return self.config_now.code

    def reserve_block(self, session: SessionId) -> BlockId:
        with self._lock:
            self._next += 1
            self.reserved_now.add(BlockId(self._next))
            return BlockId(self._next)

    def release_reservation(self, block: BlockId) -> None:
        self.reserved_now.remove(block)

    def commit(self, block: Block) -> None:
        self.reserved_now.remove(block.block)
        self.blocks_by_id[block.block] = block

    def block(self, block: BlockId) -> Block:
        if block not in self.blocks_by_id:
            raise NotFoundError("no such block")
        return self.blocks_by_id[block]

    def replace_chunk(self, block: BlockId, old: ChunkLocation | None, new: ChunkLocation | None) -> bool:
        with self._lock:
            record = self.blocks_by_id.get(block)
            if record is None or (old is not None and old not in record.chunks):
                return False
            if old is None and new is not None and any(chunk.index == new.index for chunk in record.chunks):
                return False
            chunks = [chunk for chunk in record.chunks if chunk != old] + ([new] if new else [])
            sorted_chunks = tuple(sorted(chunks, key=lambda chunk: chunk.index))
            self.blocks_by_id[block] = replace(record, chunks=sorted_chunks)
            return True


@dataclass
class SmallVolume:
    """`disk_count` formatted disks below `root`, each a failure domain of its own unless `domains` says otherwise."""

    root: Path
    code: Code = RS42
    disk_count: int = 6
    block_bytes: int = BLOCK_BYTES
    domains: int | None = None
    stall_s: float = 30.0
    patience: Patience | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    damage: list[tuple[BlockId, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = Host(self.clock, LocalFiles(), random.Random(7))
        self.metadata = FewMetadata(self.code, self.block_bytes)
        self.stores: dict[DiskId, FaultyChunkStore] = {}
        self.disks: dict[DiskId, tuple[Disk, ChunkStore | None]] = {}
        for number in range(1, self.disk_count + 1):
            self.add_disk(number)
        self.blocks = self.open()
        self.loans = BlockLoans(BufferPool(self.block_bytes, 2))

    def add_disk(self, number: int) -> DiskId:
        disk = self.record(number)
        format_disk(self.host, disk.url.removeprefix("disk://"), DiskIdentity("volume-1", disk.uuid))
        self.stores[disk.disk] = FaultyChunkStore(open_store(disk, "volume-1", self.host))
        self.disks[disk.disk] = disk, self.stores[disk.disk]
        return disk.disk

    def record(self, number: int, state: DiskState = DiskState.ACTIVE) -> Disk:
        domain = f"rack{number % (self.domains or 1000)}"
        return Disk(DiskId(number), f"disk-{number}", f"disk://{self.root}/d{number}", domain, state)

    def open(self) -> BlockStore:
        return BlockStore(
            cast(Metadata, self.metadata),
            SessionId(1),
            self.disks,
            self.host,
            buffer_count=2,
            on_damage=lambda block, index: self.damage.append((block.block, index)),
            stall_s=self.stall_s,
            patience=self.patience,
        )

    def set_state(self, disk: DiskId, state: DiskState) -> None:
        self.disks = {**self.disks, disk: (self.record(disk, state), self.disks[disk][1])}
        self.blocks.replace_disks(self.disks)

    def take_away(self, disk: DiskId) -> None:
        """The disk can't be opened (any more)."""
        self.disks = {**self.disks, disk: (self.disks[disk][0], None)}
        self.blocks.replace_disks(self.disks)

    # ---- content ----------------------------------------------------------------------------------------------------

    def store(self, data: bytes) -> Block:
        """Write a block and commit it."""
        with self.blocks.lend(5) as buffer:
            buffer.data[: len(data)] = data
            block = self.blocks.write(buffer, len(data))
        self.metadata.commit(block)
        return block

    def read(self, block: Block, offset: int = 0, length: int | None = None) -> bytes:
        length = block.size_bytes - offset if length is None else length
        with self.blocks.reading(block, offset, length, self.loans, timeout_s=10) as content:
            return bytes(content)

    # ---- around the API ---------------------------------------------------------------------------------------------

    def path(self, block: Block, index: int) -> Path:
        location = next(location for location in block.chunks if location.index == index)
        return Path(chunk_path(f"{self.root}/d{location.disk}", ChunkName(block.block, index)))

    def drop_descriptors(self) -> None:
        """As after a restart: what is gone from the disk is gone."""
        for store in self.stores.values():
            assert isinstance(store.inner, DiskStore)
            store.inner.close()

    def lose(self, block: Block, *indexes: int) -> None:
        for index in indexes:
            self.path(block, index).unlink()
        self.drop_descriptors()

    def rot(self, block: Block, index: int, at: int) -> None:
        path = self.path(block, index)
        raw = bytearray(path.read_bytes())
        raw[at] ^= 0x40
        path.unlink()
        path.write_bytes(raw)
        self.drop_descriptors()

    def chunk_files(self, block: Block) -> dict[int, bytes]:
        return {location.index: self.path(block, location.index).read_bytes() for location in block.chunks}

    def all_chunk_names(self) -> set[tuple[DiskId, ChunkName]]:
        return {(disk, name) for disk, store in self.stores.items() for name in store.inner.names()}

    def close(self) -> None:
        self.blocks.close()
        self.drop_descriptors()


@contextmanager
def small_volume(root: Path, **settings: object) -> Iterator[SmallVolume]:
    volume = SmallVolume(root, **settings)  # type: ignore[arg-type]
    try:
        yield volume
    finally:
        volume.close()
