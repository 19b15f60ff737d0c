"""`Tier`: the SSD in front of the store. Who opens a file gets a local file; what was written there is drained.

Invariants, in the order in which they are established:

1. A staged record is committed before a local file may be written to, and it is removed in the transaction that makes the
   new extents the content. So whatever was acknowledged is in one of the two places, and the metadata says in which.
2. A version is written by one cache only. A drain commits the version it has read, and an opening for writing makes a new
   one: an overtaken drain changes nothing.
3. A local file with a version that the metadata does not name is worthless, and is deleted by whoever finds it.
4. Only clean contents without handles, without a pin, and without a bare block (`tieredfs.meta.shortage`) are evicted.

Locks: `LocalFile.lock` is held over metadata transactions and file calls of that one inode; the tier's own lock only over
look-ups in its tables. Order: file lock, then tier lock. Nobody holds two file locks.
"""

import contextlib
import os
from collections.abc import Container
from typing import Final

from tieredfs.cache.elsewhere import Patience
from tieredfs.cache.fill import Fill, Filler, Source
from tieredfs.cache.local import MAY_CHANGE, LocalFile, stamp_of
from tieredfs.cache.packed import PackedFiles
from tieredfs.cache.part import TierPart
from tieredfs.cache.room import Room
from tieredfs.cache.stored import stored_source
from tieredfs.core.eviction import Victim
from tieredfs.core.file_life import FileEvent, FileState
from tieredfs.errors import BusyError, StaleError, UnavailableError
from tieredfs.host import crash
from tieredfs.host.waiting import about_to_wait
from tieredfs.limits import (
    BACKPRESSURE_WAIT_S,
    DRAIN_DEADLINE_S,
    DRAIN_DELAY_S,
    FILL_WAIT_S,
    MIB,
    PACK_DELAY_S,
    PACKED_FILE_BYTES_MAX,
)
from tieredfs.model import NO_CACHE, Attributes, InodeId, StagedRecord

FILL_BEFORE_OPEN_BYTES: Final = 16 * MIB
"""A file up to this size is whole before its open returns, so that even its first reader gets passthrough."""


class Tier(PackedFiles):
    """One cache directory in use. Safe from any thread."""

    def __init__(self, part: TierPart, filler: Filler, room: Room) -> None:
        super().__init__(part, room)
        self.cache = part.cache
        self._filler = filler

    # ---- opening ----------------------------------------------------------------------------------------------------

    def create(self, inode: InodeId, version: int) -> LocalFile:
        """The local file of an inode that was just created, staged here, open for writing."""
        file = self.enter(inode)
        with file.lock:
            try:
                self._stage_new(file, version)
            except BaseException:
                self.leave(file)
                raise
            file.handles += 1
            file.writers += 1
        crash.here("create.file-made")
        return file

    def open_read(self, inode: InodeId, *, fill_before: int = FILL_BEFORE_OPEN_BYTES, own: bool = False) -> LocalFile:
        """A local file to read from, of this machine (`own`: this directory). Not whole while it is filling; small ones are.

        Raises NotFoundError, DataLossError, CorruptError, UnavailableError, DeadlineError.
        """
        patience = self.part.elsewhere.patience()
        while True:
            file = self.enter(inode)
            if (packed := self.open_packed(file)) is not None:
                return packed
            if not self._try_open_read(file, patience, own=own):
                self.leave(file)
                patience.pause()
                continue
            try:
                if file.fill is not None and file.size_bytes <= fill_before:
                    file.fill.wait_whole()
            except StaleError as error:  # it was written to again on the host that has it staged
                self.release(file, writer=False)
                patience.note(error)
                patience.pause()
            except BaseException:
                self.release(file, writer=False)
                raise
            else:
                return file

    def _try_open_read(self, file: LocalFile, patience: Patience, *, own: bool) -> bool:
        """False: look again, the entry was replaced or the content is not to be had now."""
        try:
            with file.lock:
                absent_before = file.state is FileState.ABSENT
                ready = self._prepare_read(file, patience, own=own)
                if ready:
                    self._ensure_descriptor(file)
                    if file.state is FileState.RESIDENT:  # a fill of nothing but holes is over at once
                        file.apply(FileEvent.READ_BEGUN)
                    file.handles += 1
                    file.uses += not absent_before  # to be fetched is not to be used again
                return ready
        except BaseException:
            file.end_turn()
            self.leave(file)
            raise

    def open_write(self, inode: InodeId, *, truncate: bool, resumed: bool = False, admitted: bool = False) -> LocalFile:
        """A whole local file under a new version. `resumed`: a new daemon takes over an open handle. `admitted`: the caller has
        asked for what it is going to add, or adds nothing, so a full quota does not matter.

        Raises NotFoundError, NoSpaceError, QuotaExceededError, BusyError (staged in another cache that does not drain), and what a
        fill raises.
        """
        if not resumed:
            self.room.wait_for_room()
        deadline_s = self.part.host.clock.monotonic_s() + BACKPRESSURE_WAIT_S
        while True:
            file = self.enter(inode)
            try:
                if self._try_open_write(file, truncate=truncate, resumed=resumed, admitted=admitted or resumed):
                    return file
            except BusyError:
                self.leave(file)
                if self.part.host.clock.monotonic_s() > deadline_s:
                    raise
                about_to_wait()
                self.part.host.clock.sleep(0.05)
                continue
            except BaseException:
                self.leave(file)
                raise
            self.leave(file)

    def _try_open_write(self, file: LocalFile, *, truncate: bool, resumed: bool, admitted: bool) -> bool:
        """False: look again, the entry was replaced or its fill has just ended."""
        if file.state is FileState.FILLING and file.fill is not None:
            file.fill.wait_whole()
        with file.lock:
            self.unpack(file)
            if file.state is FileState.STAGING and file.writers:
                if truncate:
                    self.part.host.files.truncate(file.descriptor, 0)
            else:
                if not self._prepare_write(file, truncate=truncate):
                    return False
                self._begin_write(file, truncate=truncate, resumed=resumed, admitted=admitted)
            self._ensure_descriptor(file, writable=True)
            file.handles += 1
            file.writers += 1
            file.uses += 1
            return True

    def _prepare_read(self, file: LocalFile, patience: Patience, *, own: bool) -> bool:
        """Make the entry one that can be read; False when it was set aside for a newer version, and a new one must be made, or
        (noted) when what another cache has staged is not to be had now."""
        if file.dirty:
            return True
        attributes = self.part.metadata.attributes(file.inode)
        if file.state in {FileState.RESIDENT, FileState.STORED, FileState.FILLING}:
            if file.version == attributes.version:
                if file.state is not FileState.FILLING:
                    self._ensure_descriptor(file)
                    file.apply(FileEvent.READ_BEGUN)
                return True
            self._set_aside(file)
            return False
        if file.is_spent:
            self._set_aside(file)
            return False
        if attributes.staged_in in {NO_CACHE, self.cache}:
            if own or not self._share(file, attributes):
                self._begin_fill(file, attributes)
            return True
        try:
            self._read_staged(file, attributes, own=own)
        except UnavailableError as error:
            file.end_turn()
            patience.note(error, self.part.elsewhere.wait_s(attributes.staged_in))
            return False
        return True

    def _prepare_write(self, file: LocalFile, *, truncate: bool) -> bool:
        """Bring the content here if the write needs it; False when the caller must look again."""
        if file.dirty:
            return True
        attributes = self.part.metadata.attributes(file.inode)
        if attributes.staged_in not in {NO_CACHE, self.cache}:
            self.part.elsewhere.hurry(attributes.staged_in)
            raise BusyError(
                f"the file is staged on host {self.part.elsewhere.host_of(attributes.staged_in)}, in another cache, not stored yet"
            )
        if file.is_spent:
            self._set_aside(file)
            return False
        if file.state is FileState.ABSENT:
            if truncate or attributes.size_bytes == 0:
                return True
            self._begin_fill(file, attributes)
        if file.state is FileState.FILLING and file.fill is not None:
            fill = file.fill
            file.lock.release()
            try:
                fill.wait_whole()
            finally:
                file.lock.acquire()
            return False
        if file.version != attributes.version:
            self._set_aside(file)
            return False
        return True

    def _begin_write(self, file: LocalFile, *, truncate: bool, resumed: bool, admitted: bool) -> None:
        """CLEAN or ABSENT or dirty without writers → STAGING, under a new version.

        A clean copy was perhaps never synced, and what is safe in the store must not give way to one that a power cut tore:
        it is made durable first (nearly free if it is), or not used at all where nothing of it stays.
        """
        clean_before = not file.dirty
        afresh = clean_before and truncate and not file.handles
        if clean_before and not afresh and file.state is not FileState.ABSENT:
            self._ensure_descriptor(file)
            self.part.host.files.sync(file.descriptor)
        attributes = self.part.metadata.begin_write(file.inode, self.cache, truncate=truncate, admitted=admitted)
        crash.here("write.marked")
        files = self.part.host.files
        if afresh or file.state is FileState.ABSENT:
            self._replace_local(file, attributes.version)
            crash.here("write.moved")
            return
        target = self.part.directory.content(file.inode, attributes.version)
        files.rename(file.path, target)
        crash.here("write.moved")
        file.path, file.version = target, attributes.version
        file.name_durable = file.metadata_durable = False
        self._ensure_descriptor(file, writable=True)
        if truncate:
            files.truncate(file.descriptor, 0)
        elif clean_before:
            os.utime(file.descriptor, ns=(attributes.atime_ns, attributes.mtime_ns))
        status = files.stat(file.descriptor)
        unchanged_possible = clean_before and not truncate and not resumed
        file.fresh_stamp = stamp_of(status) if unchanged_possible else None
        file.published = (status.st_size, status.st_mtime_ns) if unchanged_possible else None
        file.snapshot_stamp = None
        self._mark_staging(file)

    def _replace_local(self, file: LocalFile, version: int) -> None:
        """Nobody has the clean copy open, and nobody will read it: an empty local file takes its place."""
        files, copy = self.part.host.files, file.path
        if file.descriptor >= 0:
            files.close(file.descriptor)
        self._stage_new(file, version)
        if copy:
            with contextlib.suppress(FileNotFoundError):
                files.unlink(copy)

    def _stage_new(self, file: LocalFile, version: int) -> None:
        """Make an empty local file for a staged version."""
        file.path = self.part.directory.content(file.inode, version)
        file.descriptor = self.part.host.files.open(file.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        file.writable, file.version = True, version
        file.fresh_stamp = file.published = file.snapshot_stamp = None
        file.name_durable = file.metadata_durable = False
        self._mark_staging(file)

    def _mark_staging(self, file: LocalFile) -> None:
        now_s = self.part.host.clock.monotonic_s()
        if not file.dirty:
            file.staged_since_s = now_s
        file.drain_not_before_s = file.staged_since_s + DRAIN_DEADLINE_S
        file.mapped_since_s = None
        file.apply(FileEvent.WRITE_BEGUN)
        self.room.staged(file)

    def _begin_fill(self, file: LocalFile, attributes: Attributes, source: Source | None = None) -> None:
        """`source`: where it comes from, if not from the store."""
        about_to_wait()
        files = self.part.host.files
        source = source or stored_source(self.part.metadata, self._filler, attributes)
        file.held_bytes = sum(span.length for span in source.spans)
        self.room.reserve(file.held_bytes)
        path = self.part.directory.filling(file.inode, attributes.version)
        descriptor = files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        files.truncate(descriptor, source.size_bytes)
        fill = Fill(source, descriptor)
        file.path, file.version, file.size_bytes = path, attributes.version, source.size_bytes
        file.fill = fill
        file.apply(FileEvent.FILL_BEGUN)
        self._ensure_descriptor(file)
        if fill.spans:
            self._filler.start(fill, lambda: self._fill_whole(file), lambda: self._fill_failed(file))
        else:
            files.close(descriptor)
            self._fill_whole(file)

    def _fill_whole(self, file: LocalFile) -> None:
        """In a filling thread: give the local file its final name."""
        with file.lock, contextlib.closing(file.turn or contextlib.ExitStack()):  # it ends when the copy can be found
            target = self.part.directory.content(file.inode, file.version)
            if file.state is not FileState.FILLING:  # deleted meanwhile
                return
            self.part.host.files.rename(file.path, target)
            file.path = target
            file.apply(FileEvent.FILL_WHOLE)
            self.idle(file)
        with self._lock:
            forgotten = file.users == 0
            file.users += forgotten
        if forgotten:
            self.leave(file)

    def _fill_failed(self, file: LocalFile) -> None:
        """In a filling thread: readers have been told; the next open starts anew."""
        with file.lock:
            file.end_turn()
            if file.state is FileState.FILLING:
                self.part.host.files.unlink(file.path)
                file.apply(FileEvent.FILL_FAILED)
            self._set_aside(file)
            file.give_up_descriptor(self.part.host.files)

    def _read_staged(self, file: LocalFile, attributes: Attributes, *, own: bool) -> None:
        """Read what another cache has staged. Raises UnavailableError: not to be had now."""
        near = self.part.elsewhere.is_near(attributes.staged_in)
        if not near and not own and self._share(file, attributes):
            return
        found = self.part.elsewhere.open(attributes)
        if isinstance(found, int):
            self._read_elsewhere(file, found, attributes.size_bytes, MAY_CHANGE)
        elif found.closed:
            self._begin_fill(file, attributes, found)
        else:
            file.end_turn()
            self.room.reserve(sum(span.length for span in found.spans))
            path = f"{self.part.directory.filling(file.inode, attributes.version)}-{file.number}"
            file.fill, descriptor = self._filler.start_private(path, found)
            self._read_elsewhere(file, descriptor, found.size_bytes, MAY_CHANGE)

    def _share(self, file: LocalFile, attributes: Attributes) -> bool:
        """Read the copy of another process of this machine, once it is whole. False: this process is to fetch the content."""
        found = self.part.neighbours.share(attributes)
        if not isinstance(found, int):
            file.turn = found
            return False
        self._read_elsewhere(file, found, attributes.size_bytes, attributes.version)
        return True

    def _read_elsewhere(self, file: LocalFile, descriptor: int, size_bytes: int, version: int) -> None:
        file.descriptor, file.borrowed, file.size_bytes, file.version = descriptor, True, size_bytes, version
        self._set_aside(file)

    def _set_aside(self, file: LocalFile) -> None:
        """Take the entry out of the table: those who have it keep it, the next to come makes a new one."""
        with self._lock:
            if self._files.get(file.inode) is file:
                del self._files[file.inode]
        if not file.handles and not file.dirty and file.state in {FileState.RESIDENT, FileState.STORED}:
            self._delete_local(file)

    def _ensure_descriptor(self, file: LocalFile, *, writable: bool = False) -> None:
        try:
            opened = file.ensure_descriptor(self.part.host.files, writable=writable)
        except FileNotFoundError:
            self._set_aside(file)
            raise UnavailableError(f"{file.path} was removed behind our back; opening it again fetches it") from None
        if opened and not file.dirty and file.fill is None:
            status = self.part.host.files.stat(file.descriptor)
            file.size_bytes, file.held_bytes = status.st_size, status.st_blocks * 512

    # ---- while open -------------------------------------------------------------------------------------------------

    def publish(self, file: LocalFile) -> None:
        """Let the metadata know size and mtime of a content that is being written, if they changed."""
        with file.lock:
            if file.state is not FileState.STAGING or file.deleted:
                return
            status = self.part.host.files.stat(file.descriptor)
            current = (status.st_size, status.st_mtime_ns)
            if current != file.published and stamp_of(status) != file.fresh_stamp:
                self.part.metadata.publish(file.inode, file.version, *current, status.st_blocks * 512)
                file.published = current
                file.metadata_durable = False
                crash.here("flush.published")

    def release(self, file: LocalFile, *, writer: bool) -> None:
        """A handle is gone. The last writer seals; the last handle closes the local file."""
        sealed = False
        with file.lock:
            file.handles -= 1
            if writer:
                file.writers -= 1
                if file.writers == 0 and file.state is FileState.STAGING:
                    sealed = self._last_writer_gone(file)
            file.give_up_descriptor(self.part.host.files)
            if file.borrowed and not file.handles and file.fill is not None:
                file.fill.abandon()
            self.idle(file)
        if sealed:
            crash.here("seal.done")
        self.leave(file)

    def _last_writer_gone(self, file: LocalFile) -> bool:
        """STAGING → SEALED (True), or back to STORED when nothing was written."""
        if file.deleted:
            return False
        status = self.part.host.files.stat(file.descriptor)
        file.size_bytes, file.held_bytes = status.st_size, status.st_blocks * 512
        if stamp_of(status) == file.fresh_stamp and not file.is_mapped(self.part.host.files):
            self.unwrite(file)
            return False
        self.publish(file)
        delay_s = PACK_DELAY_S if file.size_bytes <= PACKED_FILE_BYTES_MAX else DRAIN_DELAY_S
        file.drain_not_before_s = self.part.host.clock.monotonic_s() + delay_s
        file.apply(FileEvent.WRITERS_GONE)
        return True

    def unwrite(self, file: LocalFile) -> None:
        """Under `file.lock`: the content is the stored one after all, and there is nothing to drain."""
        self.part.metadata.abandon_write(file.inode, file.version)
        stored = self.part.metadata.attributes(file.inode).version
        target = self.part.directory.content(file.inode, stored)
        self.part.host.files.rename(file.path, target)
        file.path, file.version = target, stored
        file.apply(FileEvent.UNCHANGED)
        self.idle(file)
        self.room.unstaged(file)

    def idle(self, file: LocalFile) -> None:
        """Under `file.lock`: a clean content without handles may be evicted."""
        if file.state is FileState.STORED and file.handles == 0:
            file.apply(FileEvent.IDLE)

    def resident_now(self, file: LocalFile) -> None:
        """The drain committed; under `file.lock`, state DRAINING."""
        file.apply(FileEvent.DRAIN_COMMITTED)
        self.idle(file)
        self.room.unstaged(file)
        if file.place is not None:  # no copy, and nobody has it open
            file.apply(FileEvent.EVICTED)
            self.release_place(file)

    # ---- deleting, evicting, pinning --------------------------------------------------------------------------------

    def mark_deleted(self, inode: InodeId) -> None:
        """The last name of the inode is gone. Its content is not drained any more; handles go on using it."""
        with self._lock:
            file = self._files.get(inode)
        if file is not None:
            with file.lock:
                file.deleted = True
                self.room.unstaged(file)

    def discard(self, inode: InodeId) -> None:
        """The inode is deleted: so is its local file."""
        file = self.enter(inode)
        with file.lock:
            file.deleted = True
            if not file.handles:
                self._delete_local(file)
        self.leave(file)

    def _delete_local(self, file: LocalFile) -> None:
        """Unlink the local file; the entry is of no further use."""
        if file.state is FileState.DISCARDED:
            return
        if file.path:
            with contextlib.suppress(FileNotFoundError):
                self.part.host.files.unlink(file.path)
        self.release_place(file)
        self.room.unstaged(file)
        file.apply(FileEvent.DELETED)
        with self._lock:
            if self._files.get(file.inode) is file:
                del self._files[file.inode]

    def evict(self, inode: InodeId) -> bool:
        """Drop the copy of one file if it is clean and nobody has it open."""
        return self._evict_entry(self.enter(inode))

    def evict_bytes(self, bytes_needed: int, spared: Container[InodeId] = ()) -> int:
        """Evict by policy, `spared` excepted; returns the number of files."""
        with self._lock:
            victims = self._resident.victims(bytes_needed, spared)
            entries = [self._chosen(victim) for victim in victims]
        return sum(self._evict_entry(file) for file in entries)

    def _chosen(self, victim: Victim) -> LocalFile:
        """The entry of a victim, so that whoever opens it meanwhile waits for the outcome. Under the tier's lock."""
        assert victim.inode not in self._files, "an active file is not in the index"
        path = self.part.directory.content(victim.inode, victim.version)
        file = LocalFile(victim.inode, FileState.RESIDENT, victim.version, path, users=1)
        file.held_bytes = victim.size_bytes  # it may have to stay
        self._files[victim.inode] = file
        return file

    def _evict_entry(self, file: LocalFile) -> bool:
        """Who is just opening it waits for the lock, and fetches it again."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.leave, file)
            stack.enter_context(file.lock)
            idle = not file.handles and file.state is FileState.RESIDENT
            if not idle or self.part.metadata.is_bare(file.inode):
                return False
            crash.here("evict.begun")
            with contextlib.suppress(FileNotFoundError):
                self.part.host.files.unlink(file.path)
            file.apply(FileEvent.EVICTED)
            file.path = ""
            return True

    def warm(self, inode: InodeId, *, pin: bool) -> None:
        """Bring the whole file here. Raises what a fill raises."""
        file = self.open_read(inode, fill_before=0, own=True)
        try:
            if file.fill is not None:
                file.fill.wait_whole(FILL_WAIT_S * (1 + file.size_bytes // (64 * MIB)))
        finally:
            self.release(file, writer=False)
        if pin:
            self.pin(inode)

    def staged_records(self) -> list[StagedRecord]:
        return self.part.metadata.staged(self.cache)
