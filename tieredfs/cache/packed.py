"""The table's contents that have no file of their own: small ones that were written together, in a segment.

They go the ways of all contents, and whoever needs a file gets one: a reader the bytes in memory, by a descriptor that is his
alone; a writer a local file (`unpack`), and from then on everything is as ever. A content with a place has no handles, so it is
let go as soon as it is stored or deleted.
"""

import errno
import os
from collections.abc import Sequence
from typing import Final

from tieredfs.cache.local import LocalFile
from tieredfs.cache.part import TierPart
from tieredfs.cache.room import Room
from tieredfs.cache.segments import Segments, Whole, segment_bytes
from tieredfs.cache.table import FileTable
from tieredfs.core.file_life import FileEvent, FileState
from tieredfs.errors import NoSpaceError
from tieredfs.format.segment import record_bytes
from tieredfs.host import crash
from tieredfs.host.files import Buffer, in_memory
from tieredfs.limits import PACK_DELAY_S
from tieredfs.model import InodeId, Place, StagedRecord

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class PackedFiles(FileTable):
    """Safe from any thread. Order of locks: a file's, the table's, those of `segments`."""

    def __init__(self, part: TierPart, room: Room) -> None:
        super().__init__(part)
        self.room = room
        self.segments = Segments(part.directory, part.host, segment_bytes(room.capacity_bytes))
        room.count_segments(self.segments.spare_bytes, self.segments.ready_bytes)

    def pack(self, contents: Sequence[Buffer], inodes: Sequence[InodeId], version: int) -> list[LocalFile]:
        """Small contents that are whole, under new inodes: durable, and not drained before `packed`. Waits, bounded, for room.
        Raises NoSpaceError, OSError: none of them is."""
        wholes = [Whole(inode, version, content) for inode, content in zip(inodes, contents, strict=True)]
        self.room.wait_for_room()
        try:
            places = self.segments.write(wholes)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            places = self._write_later(wholes)
        crash.here("pack.written")
        now_ns = self.part.host.clock.wall_ns()
        made = [
            _sealed(whole.inode, version, place, len(whole.content), now_ns)
            for whole, place in zip(wholes, places, strict=True)
        ]
        with self._lock:
            self._files |= {file.inode: file for file in made}
        return made

    def _write_later(self, wholes: Sequence[Whole]) -> list[Place]:
        """There is no room for a segment: others have filled the file system since the last look. The drain may make some."""
        self.room.found_full()
        self.room.wait_for_room()
        try:
            return self.segments.write(wholes)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise NoSpaceError(f"the SSD has no room for {len(wholes)} small file(s): {error}") from error

    def packed(self, file: LocalFile) -> None:
        """The record of a content of `pack` is committed."""
        now_s = self.part.host.clock.monotonic_s()
        with file.lock:
            file.staged_since_s, file.drain_not_before_s = now_s, now_s + PACK_DELAY_S
            if not file.deleted and file.state is FileState.SEALED:
                self.room.staged(file)

    def adopt_packed(self, record: StagedRecord, mtime_ns: int) -> bool:
        """Recovery: a content whose record names its place. False: it is not there."""
        assert record.place is not None
        size_bytes = self.segments.adopt(record.place, record.inode, record.version)
        if size_bytes is None:
            return False
        file = _sealed(record.inode, record.version, record.place, size_bytes, mtime_ns)
        now_s = self.part.host.clock.monotonic_s()
        age_s = max(0.0, (self.part.host.clock.wall_ns() - record.since_ns) / 1e9)
        file.staged_since_s, file.drain_not_before_s = now_s - age_s, now_s
        self.adopt(file)
        self.room.staged(file)
        return True

    def open_packed(self, file: LocalFile) -> LocalFile | None:
        """An entry of its own for who reads a content in a segment, in place of `file`; None: it is not in one.

        Raises CorruptError, OSError."""
        if file.place is None:
            return None
        try:
            with file.lock:
                own = self._in_memory(file)
        except BaseException:
            self.leave(file)
            raise
        if own is not None:
            self.leave(file)
        return own

    def _in_memory(self, file: LocalFile) -> LocalFile | None:
        """Under `file.lock`."""
        if file.place is None:
            return None
        content = self.segments.read(file.place, file.inode, file.version)
        own = LocalFile(file.inode, version=file.version, size_bytes=len(content), handles=1, users=1)
        own.descriptor, own.borrowed = in_memory(content), True
        return own

    def unpack(self, file: LocalFile) -> None:
        """Under `file.lock`: give a content in a segment a durable local file of its own, if it is in one. Raises CorruptError,
        OSError."""
        place, files, directory = file.place, self.part.host.files, self.part.directory
        if place is None:
            return
        content = self.segments.read(place, file.inode, file.version)
        path, target = directory.filling(file.inode, file.version), directory.content(file.inode, file.version)
        descriptor = files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            files.write(descriptor, [content], 0)
            os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
            files.sync(descriptor)
            file.held_bytes = files.stat(descriptor).st_blocks * 512
        finally:
            files.close(descriptor)
        files.rename(path, target)
        directory.make_name_durable(file.inode)
        crash.here("unpack.done")
        file.path, file.name_durable = target, True
        self.release_place(file)

    def release_place(self, file: LocalFile) -> None:
        """Under `file.lock`: no record names it any more, durably, or recovery prefers a local file."""
        place, file.place = file.place, None
        if place is not None:
            self.segments.release([place])


def _sealed(inode: InodeId, version: int, place: Place, size_bytes: int, mtime_ns: int) -> LocalFile:
    file = LocalFile(inode, version=version, size_bytes=size_bytes, held_bytes=record_bytes(size_bytes))
    file.place, file.mtime_ns = place, mtime_ns
    file.name_durable = file.metadata_durable = True
    file.apply(FileEvent.WRITTEN_WHOLE)
    return file
