"""What an SSD tier directory looks like on disk, and who may use it.

    tieredfs-cache.json      whose it is: volume, cache id and uuid, format version
    lock                     flock'ed by the process that uses the directory; one at a time
    boot                     the boot id of the machine when the directory was last recovered
    bell                     a FIFO: who needs what is staged here rings, and the drain does not wait any longer
    pins                     inodes that eviction leaves alone, one per line
    content/XX/INODE.VERSION the bytes of one content, whole
    filling/INODE.VERSION    a content that is being fetched; worthless after a crash
    segments/NUMBER          small contents that were written together (`tieredfs.cache.segments`)

XX is the second byte of the inode number, so that 256 files that are made one after another lie in one directory: ext4 then
takes their inodes from one place (making a file: 46 us; 340 us with the low byte for XX, each file in another directory).

There is no journal beside these names, because the metadata is the journal: a staged record says that `VERSION` of
`INODE` exists only here, and it is committed before the first byte is accepted. Every other file in `content` is a copy. A
content in a segment is one that a staged record has the place of; everything else there is worthless.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tieredfs.errors import BusyError, CorruptError, ForeignDataError, NewerFormatError
from tieredfs.host import Files, Host
from tieredfs.host.files import forgo_access_times
from tieredfs.host.shared_sync import SharedSync
from tieredfs.model import CacheRecord, InodeId

IDENTITY: Final = "tieredfs-cache.json"
FORMAT_VERSION: Final = 1
_BOOT_ID_PATH: Final = "/proc/sys/kernel/random/boot_id"


def content_path(root: str, inode: InodeId, version: int) -> str:
    """Where the cache directory `root` has a content."""
    return f"{root}/content/{inode >> 8 & 0xFF:02x}/{inode:016x}.{version:x}"


def segment_path(root: str, number: int) -> str:
    """Where the cache directory `root` has a segment."""
    return f"{root}/segments/{number:016x}"


def is_of_this_boot(root: str, files: Files) -> bool:
    """Whether the cache directory `root` was recovered since this machine came up."""
    try:
        return files.load(f"{root}/boot") == files.load(_BOOT_ID_PATH)
    except OSError:  # none yet, or not ours to read
        return False


def is_here(record: CacheRecord, host: Host) -> bool:
    """Whether the directory of a cache is on this machine. A machine may be called otherwise than when the record was written
    (a new lease, a new container): then the directory itself says whether it is that cache.
    """
    if record.host == host.name:
        return True
    try:
        return bool(json.loads(host.files.load(f"{record.path}/{IDENTITY}"))["cache"] == record.uuid)
    except (OSError, ValueError, KeyError, TypeError):  # not there, not ours to read, or something else
        return False


def bell_path(root: str) -> str:
    """Of the cache directory `root`."""
    return f"{root}/bell"


@contextmanager
def claimed(root: str, files: Files) -> Iterator[None]:
    """Nobody has the cache directory `root` in use meanwhile, if there is one. Raises BusyError."""
    try:
        lock = files.open(f"{root}/lock", os.O_RDWR)
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        files.close(lock)
        raise BusyError(f"cache directory {root} is in use: unmount, or end the process that uses it") from None
    try:
        yield
    finally:
        files.close(lock)


def give_to_volume(files: Files, root: str, cache_uuid: str, volume_uuid: str) -> None:
    """From now on the cache directory is that volume's, and no copy in it is trusted. Nothing when another cache is there.

    Raises OSError."""
    path = f"{root}/{IDENTITY}"
    identity = json.loads(files.load(path))
    if identity.get("cache") != cache_uuid:
        return
    with contextlib.suppress(FileNotFoundError):
        files.unlink(f"{root}/boot")
    files.sync_directory(root)
    files.save(path, json.dumps({**identity, "volume": volume_uuid}).encode())


@dataclass(frozen=True, slots=True)
class LocalName:
    """One content file: which version of which inode."""

    inode: InodeId
    version: int


class CacheDirectory:
    """Paths and ownership of one SSD tier directory. Opening it takes the lock; `close` gives it back."""

    def __init__(self, path: str, volume_uuid: str, files: Files) -> None:
        """Open `path`, made if missing. Raises BusyError, ForeignDataError, NewerFormatError, CorruptError."""
        self.path = os.path.abspath(path)
        self.volume_uuid = volume_uuid
        self._files = files
        files.make_directory(self.path)
        self._name_syncs = [
            SharedSync(partial(files.sync_directory, self._fan_out(byte)), "a name") for byte in range(256)
        ]
        self._lock = self._take_lock()
        try:
            self.uuid = self._identify(volume_uuid)
            for directory in (self._filling, self.segments, *(self._fan_out(byte) for byte in range(256))):
                files.make_directory(directory)
                forgo_access_times(directory)
            for directory in (f"{self.path}/content", self.path, os.path.dirname(self.path)):
                files.sync_directory(directory)
            self.same_boot = self._is_same_boot()
        except BaseException:
            files.close(self._lock)
            raise

    @property
    def _filling(self) -> str:
        return f"{self.path}/filling"

    @property
    def segments(self) -> str:
        return f"{self.path}/segments"

    def _fan_out(self, number: int) -> str:
        return f"{self.path}/content/{number:02x}"

    def content(self, inode: InodeId, version: int) -> str:
        return content_path(self.path, inode, version)

    def make_name_durable(self, inode: InodeId) -> None:
        """The names in the directory of this inode's content survive a power cut. Shared by all who wait for that."""
        self._name_syncs[inode >> 8 & 0xFF].wait()

    def filling(self, inode: InodeId, version: int) -> str:
        return f"{self._filling}/{inode:016x}.{version:x}"

    def contents(self) -> Iterator[LocalName]:
        """Every content file; names that are not ours are left alone and not reported."""
        for byte in range(256):
            for name in self._files.list_directory(self._fan_out(byte)):
                inode, _, version = name.partition(".")
                try:
                    yield LocalName(InodeId(int(inode, 16)), int(version, 16))
                except ValueError:
                    continue

    def clear_filling(self) -> None:
        """Remove what fills left behind when their process died."""
        for name in self._files.list_directory(self._filling):
            self._files.unlink(f"{self._filling}/{name}")

    def segment_numbers(self) -> list[int]:
        """In order; names that are not ours are left alone."""
        found: list[int] = []
        for name in self._files.list_directory(self.segments):
            with contextlib.suppress(ValueError):
                found.append(int(name, 16))
        return sorted(found)

    def load_pins(self) -> set[InodeId]:
        try:
            lines = self._files.load(f"{self.path}/pins").split()
        except FileNotFoundError:
            return set()
        return {InodeId(int(line)) for line in lines if line.isdigit()}

    def save_pins(self, pins: frozenset[InodeId]) -> None:
        self._files.save(f"{self.path}/pins", b"".join(b"%d\n" % inode for inode in sorted(pins)))

    def close(self) -> None:
        self._files.close(self._lock)

    def _take_lock(self) -> int:
        lock = self._files.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._files.close(lock)
            raise BusyError(
                f"cache directory {self.path} is in use by another mount; give this mount a --cache-dir of its own"
            ) from None
        return lock

    def _identify(self, volume_uuid: str) -> str:
        path = f"{self.path}/{IDENTITY}"
        try:
            raw = self._files.load(path)
        except FileNotFoundError:
            foreign = [name for name in self._files.list_directory(self.path) if name != "lock"]
            if foreign:
                raise ForeignDataError(
                    f"{self.path} is not a cache directory and not empty ({sorted(foreign)[0]!r} is there)"
                ) from None
            identity = {"format": FORMAT_VERSION, "volume": volume_uuid, "cache": str(uuid.uuid4())}
            self._files.save(path, json.dumps(identity).encode())
            return identity["cache"]  # type: ignore[return-value]
        try:
            found = json.loads(raw)
            version, volume, cache = int(found["format"]), str(found["volume"]), str(found["cache"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{path} is not a cache identity: {error}") from error
        if version > FORMAT_VERSION:
            raise NewerFormatError(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}")
        if volume != volume_uuid:
            raise ForeignDataError(f"{self.path} is the cache of another volume ({volume}); use another --cache-dir")
        return cache

    def _is_same_boot(self) -> bool:
        return is_of_this_boot(self.path, self._files)

    def note_boot(self) -> None:
        """What is here now is certainly whole, until the machine goes down."""
        if not self.same_boot:
            self._files.save(f"{self.path}/boot", self._files.load(_BOOT_ID_PATH))
            self.same_boot = True
