"""A volume on a machine that loses power: real SQLite, real chunk files, real local files, and no kernel between.

The database is not below `ForgetfulFiles`; it is copied aside whenever the engine is synced and after every step. A power cut
brings back one of the copies since the last sync: a write-ahead log is lost from its end, so whole transactions go, the
last first.
"""

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.cache.rigs import pack_named
from tieredfs.config import parse_code
from tieredfs.errors import TieredError
from tieredfs.fuse.operations import Caller
from tieredfs.fuse.undertaker import Undertaker
from tieredfs.fuse.volume_operations import VolumeOperations
from tieredfs.host import local_host
from tieredfs.limits import GIB, KIB, MIB
from tieredfs.model import ROOT, Durability, InodeId
from tieredfs.testing.forgetful import ForgetfulFiles
from tieredfs.volume import SsdTier, Volume, format_volume

CALLER = Caller(0, 0, 1)
SEGMENT_BYTES = 512 * KIB
"""So that segments are soon used again."""
DATABASE = ("volume.db", "volume.db-wal")


class Life:
    """From one power-on to the next power cut."""

    def __init__(self, root: Path, files: ForgetfulFiles | None = None) -> None:
        self.root = root
        self.ended = False
        self.files = files or ForgetfulFiles(str(root))
        host = replace(local_host(), files=self.files)
        self.volume = Volume.open(f"sqlite://{root}/volume.db", purpose="test", host=host, memory_bytes=GIB)
        self.metadata = self.volume.metadata
        self._copies: list[Path] = []
        """Of the database: as of the last sync, and later ones."""
        self.durable_copies = 0
        """How many databases were made durable so far."""
        engine = self.volume._engine
        self._sync, engine.sync = engine.sync, self._sync_and_copy  # type: ignore[method-assign]
        self.ssd = SsdTier(self.volume, str(root / "cache"), GIB)
        self.tier = self.ssd.tier
        self.tier.segments._segment_bytes = SEGMENT_BYTES
        self.operations = VolumeOperations(self.volume, self.ssd, 1)
        self.metadata.sync()

    # ---- power ------------------------------------------------------------------------------------------------------

    def _sync_and_copy(self) -> None:
        self._sync()
        self.durable_copies += 1
        for copy in self._copies:
            shutil.rmtree(copy)
        self._copies = [self._copy()]

    def _copy(self) -> Path:
        target = Path(tempfile.mkdtemp(dir=self.root, prefix="database-"))
        for name in DATABASE:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.root / name, target / name)
        return target

    def step_done(self) -> None:
        """The database as it is now may be the one that comes back."""
        self._copies.append(self._copy())

    def copies(self) -> int:
        """How many databases might come back."""
        return len(self._copies)

    def power_cut(self, chance: random.Random, copy: int) -> "Life":
        """The next life. `copy`: which database came back; 0 is the one that was synced last, -1 the newest."""
        files = self.files.power_cut(chance)
        with contextlib.suppress(OSError, TieredError):
            self.operations._undertaker.close()
        self.end()
        for name in (*DATABASE, "volume.db-shm"):
            (self.root / name).unlink(missing_ok=True)
        shutil.copytree(self._copies[copy], self.root, dirs_exist_ok=True)
        for left in self._copies:
            shutil.rmtree(left)
        self.forget_boot()
        return Life(self.root, files)

    def forget_boot(self) -> None:
        """The machine was down since the cache was last used."""
        boot = self.root / "cache" / "boot"
        if boot.exists():
            boot.write_bytes(b"another boot\n")

    def process_death(self) -> "Life":
        """The daemon is killed: what files and database have now is what the next one finds."""
        with contextlib.suppress(OSError, TieredError):
            self.operations._undertaker.close()
        self.end()
        return Life(self.root)

    def end(self) -> None:
        """Nothing is released or closed in order: only what this process holds is let go."""
        if self.ended:
            return
        self.ended = True
        for handle in self.operations._handles.values():
            if handle.file.descriptor >= 0:
                os.close(handle.file.descriptor)
                handle.file.descriptor = -1
        self.ssd.close()
        self.volume._closing.set()
        self.volume._heart.join()
        self.volume._repairer.close()
        self.volume.blocks.close()
        for _, store in self.volume._stores.values():
            if store is not None:
                store.close()
        self.volume._engine.close()

    # ---- what programs do -------------------------------------------------------------------------------------------

    def create(self, name: str) -> int:
        return self.operations.create(ROOT, name.encode(), 0o644, os.O_RDWR, CALLER)[1].handle

    def open(self, name: str, flags: int = os.O_RDWR) -> int:
        return self.operations.open(self.inode(name), flags, CALLER).handle

    def inode(self, name: str) -> InodeId:
        return self.operations.lookup(ROOT, name.encode()).inode

    def write(self, handle: int, data: bytes, offset: int = 0) -> None:
        self.operations.write(handle, offset, [memoryview(data)])

    def sync(self, handle: int) -> None:
        self.operations.sync(handle, data_only=False)

    def write_synced(self, handle: int, data: bytes, offset: int = 0) -> None:
        """As the kernel does by passthrough for a file that was opened with O_DSYNC: the daemon is not asked."""
        descriptor = self.operations._file(handle).descriptor
        self.files.write(descriptor, [data], offset)
        self.files.sync(descriptor)

    def close(self, handle: int) -> None:
        self.operations.flush(handle)
        self.operations.release(handle)

    def put(self, name: str, data: bytes, *, sync: bool = True) -> InodeId:
        """A whole file, written, synced and closed."""
        handle = self.create(name)
        self.write(handle, data)
        if sync:
            self.sync(handle)
        self.close(handle)
        return self.inode(name)

    def pack(self, contents: dict[str, bytes]) -> None:
        """New files that are written together, as small uploads are; acknowledged when this returns."""
        pack_named(self.tier, self.volume, contents)

    def unlink(self, name: str) -> None:
        self.operations.unlink(ROOT, name.encode(), CALLER)
        self.settle_deaths()

    def rename(self, name: str, new_name: str) -> None:
        self.operations.rename(ROOT, name.encode(), ROOT, new_name.encode(), 0, CALLER)
        self.settle_deaths()

    def settle_deaths(self) -> None:
        """The undertaker has done what it was asked; another takes its place."""
        self.operations._undertaker.close()
        self.operations._undertaker = Undertaker(self.metadata, self.tier, self.volume.session)

    def drain(self) -> None:
        """Store everything that is closed."""
        self.ssd.drainer.hurry(60)
        while self.ssd.drainer._drain_once():
            pass
        assert self.ssd.drainer.last_error is None

    def evict(self) -> None:
        for name in self.names():
            self.tier.evict(self.inode(name))

    # ---- what is there ----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return [entry.name.decode() for entry in self.metadata.list_directory(ROOT, b"", 1000)]

    def read(self, name: str) -> bytes:
        handle = self.open(name, os.O_RDONLY)
        try:
            parts: list[bytes] = []
            while (span := self.operations.read(handle, sum(map(len, parts)), MIB)).length:
                part = os.pread(span.descriptor, span.length, span.offset)
                if not part:
                    break
                parts.append(part)
            return b"".join(parts)
        finally:
            self.operations.release(handle)

    def everything(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in self.names()}

    def local_files(self) -> list[str]:
        return sorted(path.name for path in (self.root / "cache" / "content").glob("*/*"))

    def local(self, name: str) -> Path:
        """The local file of a name, whatever its version."""
        inode = self.inode(name)
        (path,) = (self.root / "cache" / "content").glob(f"*/{inode:016x}.*")
        return path


class Machines:
    """Formats one volume, and makes any number of machines from it, one at a time."""

    def __init__(self, folder: Path, durability: Durability = Durability.SSD) -> None:
        self.root = Path(os.path.realpath(folder)) / f"machine-{durability.name}"
        self._template = self.root.with_suffix(".template")
        format_volume(
            f"sqlite://{self.root}/volume.db",
            [f"disk://{self.root}/d{{0..1}}"],
            code=parse_code("replica:2"),
            block_bytes=64 * KIB,
            durability=durability,
            name="power",
        )
        self._template.mkdir()
        for name in DATABASE[:1]:
            shutil.copyfile(self.root / name, self._template / name)

    @contextmanager
    def machine(self) -> Iterator["Machine"]:
        """On disks that are made once and emptied after use."""
        made = Machine(Life(self.root))
        try:
            yield made
        finally:
            made.life.end()
            self._reset()

    def _reset(self) -> None:
        for fan_out in self.root.glob("d*/chunks/*"):
            shutil.rmtree(fan_out)
        for leftover in self.root.glob("d*/incoming/*"):
            leftover.unlink()
        shutil.rmtree(self.root / "cache")
        for path in self.root.glob("volume.db*"):
            path.unlink()
        for path in self.root.glob("database-*"):
            shutil.rmtree(path)
        shutil.copytree(self._template, self.root, dirs_exist_ok=True)


class Machine:
    """`life`: the one that runs now."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def power_cut(self, chance: random.Random, copy: int) -> Life:
        self.life = self.life.power_cut(chance, copy)
        return self.life

    def process_death(self) -> Life:
        self.life = self.life.process_death()
        return self.life
