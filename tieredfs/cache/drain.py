"""The drain: what is staged goes to the store, oldest first.

A content is due when it has been sealed for `DRAIN_DELAY_S`, a small one for `PACK_DELAY_S`, and then all small ones that were
sealed since go with it, so that files written together share blocks; at once when
somebody waits for it or room is short. A file that stays open is stored after `DRAIN_DEADLINE_S`, when it has been quiet
for a moment, or at the latest after `DRAIN_BUSY_DEADLINE_S`: then its bytes of this moment become the last safe
content, and it stays staged. Such a snapshot takes a tenth of the time at most: a file that is written for hours is not
stored over and over.

One planner thread picks the oldest due content, or a batch of small ones, and reads it into lent block buffers; the
store's threads encode and write. Each buffer is a private copy, checksummed when it was read: so what a writer does
meanwhile can make a drain void, never wrong.

A mapping may outlive the descriptor it was made with, and then nobody tells us when it is written to. So a sealed content is
taken for whole only when the kernel says that nobody can write to it; until then it is stored as an open one is.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tieredfs.cache.local import LocalFile, Stamp, stamp_of
from tieredfs.cache.tier import Tier
from tieredfs.core.drain_plan import BlockPlan, extents_of, plan_blocks, widen_segments
from tieredfs.core.file_life import FileEvent, FileState
from tieredfs.errors import (
    ConditionError,
    ConflictError,
    CorruptError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    TieredError,
    UnavailableError,
)
from tieredfs.host import crash
from tieredfs.host.files import is_open_for_writing
from tieredfs.limits import (
    BACKPRESSURE_WAIT_S,
    DRAIN_BUSY_DEADLINE_S,
    DRAIN_DEADLINE_S,
    DRAIN_DELAY_S,
    DRAIN_QUIET_S,
    PACK_FILES_MAX,
    PACKED_FILE_BYTES_MAX,
    SESSION_HEARTBEAT_S,
)
from tieredfs.model import Block, Extent, InodeId, Place, StoredContent

_log: Final = logging.getLogger("tieredfs.cache.drain")
_TICK_S: Final = 0.25
_RETRY_S: Final = 2.0
_SHORT_PAUSE_S: Final = 0.005
_CONFLICT_RETRY_S: Final = 0.5
"""A disk was removed while a block was being written to it; this process hears of it with its next heartbeat."""
_MAPPED_RETRY_S: Final = 0.05
_MAPPED_PATIENCE_S: Final = 1.0
"""A program that has just closed its file is in the midst of letting it go; one that has it mapped keeps it for longer."""
_BLOCK_WORKERS: Final = 3


@dataclass(frozen=True, slots=True)
class _Taken:
    """A content that a drain has begun to read: `stamp` is that of the local file then. `place`: it is in a segment instead."""

    file: LocalFile
    version: int
    descriptor: int
    stamp: Stamp
    snapshot: bool
    place: Place | None = None

    @property
    def mtime_ns(self) -> int:
        return self.stamp[1]

    @property
    def size_bytes(self) -> int:
        return self.stamp[2]


class Drainer:
    """One per tier. `start` once; `close` ends the thread, leaving what is staged staged."""

    def __init__(self, tier: Tier, block_bytes: int, on_write: Callable[[int], None] = lambda _: None) -> None:
        """`on_write` is told of every block that is about to be written, and must return at once."""
        self._on_write = on_write
        self._tier = tier
        self._part = tier.part
        self._block_bytes = block_bytes
        self._executor = ThreadPoolExecutor(_BLOCK_WORKERS, "drain-block")
        self._wake = threading.Condition()
        self._hurry_until_s = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._one_at_a_time = threading.Lock()
        self._failing: dict[InodeId, str] = {}
        self.stored_bytes = 0
        self.stored_files = 0

    @property
    def last_error(self) -> str | None:
        """What is in the way of the oldest content that could not be stored when it was last tried."""
        return next(iter(list(self._failing.values())), None)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._executor.shutdown(wait=True)

    def hurry(self, duration_s: float = 5.0) -> None:
        """Ignore delays for a while: somebody waits."""
        with self._wake:
            self._hurry_until_s = self._part.host.clock.monotonic_s() + duration_s
            self._wake.notify_all()

    def store_now(self, file: LocalFile, timeout_s: float = BACKPRESSURE_WAIT_S) -> None:
        """Returns when the file's bytes of this moment are in the store (`fsync` at durability `store`).

        Raises what the store raised, or DeadlineError.
        """
        clock = self._part.host.clock
        deadline_s = clock.monotonic_s() + timeout_s
        conflicts_until_s = clock.monotonic_s() + min(timeout_s, 3 * SESSION_HEARTBEAT_S)
        while file.dirty and not file.deleted:
            pause_s = _SHORT_PAUSE_S
            with self._one_at_a_time:
                if self._is_stored_as_it_is(file):
                    return
                taken = self._take(file, asked=True)
                try:
                    if taken is not None and file.inode in self._store([taken]):
                        return
                except ConflictError:
                    if clock.monotonic_s() > conflicts_until_s:
                        raise
                    pause_s = _CONFLICT_RETRY_S
            if clock.monotonic_s() > deadline_s:
                raise DeadlineError(f"the file was not stored within {timeout_s:.0f} s")
            clock.sleep(pause_s)

    # ---- the planner ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._closing:
                    return
            batch_stored = self._drain_once()
            if not batch_stored:
                with self._wake:
                    if not self._closing:
                        self._wake.wait(_TICK_S)

    def _drain_once(self) -> bool:
        """Store the oldest due content, with others if it is small. False when nothing was due or it failed."""
        due = self._due()
        if not due:
            return False
        with self._one_at_a_time:
            batch = self._take_all(self._without_deleted(self._batch(due)))
            if not batch:
                return False
            try:
                self._store(batch)
            except (TieredError, OSError) as error:
                self._failed([taken.file for taken in batch], error)
                return False
        for taken in batch:
            self._failing.pop(taken.file.inode, None)
        return True

    def _due(self) -> list[LocalFile]:
        now_s = self._part.host.clock.monotonic_s()
        hurried = now_s < self._hurry_until_s
        dirty = self._tier.room.dirty_files()
        for inode in self._failing.keys() - {file.inode for file in dirty}:
            del self._failing[inode]
        due = [
            file
            for file in dirty
            if file.state in {FileState.SEALED, FileState.STAGING}
            and file.retry_not_before_s <= now_s
            and (file.drain_not_before_s <= now_s or (hurried and file.state is FileState.SEALED))
        ]
        due.sort(key=lambda file: file.staged_since_s)
        return due

    def _batch(self, due: Sequence[LocalFile]) -> list[LocalFile]:
        """The oldest, and, if it is small, further small ones up to a block."""
        oldest = due[0]
        if not _packable(oldest):
            return [oldest]
        batch: list[LocalFile] = []
        total = 0
        for file in (*due, *self._sealed_since(due)):
            if not _packable(file):
                continue
            if batch and (total + file.size_bytes > self._block_bytes or len(batch) >= PACK_FILES_MAX):
                break
            batch.append(file)
            total += file.size_bytes
        return batch

    def _without_deleted(self, files: Sequence[LocalFile]) -> Sequence[LocalFile]:
        """What another process deleted is let go here, unread: where several serve one bucket, most of what is replaced while it
        is young is another's. Its deletion is durable first."""
        if len(files) < 2:
            return files
        try:
            left = self._part.metadata.versions([file.inode for file in files])
            gone = [file for file in files if file.inode not in left]
            if gone:
                self._part.metadata.sync()
        except TieredError:  # then it is found out when it is stored
            return files
        for file in gone:
            self._tier.discard(file.inode)
        return [file for file in files if file.inode in left]

    def _sealed_since(self, due: Sequence[LocalFile]) -> list[LocalFile]:
        """Sealed files that are not due yet, oldest first."""
        known = set(map(id, due))
        now_s = self._part.host.clock.monotonic_s()
        others = [
            file
            for file in self._tier.room.dirty_files()
            if id(file) not in known and file.state is FileState.SEALED and file.retry_not_before_s <= now_s
        ]
        return sorted(others, key=lambda file: file.staged_since_s)

    def _take_all(self, files: Sequence[LocalFile]) -> list[_Taken]:
        """Begin with those that can be read: one that the SSD lost must not hold up the others."""
        batch: list[_Taken] = []
        for file in files:
            try:
                taken = self._take(file)
            except (OSError, CorruptError) as error:
                self._failed([file], error)
                continue
            if taken is not None:
                batch.append(taken)
        return batch

    def _take(self, file: LocalFile, *, asked: bool = False) -> _Taken | None:
        """Begin to drain one content; None when there is nothing to do for it now. `asked`: somebody waits for it."""
        files = self._part.host.files
        with file.lock:
            if file.deleted or file.state not in {FileState.SEALED, FileState.STAGING}:
                return None
            if self._tier.is_pinned(file.inode):
                self._tier.unpack(file)  # it is to stay as a copy
            if file.place is not None:
                return self._begin_packed(file, file.place)
            descriptor = files.open(file.path, os.O_RDONLY)
            try:
                taken = self._begin(file, descriptor, asked=asked)
            except BaseException:
                files.close(descriptor)
                raise
            if taken is None:
                files.close(descriptor)
                return None
        crash.here("drain.begun")
        return taken

    def _begin(self, file: LocalFile, descriptor: int, *, asked: bool) -> _Taken | None:
        """Under `file.lock`: what is to be done for it now."""
        status = self._part.host.files.stat(descriptor)
        if file.state is FileState.STAGING:
            return self._snapshot(file, descriptor) if asked or self._ripe(file, status) else None
        if is_open_for_writing(descriptor):
            return self._snapshot(file, descriptor) if self._is_kept_mapped(file) else None
        file.mapped_since_s = None
        if stamp_of(status) == file.fresh_stamp:
            self._tier.unwrite(file)
            return None
        file.apply(FileEvent.DRAIN_BEGUN)
        return _Taken(file, file.version, descriptor, stamp_of(status), snapshot=False)

    def _begin_packed(self, file: LocalFile, place: Place) -> _Taken:
        """Under `file.lock`. Nobody can write to it. It is looked at here, for what the SSD lost must not hold up the others.

        Raises CorruptError, OSError."""
        self._tier.segments.read(place, file.inode, file.version)
        self._tier.segments.hold(place)
        file.apply(FileEvent.DRAIN_BEGUN)
        crash.here("drain.begun")
        return _Taken(file, file.version, -1, (0, file.mtime_ns, file.size_bytes), snapshot=False, place=place)

    def _is_kept_mapped(self, file: LocalFile) -> bool:
        """Whether a mapping for writing has outlived its descriptor for so long that it will go on; when to look again."""
        now_s = self._part.host.clock.monotonic_s()
        if file.mapped_since_s is None:
            file.mapped_since_s = now_s
        kept = now_s - file.mapped_since_s >= _MAPPED_PATIENCE_S
        file.retry_not_before_s = now_s + (_RETRY_S if kept else _MAPPED_RETRY_S)
        return kept

    def _snapshot(self, file: LocalFile, descriptor: int) -> _Taken | None:
        """None: it is stored as it is. Pages are cleaned before they are read, for a write to a dirty mapped page leaves no
        trace; and while the file stays staged recovery prefers the local file, so nothing is stored that is not durable here.

        The stamp is older than that: a page that is written to while others are cleaned is dirty again, and only then is the
        snapshot known not to be what comes after it.
        """
        stamp = stamp_of(self._part.host.files.stat(descriptor))
        self._part.host.files.sync(descriptor)
        if stamp in {file.snapshot_stamp, file.fresh_stamp}:
            return None
        return _Taken(file, file.version, descriptor, stamp, snapshot=True)

    def _ripe(self, file: LocalFile, status: os.stat_result) -> bool:
        """Whether an open file is to be stored as it is now; if not, when to look again."""
        now_s = self._part.host.clock.monotonic_s()
        if stamp_of(status) in {file.snapshot_stamp, file.fresh_stamp}:
            file.drain_not_before_s = now_s + DRAIN_DEADLINE_S
            return False
        quiet_s = self._part.host.clock.wall_ns() / 1e9 - status.st_mtime
        wanted = file.drain_not_before_s == 0.0
        if wanted or quiet_s >= DRAIN_QUIET_S or now_s - file.staged_since_s >= DRAIN_BUSY_DEADLINE_S:
            return True
        file.drain_not_before_s = now_s + DRAIN_QUIET_S
        return False

    def _is_stored_as_it_is(self, file: LocalFile) -> bool:
        """Of a content that is open for writing: nothing was written since it was last stored."""
        with file.lock:
            if file.state is not FileState.STAGING or file.descriptor < 0:
                return False
            stamp = stamp_of(self._part.host.files.stat(file.descriptor))
            return stamp in {file.fresh_stamp, file.snapshot_stamp}

    # ---- reading, storing, committing -------------------------------------------------------------------------------

    def _store(self, batch: Sequence[_Taken]) -> set[InodeId]:
        """Blocks first, then one commit; the inodes that took it. On any error the contents are sealed again.

        The commit is durable before a content counts as clean: what is clean may be evicted, and a commit that a power cut
        took back would then name a local file that is gone.
        """
        started_s = self._part.host.clock.monotonic_s()
        try:
            blocks, extents = self._stored_already(batch) or self._write_blocks(batch)
            contents = self._contents(batch, extents)
            crash.here("drain.block-written")
            if any(block.missing and not block.spare for block in blocks):
                self._keep_copies(batch)
            taken_over = self._commit(contents, blocks)
            crash.here("drain.committed")
            if any(content.complete for content in contents):
                self._part.metadata.sync()
        except BaseException:
            self._seal_again(batch)
            raise
        finally:
            for taken in batch:
                self._let_go(taken)
        duration_s = self._part.host.clock.monotonic_s() - started_s
        for taken in batch:
            self._settle(taken, committed=taken.file.inode in taken_over, duration_s=duration_s)
            self._forget_if_idle(taken.file)
        self.stored_files += len(taken_over)
        self.stored_bytes += sum(block.size_bytes for block in blocks)
        return taken_over

    def _let_go(self, taken: _Taken) -> None:
        if taken.place is None:
            self._part.host.files.close(taken.descriptor)
        else:
            self._tier.segments.let_go(taken.place)

    def _keep_copies(self, batch: Sequence[_Taken]) -> None:
        """Of what is in bare blocks the SSD has a copy, too; a place in a segment is none, for it goes with the commit."""
        for taken in batch:
            with taken.file.lock:
                self._tier.unpack(taken.file)

    def _commit(self, contents: Sequence[StoredContent], blocks: Sequence[Block]) -> set[InodeId]:
        try:
            return self._part.metadata.commit_stored(contents, blocks)
        except ConflictError:  # a disk was removed meanwhile: nothing will ever refer to these blocks
            for block in blocks:
                self._discard_block(block)
            raise

    def _settle(self, taken: _Taken, *, committed: bool, duration_s: float) -> None:
        """What becomes of one content after the commit."""
        file = taken.file
        with file.lock:
            if taken.snapshot:
                pause_s = max(DRAIN_DEADLINE_S, 10 * duration_s)
                file.drain_not_before_s = self._part.host.clock.monotonic_s() + pause_s
                if committed:
                    file.snapshot_stamp = taken.stamp
                    file.snapshots += 1
                return
            if file.state is not FileState.DRAINING or file.version != taken.version:
                return  # a writer came: the drain is void
            if committed:
                self._tier.resident_now(file)
                return
            file.apply(FileEvent.DRAIN_FAILED)
            file.drain_not_before_s = self._part.host.clock.monotonic_s() + DRAIN_DELAY_S
            self._discard_if_void(taken)

    def _discard_if_void(self, taken: _Taken) -> None:
        """A content that was not committed because its file is deleted, or because another host wrote a newer one.

        Under `file.lock`: a writer of ours who came in between would have made the newer version, and would lose it.
        """
        try:
            current = self._part.metadata.attributes(taken.file.inode).version
        except NotFoundError:
            current = 0
        if current != taken.version:
            self._tier.discard(taken.file.inode)

    def _forget_if_idle(self, file: LocalFile) -> None:
        entered = self._tier.enter(file.inode)
        self._tier.leave(entered)

    def _contents(self, batch: Sequence[_Taken], extents: Sequence[tuple[Extent, ...]]) -> list[StoredContent]:
        """What to commit: a sealed content that changed under us all the same is left out, and drained again."""
        contents = []
        for taken, file_extents in zip(batch, extents, strict=True):
            if not taken.snapshot and self._stamp_now(taken) != taken.stamp:
                continue
            contents.append(
                StoredContent(
                    taken.file.inode,
                    taken.version,
                    taken.size_bytes,
                    taken.mtime_ns,
                    file_extents,
                    complete=not taken.snapshot,
                )
            )
        return contents

    def _stamp_now(self, taken: _Taken) -> Stamp:
        return taken.stamp if taken.place is not None else stamp_of(self._part.host.files.stat(taken.descriptor))

    def _stored_already(self, batch: Sequence[_Taken]) -> tuple[list[Block], list[tuple[Extent, ...]]] | None:
        """A file that was stored while it was open, and not written to since, has its extents: nothing moves."""
        taken = batch[0]
        if len(batch) > 1 or taken.snapshot or taken.stamp != taken.file.snapshot_stamp:
            return None
        return [], [tuple(self._part.metadata.extents(taken.file.inode))]

    def _write_blocks(self, batch: Sequence[_Taken]) -> tuple[list[Block], list[tuple[Extent, ...]]]:
        plans = plan_blocks([self._data_of(taken) for taken in batch], self._block_bytes)
        blocks = _all_or_nothing(
            [self._executor.submit(self._write_block, plan, batch) for plan in plans], self._discard_block
        )
        return blocks, extents_of(plans, [block.block for block in blocks], len(batch))

    def _data_of(self, taken: _Taken) -> list[tuple[int, int]]:
        """Where it is no hole."""
        size = taken.size_bytes
        if taken.place is not None:
            return [(0, size)] if size else []
        return widen_segments(self._part.host.files.data_segments(taken.descriptor, 0, size), size)

    def _read(self, taken: _Taken, target: memoryview, offset: int) -> int:
        if taken.place is None:
            return self._part.host.files.read_into(taken.descriptor, target, offset)
        content = self._tier.segments.read(taken.place, taken.file.inode, taken.version)
        target[:] = content[offset : offset + len(target)]
        return len(target)

    def _write_block(self, plan: BlockPlan, batch: Sequence[_Taken]) -> Block:
        with self._part.blocks.lend(BACKPRESSURE_WAIT_S) as buffer:
            for piece in plan.pieces:
                target = buffer.data[piece.block_offset : piece.block_offset + piece.length]
                count = self._read(batch[piece.file], target, piece.offset)
                if count < piece.length:  # cut short by a writer: a void drain or a snapshot, so any bytes do
                    target[count:] = bytes(piece.length - count)
                target.release()
            self._on_write(plan.size_bytes)
            return self._part.blocks.write(buffer, plan.size_bytes)

    def _discard_block(self, block: Block) -> None:
        """A block that will not be committed: its chunks go now, or with the next garbage collection."""
        try:
            self._part.blocks.delete(block)
            self._part.metadata.release_reservation(block.block)
        except TieredError as error:
            _log.info("chunks of block %016x are left to garbage collection: %s", block.block, error)

    def _seal_again(self, batch: Sequence[_Taken]) -> None:
        retry_s = self._part.host.clock.monotonic_s() + _RETRY_S
        for taken in batch:
            with taken.file.lock:
                if taken.file.state is FileState.DRAINING:
                    taken.file.apply(FileEvent.DRAIN_FAILED)
                taken.file.retry_not_before_s = retry_s

    def _failed(self, files: Sequence[LocalFile], error: TieredError | OSError) -> None:
        """Remember why, tell it once, and let others have their turn first."""
        retry_s = self._part.host.clock.monotonic_s() + _RETRY_S
        known = error if isinstance(error, ConditionError | IntegrityError) else UnavailableError(str(error))
        message = f"{type(known).__name__}: {known}"
        if message not in self._failing.values():
            _log.warning("the drain of %d file(s) failed and will be tried again: %s", len(files), message)
        for file in files:
            file.retry_not_before_s = retry_s
            self._failing[file.inode] = message


def _packable(file: LocalFile) -> bool:
    """Small, closed, and not stored before: it may share a block."""
    small = file.size_bytes <= PACKED_FILE_BYTES_MAX
    return small and file.state is not FileState.STAGING and file.snapshot_stamp is None


def _all_or_nothing(futures: Sequence[Future[Block]], discard: Callable[[Block], None]) -> list[Block]:
    """Every result, in order; or, when one failed, the first error, once all have ended and what was made is discarded."""
    error: BaseException | None = None
    done: list[Block] = []
    for future in futures:
        if error is not None:
            future.cancel()
        if future.cancelled():
            continue
        failure = future.exception()
        if failure is None:
            done.append(future.result())
        elif error is None:
            error = failure
    if error is None:
        return done
    for block in done:
        discard(block)
    raise error
