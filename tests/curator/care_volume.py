"""A whole volume below the SSD tier for the curator's tests: a real database, real disks, real files, and a clock that
a test moves. `python care_volume.py ROOT JOB...` does one job of the curator in a process of its own, to be killed."""

import os
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tieredfs.block.loans import BlockLoans
from tieredfs.block.store import BlockStore
from tieredfs.chunk.directory import DiskIdentity, chunk_path, format_disk
from tieredfs.chunk.disk import DiskStore, open_store
from tieredfs.chunk.store import ChunkName, ChunkStore
from tieredfs.curator import CheckReport, Curator, FindingKind, Healer
from tieredfs.errors import TieredError
from tieredfs.host import Host, LocalFiles, SystemClock, crash
from tieredfs.host.buffers import BufferPool
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.limits import CELL_BYTES
from tieredfs.meta.metadata import Creation, Metadata, format_volume
from tieredfs.model import (
    NOBODY,
    ROOT,
    Attributes,
    Block,
    BlockId,
    Code,
    CodeKind,
    Disk,
    DiskId,
    DiskState,
    Durability,
    Extent,
    FileKind,
    InodeId,
    StoredContent,
    VolumeConfig,
)

RS42 = Code(CodeKind.REED_SOLOMON, 4, 2)
REPLICA2 = Code(CodeKind.REPLICA, 1, 1)
BLOCK_BYTES = 4 * CELL_BYTES
VOLUME_UUID = "volume-of-the-curator"
START_NS = 1_700_000_000_000_000_000
MEMORY = "/dev/shm"
ROOM_BYTES = 1 << 30


def memory() -> str | None:
    """Where files are in memory; None: nowhere, or there is so little room that a disk there would take no chunk."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        return None
    return MEMORY


class SteppedClock(SystemClock):
    """Wall time stands still until a test, or a sleep, moves it. Monotonic time is real: waits must end."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.on_sleep: Callable[[], None] = lambda: None

    def wall_ns(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def sleep(self, duration_s: float) -> None:
        self.advance(duration_s)
        self.on_sleep()


class Progresses:
    """Remembers what a job told of its progress."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, str]] = []

    def __call__(self, done: int, total: int, unit: str) -> None:
        self.calls.append((done, total, unit))


def nothing(done: int, total: int, unit: str) -> None:
    """A progress that nobody watches."""


class CareVolume:
    """Made below `root` at the first opening; opened again by every later one."""

    def __init__(
        self, root: Path, *, disk_count: int = 6, code: Code = RS42, wait: bool = False, now_ns: int = START_NS
    ) -> None:
        self.root = root
        self.clock = SteppedClock()
        self.clock.now_ns = now_ns
        self.host = Host(self.clock, LocalFiles(), random.Random(11), "testhost")
        fresh = not (root / "volume.db").exists()
        self.engine = SqliteEngine(str(root / "volume.db"), create=fresh)
        if fresh:
            self._format(disk_count, code)
        self.metadata = Metadata(self.engine, self.clock)
        self.session = self.metadata.open_session("testhost", os.getpid(), "test").session
        self.loans = BlockLoans(BufferPool(BLOCK_BYTES, 2))
        self.contents: dict[bytes, bytes] = {}
        self.noted: list[tuple[BlockId, int]] = []
        self.on_damage: Callable[[Block, int], None] = lambda block, index: self.noted.append((block.block, index))
        self.open_disks()

    def _format(self, disk_count: int, code: Code) -> None:
        disks = [self._disk_record(number) for number in range(1, disk_count + 1)]
        for disk in disks:
            self._format_directory(disk)
        config = VolumeConfig(VOLUME_UUID, "care", 1, START_NS, code, BLOCK_BYTES, Durability.STORE)
        format_volume(self.engine, config, disks)

    def _disk_record(self, number: int) -> Disk:
        url = f"disk://{self.root}/d{number}"
        return Disk(DiskId(number), str(uuid.uuid4()), url, f"domain-{number}", DiskState.ACTIVE)

    def _format_directory(self, disk: Disk) -> None:
        format_disk(self.host, disk.url.removeprefix("disk://"), DiskIdentity(VOLUME_UUID, disk.uuid))

    def open_disks(self) -> None:
        """As a process does that starts now."""
        stores: dict[DiskId, tuple[Disk, ChunkStore | None]] = {}
        for disk in self.metadata.disks():
            if disk.state is not DiskState.REMOVED:
                stores[disk.disk] = disk, self._open_store(disk)
        self.stores = stores
        self.blocks = BlockStore(
            self.metadata,
            self.session,
            stores,
            self.host,
            buffer_count=3,
            on_damage=self._tell_damage,
        )
        self.curator = Curator(self.metadata, self.blocks, stores, self.session, self.host)

    def _tell_damage(self, block: Block, index: int) -> None:
        self.on_damage(block, index)

    def _open_store(self, disk: Disk) -> ChunkStore | None:
        try:
            return open_store(disk, VOLUME_UUID, self.host)
        except TieredError:
            return None

    def reopen_disks(self) -> None:
        self.close_disks()
        self.open_disks()

    def add_disk(self) -> DiskId:
        number = max(disk.disk for disk in self.metadata.disks()) + 1
        record = self._disk_record(number)
        self._format_directory(record)
        added = self.metadata.add_disk(record.uuid, record.url, record.domain).disk
        self.reopen_disks()
        return added

    def close_disks(self) -> None:
        self.blocks.close()
        for _, store in self.stores.values():
            if store is not None:
                store.close()

    def close(self) -> None:
        self.close_disks()
        self.engine.close()

    # ---- content ----------------------------------------------------------------------------------------------------

    def new_file(self, name: bytes, parent: InodeId = ROOT) -> Attributes:
        return self.metadata.create(parent, name, Creation(FileKind.REGULAR, 0o644, 0, 0))

    def write_block(self, data: bytes) -> Block:
        with self.blocks.lend(5) as buffer:
            buffer.data[: len(data)] = data
            return self.blocks.write(buffer, len(data))

    def store_file(self, name: bytes, data: bytes, parent: InodeId = ROOT) -> InodeId:
        """A file of whole blocks, as the drain leaves it."""
        file = self.new_file(name, parent)
        pieces = range(0, len(data), BLOCK_BYTES)
        blocks = [self.write_block(data[at : at + BLOCK_BYTES]) for at in pieces]
        extents = tuple(Extent(at, block.size_bytes, block.block, 0) for at, block in zip(pieces, blocks, strict=True))
        content = StoredContent(file.inode, file.version, len(data), self.clock.wall_ns(), extents, complete=True)
        assert self.metadata.commit_stored([content], blocks) == {file.inode}
        self.contents[name] = data
        return file.inode

    def store_together(self, files: dict[bytes, bytes]) -> Block:
        """Small files in one block."""
        block = self.write_block(b"".join(files.values()))
        contents, offset = [], 0
        for name, data in files.items():
            file = self.new_file(name)
            extents = (Extent(0, len(data), block.block, offset),)
            contents.append(StoredContent(file.inode, file.version, len(data), 0, extents, complete=True))
            offset += len(data)
        self.metadata.commit_stored(contents, [block])
        self.contents.update(files)
        return block

    def read_file(self, name: bytes, parent: InodeId = ROOT) -> bytes:
        file = self.metadata.lookup(parent, name)
        target = bytearray(file.size_bytes)
        for extent in self.metadata.extents(file.inode):
            block = self.metadata.block(extent.block)
            with self.blocks.reading(block, extent.block_offset, extent.length, self.loans, 10) as content:
                target[extent.offset : extent.end] = content
        return bytes(target)

    def remove_file(self, name: bytes) -> None:
        self.metadata.unlink(ROOT, name, NOBODY)
        self.contents.pop(name)

    def assert_contents(self) -> None:
        for name, data in self.contents.items():
            assert self.read_file(name) == data, name

    def fill(self, count: int, size_bytes: int = BLOCK_BYTES, seed: int = 1) -> None:
        generator = random.Random(seed)
        for number in range(count):
            self.store_file(b"file-%d" % number, generator.randbytes(size_bytes))

    # ---- around the API ---------------------------------------------------------------------------------------------

    def all_blocks(self) -> list[Block]:
        return self.metadata.list_blocks(BlockId(0), 1_000_000)

    def block_of(self, name: bytes) -> Block:
        return self.metadata.block(self.metadata.extents(self.metadata.lookup(ROOT, name).inode)[0].block)

    def disk_path(self, disk: DiskId) -> Path:
        return self.root / f"d{disk}"

    def path(self, block: Block, index: int) -> Path:
        location = next(location for location in block.chunks if location.index == index)
        return Path(chunk_path(str(self.disk_path(location.disk)), ChunkName(block.block, index)))

    def lose_disk(self, disk: DiskId) -> None:
        shutil.rmtree(self.disk_path(disk))
        self.reopen_disks()

    def chunk_files(self) -> set[tuple[DiskId, ChunkName]]:
        found = set()
        for disk, (_, store) in self.stores.items():
            if isinstance(store, DiskStore):
                found |= {(disk, name) for name in store.names()}
        return found

    def named_chunks(self) -> set[tuple[DiskId, ChunkName]]:
        return {
            (chunk.disk, ChunkName(block.block, chunk.index)) for block in self.all_blocks() for chunk in block.chunks
        }

    # ---- the curator ------------------------------------------------------------------------------------------------

    def check(self, *, repair: bool = False) -> CheckReport:
        return self.curator.check(repair=repair, progress=nothing)

    def assert_clean(self, informational: Sequence[FindingKind] = ()) -> CheckReport:
        """Nothing is found at all, but the kinds that are expected."""
        report = self.check()
        assert report.clean
        assert {finding.kind for finding in report.findings} <= set(informational), report.findings
        return report


def turn_name(volume: CareVolume) -> str:
    """In place of the volume's uuid, which all volumes of these tests share."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(volume.root)))


@contextmanager
def care_volume(root: Path, *, disk_count: int = 6, code: Code = RS42) -> Iterator[CareVolume]:
    volume = CareVolume(root, disk_count=disk_count, code=code)
    try:
        yield volume
    finally:
        volume.close()


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    """Write the changed bytes to a new file under the old name, past every descriptor that is open."""
    raw = bytearray(path.read_bytes())
    change(raw)
    path.unlink()
    path.write_bytes(raw)


def flip(at: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        raw[at % len(raw)] ^= 0x10

    return change


# ---- a process of its own --------------------------------------------------------------------------------------------


def killed_at(point: str, root: Path, *job: str) -> None:
    """Do `job` in another process that dies at the crash point."""
    environment = {**os.environ, crash.ENVIRONMENT: point, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, __file__, str(root), *job]
    child = subprocess.run(arguments, env=environment, timeout=60, check=False, capture_output=True)
    assert child.returncode == -9, f"the crash happened: {child.stderr.decode()}"


def _main(root: str, job: str, *arguments: str) -> None:
    now_ns = START_NS + (int(arguments[0]) if job == "gc" else 0) * 1_000_000_000
    volume = CareVolume(Path(root), now_ns=now_ns)
    if job == "gc":
        volume.curator.collect_garbage(nothing)
    elif job == "write":
        volume.store_file(b"never", b"x" * BLOCK_BYTES)
    elif job == "heal":
        Healer(volume.curator.holdings, turn_name(volume)).turn()
    elif job == "rebuild":
        volume.curator.rebuild_disk(DiskId(int(arguments[0])), nothing)
    else:
        assert job == "drain"
        volume.curator.drain_disk(DiskId(int(arguments[0])), nothing)


if __name__ == "__main__":
    _main(*sys.argv[1:])
