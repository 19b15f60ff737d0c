"""The table of a tier: an entry for each content that somebody is interested in, and the index of clean copies that nobody is."""

import contextlib
import threading
from collections.abc import Callable

from tieredfs.cache.local import LiveSize, LocalFile
from tieredfs.cache.part import TierPart
from tieredfs.core.eviction import ResidentIndex
from tieredfs.core.file_life import FileEvent, FileState
from tieredfs.model import InodeId


class FileTable:
    """Looking up, coming and going. The lock is held over look-ups only; see `tieredfs.cache.tier` for the order of locks."""

    def __init__(self, part: TierPart) -> None:
        self.part = part
        self._files: dict[InodeId, LocalFile] = {}
        self._resident = ResidentIndex()
        self._lock = threading.Lock()

    def enter(self, inode: InodeId) -> LocalFile:
        """The entry of an inode, kept until the matching `leave`."""
        with self._lock:
            file = self._files.get(inode)
            if file is None:
                file = self._files[inode] = LocalFile(inode)
                resident = self._resident.take(inode)
                if resident is not None:
                    file.state, file.version, file.uses = FileState.RESIDENT, resident.version, resident.uses
                    file.held_bytes = resident.size_bytes
                    file.path = self.part.directory.content(inode, resident.version)
            file.users += 1
            return file

    def leave(self, file: LocalFile) -> None:
        """Forget the entry when nobody needs it; a clean content goes back under the eviction policy, a superseded one goes."""
        with file.lock:
            with self._lock:
                file.users -= 1
                if file.users or file.dirty or file.state is FileState.FILLING:
                    return
                file.give_up_descriptor(self.part.host.files)
                superseded = self._files.get(file.inode) is not file
                if not superseded:
                    del self._files[file.inode]
                    if file.state is FileState.RESIDENT:
                        self._resident.admit(file.inode, file.version, file.held_bytes, uses=file.uses)
            if superseded and file.state is FileState.RESIDENT:
                with contextlib.suppress(FileNotFoundError):
                    self.part.host.files.unlink(file.path)
                file.apply(FileEvent.DELETED)

    def adopt(self, file: LocalFile) -> None:
        """Recovery found a staged content."""
        with self._lock:
            assert file.inode not in self._files
            self._files[file.inode] = file

    def adopt_resident(self, inode: InodeId, version: int, held_bytes: int) -> None:
        """Recovery found a copy."""
        with self._lock:
            self._resident.admit(inode, version, held_bytes)

    def adopt_pins(self, pins: set[InodeId]) -> None:
        with self._lock:
            for inode in pins:
                self._resident.pin(inode)

    def find(self, inode: InodeId) -> LocalFile | None:
        """The entry of an inode, if it has one now."""
        with self._lock:
            return self._files.get(inode)

    def active(self) -> list[LocalFile]:
        """Entries that exist now."""
        with self._lock:
            return list(self._files.values())

    def resident_bytes(self, *, pinned: bool = True) -> int:
        with self._lock:
            return self._resident.bytes - (0 if pinned else self._resident.pinned_bytes)

    def is_movable(self, inode: InodeId) -> bool:
        """A clean copy that nobody has open or pinned."""
        with self._lock:
            return inode in self._resident and not self._resident.is_pinned(inode)

    def is_pinned(self, inode: InodeId) -> bool:
        with self._lock:
            return self._resident.is_pinned(inode)

    def resident_count(self) -> int:
        return len(self._resident)

    def is_open(self, inode: InodeId) -> bool:
        """Whether somebody on this mount holds it open (or is just opening it)."""
        with self._lock:
            file = self._files.get(inode)
            return file is not None and file.users > 0

    def live(self, inode: InodeId) -> LiveSize | None:
        """Size and mtime of a content that is being written; None when the metadata knows best."""
        file = self._files.get(inode)
        if file is None or file.state is not FileState.STAGING or file.descriptor < 0:
            return None
        try:
            status = self.part.host.files.stat(file.descriptor)
        except OSError:
            return None  # closed between the look and the call: then it was published
        return LiveSize(status.st_size, status.st_mtime_ns, status.st_blocks * 512)

    def state_of(self, inode: InodeId) -> FileState:
        with self._lock:
            file = self._files.get(inode)
            if file is not None:
                return file.state
            return FileState.RESIDENT if inode in self._resident else FileState.ABSENT

    def holds(self, inode: InodeId, version: int) -> bool:
        """Whether that content is whole on this SSD now: opening it fetches nothing."""
        with self._lock:
            file = self._files.get(inode)
            if file is None:
                return self._resident.version_of(inode) == version
            return file.version == version and file.descriptor >= 0 and file.whole

    def pin(self, inode: InodeId) -> None:
        self._change_pins(self._resident.pin, inode)

    def unpin(self, inode: InodeId) -> None:
        self._change_pins(self._resident.unpin, inode)

    def _change_pins(self, change: Callable[[InodeId], None], inode: InodeId) -> None:
        with self._lock:
            change(inode)
            pins = self._resident.pinned
        self.part.directory.save_pins(pins)
