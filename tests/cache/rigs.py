"""A real volume with its SSD tier, without a kernel mount: real SQLite, real chunk files, real local files.

Faults are layers: `LyingFiles` between everything and the file system, `GatedBlocks` between the tier and the store.
"""

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tieredfs.block.loans import BlockLoans
from tieredfs.cache.local import LocalFile
from tieredfs.cache.tier import Tier
from tieredfs.config import parse_code
from tieredfs.core.file_life import FileState
from tieredfs.errors import NotFoundError
from tieredfs.host import Clock, Host, SystemClock, local_host
from tieredfs.host.files import LocalFiles
from tieredfs.limits import GIB, KIB, MIB
from tieredfs.meta.changes import Content, Creation, Placement
from tieredfs.meta.placing import Wanted
from tieredfs.model import ROOT, Block, BlockId, Durability, FileKind, InodeId
from tieredfs.volume import SsdTier, Volume, format_volume

WAIT_S = 30.0


class FastClock(SystemClock):
    """Ten times as fast, to those who wait."""

    def monotonic_s(self) -> float:
        return 10 * super().monotonic_s()

    def sleep(self, duration_s: float) -> None:
        super().sleep(duration_s / 10)


class LyingFiles(LocalFiles):
    """Says how much is free as it is told: by path prefix. Counts how often it was asked about a full place.

    What is below `hidden` is not there: it is the SSD of another host. Each of `after_sync` is called once, when a sync has
    cleaned a file's pages and not returned yet.
    """

    def __init__(self) -> None:
        self.free: dict[str, int] = {}
        self.lies = 0
        self.after_sync: list[Callable[[], None]] = []
        self.hidden: list[str] = []
        self.synced: list[str] = []

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._check_here(path)
        return super().open(path, flags, mode)

    def load(self, path: str) -> bytes:
        self._check_here(path)
        return super().load(path)

    def _check_here(self, path: str) -> None:
        if any(path.startswith(f"{prefix}/") for prefix in self.hidden):
            raise FileNotFoundError(path)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        while self.after_sync:
            self.after_sync.pop()()

    def free_bytes(self, path: str) -> int:
        for prefix, size in self.free.items():
            if path.startswith(prefix):
                self.lies += 1
                return size
        return super().free_bytes(path)


class GatedBlocks:
    """The store, with gates: a read or write of a block waits while `hold` says so. Counts what was asked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._changed = threading.Condition()
        self.held: Callable[[str, int], bool] = lambda _kind, _number: False
        self.reads: list[BlockId] = []
        self.writes = 0
        self.waiting = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def hold(self, held: Callable[[str, int], bool]) -> None:
        """`held(kind, key)`: kind is "read" (key: the block) or "write" (key: its number, from 1)."""
        with self._changed:
            self.held = held
            self._changed.notify_all()

    def open_all(self) -> None:
        self.hold(lambda _kind, _number: False)

    def _pass(self, kind: str, key: int) -> None:
        with self._changed:
            self.waiting += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self.held(kind, key), WAIT_S)
            self.waiting -= 1

    @contextmanager
    def reading(
        self, block: Block, offset: int, length: int, loans: BlockLoans, timeout_s: float
    ) -> Iterator[memoryview]:
        with self._changed:
            self.reads.append(block.block)
        self._pass("read", int(block.block))
        with self._inner.reading(block, offset, length, loans, timeout_s) as content:
            yield content

    def write(self, buffer: Any, size_bytes: int) -> Block:
        with self._changed:
            self.writes += 1
            number = self.writes
        self._pass("write", number)
        made: Block = self._inner.write(buffer, size_bytes)
        return made


def pack_named(tier: Tier, volume: Volume, contents: dict[str, bytes]) -> list[InodeId]:
    """New files that are written together and recorded in one transaction, as small uploads are; durable when this returns."""
    inodes = [volume.metadata.new_inode_id() for _ in contents]
    files = tier.pack(list(contents.values()), inodes, 1)
    wanted = [
        Wanted(
            Placement(file.inode, ROOT, name.encode(), 0o644, True, (), b""),
            Content(file.size_bytes, file.mtime_ns, file.size_bytes, file.place),
        )
        for name, file in zip(contents, files, strict=True)
    ]
    creation = Creation(FileKind.REGULAR, 0o644, 0, 0, staged_in=tier.cache)
    volume.metadata.create_placed(wanted, creation, volume.session, tier.is_open)
    volume.metadata.sync()
    for file in files:
        tier.packed(file)
    return inodes


class Rig:
    """One volume and one tier over it; `again` makes a second tier over a second opening of the volume."""

    def __init__(
        self,
        root: Path,
        *,
        cache: str = "cache",
        capacity: int = GIB,
        start: bool = True,
        host: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.root = root
        self.files = LyingFiles()
        machine = local_host()
        self.host: Host = replace(machine, files=self.files, name=host or machine.name, clock=clock or machine.clock)
        self.volume = Volume.open(self.url, purpose="test", host=self.host)
        self.blocks = GatedBlocks(self.volume.blocks)
        self.volume.blocks = self.blocks  # type: ignore[assignment]
        self.ssd = SsdTier(self.volume, str(root / cache), capacity)
        self.tier, self.meta = self.ssd.tier, self.volume.metadata
        if start:
            self.ssd.start()

    @property
    def url(self) -> str:
        return f"sqlite://{self.root}/volume.db"

    def close(self) -> None:
        self.blocks.open_all()
        self.ssd.close()
        self.volume.close()

    # ---- what a mount would do --------------------------------------------------------------------------------------

    def create(self, name: str) -> tuple[InodeId, LocalFile]:
        self.tier.room.wait_for_room()
        creation = Creation(FileKind.REGULAR, 0o644, 0, 0, staged_in=self.tier.cache)
        made = self.meta.create(ROOT, name.encode(), creation)
        return made.inode, self.tier.create(made.inode, made.version)

    def put(self, name: str, data: bytes) -> InodeId:
        inode, file = self.create(name)
        self.files.write(file.descriptor, [data], 0)
        self.tier.release(file, writer=True)
        return inode

    def change(self, inode: InodeId, data: bytes, offset: int = 0) -> None:
        file = self.tier.open_write(inode, truncate=False)
        self.files.write(file.descriptor, [data], offset)
        self.tier.release(file, writer=True)

    def get(self, inode: InodeId) -> bytes:
        file = self.tier.open_read(inode)
        try:
            size = os.fstat(file.descriptor).st_size
            if file.fill is not None:
                file.fill.wait_whole()
            return os.pread(file.descriptor, size, 0)
        finally:
            self.tier.release(file, writer=False)

    def flush(self) -> None:
        """The metadata says that all is stored a moment before the tier has noted it."""
        self.ssd.flush(WAIT_S)
        wait_until(lambda: not self.tier.room.dirty_files(), "the tier knows that all is stored")

    def state(self, inode: InodeId) -> FileState:
        return self.tier.state_of(inode)

    # ---- what is in the store ---------------------------------------------------------------------------------------

    def block_sizes(self) -> list[int]:
        """Of all blocks that were ever committed and not yet collected."""
        return [block.size_bytes for block in self.meta.list_blocks(BlockId(0), 10_000)]

    def hide(self, *disks: int) -> None:
        """The chunks of these disks are gone, their identity is not."""
        for disk in disks:
            (self.root / f"d{disk}/chunks").rename(self.root / f"d{disk}/away")
            (self.root / f"d{disk}/chunks").mkdir()

    def show(self, *disks: int) -> None:
        for disk in disks:
            shutil.rmtree(self.root / f"d{disk}/chunks")
            (self.root / f"d{disk}/away").rename(self.root / f"d{disk}/chunks")


WIDE: dict[str, Any] = {"code": "rs:4+2", "disks": 6}
"""For what loses disks. Elsewhere three disks do."""


@contextmanager
def volume_folder(code: str = "rs:2+1", disks: int = 3, block_bytes: int = 64 * KIB, **settings: Any) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="tieredfs-rig-"))
    usual: dict[str, Any] = {"durability": Durability.SSD, "name": "rig"}
    try:
        format_volume(
            f"sqlite://{root}/volume.db",
            [f"disk://{root}/d{{0..{disks - 1}}}"],
            code=parse_code(code),
            block_bytes=block_bytes,
            **(usual | settings),
        )
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def rig(capacity: int = GIB, *, start: bool = True, **settings: Any) -> Iterator[Rig]:
    with volume_folder(**settings) as root, opened(root, capacity=capacity, start=start) as made:
        yield made


@contextmanager
def opened(root: Path, **options: Any) -> Iterator[Rig]:
    made = Rig(root, **options)
    try:
        yield made
    finally:
        made.close()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.005)


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that are nowhere the same."""
    import random

    return random.Random(seed).randbytes(size)


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results (or errors) of calls that run at the same time, bounded."""
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except Exception as error:  # noqa: BLE001 - handed to the test
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "a call did not return"
    return results


def counts(values: Sequence[object]) -> Counter[object]:
    return Counter(values)


__all__ = ["MIB", "NotFoundError", "Rig", "in_threads", "noise", "opened", "rig", "volume_folder", "wait_until"]
